"""Build the section "Estimators" of the theory report: its text, tables and figure."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS, DASHES
from tdistill.pages.parts import Section
from tdistill.pages.svg import INK, Line, Panel, Plot, set_scale
from tdistill.pages.tables import MISSING, Align, Cell, Table, format_number
from tdistill.theory.estimator_rows import ANCHOR_GAUGES, ANCHORS, END_GAUGES, ESTIMATORS, GAMMA, GAUGES, Arguments
from tdistill.theory.plots import Rows

TITLE = "Estimators: bias and noise"
DRAWN = tuple(gauge for gauge in GAUGES if gauge != "max_support")
Pair = dict[str, Arguments]  # estimator → its row
NOTHING_LEFT = 1e-6  # nats: less is the solver's tolerance
_NAN = float("nan")


def estimator_section(rows: Rows) -> Section:
    """Build the whole section, in the order of reading."""
    makers = (gauge_table, undiscounted_table, distance_table, terminal_table, anchor_table, other_table, last_token_table)
    return Section("estimators", TITLE, [estimator_text(rows), estimator_plot(rows), *(make(rows) for make in makers)])


def estimator_text(rows: Rows) -> str:
    """Describe the trees, the texts and the columns of the tables."""
    (start,) = _of(rows, "start")
    return (
        f"{start['trees']} token trees, {start['texts']:,} texts: all that their teachers write, each with its probability, so that nothing is "
        f"sampled. {start['ended']:.0%} of them end by EOS, the rest are cut off; {start['off_support']:.0%} of the tokens lie off A_p, which "
        f"holds {start['candidates']:.1f} tokens. The student is a table, {start['kl']:.3f} nats from the teacher on A_p (a uniform one: "
        f"{start['kl_uniform']:.3f}), with a mass of {start['mass']:.2f} there (the teacher: {start['teacher_mass']:.2f}). Noise: root of the "
        "variance of one text's gradient over the length of the mean gradient. Bias: of expected against sampled, in the same unit. "
        "Break-even: the size of a batch, in texts, above which sampled has the smaller mean squared error (median of the trees). Cosine: "
        "with the gradient of cloning on A_p. KL: from the teacher to the minimiser of the exact loss, on A_p, in nats. ≈: within .001 nats "
        "of loss per text, by the solver's last steps, but no point of zero gradient (max and max_support have kinks); –: not reached. All "
        "else are means over the trees; standard errors stand in the rows."
    )


def _of(rows: Rows, group: str, **fixed: object) -> Iterable[Arguments]:
    return (row for row in rows if row["group"] == group and all(row.get(k) == v for k, v in fixed.items()))


def _pairs(rows: Iterable[Arguments], gauges: Sequence[str]) -> list[Pair]:
    """Pair the rows of both estimators, sorted by gauge, anchor and α."""

    def place(row: Arguments) -> tuple[int, int, float]:
        return gauges.index(row["gauge"]), ANCHORS.index(row.get("anchor", "none")), row["alpha"]

    return [{row["estimator"]: row for row in pair} for _, pair in groupby(sorted(rows, key=place), key=place)]


def _table(caption: str, header: list[str], body: list[list[str]], left: int = 1) -> Table:
    align: list[Align] = ["left" if i < left else "right" for i in range(len(header))]
    return Table(caption, header, [[Cell(text) for text in line] for line in body], align)


def _optimum(row: Arguments, key: str, decimals: int | None = None) -> str:
    """Format a number of the optimum, marked if it is only near one."""
    if row.get("found", "nothing") == "nothing":
        return MISSING
    if row[key] < NOTHING_LEFT:
        return f"< {NOTHING_LEFT:.6f}"
    return ("≈ " if row["found"] == "near" else "") + format_number(row[key], decimals)


def _each(pair: Pair, key: str, decimals: int) -> list[str]:
    return [format_number(pair[name][key], decimals) for name in ESTIMATORS]


def _kl(pair: Pair) -> list[str]:
    return [_optimum(pair[name], "kl") for name in ESTIMATORS]


def _head(pair: Pair) -> list[str]:
    row = pair["expected"]
    return [row["gauge"], f"{row['alpha']:g}", format_number(row["reward_square"])]


def gauge_table(rows: Rows) -> Table:
    """Build the table of gauges and α at γ = .99, for both estimators, with the KL at γ = 0."""
    plain = _pairs(_of(rows, "gauge", gamma=0.0), GAUGES)
    body = []
    for pair, undiscounted in zip(_pairs(_of(rows, "gauge", gamma=GAMMA), GAUGES), plain, strict=True):
        bias = [format_number(pair["expected"]["bias"], 3), _break_even(pair)]
        cosine = format_number(pair["sampled"]["cosine"], 2)
        body.append([*_head(pair), *_each(pair, "noise", 2), *bias, cosine, *_kl(pair), _optimum(undiscounted["expected"], "kl")])
    header = ["gauge", "α", "E r²", "noise, sampled", "noise, expected", "bias, expected", "break-even texts", "cosine, sampled"]
    caption = f"γ = {GAMMA:g}, no anchor, V(end) = 0."
    return _table(caption, [*header, "KL, sampled", "KL, expected", "KL at γ = 0"], body)


def _break_even(pair: Pair) -> str:
    """Format the break-even to two digits, which is more than its precision."""
    return format_number(float(f"{pair['expected']['break_even']:.1e}"), 0)


def undiscounted_table(rows: Rows) -> Table:
    """Build the same table at γ = 0, where both estimators have one population."""
    pairs = _pairs(_of(rows, "gauge", gamma=0.0), GAUGES)
    body = [[*_head(p), *_each(p, "noise", 2), format_number(p["expected"]["cosine"], 2), _optimum(p["expected"], "kl")] for p in pairs]
    caption = "γ = 0: without a successor to share, both estimators have the same mean gradient and the same optimum."
    return _table(caption, ["gauge", "α", "E r²", "noise, sampled", "noise, expected", "cosine", "KL"], body)


def distance_table(rows: Rows) -> Table:
    """Build the table by the student's distance: close to the teacher the mean gradient is small, and its noise large."""
    body = []
    for row in _of(rows, "distance"):
        numbers = [format_number(row[k], 2) for k in ("noise_sampled", "noise_expected")]
        ratio = f"{format_number(row['noise_ratio'], 1)} ± {format_number(row['noise_ratio_stderr'], 1)}"
        body.append([format_number(row["kl"]), f"{row['alpha']:g}", *numbers, ratio, format_number(row["bias"], 3)])
    header = ["KL at the start", "α", "noise, sampled", "noise, expected", "sampled/expected", "bias, expected"]
    return _table("By the student's distance from the teacher; gauge lse.", header, body, 0)


def terminal_table(rows: Rows) -> Table:
    """Build the table that compares an absorbing end with V(end) = 0."""
    zero = _pairs((r for r in _of(rows, "gauge", gamma=GAMMA) if r["gauge"] in END_GAUGES), END_GAUGES)
    absorbing = _pairs(_of(rows, "terminal"), END_GAUGES)
    body = [
        [*_head(p), *_each(p, "noise", 2), format_number(p["expected"]["bias"], 3), *_kl(p), *_kl(q)]
        for p, q in zip(absorbing, zero, strict=True)
    ]
    header = ["gauge", "α", "E r²", "noise, sampled", "noise, expected", "bias, expected", "KL, sampled", "KL, expected"]
    return _table("Absorbing end, 2α/(1−γ).", [*header, "V(end) = 0: KL, sampled", "KL, expected"], body)


def anchor_table(rows: Rows) -> Table:
    """Build the table of anchors: how much mass each one keeps on A_p, and its cost in KL."""
    found = [{"anchor": "none"} | r for r in _of(rows, "gauge", gamma=GAMMA) if r["gauge"] in ANCHOR_GAUGES] + list(_of(rows, "anchor"))
    body = []
    for pair in _pairs(found, ANCHOR_GAUGES):
        row = pair["expected"]
        line = [row["gauge"], row["anchor"], f"{row['alpha']:g}", *_each(pair, "noise", 2), format_number(row["cosine"], 2)]
        body.append([*line, _optimum(row, "kl"), _optimum(row, "mass", 3)])
    header = ["gauge", "anchor", "α", "noise, sampled", "noise, expected", "cosine", "KL", "mass on A_p at the optimum"]
    return _table("Anchors; the last three columns are of the estimator expected.", header, body, 2)


def other_table(rows: Rows) -> Table:
    """Build the table of objectives that have no estimator to choose."""
    body = []
    for row in _of(rows, "other"):
        note = row.get("gauge") or ("on A_p" if row.get("support") == "proj" else "")
        ended = {key.removesuffix("_ended"): value for key, value in row.items() if key.endswith("_ended")}
        numbers = [format_number(row[k], 2) for k in ("noise", "cosine")]
        body.append([row["name"], note, *numbers, _optimum(row, "mass", 3), _optimum(row, "kl"), _optimum(ended, "kl")])
    caption = (
        f"Other objectives. The TD ones at γ = {GAMMA:g} and λ = 0.95, the values of the gauge learned 0 at the start. The last column is of "
        "trees none of whose texts is cut off."
    )
    header = ["objective", "gauge", "noise", "cosine", "mass on A_p at the optimum", "KL", "KL, all texts ended"]
    return _table(caption, header, body, 2)


def last_token_table(rows: Rows) -> Table:
    """Build the table of the last token under each convention for cut-offs."""
    body = []
    for row in _of(rows, "last_token"):
        name = f"φ linear, {row['estimator']}" if "estimator" in row else row["name"]
        body.append([name, format_number(row["end_before"], 3), format_number(row["end_last"], 3)])
    caption = "Trees whose last token may be EOS: probability of EOS on A_p at the optimum, over the states whose A_p holds it."
    return _table(caption, ["", "before the last token", "at the last token"], body)


def estimator_plot(rows: Rows) -> Plot:
    """Plot noise, bias and the optimum's KL, by α."""
    found = list(_of(rows, "gauge", gamma=GAMMA))
    gauges = dict(zip(DRAWN, COLOURS, strict=False))
    dashes = dict(zip(ESTIMATORS, DASHES, strict=False))

    def panel(title: str, key: str, estimators: Sequence[str]) -> Panel:
        lines = {
            (g, e): sorted((r for r in found if (r["gauge"], r["estimator"]) == (g, e)), key=lambda r: r["alpha"])
            for g in gauges
            for e in estimators
        }

        def draw(ax: Axes) -> None:
            for (gauge, estimator), line in lines.items():
                ys = [_NAN if key == "kl" and r.get("found", "nothing") == "nothing" else r[key] for r in line]
                ax.plot([r["alpha"] for r in line], ys, dashes[estimator], color=gauges[gauge], linewidth=1.6, marker="o", markersize=3)
            ax.set_title(title)
            ax.set_xlabel("α, log scale")
            set_scale(ax, "x", log=True)
            set_scale(ax, "y", log=True)

        ends = "; ".join(f"{g} {e} from {format_number(line[0][key])} to {format_number(line[-1][key])}" for (g, e), line in lines.items())
        return Panel(f"{title} by α: {ends}.", draw)

    panels = [panel("noise of one text", "noise", ESTIMATORS), panel("bias of expected", "bias", ESTIMATORS[1:])]
    if any(row.get("found", "nothing") != "nothing" for row in found):  # a logarithmic axis needs something to show
        panels.append(panel("KL at the optimum, nats", "kl", ESTIMATORS))
    legend = [Line(g, colour, DASHES[0]) for g, colour in gauges.items()] + [Line(e, INK, dash) for e, dash in dashes.items()]
    caption = (
        f"The estimators of iq_learn by gauge and α, at γ = {GAMMA:g} without anchor: noise of one text's gradient and bias of expected, "
        "relative to the mean gradient of sampled, and KL from the teacher to the exact optimum on A_p. max_support is not told apart "
        "from max, and none and learned share their optima. Log scales."
    )
    return Plot("estimators", caption, panels, columns=3, size=(330, 280), legend=legend)

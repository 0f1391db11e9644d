"""Draw the artefacts of a run and what each of them reads, for docs/recipes.md."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot

SIZE = (960, 300)
WIDTH, HALF = 132, 19  # pixels of a box: its width, and half its height
INPUT, MODEL, MEASURED = COLOURS[4], COLOURS[0], COLOURS[2]


@dataclass(frozen=True)
class Box:
    """Hold a kind of artefact: its place in the picture, its family's colour, a note, and the kinds that it reads."""

    x: int
    y: int
    colour: str
    note: str
    reads: tuple[str, ...] = ()


BOXES = {
    "prompts": Box(10, 60, INPUT, "train, valid, test"),
    "teacher": Box(10, 150, MODEL, "one"),
    "start": Box(10, 240, MODEL, "one", ("teacher",)),
    "rollouts": Box(212, 105, INPUT, "train, valid, test", ("prompts", "teacher")),
    "students: sft": Box(212, 240, MODEL, "one", ("start", "rollouts")),
    "students": Box(414, 190, MODEL, "one for each method and seed", ("students: sft", "rollouts")),
    "answers": Box(616, 60, MEASURED, "one for each system", ("rollouts", "students")),
    "divergences": Box(616, 150, MEASURED, "one for each system", ("rollouts", "students")),
    "evaluation": Box(818, 60, MEASURED, "lists them all", ("answers", "divergences")),
    "report": Box(818, 190, MEASURED, "pools the seeds", ("evaluation",)),
}


def artefacts_plot() -> Plot:
    """Plot the kinds of artefact, with an arrow from each to those that read it."""

    def draw(ax: Axes) -> None:
        ax.set(xlim=(0, SIZE[0]), ylim=(SIZE[1], 0))
        ax.set_axis_off()
        for name, box in BOXES.items():
            for other in box.reads:
                _arrow(ax, BOXES[other], box)
            _box(ax, name, box)

    families = {"text": INPUT, "model": MODEL, "measurement": MEASURED}
    caption = "The artefacts of a run. An arrow leads to the artefacts that read it: if one changes, these are made again, and no others."
    told = "; ".join(f"{name} reads {', '.join(box.reads)}" for name, box in BOXES.items() if box.reads)
    legend = [Line(name, colour, "-") for name, colour in families.items()]
    return Plot("artefacts", caption, [Panel(f"{caption} {told}.", draw)], 1, SIZE, legend)


def _box(ax: Axes, name: str, box: Box) -> None:
    style = "round,pad=0,rounding_size=5"
    patch = FancyBboxPatch((box.x, box.y - HALF), WIDTH, 2 * HALF, boxstyle=style, facecolor="none", edgecolor=box.colour, linewidth=1.8)
    ax.add_patch(patch)
    ax.text(box.x + WIDTH / 2, box.y, name, ha="center", va="center", color=INK)
    ax.text(box.x + WIDTH / 2, box.y + HALF + 11, box.note, ha="center", va="center", fontsize=8.5, style="italic", color=INK)


def _arrow(ax: Axes, source: Box, target: Box) -> None:
    """Draw an arrow from a box to one on its right, or to one below it in the same column."""
    if source.x == target.x:
        ends = (source.x + WIDTH / 10, source.y + HALF + 2), (target.x + WIDTH / 10, target.y - HALF - 2)
    else:
        ends = (source.x + WIDTH + 2, source.y), (target.x - 2, target.y)
    ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=INK, linewidth=1.1))

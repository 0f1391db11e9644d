"""Draw a made-up teacher's tree of tokens for docs/concepts/mdp.md. Its candidates are computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from tdistill.mdp.candidates import nucleus_mask
from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot

BLUE, GREEN, GREY = COLOURS[0], COLOURS[2], "#808080"


@dataclass(frozen=True)
class Token:
    """Hold a token of the tree: its probability in the state before it, its height in the picture, and the tokens that follow."""

    text: str
    prob: float
    y: int
    then: tuple["Token", ...] = ()
    note: str = ""


OTHER, EOS = "all others", "EOS"
TREE_P = 0.8
PROMPT = "Name a fruit."
TREE = (
    Token(
        "Apple",
        0.48,
        88,
        then=(
            Token("“.”", 0.55, 32, then=(Token(EOS, 0.97, 14, note="the end: V = 0"), Token(OTHER, 0.03, 50))),
            Token(EOS, 0.35, 88, note="the end: V = 0"),
            Token(OTHER, 0.10, 126),
        ),
    ),
    Token(
        "A",
        0.34,
        238,
        then=(
            Token("ripe", 0.45, 182, note="and so on"),
            Token("pear", 0.30, 220, note="cut off by a length limit: not the end, so V is not 0"),
            Token("kiwi", 0.15, 258, note="and so on"),
            Token(OTHER, 0.10, 296),
        ),
    ),
    Token("Mango", 0.11, 334, note="may be sampled, but is no candidate: such a step teaches TD nothing"),
    Token(OTHER, 0.07, 372),
)
TREE_SIZE = (960, 400)
FIRST, COLUMN, BOX, HALF = 200, 230, 116, 14  # pixels: where the first tokens stand, from column to column, a token's width, half its height


def tree_plot() -> Plot:
    """Plot the tree, with the candidates at ``TREE_P``."""

    def draw(ax: Axes) -> None:
        ax.set(xlim=(-3, TREE_SIZE[0]), ylim=(TREE_SIZE[1], -3))
        ax.set_axis_off()
        _box(ax, 0, 180, 104, INK, (52, "center", PROMPT))
        _grow(ax, (104, 180), TREE, FIRST)

    names = {f"candidate: in A_p, p = {TREE_P:g}": (BLUE, "-"), "candidate that ends the text": (GREEN, "-"), "outside A_p": (GREY, ":")}
    lines = [Line(name, *look) for name, look in names.items()]
    caption = "A tree of tokens, the candidates of each state, an end and a cut-off. The probabilities are made up."
    return Plot("mdp-tree", caption, [Panel(f"{caption} {_told(TREE)}", draw)], 1, TREE_SIZE, lines)


def _kept(tokens: Sequence[Token]) -> list[bool]:
    """Return which tokens are candidates. Tokens descend in probability. The last, all others, is never in a nucleus here."""
    probs = torch.tensor([t.prob for t in tokens], dtype=torch.float64)
    return nucleus_mask(probs.log(), TREE_P).tolist()


def _told(tokens: Sequence[Token]) -> str:
    """Return the tree in words, for those who can't see it."""
    kept = [f"{t.text} {t.prob:.2f}" for t, keep in zip(tokens, _kept(tokens), strict=True) if keep]
    return f"Candidates: {', '.join(kept)}. " + " ".join(f"After {t.text}: {_told(t.then)}" for t in tokens if t.then)


def _grow(ax: Axes, state: tuple[float, float], tokens: Sequence[Token], x: int) -> None:
    """Draw the tokens that follow a state, and what follows them."""
    kept = _kept(tokens)
    mass = sum(t.prob for t, keep in zip(tokens, kept, strict=True) if keep)
    ax.plot(*state, "o", color=INK, markersize=7)
    ax.text(state[0] - 2, state[1] + HALF + 4, f"m = {mass:.2f}", ha="right", va="top", fontsize=9.5)
    for token, keep in zip(tokens, kept, strict=True):
        colour = GREY if not keep else GREEN if token.text == EOS else BLUE
        ax.plot([state[0], x], [state[1], token.y], ":" if not keep else "-", color=colour, linewidth=1.6, zorder=0)
        _box(ax, x, token.y, BOX, colour, (8, "left", token.text), (BOX - 8, "right", f"{token.prob:.2f}"))
        end = x + BOX
        if token.then:
            ax.plot([end, end + 22], [token.y, token.y], color=colour, linewidth=1.6, zorder=0)
            _grow(ax, (end + 22, token.y), token.then, x + COLUMN)
        elif token.note:
            ax.text(end + 10, token.y, token.note, va="center", fontsize=9.5, style="italic")


def _box(ax: Axes, x: float, y: float, width: float, colour: str, *texts: tuple[float, str, str]) -> None:
    """Draw a box from x on, with (offset, alignment, text)s inside."""
    style = "round,pad=0,rounding_size=5"
    ax.add_patch(FancyBboxPatch((x, y - HALF), width, 2 * HALF, boxstyle=style, facecolor="none", edgecolor=colour, linewidth=1.6))
    for offset, align, text in texts:
        ax.text(x + offset, y, text, ha=align, va="center", color=GREY if colour == GREY else INK)

"""Render figures as SVG text that takes the page's text colour, scales with it, and has the same bytes on every run."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tdistill.pages.text import escape_html, visible

INK = "#010203"  # stands for the page's text colour while matplotlib draws
FILE_INK, FILE_PAPER = "#1b1f24", "#ffffff"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

_STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, and in the page's font
    "svg.hashsalt": "tdistill",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "DejaVu Sans",  # for measuring; wider than what browsers show, so nothing runs into anything
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.fontsize": 10.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Panel:
    """Describe one pair of axes: how to draw it, and a sentence that says the same to readers who cannot see it."""

    description: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Line:
    """Describe how a legend shows one series."""

    name: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Plot:
    """Describe a figure: panels of one size (in CSS pixels), in at most ``columns`` columns."""

    key: str
    caption: str
    panels: list[Panel]
    columns: int
    size: tuple[int, int] = (330, 220)
    legend: list[Line] = field(default_factory=list)


def panel_svgs(plot: Plot) -> list[str]:
    """Render each panel as its own SVG, so that a page can place them as its width allows."""
    return [_svg([panel], 1, plot.size, [], f"{plot.key}-{i}") for i, panel in enumerate(plot.panels)]


def plot_file(plot: Plot) -> str:
    """Render the whole figure with its legend as an SVG file with a white background."""
    svg = _svg(plot.panels, min(plot.columns, len(plot.panels)), plot.size, plot.legend, plot.key)
    head, rest = svg.split(">", 1)
    width, height = re.findall(r"[\d.]+", head.split('viewBox="')[1])[2:4]
    head = f'{head} width="{width}" height="{height}" color="{FILE_INK}"'
    return f'{head}>\n <rect width="100%" height="100%" fill="{FILE_PAPER}"/>{rest}'


def short(name: str, length: int) -> str:
    """Return ``name`` on one line, cut to ``length`` characters."""
    name = " ".join(visible(name).split())
    return name if len(name) <= length else name[: length - 1] + "…"


def set_scale(ax: Axes, name: Literal["x", "y"], *, log: bool = False) -> None:
    """Set a linear or logarithmic scale with few ticks, labelled by plain numbers."""
    axis = ax.xaxis if name == "x" else ax.yaxis
    if not log:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−")))
        return
    ax.set(**{f"{name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1.0,) if np.log10(high / low) > 2.2 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))
    axis.set_minor_formatter(NullFormatter())


def _brief(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _svg(panels: Sequence[Panel], columns: int, size: tuple[int, int], legend: Sequence[Line], prefix: str) -> str:
    rows = -(-len(panels) // columns)
    legend_height = 26 * -(-len(legend) // 4)
    width, height = columns * size[0], rows * size[1] + legend_height
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts show the text, not matplotlib's
        # One point of matplotlib is one CSS pixel of the page.
        figure = Figure(figsize=(width / 72, height / 72), layout=ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=6 / 72))
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for ax, panel in zip(axes, panels, strict=False):
            panel.draw(ax)
        for ax in axes[len(panels) :]:
            ax.remove()
        if legend:
            handles = [Line2D([], [], color=line.colour, linestyle=line.dash, linewidth=2, label=short(line.name, 30)) for line in legend]
            figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=_NO_METADATA)
    return _for_page(text.getvalue(), prefix, " ".join(panel.description for panel in panels))


def _for_page(svg: str, prefix: str, label: str) -> str:
    """Turn matplotlib's file into an element of a page: without prologue, with ids of its own, in the page's colour and font, with a label."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: 'DejaVu Sans'(; )?", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # would hold for the whole page
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    return f'{head} font-family="{FONTS}" stroke-linejoin="round" role="img" aria-label="{escape_html(label)}">{rest}'.strip()

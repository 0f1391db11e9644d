"""Choose colours and dashes of lines, and thin long series."""

from collections.abc import Sequence

import numpy as np

from tdistill.pages.svg import Line

REFERENCE_COLOUR = "#808080"
# Okabe & Ito's colours, the light ones darkened: each has a contrast of 3:1 on white and on the dark page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c56a9b", "#b27d00", "#3d94cc", "#8c6bb1")
DASHES = ("-", "--", ":", "-.")
AT_MOST_POINTS = 150


def colour(index: int) -> str:
    """Return the colour of the series number ``index``; the colours repeat."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """Return the dash of the series number ``index``; the dashes repeat."""
    return DASHES[index % len(DASHES)]


def lines_of(names: Sequence[str]) -> dict[str, Line]:
    """Return name → line. Each name has a colour of its own; when the colours are used up, they come again with the next dash."""
    return {name: Line(name, colour(i), dash(i // len(COLOURS))) for i, name in enumerate(names)}


def thinned(points: np.ndarray, at_most: int = AT_MOST_POINTS) -> np.ndarray:
    """Return ``points`` [n, 2] as at most ``at_most`` means over stretches of equal length."""
    if len(points) <= at_most:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, at_most)])

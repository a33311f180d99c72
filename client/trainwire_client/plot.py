"""Line plots in braille characters: each holds two by four dots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Plot", "draw"]

_BLANK = 0x2800
# Bits of the Unicode braille patterns, [column][row] from the top left.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        rows: for each line its cells, a character and the index of the series it belongs to (the
            last one drawn there; -1 where there is none).
        limits: for each series the values of the lowest and of the highest row of dots.
    """

    rows: list[list[tuple[str, int]]]
    limits: list[tuple[float, float]]


def draw(series: Sequence[Sequence[float]], width: int, height: int) -> Plot:
    """Draw series over one common x axis, each with a y axis of its own.

    A training objective and a validation loss are different quantities: on a common y axis both
    would be flat lines far apart.

    Args:
        series: values at x = 0, 1, 2...; NaN and infinite values leave a hole.
        width, height: in characters.
    """
    limits = [_limits(values) for values in series]
    longest = max((len(values) for values in series), default=0)
    bits = [[0] * width for _ in range(height)]
    owners = [[-1] * width for _ in range(height)]
    for owner, values in enumerate(series):
        places = _places(values, longest, limits[owner], (2 * width - 1, 4 * height - 1))
        for x, y in _connected(places):
            bits[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            owners[y // 4][x // 2] = owner
    rows = [
        [(chr(_BLANK + bit), owner) for bit, owner in zip(*line, strict=True)]
        for line in zip(bits, owners, strict=True)
    ]
    return Plot(rows, limits)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _places(
    values: Sequence[float], longest: int, limits: tuple[float, float], dots: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """The dot of each value, counted from the top left; None for a hole."""
    low, high = limits
    spread = (high - low) or 1.0
    step = dots[0] / max(longest - 1, 1)
    return [
        (round(i * step), round((high - value) / spread * dots[1]))
        if math.isfinite(value)
        else None
        for i, value in enumerate(values)
    ]


def _connected(places: Sequence[tuple[int, int] | None]) -> Iterator[tuple[int, int]]:
    """All dots of the lines between neighbours, and of points without a neighbour."""
    before: tuple[int, int] | None = None
    for place in places:
        if place is not None:
            yield from _line(before or place, place)
        before = place


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Dots from one place to another, one for each step along the longer side."""
    across, down = end[0] - start[0], end[1] - start[1]
    steps = max(abs(across), abs(down), 1)
    for i in range(steps + 1):
        yield start[0] + round(across * i / steps), start[1] + round(down * i / steps)

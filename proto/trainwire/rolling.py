"""Rolling scaling: every row by the mean and the deviation of the last rows, itself included.

Made of operators that NumPy arrays and torch tensors share, in one order: the trainer, a bundle and
its ONNX file compute the same numbers, but for the last bits.
"""

from __future__ import annotations

from typing import Any

__all__ = ["moments", "scale"]

_Moments = tuple[Any, Any]
"""Mean, and sum of squared differences from it, of the rows that begin at each row."""


def scale(values: Any, window: int) -> Any:
    """(x - mean) / deviation, over the `window` rows that end with each row.

    The deviation is that of the population (divided by `window`); where it is 0 the result is 0,
    because a value that did not move is its own mean. Moments of a stretch are put together from
    those of its two parts (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
    variance", equation 2.1), doubling the parts. Nothing is subtracted from a longer sum: an
    offset, or an outlier that has left the window, costs no digits, and a result depends on its own
    `window` rows alone, to the last bit.

    Args:
        values: NumPy array or torch tensor, float64 [rows, ...], in time order.
        window: rows to scale by, at least 2.

    Returns:
        The same kind, [rows - window + 1, ...]: from the first row with `window` rows up to it. NaN
        where one of these is NaN, infinite or so large that its square is infinite.
    """
    mean, squares = moments(values, window)
    deviation = (squares / window) ** 0.5
    scaled = (values[window - 1 :] - mean) / (deviation + (deviation == 0))
    # An infinite deviation would make a 0 of everything: NaN says what happened.
    return scaled + 0 * squares


def moments(values: Any, window: int) -> _Moments:
    """Mean and sum of squared differences from it of `window` rows, [rows - window + 1, ...] each.

    From those of 1, 2, 4... rows, by the binary digits of `window`; not for fewer rows.
    """
    part: _Moments = (values, 0 * values)
    whole: _Moments | None = None
    size, done = 1, 0
    while True:
        if window & size:
            whole = part if whole is None else _joined(whole, done, part, size)
            done += size
        if whole is not None and done == window:
            return whole
        part = _joined(part, size, part, size)
        size *= 2


def _joined(first: _Moments, rows: int, second: _Moments, more: int) -> _Moments:
    """Of `rows` rows and the `more` rows after them."""
    (mean, squares), (later_mean, later_squares) = (
        (first[0][:-more], first[1][:-more]),
        (second[0][rows:], second[1][rows:]),
    )
    both = rows + more
    apart = later_mean - mean
    return (
        mean + apart * (more / both),
        squares + later_squares + apart * apart * (rows * more / both),
    )

"""Series and windows: which rows follow each other, and where windows may begin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure, listed

_MOST_NAMES = 10


@dataclass(frozen=True)
class Series:
    """Rows in the order of training: one series after the other, each in time order.

    Attributes:
        order: int64 [rows], the row of the table that stands at each place.
        bounds: int64 [series + 1], first row of each series, and the number of rows.
        names: name of each series; empty for a table that is one series.
        instants: int64 [rows], rank of each row's time among all times (equal times have equal
            ranks), or None without a time column.
        left_out: rows of the table that are in no series, because they lack features.
        lacking: the features that they lack.
    """

    order: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    names: list[str]
    instants: npt.NDArray[np.int64] | None
    left_out: int = 0
    lacking: list[str] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.order)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [series], rows of each series."""
        return np.diff(self.bounds)

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """int64 [rows], the row after the last one of each row's series."""
        return np.repeat(self.bounds[1:], self.lengths)

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """int64 [rows], rows of each row's series that come before it."""
        return np.arange(self.row_count) - np.repeat(self.bounds[:-1], self.lengths)

    def describe(self, index: int) -> str:
        """A series as an error message names it."""
        return f"series {self.names[index]!r}" if self.names else "the table"

    def describe_left_out(self) -> str:
        """The rows in no series as an error message tells of them; empty where there are none."""
        if not self.left_out:
            return ""
        names = listed([repr(name) for name in self.lacking], _MOST_NAMES)
        return f"{self.left_out} rows are left out, because values of {names} are missing"

    def left_out_remedies(self) -> dict[str, str]:
        """The field that rows are left out by, and what would help; empty where there are none."""
        if not self.left_out:
            return {}
        return {"data.missing_values": "rows with all features, or fewer features, are needed"}


def arrange(
    groups: npt.NDArray[np.int64] | None,
    names: list[str],
    times: npt.NDArray[Any] | None,
    rows: int,
) -> Series:
    """Sort rows by series, then by time; rows without a time keep the table's order.

    Args:
        groups: int64 [rows], index of each row's series in `names`; None for one series.
        names: names of the series.
        times: [rows], anything NumPy can sort; None without a time column.
        rows: number of rows.

    Raises:
        JobFailure: INVALID_DATA when a series has two rows of the same time.
    """
    codes = np.zeros(rows, dtype=np.int64) if groups is None else groups
    counts = np.bincount(codes, minlength=max(1, len(names)))
    bounds = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    if times is None:
        return Series(np.argsort(codes, kind="stable"), bounds, names, None)
    ranks = np.unique(times, return_inverse=True)[1].astype(np.int64)
    order = np.lexsort((ranks, codes))
    series = Series(order, bounds, names, ranks[order])
    _refuse_equal_times(series, ranks[order], times)
    return series


def _refuse_equal_times(
    series: Series, instants: npt.NDArray[np.int64], times: npt.NDArray[Any]
) -> None:
    equal = np.diff(instants) == 0
    equal[series.bounds[1:-1] - 1] = False
    places = np.flatnonzero(equal)
    if not len(places):
        return
    first = int(places[0])
    index = int(np.searchsorted(series.bounds, first, side="right")) - 1
    raise JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"{series.describe(index)} has more than one row of time {times[series.order[first]]} "
        f"({len(places)} such rows in all); allowed: one row per time and series "
        "(several series in one table need data.windows.group_column)",
        (Violation("data.windows.time_column", "times must differ within a series"),),
    )


def keep_rows(series: Series, kept: npt.NDArray[np.bool_], lacking: list[str]) -> Series:
    """The series with some of their rows alone, which become neighbours.

    Args:
        kept: bool [rows].
        lacking: the features for lack of which the others are left out.
    """
    before = np.concatenate(([0], np.cumsum(kept))).astype(np.int64)
    instants = None
    if series.instants is not None:
        ranks = np.unique(series.instants[kept], return_inverse=True)[1]
        instants = ranks.astype(np.int64)
    return Series(
        order=series.order[kept],
        bounds=before[series.bounds],
        names=series.names,
        instants=instants,
        left_out=series.left_out + int((~kept).sum()),
        lacking=[*series.lacking, *lacking],
    )


def window_starts(series: Series, sequence_length: int, history: int = 0) -> npt.NDArray[np.int64]:
    """First rows of all windows, ascending; a window never crosses the end of its series.

    Args:
        history: rows of the same series that a window needs before it; those with fewer are there
            all the same.

    Returns:
        int64 [windows].

    Raises:
        JobFailure: GROUP_TOO_SHORT when a series has fewer rows than a window with its history.
    """
    _refuse_short_series(series, sequence_length, history)
    rows = np.arange(series.row_count, dtype=np.int64)
    return np.flatnonzero(rows + sequence_length <= series.ends)


def _refuse_short_series(series: Series, sequence_length: int, history: int) -> None:
    lengths = series.lengths
    short = np.flatnonzero(lengths < sequence_length + history)
    if not len(short):
        return
    shown = ", ".join(f"{series.describe(i)} has {lengths[i]} rows" for i in short[:5])
    more = f" (and {len(short) - 5} more series)" if len(short) > 5 else ""
    remedies = _remedies(sequence_length, history, int(lengths.min()))
    changes = "".join(f", or set {path} to at most {most}" for path, most in remedies.items())
    without = f" ({series.describe_left_out()})" if series.left_out else ""
    fields = {path: f"allowed: at most {most}" for path, most in remedies.items()}
    fields |= series.left_out_remedies()
    raise JobFailure(
        training_pb2.FAILURE_REASON_GROUP_TOO_SHORT,
        f"{shown}{more}{without}, but a window takes "
        f"{_rows_taken(sequence_length, history)}; drop series with fewer rows{changes}",
        tuple(Violation(path, why) for path, why in fields.items()),
    )


def _rows_taken(sequence_length: int, history: int) -> str:
    before = f" and {history} before it (data.scaling_window)" if history else ""
    return f"{sequence_length}{before}"


def _remedies(sequence_length: int, history: int, rows: int) -> dict[str, int]:
    """The largest value of each field, the others as they are, for series of so many rows."""
    most = {"data.windows.sequence_length": rows - history}
    if history:
        most["data.scaling_window"] = rows - sequence_length + 1
    return {path: value for path, value in most.items() if value >= 2}


def covered_rows(
    starts: npt.NDArray[np.int64], sequence_length: int, rows: int
) -> npt.NDArray[np.bool_]:
    """Which rows at least one of the windows covers, bool [rows]."""
    edges = np.bincount(starts, minlength=rows + 1)
    edges -= np.bincount(starts + sequence_length, minlength=rows + 1)
    return np.cumsum(edges)[:rows] > 0

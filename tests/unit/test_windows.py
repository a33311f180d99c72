"""Series and windows: order of rows, borders of series."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.data import windows
from trainwire_server.errors import JobFailure


def _groups(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def test_rows_are_sorted_by_series_then_time() -> None:
    times = np.array(["2020-01-02", "2020-01-01", "2020-01-01", "2020-01-03"], "datetime64[D]")
    series = windows.arrange(_groups([1, 0, 1, 0]), ["a", "b"], times, 4)
    assert series.order.tolist() == [1, 3, 2, 0]
    assert series.bounds.tolist() == [0, 2, 4]
    assert series.ends.tolist() == [2, 2, 4, 4]
    assert series.instants is not None
    assert series.instants.tolist() == [0, 2, 0, 1]


def test_rows_without_times_keep_their_order() -> None:
    series = windows.arrange(_groups([1, 0, 1, 0, 1]), ["a", "b"], None, 5)
    assert series.order.tolist() == [1, 3, 0, 2, 4]
    assert series.instants is None
    assert windows.arrange(None, [], None, 3).order.tolist() == [0, 1, 2]


def test_equal_times_are_refused_within_a_series_alone() -> None:
    times = np.array(["2020-01-01", "2020-01-01", "2020-01-02", "2020-01-02"], "datetime64[D]")
    windows.arrange(_groups([0, 1, 0, 1]), ["a", "b"], times, 4)
    with pytest.raises(JobFailure, match=r"series 'b' .* 2020-01-02") as caught:
        windows.arrange(_groups([0, 1, 1, 1]), ["a", "b"], times, 4)
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert caught.value.fields[0].field == "data.windows.time_column"
    with pytest.raises(JobFailure, match=r"the table .* time 1\.5 .*group_column"):
        windows.arrange(None, [], np.array([1.5, 0.5, 1.5]), 3)


def test_a_short_series_is_refused_by_name() -> None:
    series = windows.arrange(_groups([0] * 9 + [1] * 4), ["long", "short"], None, 13)
    assert len(windows.window_starts(series, 4)) == 7
    with pytest.raises(JobFailure, match=r"series 'short' has 4 rows.* 5;.* at most 4") as caught:
        windows.window_starts(series, 5)
    assert caught.value.reason == training_pb2.FAILURE_REASON_GROUP_TOO_SHORT
    assert caught.value.fields[0].field == "data.windows.sequence_length"


@settings(derandomize=True, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 12), min_size=1, max_size=5),
    sequence_length=st.integers(2, 4),
    data=st.data(),
)
def test_windows_are_all_those_that_lie_in_one_series(
    lengths: list[int], sequence_length: int, data: st.DataObject
) -> None:
    owners = data.draw(
        st.permutations([g for g, length in enumerate(lengths) for _ in range(length)])
    )
    names = [str(group) for group in range(len(lengths))]
    series = windows.arrange(_groups(owners), names, None, len(owners))
    ordered = np.array(owners)[series.order]
    expected = [
        start
        for start in range(len(owners) - sequence_length + 1)
        if len(set(ordered[start : start + sequence_length])) == 1
    ]
    starts = windows.window_starts(series, sequence_length)
    assert starts.tolist() == expected
    covered = {row for start in expected for row in range(start, start + sequence_length)}
    mask = windows.covered_rows(starts, sequence_length, len(owners))
    assert set(np.flatnonzero(mask)) == covered


def test_no_window_covers_no_row() -> None:
    assert not windows.covered_rows(np.array([], dtype=np.int64), 3, 5).any()

"""Scaling by the rows before: what it computes, and that it looks at nothing else."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainwire import rolling
from trainwire.v1 import training_pb2
from trainwire_server.data import scaling
from trainwire_server.errors import JobFailure

Values = npt.NDArray[np.float64]
COLUMN = scaling.Column("close", "data.windows.feature_columns")


def slow(values: Values, window: int) -> Values:
    """The same, row by row, with exact sums."""
    found = []
    for last in range(window - 1, len(values)):
        rows = values[last - window + 1 : last + 1].tolist()
        mean = math.fsum(rows) / window
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in rows) / window)
        constant = min(rows) == max(rows)
        found.append(0.0 if constant else (rows[-1] - mean) / deviation)
    return np.array(found)


def has_history(lengths: list[int], window: int) -> npt.NDArray[np.bool_]:
    return np.concatenate([np.arange(length) >= window - 1 for length in lengths])


@pytest.mark.parametrize("window", [2, 3, 7, 8, 60, 119])
def test_it_matches_a_row_by_row_reference(window: int) -> None:
    values = np.random.default_rng(window).normal(3, 2, 150)
    assert rolling.scale(values, window) == pytest.approx(slow(values, window), abs=1e-12)
    assert len(rolling.scale(values[:window], window)) == 1
    assert len(rolling.scale(values[: window - 1], window)) == 0


def test_offsets_and_outliers_cost_no_digits() -> None:
    # A clock in steps of about a second, on which a row of 1e15 intrudes.
    values = 1.7e9 + np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, 300))
    values[100] = 1e15
    found, expected = rolling.scale(values, 30), slow(values, 30)
    untouched = np.r_[0 : 100 - 29, 101 : len(found)]
    assert found[untouched] == pytest.approx(expected[untouched], abs=1e-6)
    assert found[100 - 29] == pytest.approx(math.sqrt(29))


@pytest.mark.parametrize("value", [0.1, 0.0, -1e300, 5e-324])
def test_what_does_not_move_becomes_0(value: float) -> None:
    values = np.concatenate([np.full(20, value), [1.0, 2.0], np.full(20, value)])
    found = rolling.scale(values[:20], 7)
    assert not found.any()
    if abs(value) < 1:
        # A window that begins after the bump is as flat as one before it.
        assert not rolling.scale(values, 7)[22:].any()
        assert rolling.scale(values, 7)[14:22].all()


def test_arrays_and_tensors_come_to_the_same_numbers() -> None:
    values = np.random.default_rng(1).normal(1e6, 1, (90, 4, 3))
    found = rolling.scale(torch.from_numpy(values), 25).numpy()
    assert found == pytest.approx(rolling.scale(values, 25), abs=1e-12)
    assert found[:, 2, 1] == pytest.approx(rolling.scale(values[:, 2, 1], 25), abs=1e-12)


# ------------------------------------------------------------------------ no leakage


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], int, Values, int, Values]:
    """Lengths of series, a window, values, a row, and values that differ but in the row's past."""
    window = draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(window, 30), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    values = random.normal(draw(st.sampled_from([0, 1e9])), 1, sum(lengths))
    series = draw(st.integers(0, len(lengths) - 1))
    first = sum(lengths[:series])
    last = first + draw(st.integers(window - 1, lengths[series] - 1))
    other = random.normal(0, 10.0 ** random.integers(-3, 12), sum(lengths))
    other[first : last + 1] = values[first : last + 1]
    return lengths, window, values, last, other


@given(tables())
def test_a_row_depends_on_the_past_of_its_series_alone(
    table: tuple[list[int], int, Values, int, Values],
) -> None:
    lengths, window, values, last, other = table
    known = has_history(lengths, window)
    before = scaling.roll(COLUMN, values, window, known)
    after = scaling.roll(COLUMN, other, window, known)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    first = starts[np.searchsorted(starts, last, side="right") - 1]
    assert before[first : last + 1].tobytes() == after[first : last + 1].tobytes()
    # Nor on rows of it that have left the window.
    forgotten = other.copy()
    forgotten[first : last - window + 1] = 1e3
    assert scaling.roll(COLUMN, forgotten, window, known)[last] == before[last]
    # But on the first row that has not.
    moved = []
    for jump in (-1e12, 1e12):
        forgotten[last - window + 1] = jump
        moved.append(scaling.roll(COLUMN, forgotten, window, known)[last])
    assert moved[0] > moved[1]


# ------------------------------------------------------------------------ a column


def test_parts_of_a_column_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(0, 1, 500)
    known = has_history([200, 300], 13)
    whole = scaling.roll(COLUMN, values, 13, known)
    monkeypatch.setattr(scaling, "_ROWS", 37)
    assert whole.tobytes() == scaling.roll(COLUMN, values, 13, known).tobytes()
    assert whole.dtype == np.float32
    assert np.array_equal(np.isnan(whole), ~known)
    expected = slow(values[200:], 13).astype(np.float32)
    assert whole[212:] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [1e200, np.inf, -np.inf, np.nan])
def test_what_cannot_be_computed_with_is_refused_by_name(value: float) -> None:
    values = np.arange(40.0)
    values[30] = value
    with pytest.raises(JobFailure, match=r"column 'close' .* 5 rows, the first by") as caught:
        scaling.roll(COLUMN, values, 5, has_history([40], 5))
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA

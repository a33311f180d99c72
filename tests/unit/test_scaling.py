"""Standard scaling of one feature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.data import scaling
from trainwire_server.errors import JobFailure

COLUMN = scaling.Column("close", "data.windows.feature_columns")


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_statistics_match_exact_sums(values: list[float]) -> None:
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    found = scaling.fit(COLUMN, np.array(values))
    assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
    if not found.constant:
        assert found.scale == pytest.approx(deviation, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("value", [0.1, 0.0, -1e300, 5e-324])
def test_a_constant_keeps_its_scale(value: float) -> None:
    found = scaling.fit(COLUMN, np.full(1001, value))
    assert found == scaling.Scaler(value, 1.0, constant=True)


def test_a_difference_too_small_to_square_counts_as_constant() -> None:
    found = scaling.fit(COLUMN, np.array([1e-200, 2e-200]))
    assert (found.scale, found.constant) == (1.0, True)


def test_scaled_training_rows_have_mean_0_and_deviation_1() -> None:
    # The offset is beyond float32: 1.7e9 seconds in steps of one.
    values = 1.7e9 + np.arange(1000.0)
    scaled = scaling.scale(COLUMN, values, scaling.fit(COLUMN, values))
    assert scaled.dtype == np.float32
    assert scaled.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert scaled.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert len(np.unique(scaled)) == 1000


def test_unscaled_values_stay_as_they_are() -> None:
    values = np.array([1.5, -2.0, 0.1])
    assert np.array_equal(
        scaling.scale(COLUMN, values, scaling.UNSCALED), values.astype(np.float32)
    )


@pytest.mark.parametrize("value", [1e39, float("nan"), float("-inf")])
def test_what_float32_cannot_hold_is_refused_by_name(value: float) -> None:
    with pytest.raises(JobFailure, match="column 'close'") as caught:
        scaling.scale(COLUMN, np.array([1.0, value]), scaling.UNSCALED)
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert [each.field for each in caught.value.fields] == [COLUMN.path]


def test_statistics_beyond_float64_are_refused_by_name() -> None:
    with pytest.raises(JobFailure, match="column 'close'"):
        scaling.fit(COLUMN, np.array([1e300, -1e300]))

"""Labels from a column and from returns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.data import labels, windows
from trainwire_server.errors import JobFailure


def _series(lengths: list[int]) -> windows.Series:
    groups = np.repeat(np.arange(len(lengths)), lengths)
    return windows.arrange(groups, [str(g) for g in range(len(lengths))], None, len(groups))


def test_column_labels_follow_the_order_of_rows() -> None:
    series = windows.arrange(np.array([1, 0, 1, 0]), ["a", "b"], None, 4)
    found = labels.label_by_column(series, np.array([0, 1, 2, 3]), ["w", "x", "y", "z"], 1)
    assert found.classes.tolist() == [1, 3, 0, 2]
    assert found.last_rows.tolist() == [1, 1, 3, 3]
    assert found.class_names == ["w", "x", "y", "z"]


def test_a_thousand_classes_are_the_most() -> None:
    series, names = _series([1001]), [str(i) for i in range(1001)]
    codes = np.arange(1001)
    assert len(labels.label_by_column(series, codes, names[:1000], 0).class_names) == 1000
    with pytest.raises(JobFailure, match="1001 distinct values; allowed: at most 1000") as caught:
        labels.label_by_column(series, codes, names, 0)
    assert caught.value.reason == training_pb2.FAILURE_REASON_TOO_MANY_CLASSES


def test_limits_themselves_are_hold() -> None:
    prices = np.array([1.0, 1.5, 1.0, 0.5, 0.5, 2.0])
    found = labels.label_by_return(_series([6]), prices, 1, -0.5, 0.5)
    assert found.class_names == ["SELL", "HOLD", "BUY"]
    assert found.classes.tolist() == [1, 1, 1, 1, 2, labels.UNLABELLED]


@settings(derandomize=True, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    horizon=st.integers(1, 9),
    limits=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)).map(sorted),
    data=st.data(),
)
def test_returns_match_a_row_by_row_reference(
    lengths: list[int], horizon: int, limits: list[float], data: st.DataObject
) -> None:
    price = st.floats(1e-6, 1e6)
    parts = [data.draw(st.lists(price, min_size=n, max_size=n)) for n in lengths]
    expected = []
    for part in parts:
        for t, now in enumerate(part):
            if t + horizon >= len(part):
                expected.append(labels.UNLABELLED)
                continue
            change = part[t + horizon] / now - 1
            expected.append(0 if change < limits[0] else 2 if change > limits[1] else 1)
    found = labels.label_by_return(_series(lengths), np.concatenate(parts), horizon, *limits)
    assert found.classes.tolist() == expected


@pytest.mark.parametrize("price", [0.0, -3.5, float("nan"), float("inf")])
def test_a_price_that_is_no_price_is_refused(price: float) -> None:
    # The rows are reordered; the message must name the row of the table.
    series = windows.arrange(None, [], np.array([2, 1, 0]), 3)
    with pytest.raises(JobFailure, match=rf"row 2 .* is {price} ") as caught:
        labels.label_by_return(series, np.array([1.0, 1.0, price]), 1, -0.1, 0.1)
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert caught.value.fields[0].field == "data.threshold.price_column"


def test_a_return_beyond_floats_is_buy() -> None:
    found = labels.label_by_return(_series([2]), np.array([1e-300, 1e300]), 1, -0.1, 0.1)
    assert found.classes[0] == 2

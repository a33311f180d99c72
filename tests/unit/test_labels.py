"""Labels from a column and from returns."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.data import labels, returns, windows
from trainwire_server.errors import JobFailure

SELL, HOLD, BUY, NONE = 0, 1, 2, labels.UNLABELLED


def _series(lengths: list[int]) -> windows.Series:
    groups = np.repeat(np.arange(len(lengths)), lengths)
    return windows.arrange(groups, [str(g) for g in range(len(lengths))], None, len(groups))


def _priced(prices: list[float], horizon: int, volatility_window: int = 0) -> labels.PricedRows:
    return labels.price_rows(_series([len(prices)]), np.array(prices), horizon, volatility_window)


# ------------------------------------------------------------------------ from a column


def test_column_labels_follow_the_order_of_rows() -> None:
    series = windows.arrange(np.array([1, 0, 1, 0]), ["a", "b"], None, 4)
    found = labels.label_by_column(series, np.array([0, 1, 2, 3]), ["w", "x", "y", "z"], 1)
    assert found.classes.tolist() == [1, 3, 0, 2]
    assert found.spans.last_rows.tolist() == [1, 1, 3, 3]
    assert found.class_names == ["w", "x", "y", "z"]
    assert found.thresholds is None


def test_a_thousand_classes_are_the_most() -> None:
    series, names = _series([1001]), [str(i) for i in range(1001)]
    codes = np.arange(1001)
    assert len(labels.label_by_column(series, codes, names[:1000], 0).class_names) == 1000
    with pytest.raises(JobFailure, match="1001 distinct values; allowed: at most 1000") as caught:
        labels.label_by_column(series, codes, names, 0)
    assert caught.value.reason == training_pb2.FAILURE_REASON_TOO_MANY_CLASSES


# ------------------------------------------------------------------------ a slow reference


@dataclass(frozen=True)
class Case:
    """Prices of several series, and how labels are made of them."""

    prices: list[list[float]]
    horizon: int
    volatility_window: int
    limits: tuple[float, float]
    whole_path: bool = False

    def series(self) -> windows.Series:
        return _series([len(part) for part in self.prices])

    def priced(self) -> labels.PricedRows:
        every = np.concatenate(self.prices)
        return labels.price_rows(
            self.series(),
            every,
            self.horizon,
            self.volatility_window,
            whole_path=self.whole_path,
        )


# Steps of some size: where prices hardly move, a deviation is rounding, here and in the reference.
_PRICE = st.integers(1, 40).map(lambda ticks: ticks / 4)
_PRICES = st.lists(st.one_of(*[_PRICE] * 7, st.just(math.nan)), min_size=1, max_size=12)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    lower, upper = sorted(draw(st.tuples(*[st.floats(-0.9, 0.9)] * 2)))
    return Case(
        prices=draw(st.lists(_PRICES, min_size=1, max_size=3)),
        horizon=draw(st.integers(1, 8)),
        volatility_window=draw(st.sampled_from([0, 0, 2, 3, 5])),
        limits=(lower, upper),
    )


def _reference_unit(prices: list[float], t: int, case: Case) -> float:
    """The return that counts as 1 in row t: 0 where there is none, NaN where one is missing."""
    if t + case.horizon >= len(prices) or t < case.volatility_window:
        return math.nan
    ahead = range(t + 1 if case.whole_path else t + case.horizon, t + case.horizon + 1)
    needed = [*range(t - case.volatility_window, t + 1), *ahead]
    if any(math.isnan(prices[row]) for row in needed):
        return math.nan
    if not case.volatility_window:
        return 1.0
    past = range(t - case.volatility_window + 1, t + 1)
    steps = [prices[s] / prices[s - 1] - 1 for s in past]
    if max(steps) - min(steps) < 1e-12:
        return 0.0
    return statistics.stdev(steps) * math.sqrt(case.horizon)


def _reference_returns(case: Case) -> list[tuple[float, list[float]]]:
    """Of each row its unit and the returns in it of 1 to `horizon` rows ahead; none without one."""
    found: list[tuple[float, list[float]]] = []
    for prices in case.prices:
        for t, now in enumerate(prices):
            unit = _reference_unit(prices, t, case)
            ahead = range(1, case.horizon + 1) if unit > 0 else ()
            found.append((unit, [(prices[t + k] / now - 1) / unit for k in ahead]))
    return found


def _side(move: float, lower: float, upper: float) -> int:
    return SELL if move < lower else BUY if move > upper else HOLD


def _is_near(case: Case, lower: float, upper: float) -> bool:
    """Whether the last digits of a scaled return could decide."""
    moves = [move for _, ahead in _reference_returns(case) for move in ahead]
    nearest = (min(abs(move - lower), abs(move - upper)) for move in moves)
    return bool(case.volatility_window) and any(distance < 1e-9 for distance in nearest)


@settings(max_examples=100)
@given(_cases())
def test_returns_match_a_row_by_row_reference(case: Case) -> None:
    assume(not _is_near(case, *case.limits))
    priced = case.priced()
    expected = _reference_returns(case)
    assert labels.label_by_return(priced, *case.limits).classes.tolist() == [
        _side(ahead[-1], *case.limits) if ahead else NONE for _, ahead in expected
    ]
    assert priced.returns() == pytest.approx([a[-1] for _, a in expected if a], rel=1e-9, abs=1e-9)
    assert priced.spans.labelled.tolist() == [bool(ahead) for _, ahead in expected]
    assert priced.spans.flat_rows.tolist() == [
        row for row, (unit, _) in enumerate(expected) if unit == 0
    ]
    assert priced.spans.looks_back == case.volatility_window


@settings(max_examples=100)
@given(_cases(), st.floats(0.05, 1.5), st.floats(0.05, 1.5))
def test_barriers_match_a_row_by_row_reference(case: Case, up: float, down: float) -> None:
    case = dataclasses.replace(case, whole_path=True)
    assume(not _is_near(case, -down, up))
    expected = []
    for _, ahead in _reference_returns(case):
        sides = [_side(move, -down, up) for move in ahead]
        passed = [side for side in sides if side != HOLD]
        expected.append(NONE if not ahead else passed[0] if passed else HOLD)
    found = labels.label_by_barrier(case.priced(), up, down)
    assert found.classes.tolist() == expected
    assert found.thresholds == labels.Thresholds(-down, up, case.volatility_window)


@settings(max_examples=100)
@given(_cases(), st.floats(0.01, 0.5), st.floats(0.5, 0.99), st.integers(0, 2**32 - 1))
def test_quantiles_are_those_of_the_rows_that_train(
    case: Case, lower: float, upper: float, seed: int
) -> None:
    priced = case.priced()
    random = np.random.default_rng(seed)
    trains = [row for row in priced.moves.rows.tolist() if random.random() < 0.7]
    assume(trains and lower < upper)
    found = labels.label_by_quantile(priced, np.array(trains), lower, upper)
    values = dict(zip(priced.moves.rows.tolist(), priced.returns().tolist(), strict=True))
    limits = [_quantile(sorted(values[row] for row in trains), q) for q in (lower, upper)]
    assert found.thresholds
    used = (found.thresholds.lower, found.thresholds.upper)
    assert used == pytest.approx(limits, rel=1e-9, abs=1e-12)
    expected = [_side(values[r], *used) if r in values else NONE for r in range(len(found.classes))]
    assert found.classes.tolist() == expected


def _quantile(ordered: list[float], share: float) -> float:
    """Definition 7 of Hyndman and Fan 1996."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# ------------------------------------------------------------------------ edges


def test_limits_themselves_are_hold() -> None:
    priced = _priced([1.0, 1.5, 1.0, 0.5, 0.5, 2.0], 1)
    found = labels.label_by_return(priced, -0.5, 0.5)
    assert found.class_names == ["SELL", "HOLD", "BUY"]
    assert found.classes.tolist() == [HOLD, HOLD, HOLD, HOLD, BUY, NONE]
    assert labels.label_by_barrier(priced, 0.5, 0.5).classes.tolist() == found.classes.tolist()


def test_the_first_barrier_decides_and_the_label_ends_at_the_horizon_all_the_same() -> None:
    priced = _priced([1.0, 1.2, 0.7, 1.0, 1.0, 1.0, 1.0], 3)
    found = labels.label_by_barrier(priced, 0.1, 0.1)
    assert found.classes.tolist() == [BUY, SELL, BUY, HOLD, NONE, NONE, NONE]
    # Even the rows whose barrier was passed need the whole horizon, and end with it.
    assert found.spans.last_rows.tolist() == [3, 4, 5, 6, 6, 6, 6]


def test_barriers_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.1, 200)))
    priced = labels.price_rows(_series([200]), prices, 30, 10)
    whole = labels.label_by_barrier(priced, 0.5, 0.5).classes.tolist()
    monkeypatch.setattr(returns, "_AT_ONCE", 7)
    assert labels.label_by_barrier(priced, 0.5, 0.5).classes.tolist() == whole
    assert {SELL, HOLD, BUY} <= set(whole)


def test_a_price_that_does_not_move_has_no_volatility() -> None:
    still, risen = [2.0] * 6, [2.0, 2.2, 2.0]
    found = labels.label_by_barrier(_priced([*risen, *still], 1, 3), 1, 1)
    assert found.classes.tolist() == [NONE, NONE, NONE, HOLD, HOLD, NONE, NONE, NONE, NONE]
    assert found.spans.flat_rows.tolist() == [5, 6, 7]


def test_a_steady_growth_has_no_volatility_but_rounding() -> None:
    priced = _priced([1.1**t for t in range(30)], 1, 5)
    assert not priced.spans.labelled.any()
    assert priced.spans.flat_rows.tolist() == list(range(5, 29))


def test_volatility_looks_back_only_and_within_its_series() -> None:
    random = np.random.default_rng(0)
    prices = np.exp(np.cumsum(random.normal(0, 0.1, 40)))
    before = labels.price_rows(_series([20, 20]), prices, 2, 4)
    assert before.moves.rows.tolist() == [*range(4, 18), *range(24, 38)]
    for row in range(40):
        changed = prices.copy()
        changed[row] *= 3
        after = labels.price_rows(_series([20, 20]), changed, 2, 4)
        moved = before.moves.rows[before.moves.units != after.moves.units]
        # The unit of t is made of the prices from t - 4 to t.
        assert set(moved.tolist()) <= set(range(row, row + 5))
        assert {r // 20 for r in moved.tolist()} <= {row // 20}
        assert len(moved) == len(set(range(row, row + 5)) & set(before.moves.rows.tolist()))


@pytest.mark.parametrize("price", [0.0, -3.5, float("nan"), float("inf")])
def test_a_price_that_is_no_price_is_refused(price: float) -> None:
    # The rows are reordered; the message must name the row of the table.
    series = windows.arrange(None, [], np.array([2, 1, 0]), 3)
    with pytest.raises(JobFailure, match=rf"row 2 .* is {price} ") as caught:
        returns.refuse_bad_prices(series, np.array([1.0, 1.0, price]), "data.quantile.price_column")
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert caught.value.fields[0].field == "data.quantile.price_column"


def test_returns_beyond_floats() -> None:
    prices = [1e-300, 1e300, 1e-300, 1e300, 1e300]
    assert labels.label_by_return(_priced(prices, 1), -0.1, 0.1).classes[0] == BUY
    # Their deviation is none that a return could be divided by.
    assert _priced(prices, 1, 2).spans.flat_rows.tolist() == [2, 3]
    with pytest.raises(JobFailure, match="quantiles of the training windows' returns") as caught:
        labels.label_by_quantile(_priced(prices, 1), np.arange(4), 0.15, 0.85)
    assert caught.value.fields[0].field == "data.quantile.price_column"

"""Targets made of prices, from the stored table to what the job and its reports say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_client.report import plan_lines
from trainwire_server.data import profile, suitability
from trainwire_server.data.prepare import Prepared, Split, prepare
from trainwire_server.data.targets import find_target
from trainwire_server.errors import JobFailure
from trainwire_server.training import model_card
from trainwire_server.training.plan import plan

ROWS, LENGTH, HORIZON = 400, 10, 5
TARGETS = ["threshold", "quantile", "triple_barrier"]
Prices = npt.NDArray[np.float64]


@pytest.fixture
def prices() -> Prices:
    return np.exp(np.cumsum(np.random.default_rng(7).normal(0, 0.01, ROWS)))


def _request(**chosen: str) -> training_pb2.TrainingRequest:
    """Paths below `data` with two underscores for dots."""
    request = training_pb2.TrainingRequest(dataset="datasets/a")
    request.model.linear.SetInParent()
    request.data.windows.sequence_length = LENGTH
    for path, text in chosen.items():
        contract.assign(request, "data." + path.replace("__", "."), text)
    assert not contract.violations(request)
    return contract.resolve(request)


def _store(folder: Path, **columns: Any) -> tuple[dataset_pb2.Dataset, Path]:
    table = pa.table({"x": np.random.default_rng(0).normal(size=ROWS), **columns})
    source, stored = folder / "source", folder / "table.arrow"
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return profile.ingest(source, stored, dataset_pb2.DATASET_FORMAT_ARROW), stored


def _prepare(folder: Path, close: Prices, **chosen: str) -> Prepared:
    request = _request(**chosen)
    dataset, stored = _store(folder, close=close)
    assert suitability.check(request, dataset) == []
    return prepare(request, stored)


def _warnings(prepared: Prepared) -> dict[str, training_pb2.JobWarning]:
    return {training_pb2.WarningReason.Name(w.reason)[15:]: w for w in prepared.warnings}


def _splits(prepared: Prepared) -> list[Split]:
    return [prepared.train, prepared.validation, prepared.test]


# ------------------------------------------------------------------------ one way to ask


@pytest.mark.parametrize("member", TARGETS)
def test_whatever_makes_the_labels_its_column_is_a_price(member: str) -> None:
    chosen = {f"{member}__price_column": "close", f"{member}__horizon": "7"}
    request = _request(**chosen)
    target = find_target(request)
    assert (target.column, target.horizon, target.is_price) == ("close", 7, True)
    assert target.path == f"data.{member}"
    assert target.horizon_path == f"data.{member}.horizon"
    kinds = {"close": dataset_pb2.COLUMN_TYPE_FLOAT, "x": dataset_pb2.COLUMN_TYPE_FLOAT}
    # A price is no feature of its own label unless somebody says so.
    assert suitability.feature_columns(request, kinds) == ["x"]
    named = _request(**chosen, windows__feature_columns="close,x")
    assert suitability.feature_columns(named, kinds) == ["close", "x"]


def test_every_target_has_its_place() -> None:
    members = training_pb2.DataParams.DESCRIPTOR.oneofs_by_name["target"].fields
    assert {field.name for field in members} == {*TARGETS, "column"}
    assert find_target(_request(column__name="side")).path == "data.column.name"


@pytest.mark.parametrize("member", TARGETS)
def test_a_price_column_is_checked_by_its_path(tmp_path: Path, member: str) -> None:
    dataset, stored = _store(tmp_path, close=np.r_[np.ones(ROWS - 1), -1.0], name=["a"] * ROWS)
    for column, part in (("name", "is STRING"), ("closes", "no column 'closes'")):
        (found,) = suitability.check(_request(**{f"{member}__price_column": column}), dataset)
        assert found.field == f"data.{member}.price_column"
        assert part in found.description
    with pytest.raises(JobFailure, match=r"price in row 399 .* is -1\.0") as caught:
        prepare(_request(**{f"{member}__price_column": "close"}), stored)
    assert [v.field for v in caught.value.fields] == [f"data.{member}.price_column"]


@pytest.mark.parametrize("window", ["0", "1", "2"])
def test_one_return_has_no_deviation(tmp_path: Path, prices: Prices, window: str) -> None:
    request = _request(quantile__price_column="close", quantile__volatility_window=window)
    dataset, stored = _store(tmp_path, close=prices)
    found = suitability.check(request, dataset)
    assert [v.field for v in found] == ["data.quantile.volatility_window"] * (window == "1")
    if window != "1":
        assert prepare(request, stored).train.labels.any()


@pytest.mark.parametrize(
    ("window", "loss", "is_refused"),
    [("0", "1", True), ("0", "1.5", True), ("0", "0.99", False), ("20", "1.5", False)],
)
def test_a_price_does_not_lose_all_of_itself(
    tmp_path: Path, prices: Prices, window: str, loss: str, is_refused: bool
) -> None:
    barriers = {"price_column": "close", "stop_loss": loss, "volatility_window": window}
    request = _request(**{f"triple_barrier__{name}": text for name, text in barriers.items()})
    found = suitability.check(request, _store(tmp_path, close=prices)[0])
    assert [v.field for v in found] == ["data.triple_barrier.stop_loss"] * is_refused
    assert all("allowed: below 1" in v.description for v in found)


# ------------------------------------------------------------------------ from table to labels


def _scaled(prices: Prices, window: int) -> Prices:
    """Return over the horizon in units of volatility, NaN where there is none."""
    found = np.full(ROWS, np.nan)
    steps = np.r_[np.nan, prices[1:] / prices[:-1] - 1]
    for t in range(window, ROWS - HORIZON):
        unit = np.std(steps[t - window + 1 : t + 1], ddof=1) * np.sqrt(HORIZON)
        found[t] = (prices[t + HORIZON] / prices[t] - 1) / unit
    return found


def test_quantiles_are_taken_from_the_training_windows(tmp_path: Path, prices: Prices) -> None:
    found = _prepare(tmp_path, prices, quantile__price_column="close")
    assert found.feature_columns == ["x"]
    assert found.class_names == ["SELL", "HOLD", "BUY"]
    # Windows that end in rows 9 to 19 look back on less than 20 rows, 5 on less than 5 ahead.
    assert found.unlabelled_windows == 11 + 5
    scaled = _scaled(prices, 20)
    trained = scaled[found.train.starts + LENGTH - 1]
    lower, upper = np.quantile(trained, [0.15, 0.85])
    assert found.thresholds
    assert (found.thresholds.lower, found.thresholds.upper) == pytest.approx((lower, upper))
    for split in _splits(found):
        values = scaled[split.starts + LENGTH - 1]
        assert split.labels.tolist() == (1 + (values > upper) - (values < lower)).tolist()
    assert found.warnings == []


def test_volatility_keeps_a_restless_future_from_being_hold_or_not(tmp_path: Path) -> None:
    """Returns of the test rows are three times as large: scaled, the classes keep their shares."""
    steps = np.random.default_rng(1).normal(0, 0.01, ROWS) * np.r_[np.ones(340), np.full(60, 3)]
    prices = np.exp(np.cumsum(steps))
    shares = {}
    for window in ("0", "20"):
        folder = tmp_path / window
        folder.mkdir()
        chosen = {"quantile__price_column": "close", "quantile__volatility_window": window}
        found = _prepare(folder, prices, **chosen)
        shares[window] = float((found.test.labels == 1).mean())
    assert shares["0"] < 0.4
    assert shares["20"] > 0.5


# ------------------------------------------------------------------------ what is said


def test_what_was_used_is_told_before_and_after(tmp_path: Path, prices: Prices) -> None:
    request = _request(quantile__price_column="close")
    _, stored = _store(tmp_path, close=prices)
    prepared = prepare(request, stored)
    planned, _ = plan(request, stored, 1)
    limits, used = prepared.thresholds, planned.started.return_thresholds
    assert limits
    assert (used.lower, used.upper, used.volatility_window) == (limits.lower, limits.upper, 20)
    text = f"SELL below {limits.lower:.6g}, BUY above {limits.upper:.6g} volatilities of 20 rows"
    answer = training_pb2.TrainingJob(request=request, plan=planned)
    assert f"plan returns {text}" in plan_lines(answer)
    card = model_card.render(request, prepared, training_pb2.JobSucceeded(), has_onnx=False)
    assert (
        f"A return below {limits.lower:.6g} volatilities of 20 rows is SELL, above "
        f"{limits.upper:.6g} BUY: that over 5 rows.\n"
    ) in card


def test_barriers_are_told_as_relative_returns_where_they_are(
    tmp_path: Path, prices: Prices
) -> None:
    barriers = {"profit_taking": "0.02", "stop_loss": "0.01", "volatility_window": "0"}
    chosen = {f"triple_barrier__{name}": text for name, text in barriers.items()}
    request = _request(triple_barrier__price_column="close", **chosen)
    _, stored = _store(tmp_path, close=prices)
    prepared = prepare(request, stored)
    card = model_card.render(request, prepared, training_pb2.JobSucceeded(), has_onnx=False)
    assert (
        "A return below -0.01 of the price is SELL, above 0.02 BUY: the first within 5 rows."
        in card
    )


def test_labels_of_a_column_have_no_thresholds(tmp_path: Path, prices: Prices) -> None:
    request = _request(column__name="side")
    _, stored = _store(tmp_path, close=prices, side=np.arange(ROWS) % 2)
    prepared = prepare(request, stored)
    assert prepared.thresholds is None
    assert not plan(request, stored, 1)[0].started.HasField("return_thresholds")
    card = model_card.render(request, prepared, training_pb2.JobSucceeded(), has_onnx=False)
    assert "A return below" not in card


def test_windows_without_volatility_are_counted_and_said(tmp_path: Path, prices: Prices) -> None:
    prices[100:160] = prices[100]
    found = _prepare(tmp_path, prices, quantile__price_column="close")
    # Rows 120 to 159 have seen 20 returns of nothing.
    assert found.unlabelled_windows == 16 + 40
    warning = _warnings(found)["NO_VOLATILITY"]
    assert warning.message.startswith("40 windows have no label and are left out: column 'close'")
    assert warning.field == "data.quantile.volatility_window"
    scaled = _scaled(np.where(np.arange(ROWS) < 100, prices, np.nan), 20)
    starts = found.train.starts[found.train.starts < 80]
    assert np.isfinite(scaled[starts + LENGTH - 1]).all()


def test_a_price_that_never_moves_has_no_window(tmp_path: Path) -> None:
    with pytest.raises(JobFailure) as caught:
        _prepare(tmp_path, np.ones(ROWS), quantile__price_column="close")
    assert caught.value.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert "391 windows have no label" in caught.value.message
    assert "of 375, the price did not move" in caught.value.message
    assert "takes 26 rows (sequence_length 10, horizon 5, volatility_window 20)" in str(
        caught.value.message
    )
    fields = [violation.field for violation in caught.value.fields]
    assert {"data.quantile.horizon", "data.quantile.volatility_window"} <= set(fields)


def test_ties_that_leave_a_class_empty_are_warned_of(tmp_path: Path) -> None:
    """More than 15 % of the returns are the least one, so that none is below the quantile."""
    growth = np.random.default_rng(2).uniform(0, 0.02, ROWS)
    rising = np.exp(np.cumsum(np.where(np.arange(ROWS) % 20 < 10, 0, growth)))
    chosen = {"quantile__price_column": "close", "quantile__volatility_window": "0"}
    found = _prepare(tmp_path, rising, **chosen)
    assert found.thresholds
    assert found.thresholds.lower == 0
    warning = _warnings(found)["UNSEEN_CLASS"]
    assert warning.message == ("1 of 3 classes have no training window, and cannot be learnt: SELL")
    assert warning.field == "data.quantile"


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    chosen = {"quantile__price_column": "close", "quantile__volatility_window": "0"}
    with pytest.raises(JobFailure) as caught:
        _prepare(tmp_path, np.ones(ROWS), **chosen)
    assert caught.value.reason == training_pb2.FAILURE_REASON_SINGLE_CLASS
    assert [violation.field for violation in caught.value.fields] == ["data.quantile"]

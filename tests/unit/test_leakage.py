"""Promise 9 for labels made of prices: nothing of validation or test reaches what training sees."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import profile, suitability
from trainwire_server.data.prepare import Prepared, prepare
from trainwire_server.errors import JobFailure
from trainwire_server.training.setup import set_up

Columns = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.int64]
MARKS = ["train", "validation", "test"]


def _request(**chosen: str) -> training_pb2.TrainingRequest:
    """Paths with two underscores for dots."""
    request = training_pb2.TrainingRequest(dataset="datasets/a")
    for path, text in chosen.items():
        contract.assign(request, path.replace("__", "."), text)
    assert not contract.violations(request)
    return contract.resolve(request)


def _prepare(columns: Columns, request: training_pb2.TrainingRequest) -> Prepared:
    table = pa.table(columns)
    with tempfile.TemporaryDirectory() as folder:
        source, stored = Path(folder, "source"), Path(folder, "table.arrow")
        with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        dataset = profile.ingest(source, stored, dataset_pb2.DATASET_FORMAT_ARROW)
        assert suitability.check(request, dataset) == []
        return prepare(request, stored)


def _prices(rows: int, seed: int) -> npt.NDArray[np.float64]:
    return np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, rows)))


# ------------------------------------------------------------------------ spans and statistics


@dataclass(frozen=True)
class Case:
    """Series with their times, marks where a column splits, and the target."""

    times: list[list[int]]
    marks: list[str]
    by_column: bool
    timed: bool
    length: int
    horizon: int
    volatility_window: int
    target: str
    gaps: bool
    seed: int

    def columns(self) -> Columns:
        """In the order that training has them: by group, then by time."""
        rows = sum(map(len, self.times))
        random = np.random.default_rng(self.seed)
        values = random.normal(size=rows)
        if self.fills():
            missing = random.random(rows) < 0.7
            # Rows before a series' first value would be left out.
            missing[np.cumsum([0, *self.lengths()])[:-1]] = False
            values[missing] = np.nan
        return {
            "x": values,
            "price": _prices(rows, self.seed),
            "time": np.concatenate(self.times),
            "group": np.repeat([str(g) for g in range(len(self.times))], self.lengths()),
            "split": np.array(self.marks),
        }

    def lengths(self) -> list[int]:
        return [len(each) for each in self.times]

    def fills(self) -> bool:
        """Where a column splits, what lies before a training row may be of another split."""
        return self.gaps and not self.by_column

    def request(self) -> training_pb2.TrainingRequest:
        chosen = {
            "data__windows__sequence_length": str(self.length),
            "data__windows__group_column": "group",
            "data__windows__feature_columns": "x",
            f"data__{self.target}__price_column": "price",
            f"data__{self.target}__horizon": str(self.horizon),
            f"data__{self.target}__volatility_window": str(self.volatility_window),
            "model__hybrid_cnn_lstm__pool_size": "1",
        }
        if self.target == "triple_barrier" and not self.volatility_window:
            # Relative returns: all of a price is no barrier.
            chosen["data__triple_barrier__profit_taking"] = "0.01"
            chosen["data__triple_barrier__stop_loss"] = "0.01"
        if self.fills():
            chosen["data__missing_values"] = "FORWARD_FILL"
        if self.timed:
            chosen["data__windows__time_column"] = "time"
        if self.by_column:
            chosen["data__split_column__name"] = "split"
        else:
            chosen["data__chronological__embargo_rows"] = str(self.seed % 3)
        return _request(**chosen)

    def spans(self, starts: Iterable[int]) -> list[range]:
        """From the first row that a window, or the volatility of its label, takes."""
        last = self.length - 1
        return [
            range(min(s, s + last - self.volatility_window), s + last + self.horizon + 1)
            for s in map(int, starts)
        ]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    times = [
        sorted(draw(st.sets(st.integers(0, 90), min_size=40, max_size=60)))
        for _ in range(draw(st.integers(1, 2)))
    ]
    rows = sum(map(len, times))
    kinds = MARKS if draw(st.booleans()) else ["train", "test"]
    marks: list[str] = []
    while len(marks) < rows:
        marks += [draw(st.sampled_from(kinds))] * draw(st.integers(5, 25))
    return Case(
        times=times,
        marks=marks[:rows],
        by_column=draw(st.booleans()),
        timed=draw(st.booleans()),
        length=draw(st.integers(2, 4)),
        horizon=draw(st.integers(1, 3)),
        volatility_window=draw(st.sampled_from([0, 2, 6])),
        target=draw(st.sampled_from(["quantile", "triple_barrier"])),
        gaps=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )


def _prepare_case(case: Case, columns: Columns) -> Prepared | None:
    """None where a split or all but one class are missing."""
    try:
        return _prepare(columns, case.request())
    except JobFailure as failure:
        empty = training_pb2.FAILURE_REASON_EMPTY_SPLIT
        if failure.reason not in (empty, training_pb2.FAILURE_REASON_SINGLE_CLASS):
            raise
        return None


@settings(max_examples=40)
@given(_cases())
def test_spans_of_different_splits_never_meet(case: Case) -> None:
    found = _prepare_case(case, case.columns())
    if found is None:
        return
    times = np.concatenate(case.times)
    splits = [found.train, found.validation, found.test]
    spans = [case.spans(split.starts) for split in splits]
    for one, other in itertools.combinations(spans, 2):
        assert not {row for span in one for row in span} & {row for span in other for row in span}
        if case.timed and not case.by_column:
            assert max(times[span[-1]] for span in one) < min(times[span[0]] for span in other)
    windows = sum(length - case.length + 1 for length in case.lengths())
    counted = sum(len(split.starts) for split in splits)
    assert counted + found.purged_windows + found.unlabelled_windows == windows


@settings(max_examples=40)
@given(_cases(), st.floats(0.2, 5))
def test_what_training_sees_is_made_of_training_spans_alone(case: Case, factor: float) -> None:
    """Thresholds, training labels and statistics stay, bit for bit, whatever the others become."""
    columns = case.columns()
    before = _prepare_case(case, columns)
    if before is None:
        return
    trained = sorted({row for span in case.spans(before.train.starts) for row in span})
    held_out = np.setdiff1d(np.arange(len(columns["x"])), trained)
    random = np.random.default_rng(case.seed)
    for name in ("x", "price"):
        columns[name] = columns[name].copy()
        columns[name][held_out] *= factor * random.random(len(held_out)) + 0.1
    after = _prepare_case(case, columns)
    # Whether the training windows have two classes is theirs alone to say, too.
    assert after is not None
    assert after.thresholds == before.thresholds
    assert after.train.starts.tolist() == before.train.starts.tolist()
    assert after.train.labels.tolist() == before.train.labels.tolist()
    assert (after.mean.tobytes(), after.scale.tobytes()) == (
        before.mean.tobytes(),
        before.scale.tobytes(),
    )
    rows = np.add.outer(before.train.starts, np.arange(case.length))
    assert after.features[rows].tobytes() == before.features[rows].tobytes()


@pytest.mark.parametrize("volatility_window", [0, 20])
def test_a_training_row_moves_the_thresholds(volatility_window: int) -> None:
    """What the test above looks at can change; here by one price."""
    columns = {"x": np.zeros(400), "price": _prices(400, 0)}
    columns["x"][::2] = 1
    request = _request(
        data__windows__sequence_length="10",
        data__quantile__price_column="price",
        data__quantile__volatility_window=str(volatility_window),
    )
    before = _prepare(columns, request)
    assert before.thresholds
    shares = np.bincount(before.train.labels) / len(before.train.labels)
    assert shares == pytest.approx([0.15, 0.7, 0.15], abs=0.01)
    columns["price"][200] *= 1.5
    assert _prepare(columns, request).thresholds != before.thresholds


# ------------------------------------------------------------------------ planted leaks


def _accuracy(train: tuple[npt.NDArray[Any], Rows], test: tuple[npt.NDArray[Any], Rows]) -> float:
    """Of the label that the training sample with the nearest value has."""
    order = np.argsort(train[0], kind="stable")
    values, labels = train[0][order], train[1][order]
    after = np.clip(np.searchsorted(values, test[0]), 1, len(values) - 1)
    is_before = test[0] - values[after - 1] <= values[after] - test[0]
    return float((labels[after - is_before] == test[1]).mean())


def _label_by_hand(found: Prepared, prices: npt.NDArray[np.float64], horizon: int) -> Rows:
    """Class of every row with one, int64 [rows - horizon]; returns as they are."""
    assert found.thresholds
    moves = prices[horizon:] / prices[:-horizon] - 1
    lower, upper = found.thresholds.lower, found.thresholds.upper
    return 1 + (moves > upper).astype(np.int64) - (moves < lower)


CHANCE = 1 / 3
THIRDS = {
    "data__quantile__price_column": "price",
    "data__quantile__volatility_window": "0",
    "data__quantile__lower_quantile": str(CHANCE),
    "data__quantile__upper_quantile": str(2 * CHANCE),
}


def test_labels_that_overlap_across_a_boundary_are_of_no_use() -> None:
    """A clock as the only feature, and a price that nothing foretells.

    Whoever knows the label of the row before knows most of the outcome, because two horizons of 20
    rows share 19. Stripes of training and test rows have such neighbours at every boundary.
    """
    rows, stripe, length, horizon = 24_000, 40, 2, 20
    columns = {
        "clock": np.arange(rows) * 1.0,
        "price": _prices(rows, 1),
        "split": np.where(np.arange(rows) // stripe % 2, "test", "train"),
    }
    found = _prepare(
        columns,
        _request(
            **THIRDS,
            data__quantile__horizon=str(horizon),
            data__windows__sequence_length=str(length),
            data__split_column__name="split",
            model__hybrid_cnn_lstm__pool_size="1",
        ),
    )
    parts = [found.train, found.validation, found.test]
    clocks = [(part.starts + length - 1).astype(float) for part in parts]
    ours = _accuracy((clocks[0], parts[0].labels), (clocks[2], parts[2].labels))

    labels = _label_by_hand(found, columns["price"], horizon)
    assert np.array_equal(labels[clocks[2].astype(int)], found.test.labels)
    every = np.arange(len(labels))
    # By the row that a window ends in, and by chance: nothing is purged.
    marked = columns["split"][: len(labels)] == "test"
    shuffled = np.random.default_rng(0).random(len(labels)) < 0.5
    naive, shuffled_accuracy = (
        _accuracy((every[~held] * 1.0, labels[~held]), (every[held] * 1.0, labels[held]))
        for held in (marked, shuffled)
    )
    assert ours < CHANCE + 0.04
    assert naive > CHANCE + 0.15
    assert shuffled_accuracy > 0.7


@pytest.mark.parametrize("embargo", ["0", "200"])
def test_a_feature_that_is_the_label_up_to_the_boundary_is_of_no_use(embargo: str) -> None:
    """It is the class in training, and in windows that hold rows of the split before theirs.

    As if it had been made with a look ahead, for all windows that were about when it was made. Who
    trusts it is right in training, and by chance in test.
    """
    rows, length = 2_000, 200
    prices, random = _prices(rows, 2), np.random.default_rng(3)
    request = _request(
        **THIRDS,
        data__quantile__horizon="1",
        data__windows__sequence_length=str(length),
        data__chronological__embargo_rows=embargo,
        data__chronological__train_fraction="0.5",
        data__chronological__validation_fraction="0.25",
    )
    # Thresholds are those of the price; the feature is made from them.
    feature = random.integers(0, 3, rows) * 1.0
    labels = _label_by_hand(_prepare({"x": feature, "price": prices}, request), prices, 1)
    boundary = 1_500
    known = np.r_[: 1_000 + length - 1, boundary : boundary + length - 1]
    feature[known] = labels[known]
    feature += random.normal(0, 0.01, rows)

    found = _prepare({"x": feature, "price": prices}, request)
    ends = [part.starts + length - 1 for part in (found.train, found.test)]
    train = (feature[ends[0]], found.train.labels)
    assert _accuracy(train, train) == 1
    assert _accuracy(train, (feature[ends[1]], found.test.labels)) < CHANCE + 0.06
    # By the row that a window ends in: nothing is purged.
    naive = np.arange(boundary, rows - 1)
    assert _accuracy(train, (feature[naive], labels[naive])) > CHANCE + 0.2


# ------------------------------------------------------------------------ resampling


@pytest.mark.parametrize(
    "balancing",
    [
        {"balancing__use_oversampling": "true", "balancing__oversample_ratio": "1"},
        {"balancing__use_undersampling": "true"},
    ],
    ids=["oversampling", "undersampling"],
)
def test_resampling_comes_after_the_splits_and_touches_training_alone(
    balancing: dict[str, str],
) -> None:
    """`prepare`, which splits, gives the same whatever the request says of balancing.

    What is resampled is `Prepared.train.labels`, positions in which cannot say another split.
    """
    columns = {"x": _prices(400, 4), "price": _prices(400, 5)}
    chosen = {"data__windows__sequence_length": "10", "data__quantile__price_column": "price"}
    plain = _prepare(columns, _request(**chosen, balancing__use_oversampling="false"))
    request = _request(**chosen, **balancing)
    found = _prepare(columns, request)
    for name in ("train", "validation", "test"):
        one, other = getattr(plain, name), getattr(found, name)
        assert one.starts.tolist() == other.starts.tolist()
        assert one.labels.tolist() == other.labels.tolist()
    setup = set_up(request, found, 1)
    assert set(setup.balance.positions.tolist()) <= set(range(len(found.train.labels)))
    assert len(setup.balance.positions) != len(found.train.labels)
    assert setup.validation.starts.tolist() == plain.validation.starts.tolist()
    assert setup.test.starts.tolist() == plain.test.starts.tolist()

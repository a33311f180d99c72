"""Labelled series and the splits by chance and by column, from the stored table on: promise 9."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import profile, splits, suitability
from trainwire_server.data.prepare import Prepared, Split, prepare
from trainwire_server.errors import JobFailure

STEPS, CHANNELS = 5, 2
MARKS = ["train", "validation", "test"]


def _store(folder: Path, table: pa.Table) -> tuple[dataset_pb2.Dataset, Path]:
    source, stored = folder / "source", folder / "table.arrow"
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return profile.ingest(source, stored, dataset_pb2.DATASET_FORMAT_ARROW), stored


def _request(**chosen: str) -> training_pb2.TrainingRequest:
    """Paths below `data` with two underscores for dots; `seed` is the trainer's."""
    request = training_pb2.TrainingRequest(dataset="datasets/a")
    request.trainer.seed = int(chosen.pop("seed", "42"))
    request.model.hybrid_cnn_lstm.pool_size = 1
    request.data.column.name = "label"
    for path, text in chosen.items():
        contract.assign(request, "data." + path.replace("__", "."), text)
    assert not contract.violations(request)
    return contract.resolve(request)


def _series(labels: list[str], seed: int = 0, **columns: Any) -> pa.Table:
    values = np.random.default_rng(seed).normal(size=(CHANNELS, len(labels), STEPS))
    channels = {
        f"channel_{i}": pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), STEPS)
        for i, each in enumerate(values)
    }
    return pa.table({**channels, "label": labels, **columns})


def _prepare(table: pa.Table, **chosen: str) -> Prepared:
    request = _request(**chosen)
    with tempfile.TemporaryDirectory() as folder:
        dataset, stored = _store(Path(folder), table)
        assert suitability.check(request, dataset) == []
        return prepare(request, stored)


def _splits(prepared: Prepared) -> list[Split]:
    return [prepared.train, prepared.validation, prepared.test]


def _rows(split: Split) -> list[int]:
    """Rows of the table that the samples of a split are."""
    assert all(start % STEPS == 0 for start in split.starts)
    return [int(start) // STEPS for start in split.starts]


def _reasons(prepared: Prepared) -> list[str]:
    return [training_pb2.WarningReason.Name(w.reason)[15:] for w in prepared.warnings]


def _failure(table: pa.Table, **chosen: str) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        _prepare(table, **chosen)
    return caught.value


# ------------------------------------------------------------------------ the matrix

FEW = ["a", "b"] * 10


def test_series_lie_one_after_the_other_with_a_column_for_each_channel() -> None:
    table = _series(FEW)
    found = _prepare(table, samples="", scaling="NONE")
    assert found.sequence_length == STEPS
    assert found.feature_columns == ["channel_0", "channel_1"]
    assert found.features.shape == (len(FEW) * STEPS, CHANNELS)
    assert found.features.flags.c_contiguous
    for split in _splits(found):
        for start, row in zip(split.starts, _rows(split), strict=True):
            for index, name in enumerate(found.feature_columns):
                values = np.array(table[name][row].as_py(), dtype=np.float32)
                assert np.array_equal(found.features[start : start + STEPS, index], values)
        assert [found.class_names[i] for i in split.labels] == [FEW[row] for row in _rows(split)]
        assert split.rows == len(split.starts)


def test_by_default_rows_are_split_in_the_order_of_the_file() -> None:
    found = _prepare(_series(FEW), samples="")
    assert [_rows(split) for split in _splits(found)] == [
        list(range(14)),
        list(range(14, 17)),
        list(range(17, 20)),
    ]
    assert found.purged_windows == found.unlabelled_windows == 0
    assert _reasons(found) == []


def test_an_embargo_leaves_rows_out() -> None:
    found = _prepare(_series(FEW), samples="", chronological__embargo_rows="1")
    assert [len(split.starts) for split in _splits(found)] == [14, 2, 2]
    assert found.purged_windows == 2


def test_named_channels_are_taken_in_their_order() -> None:
    found = _prepare(_series(FEW), samples__feature_columns="channel_1")
    assert found.feature_columns == ["channel_1"]
    both = _prepare(_series(FEW), samples__feature_columns="channel_1,channel_0")
    assert np.array_equal(both.features[:, :1], found.features)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.large_list(pa.int16()), pa.list_(pa.bool_(), STEPS)],
    ids=str,
)
def test_lists_of_every_kind_of_number_are_channels(kind: pa.DataType) -> None:
    values = np.random.default_rng(0).integers(0, 2, (len(FEW), STEPS))
    column = pa.array(values.tolist()).cast(pa.list_(kind.value_type)).cast(kind)
    found = _prepare(pa.table({"x": column, "label": FEW, "n": range(20)}), samples="")
    assert found.feature_columns == ["x"]
    assert found.features.shape == (len(FEW) * STEPS, 1)
    raw = found.features[:, 0] * found.scale[0] + found.mean[0]
    assert raw == pytest.approx(values.reshape(-1), abs=1e-6)


# ------------------------------------------------------------------------ statistics

SPLITS = {
    "chronological": {},
    "stratified": {"stratified": ""},
    "marked": {"split_column__name": "marked"},
    "held_out": {"split_column__name": "held_out"},
}


def _marked(labels: list[str], seed: int = 0) -> pa.Table:
    places = range(len(labels))
    return _series(
        labels,
        seed,
        marked=[MARKS[i // 2 % 3] for i in places],
        held_out=["test" if i % 3 == 1 else "train" for i in places],
    )


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_series_do_not_move_the_statistics(split: str) -> None:
    table = _marked(FEW)
    before = _prepare(table, samples="", **SPLITS[split])
    trained = set(_rows(before.train))
    raw = np.stack([np.array(table["channel_0"].to_pylist())[sorted(trained)]])
    assert before.mean[0] == pytest.approx(raw.mean(), rel=1e-12)
    assert before.scale[0] == pytest.approx(raw.std(), rel=1e-12)
    for row in range(len(FEW)):
        values = np.array(table["channel_0"].to_pylist())
        values[row] = values[row] * 7 + 3
        moved = table.set_column(0, "channel_0", pa.array(values.tolist()))
        after = _prepare(moved, samples="", **SPLITS[split])
        assert (before.mean[0] == after.mean[0]) == (row not in trained)


# ------------------------------------------------------------------------ no leakage

LABELS = st.lists(st.sampled_from("abcd"), min_size=12, max_size=40)


@settings(max_examples=60)
@given(LABELS, st.sampled_from(sorted(SPLITS)), st.integers(0, 10**6))
def test_every_series_is_in_one_split(labels: list[str], split: str, seed: int) -> None:
    labels = [*labels, *"abcd" * 6]
    found = _prepare(_marked(labels), samples="", seed=str(seed), **SPLITS[split])
    rows = [row for each in _splits(found) for row in _rows(each)]
    assert sorted(rows) == list(range(len(labels)))
    assert found.purged_windows == 0
    for which, each in enumerate(_splits(found)):
        assert each.starts.tolist() == sorted(each.starts.tolist())
        assert [found.class_names[i] for i in each.labels] == [labels[row] for row in _rows(each)]
        if split == "marked":
            assert {row // 2 % 3 for row in _rows(each)} == {which}
        if split == "held_out":
            assert {row % 3 == 1 for row in _rows(each)} == {which == splits.TEST}


@settings(max_examples=40)
@given(LABELS, st.integers(0, 10**6))
def test_every_class_is_in_every_stratified_split(labels: list[str], seed: int) -> None:
    labels = [*labels, *"ab" * 6]
    found = _prepare(_marked(labels), samples="", stratified="", seed=str(seed))
    small = {name for name in set(labels) if labels.count(name) < 3}
    for split in _splits(found):
        present = {found.class_names[i] for i in split.labels}
        assert present >= set(labels) - small
    assert all(labels[row] not in small for each in _splits(found)[1:] for row in _rows(each))
    warned = [w for w in found.warnings if "CLASS_NOT" in training_pb2.WarningReason.Name(w.reason)]
    assert len(warned) == bool(small)
    for warning in warned:
        assert warning.message.endswith(": " + ", ".join(sorted(small)))
        assert warning.field == "data.stratified"


def test_the_shares_of_a_stratified_split_are_those_of_each_class() -> None:
    found = _prepare(
        _series(FEW),
        samples="",
        stratified__train_fraction="0.5",
        stratified__validation_fraction="0.2",
    )
    counts = [np.bincount(split.labels).tolist() for split in _splits(found)]
    assert counts == [[5, 5], [2, 2], [3, 3]]


@dataclass(frozen=True)
class Case:
    """Series of windows' rows, what each row is marked, and the window."""

    times: list[list[int]]
    marks: list[str]
    timed: bool
    length: int
    horizon: int


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    times = [
        sorted(draw(st.sets(st.integers(0, 80), min_size=30, max_size=50)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    marks: list[str] = []
    kinds = MARKS if draw(st.booleans()) else ["train", "test"]
    while len(marks) < sum(map(len, times)):
        marks += [draw(st.sampled_from(kinds))] * draw(st.integers(2, 20))
    return Case(
        times=times,
        marks=marks[: sum(map(len, times))],
        timed=draw(st.booleans()),
        length=draw(st.integers(2, 3)),
        horizon=draw(st.integers(0, 2)),
    )


def _prepare_case(case: Case) -> Prepared | None:
    """None where a split or all but one class are missing."""
    rows = len(case.marks)
    table = pa.table(
        {
            "x": np.random.default_rng(0).normal(size=rows),
            "label": np.arange(rows) % 2,
            "time": [time for each in case.times for time in each],
            "group": [str(g) for g, each in enumerate(case.times) for _ in each],
            "split": case.marks,
        }
    )
    chosen = {"windows__time_column": "time"} if case.timed else {}
    try:
        return _prepare(
            table,
            windows__sequence_length=str(case.length),
            windows__group_column="group",
            column__horizon=str(case.horizon),
            split_column__name="split",
            **chosen,
        )
    except JobFailure as failure:
        empty = training_pb2.FAILURE_REASON_EMPTY_SPLIT
        if failure.reason not in (empty, training_pb2.FAILURE_REASON_SINGLE_CLASS):
            raise
        return None


def _ends(case: Case) -> list[int]:
    """The row after the last one of each row's series."""
    bounds = list(itertools.accumulate(map(len, case.times)))
    return [bound for bound, each in zip(bounds, case.times, strict=True) for _ in each]


@settings(max_examples=60)
@given(_cases())
def test_a_window_belongs_to_a_split_if_every_row_of_its_span_does(case: Case) -> None:
    """Promise 9: spans of different splits have no row in common, whatever the column says."""
    found = _prepare_case(case)
    if found is None:
        return
    ends = _ends(case)
    held_out = "validation" not in case.marks
    spans = {}
    for which, split in zip(MARKS, _splits(found), strict=True):
        spans[which] = {
            row
            for start in split.starts
            for row in range(start, min(start + case.length + case.horizon, ends[start]))
        }
        marked = "train" if which == "validation" and held_out else which
        assert {case.marks[row] for row in spans[which]} <= {marked}
    for one, other in itertools.combinations(MARKS, 2):
        assert not spans[one] & spans[other]
    counted = sum(len(split.starts) for split in _splits(found))
    windows = sum(len(each) - case.length + 1 for each in case.times)
    assert counted + found.purged_windows == windows
    if not held_out:
        whole = [
            start
            for start in range(len(ends))
            if start + case.length <= ends[start]
            and len(set(case.marks[start : min(start + case.length + case.horizon, ends[start])]))
            == 1
        ]
        assert counted == len(whole)


@settings(max_examples=40)
@given(_cases())
def test_held_out_windows_come_after_those_that_train(case: Case) -> None:
    found = _prepare_case(case)
    if found is None or "validation" in case.marks:
        return
    times = [time for each in case.times for time in each]
    ends = _ends(case)
    for start in found.validation.starts:
        for earlier in found.train.starts:
            last = min(earlier + case.length + case.horizon, ends[earlier]) - 1
            if case.timed:
                assert times[last] < times[start]
            elif ends[start] == ends[earlier]:
                assert last < start


# ------------------------------------------------------------------------ by a column


def test_the_share_that_validates_is_taken_class_by_class() -> None:
    labels = ["b"] * 5 + ["a"] * 30 + ["b"] * 10
    marks = ["test"] * 5 + ["train"] * 40
    table = _series(labels, split=marks)
    found = _prepare(table, samples="", split_column__name="split")
    assert [len(split.starts) for split in _splits(found)] == [32, 8, 5]
    assert np.bincount(found.validation.labels).tolist() == [6, 2]
    half = _prepare(
        table, samples="", split_column__name="split", split_column__validation_fraction="0.5"
    )
    assert np.bincount(half.validation.labels).tolist() == [15, 5]
    other = _prepare(table, samples="", split_column__name="split", seed="7")
    assert other.validation.starts.tolist() != found.validation.starts.tolist()
    assert other.test.starts.tolist() == found.test.starts.tolist()


def test_a_class_of_one_training_series_trains_only() -> None:
    labels = ["a"] * 10 + ["b"] * 9 + ["lonely"] + ["a", "b"] * 3
    table = _series(labels, split=["train"] * 20 + ["test"] * 6)
    found = _prepare(table, samples="", split_column__name="split")
    assert _reasons(found) == ["CLASS_NOT_STRATIFIED"]
    assert found.warnings[0].message.endswith(": lonely")
    assert 19 in _rows(found.train)


def test_a_share_is_warned_of_where_the_column_says_what_validates() -> None:
    table = _marked(FEW)
    chosen = {"samples": "", "split_column__name": "marked"}
    assert _reasons(_prepare(table, **chosen)) == []
    found = _prepare(table, **chosen, split_column__validation_fraction="0.3")
    assert _reasons(found) == ["FIELD_WITHOUT_EFFECT"]
    assert found.warnings[0].field == "data.split_column.validation_fraction"


def test_other_marks_are_refused_and_named() -> None:
    marks = ["train"] * 15 + ["dev", "Test"] + ["test"] * 3
    failure = _failure(_series(FEW, split=marks), samples="", split_column__name="split")
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert "column 'split' holds 'Test', 'dev' (first in row 15 of the table" in failure.message
    assert "allowed in a split column: train, validation, test" in failure.message
    assert [violation.field for violation in failure.fields] == ["data.split_column.name"]


def test_marks_of_windows_follow_their_rows_when_these_are_sorted_by_time() -> None:
    rows = 60
    marks = np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 10)
    order = np.random.default_rng(3).permutation(rows)
    columns = {"x": np.arange(rows) * 1.0, "label": np.arange(rows) % 2, "time": np.arange(rows)}
    table = pa.table({name: values[order] for name, values in {**columns, "s": marks}.items()})
    found = _prepare(
        table,
        windows__time_column="time",
        windows__sequence_length="4",
        split_column__name="s",
        scaling="NONE",
    )
    assert found.train.starts.tolist() == list(range(37))
    assert found.validation.starts.tolist() == list(range(40, 47))
    assert found.test.starts.tolist() == list(range(50, 57))
    assert found.features[:, 0].tolist() == columns["x"].tolist()
    assert _reasons(found) == []


# ------------------------------------------------------------------------ refusals


def test_splits_without_a_series_say_what_is_missing() -> None:
    table = _series(FEW, split=["train"] * 18 + ["validation"] * 2)
    failure = _failure(table, samples="", split_column__name="split")
    assert failure.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert "the test split has no sample: 0 of 20 rows are its own" in failure.message
    assert "sequence_length" not in failure.message
    assert [str(violation) for violation in failure.fields] == [
        "data.split_column.name: more rows marked test are needed"
    ]
    lonely = _failure(_series(["a", "a", "b", "b"]), samples="", stratified="")
    assert lonely.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert "Classes of fewer than three samples train only" in lonely.message
    assert [violation.field for violation in lonely.fields] == ["data.stratified"]
    short = _failure(_series(["a", "b"]), samples="")
    fields = [violation.field for violation in short.fields]
    assert set(fields) <= {
        "data.chronological.embargo_rows",
        "data.chronological.train_fraction",
        "data.chronological.validation_fraction",
    }


def test_a_single_class_of_series() -> None:
    failure = _failure(_series(["a"] * 20), samples="", stratified="")
    assert failure.reason == training_pb2.FAILURE_REASON_SINGLE_CLASS
    assert "all 14 training samples are of class 'a'" in failure.message


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([[1.0, 2.0]] * 19 + [[1.0]], "holds lists of 1 to 2 values"),
        ([[1.0, 2.0]] * 19 + [None], "has 1 missing values"),
        ([[1.0, 2.0]] * 19 + [[1.0, None]], "has 1 missing values"),
        ([[1.0, 2.0]] * 20, "'x' of 2 and 'y' of 3 values; allowed: one length"),
    ],
)
def test_lists_are_checked_even_if_no_one_looked_before(
    tmp_path: Path, column: list[Any], words: str
) -> None:
    table = pa.table({"x": column, "y": [[1.0, 2.0, 3.0]] * 20, "label": FEW})
    _, stored = _store(tmp_path, table)
    with pytest.raises(JobFailure, match=words) as caught:
        prepare(_request(samples=""), stored)
    assert caught.value.reason == training_pb2.FAILURE_REASON_INVALID_DATA


def test_a_constant_channel_is_warned_of_by_the_field_of_its_layout() -> None:
    table = pa.table({"x": [[1.0, 1.0]] * 20, "y": [[1.0, 2.0]] * 20, "label": FEW})
    found = _prepare(table, samples="")
    assert _reasons(found) == ["CONSTANT_FEATURE"]
    assert found.warnings[0].field == "data.samples.feature_columns"

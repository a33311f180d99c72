"""From a stored table to scaled features and labelled windows."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import features, profile
from trainwire_server.data.prepare import Prepared, Split, narrow, prepare
from trainwire_server.errors import JobFailure

ROWS = 400


def _columns(rows: int = ROWS) -> dict[str, Any]:
    random = np.random.default_rng(7)
    return {
        "x": random.normal(3, 2, rows),
        "flag": random.integers(0, 2, rows).astype(bool),
        "volume": random.integers(0, 10**9, rows),
        "close": np.exp(np.cumsum(random.normal(0, 0.01, rows))),
        "side": random.integers(0, 3, rows),
    }


def _store(folder: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    source, stored = folder / "source", folder / "table.arrow"
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=97)
    profile.ingest(source, stored, dataset_pb2.DATASET_FORMAT_ARROW)
    return stored


def _request(**chosen: str) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest()
    defaults = {"windows__sequence_length": "10", "column__name": "side"}
    if any(path.startswith("threshold") for path in chosen):
        del defaults["column__name"]
    for path, text in {**defaults, **chosen}.items():
        contract.assign(request, "data." + path.replace("__", "."), text)
    return contract.resolve(request)


def _prepare(folder: Path, columns: dict[str, Any], **chosen: str) -> Prepared:
    return prepare(_request(**chosen), _store(folder, columns))


def _rows_of(split: Split, length: int) -> set[int]:
    return {int(start) + i for start in split.starts for i in range(length)}


def _reasons(prepared: Prepared) -> list[str]:
    return [training_pb2.WarningReason.Name(w.reason)[15:] for w in prepared.warnings]


def test_one_series_labelled_by_a_column(tmp_path: Path) -> None:
    columns = _columns()
    found = _prepare(tmp_path, columns)
    assert found.feature_columns == ["x", "flag", "volume", "close"]
    assert found.class_names == ["0", "1", "2"]
    assert found.features.shape == (ROWS, 4)
    assert found.features.dtype == np.float32
    assert found.features.flags.c_contiguous
    # 280 training rows; validation is rows 280 to 339, less 10 embargoed; test 340 to 399.
    assert found.train.starts.tolist() == list(range(271))
    assert found.validation.starts.tolist() == list(range(290, 331))
    assert found.test.starts.tolist() == list(range(350, 391))
    assert [found.train.rows, found.validation.rows, found.test.rows] == [280, 50, 50]
    assert found.purged_windows == 391 - 271 - 41 - 41
    assert found.unlabelled_windows == 0
    for split in (found.train, found.validation, found.test):
        assert split.labels.tolist() == columns["side"][split.starts + 9].tolist()
    assert found.warnings == []


def test_first_rows_and_labels_take_no_more_bytes_than_they_need(tmp_path: Path) -> None:
    train = _prepare(tmp_path, _columns()).train
    assert (train.starts.itemsize, train.labels.itemsize) == (4, 2)


def test_rows_that_four_bytes_cannot_count_take_eight() -> None:
    most = np.iinfo(np.int32).max
    rows = np.array([0, most], dtype=np.int64)
    assert narrow(rows, most).dtype == np.int32
    assert narrow(rows, most).tolist() == rows.tolist()
    assert narrow(rows + 1, most + 1).tolist() == [1, most + 1]


def test_features_are_scaled_by_training_rows(tmp_path: Path) -> None:
    columns = _columns()
    found = _prepare(tmp_path, columns)
    for index, name in enumerate(found.feature_columns):
        raw = np.asarray(columns[name], dtype=np.float64)
        assert found.mean[index] == pytest.approx(raw[:280].mean(), rel=1e-12)
        assert found.scale[index] == pytest.approx(raw[:280].std(), rel=1e-12)
        scaled = ((raw - found.mean[index]) / found.scale[index]).astype(np.float32)
        assert np.array_equal(found.features[:, index], scaled)


def test_held_out_rows_do_not_move_the_statistics(tmp_path: Path) -> None:
    columns = _columns()
    before = _prepare(tmp_path, columns)
    for name in ("x", "volume", "close"):
        columns[name][280:] = columns[name][280:] * 5 + 1
    after = _prepare(tmp_path, columns)
    assert before.mean.tobytes() == after.mean.tobytes()
    assert before.scale.tobytes() == after.scale.tobytes()
    assert np.array_equal(before.features[:280], after.features[:280])
    assert not np.array_equal(before.features[280:], after.features[280:])
    columns["x"][279] += 1
    assert _prepare(tmp_path, columns).mean[0] != before.mean[0]


def test_rows_that_no_training_window_covers_do_not_count(tmp_path: Path) -> None:
    """With a horizon, the last rows before a boundary belong to no training window."""
    columns = _columns()
    before = _prepare(tmp_path, columns, column__horizon="4")
    assert before.train.rows == 276
    columns["x"][276:280] += 100
    assert _prepare(tmp_path, columns, column__horizon="4").mean[0] == before.mean[0]


def test_without_scaling_features_stay_as_they_are(tmp_path: Path) -> None:
    columns = _columns()
    found = _prepare(tmp_path, columns, scaling="NONE")
    assert found.mean.tolist() == [0] * 4
    assert found.scale.tolist() == [1] * 4
    assert np.array_equal(found.features[:, 0], columns["x"].astype(np.float32))


def test_rows_are_scaled_by_the_rows_before_them(tmp_path: Path) -> None:
    columns = _two_series()
    found = _prepare(tmp_path, columns, scaling="ROLLING", scaling_window="30", **_TIMED)
    assert (found.history, found.mean.tolist(), found.scale.tolist()) == (29, [0] * 4, [1] * 4)
    raw = np.concatenate([columns["x"][250:], columns["x"][:250]])
    places = np.concatenate([np.arange(150), np.arange(250)])
    assert np.array_equal(np.isnan(found.features).all(axis=1), places < 29)
    assert not np.isnan(found.features[places >= 29]).any()
    for row in (29, 149, 150 + 29, 399):
        window = raw[row - 29 : row + 1]
        expected = (raw[row] - window.mean()) / window.std()
        assert found.features[row, 0] == pytest.approx(expected, abs=1e-5)
    # A window whose first row has 29 rows before it is the first of its series.
    starts = np.concatenate([found.train.starts, found.validation.starts, found.test.starts])
    assert (found.train.starts.min(), places[starts].min()) == (29, 29)
    assert found.unscaled_windows == 2 * 29
    whole = _prepare(tmp_path, columns, **_TIMED)
    assert set(starts) == {
        start
        for split in (whole.train, whole.validation, whole.test)
        for start in split.starts
        if places[start] >= 29
    }
    assert _reasons(found) == []
    assert found.raw_windows is not None
    held_out = {*found.validation.starts, *found.test.starts}
    assert {*found.raw_windows.starts} <= held_out
    start = found.raw_windows.starts[-1]
    assert np.array_equal(found.raw_windows.values[-1][:, 0], raw[start - 29 : start + 10])


def test_raw_windows_of_wide_tables_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, kept in ((5 * 39 * 4, 5), (5 * 39 * 4 - 1, 4), (1, 1)):
        monkeypatch.setattr(features, "_RAW_VALUES", most)
        found = _prepare(tmp_path, _two_series(), scaling="ROLLING", scaling_window="30", **_TIMED)
        assert found.raw_windows is not None
        assert found.raw_windows.values.shape == (kept, 39, 4)


def test_later_rows_move_no_earlier_ones(tmp_path: Path) -> None:
    columns, random = _two_series(), np.random.default_rng(1)
    order = np.lexsort((columns["when"], columns["symbol"]))
    columns["x"][random.permutation(400)[:60]] = np.nan
    columns["x"][[0, 250]] = 3.0  # the first rows of both series: none is left out
    later = columns["when"] > columns["when"][200]
    found = []
    for seed in range(2):
        random = np.random.default_rng(seed)
        columns["x"][later] = np.where(random.random(later.sum()) < 0.5, np.nan, 10.0**seed)
        how = {"scaling_window": "20", "missing_values": "FORWARD_FILL"}
        found.append(_prepare(tmp_path, columns, scaling="ROLLING", **how, **_TIMED))
    one, other = (each.features for each in found)
    assert found[0].filled_values != found[1].filled_values
    assert np.array_equal(one[~later[order]], other[~later[order]], equal_nan=True)
    assert not np.array_equal(one[later[order]], other[later[order]], equal_nan=True)


def test_a_feature_that_never_moves_is_warned_of_however_it_is_scaled(tmp_path: Path) -> None:
    columns = _columns()
    columns["x"][:280] = 0.1
    found = _prepare(tmp_path, columns, scaling="ROLLING", scaling_window="20")
    assert _reasons(found) == ["CONSTANT_FEATURE"]
    assert found.warnings[0].message.endswith(": x")
    assert not found.features[19:280, 0].any()
    columns["x"][100] = 0.2
    assert not _prepare(tmp_path, columns, scaling="ROLLING", scaling_window="20").warnings


def test_a_series_too_short_to_be_scaled_says_what_to_change(tmp_path: Path) -> None:
    chosen = {**_TIMED, "scaling": "ROLLING", "scaling_window": "142"}
    failure = _failure(tmp_path, _two_series(), **chosen)
    assert failure.reason == training_pb2.FAILURE_REASON_GROUP_TOO_SHORT
    assert "series 'A' has 150 rows, but a window takes 10 and 141 before it" in failure.message
    assert [str(violation) for violation in failure.fields] == [
        "data.windows.sequence_length: allowed: at most 9",
        "data.scaling_window: allowed: at most 141",
    ]


def _shuffled(columns: dict[str, Any], seed: int) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(columns["side"]))
    return {name: values[order] for name, values in columns.items()}


def _two_series() -> dict[str, Any]:
    times = np.concatenate([np.arange(250), np.arange(100, 250)])
    return {
        **_columns(),
        "symbol": np.array(["B"] * 250 + ["A"] * 150),
        "when": times.astype("datetime64[D]").astype("datetime64[us]"),
    }


_TIMED = {"windows__group_column": "symbol", "windows__time_column": "when"}


def test_the_order_of_rows_in_the_table_does_not_matter_with_times(tmp_path: Path) -> None:
    columns = _two_series()
    one = _prepare(tmp_path, columns, **_TIMED)
    other = _prepare(tmp_path, _shuffled(columns, 3), **_TIMED)
    assert np.array_equal(one.features, other.features)
    assert one.mean.tobytes() == other.mean.tobytes()
    for split, its in ((one.train, other.train), (one.test, other.test)):
        assert np.array_equal(split.starts, its.starts)
        assert np.array_equal(split.labels, its.labels)


def test_series_lie_one_after_the_other_and_share_the_boundaries(tmp_path: Path) -> None:
    columns = _two_series()
    found = _prepare(tmp_path, columns, **_TIMED)
    raw = np.concatenate([columns["x"][250:], columns["x"][:250]])
    assert found.features[:, 0] == pytest.approx((raw - found.mean[0]) / found.scale[0], abs=1e-5)
    days = np.concatenate([np.arange(100, 250), np.arange(250)])
    latest = max(days[row] for row in _rows_of(found.train, 10))
    earliest = min(days[row] for row in _rows_of(found.validation, 10))
    assert latest < earliest
    windows = np.concatenate([found.train.starts, found.validation.starts, found.test.starts])
    assert not any(start < 150 < start + 9 for start in windows)
    assert _reasons(found) == []


def test_several_series_without_times_are_warned_of(tmp_path: Path) -> None:
    found = _prepare(tmp_path, _two_series(), windows__group_column="symbol")
    assert _reasons(found) == ["UNALIGNED_GROUPS"]
    assert found.warnings[0].field == "data.windows.time_column"


def _expected_returns(prices: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> list[int]:
    changes = prices[rows + 5] / prices[rows] - 1
    return [0 if change < -0.01 else 2 if change > 0.02 else 1 for change in changes]


def test_labels_by_return(tmp_path: Path) -> None:
    columns = _columns()
    found = _prepare(
        tmp_path,
        columns,
        threshold__price_column="close",
        threshold__lower="-0.01",
        threshold__upper="0.02",
    )
    assert found.class_names == ["SELL", "HOLD", "BUY"]
    assert found.feature_columns == ["x", "flag", "volume", "side"]
    assert found.unlabelled_windows == 5
    for split in (found.train, found.validation, found.test):
        expected = _expected_returns(columns["close"], split.starts + 9)
        assert split.labels.tolist() == expected
    windows = sum(len(split.starts) for split in (found.train, found.validation, found.test))
    assert windows + found.purged_windows + found.unlabelled_windows == ROWS - 9
    # The last training label looks at row 279.
    assert found.train.starts.max() == 279 - 5 - 9


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "c", "b"], ["a", "b", "c"]),
        ([10, -9, 2, 10], ["-9", "2", "10"]),
        ([True, False, True, True], ["false", "true"]),
    ],
)
def test_classes_are_sorted(tmp_path: Path, values: list[Any], names: list[str]) -> None:
    columns = {**_columns(), "side": np.array(values * (ROWS // 4))}
    found = _prepare(tmp_path, columns)
    assert found.class_names == names
    expected = [names.index(str(values[(start + 9) % 4]).lower()) for start in found.train.starts]
    assert found.train.labels.tolist() == expected


def test_classes_that_training_never_sees_are_warned_of(tmp_path: Path) -> None:
    columns = _columns()
    columns["side"][350:360] = 7
    found = _prepare(tmp_path, columns)
    assert _reasons(found) == ["UNSEEN_CLASS"]
    assert found.warnings[0].message.endswith(": 7")
    assert found.warnings[0].field == "data.column.name"


def test_a_feature_that_is_constant_in_training_is_warned_of(tmp_path: Path) -> None:
    columns = _columns()
    columns["x"][:280] = 0.1
    found = _prepare(tmp_path, columns)
    assert _reasons(found) == ["CONSTANT_FEATURE"]
    assert found.warnings[0].message.endswith(": x")
    assert (found.mean[0], found.scale[0]) == (0.1, 1.0)
    assert not found.features[:280, 0].any()


def _failure(folder: Path, columns: dict[str, Any], **chosen: str) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        _prepare(folder, columns, **chosen)
    return caught.value


def test_an_empty_split_says_what_to_change(tmp_path: Path) -> None:
    failure = _failure(tmp_path, _columns(), chronological__embargo_rows="55")
    assert failure.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert "the validation split has no window: 5 of 400 rows" in failure.message
    assert "the test split has no window: 5 of 400 rows" in failure.message
    assert "(sequence_length 10, horizon 0)" in failure.message
    assert [violation.field for violation in failure.fields] == [
        "data.windows.sequence_length",
        "data.column.horizon",
        "data.chronological.embargo_rows",
        "data.chronological.validation_fraction",
        "data.chronological.train_fraction",
    ]


def test_a_horizon_longer_than_the_series_leaves_no_window(tmp_path: Path) -> None:
    chosen = {"threshold__price_column": "close", "threshold__horizon": "500"}
    failure = _failure(tmp_path, _columns(), **chosen)
    assert failure.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert "data.threshold.horizon" in [violation.field for violation in failure.fields]


def test_a_single_class_is_named(tmp_path: Path) -> None:
    columns = _columns()
    columns["side"][:280] = 2
    failure = _failure(tmp_path, columns)
    assert failure.reason == training_pb2.FAILURE_REASON_SINGLE_CLASS
    assert "all 271 training windows are of class '2'" in failure.message


def test_a_feature_beyond_float32_is_named(tmp_path: Path) -> None:
    columns = _columns()
    columns["x"][5] = 1e39
    failure = _failure(tmp_path, columns, scaling="NONE")
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert "column 'x'" in failure.message


def test_missing_values_are_refused_even_if_no_one_looked_before(tmp_path: Path) -> None:
    columns = {**_columns(), "x": pa.array([None, *range(ROWS - 1)])}
    failure = _failure(tmp_path, columns)
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert "'x' has 1 missing values" in failure.message


def test_a_lost_or_damaged_table_is_data_lost(tmp_path: Path) -> None:
    stored = _store(tmp_path, {**_columns(), "name": ["a"] * ROWS})
    content = stored.read_bytes()
    damages = {
        "truncated": content[: len(content) // 2],
        "garbage": b"\0" * 100,
        "empty": b"",
    }
    for damaged in damages.values():
        stored.write_bytes(damaged)
        with pytest.raises(JobFailure) as caught:
            prepare(_request(), stored)
        assert caught.value.reason == training_pb2.FAILURE_REASON_DATA_LOST
    stored.unlink()
    with pytest.raises(JobFailure) as caught:
        prepare(_request(), stored)
    assert caught.value.reason == training_pb2.FAILURE_REASON_DATA_LOST
    assert "upload the dataset once more" in caught.value.message


@pytest.mark.parametrize(
    "shortage", [pa.ArrowMemoryError("malloc failed"), OSError(errno.ENOMEM, "cannot map")], ids=str
)
def test_a_table_that_there_is_no_memory_for_is_not_lost(
    shortage: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = _store(tmp_path, {**_columns(), "name": ["a"] * ROWS})

    def open_file(*_: Any, **__: Any) -> None:
        raise shortage

    monkeypatch.setattr(pa.ipc, "open_file", open_file)
    with pytest.raises(MemoryError):
        prepare(_request(), stored)


def test_a_column_that_the_stored_table_lacks_is_data_lost(tmp_path: Path) -> None:
    failure = _failure(tmp_path, _columns(), column__name="label")
    assert failure.reason == training_pb2.FAILURE_REASON_DATA_LOST


def test_a_table_that_is_gone_does_not_tell_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(JobFailure, match="the stored table cannot be read") as caught:
        prepare(_request(), tmp_path / "nothing")
    assert str(tmp_path) not in str(caught.value)

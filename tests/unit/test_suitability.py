"""What a dataset's profile tells about a request, before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from trainwire import contract
from trainwire.contract import Violation
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import suitability

_KINDS = {
    "id": "INTEGER",
    "when": "TIMESTAMP",
    "symbol": "STRING",
    "close": "FLOAT",
    "volume": "INTEGER",
    "open_now": "BOOLEAN",
    "side": "INTEGER",
    "score": "FLOAT",
    "blob": "OTHER",
}


def _dataset(rows: int = 1000, **bad: dict[str, Any]) -> dataset_pb2.Dataset:
    columns = [
        dataset_pb2.DatasetColumn(
            name=name,
            type=dataset_pb2.ColumnType.Value(f"COLUMN_TYPE_{kind}"),
            arrow_type="?",
            **bad.get(name, {}),
        )
        for name, kind in _KINDS.items()
    ]
    return dataset_pb2.Dataset(row_count=rows, columns=columns)


def _request(**settings: str) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest()
    for path, text in settings.items():
        contract.assign(request, "data." + path.replace("__", "."), text)
    return contract.resolve(request)


def _check(dataset: dataset_pb2.Dataset, **settings: str) -> list[Violation]:
    return suitability.check(_request(**settings), dataset)


def _paths(found: list[Violation]) -> list[str]:
    return [violation.field for violation in found]


def test_a_suitable_dataset_has_no_violations() -> None:
    common = {"windows__time_column": "when", "windows__group_column": "symbol"}
    assert not _check(_dataset(), **common, column__name="side")
    assert not _check(_dataset(), **common, threshold__price_column="close")
    assert not _check(_dataset(), windows__time_column="id", column__name="symbol")
    assert not _check(_dataset(), windows__group_column="open_now", column__name="symbol")


def test_features_default_to_numeric_columns_without_another_role() -> None:
    types = {column.name: column.type for column in _dataset().columns}
    by_label = _request(windows__time_column="id", column__name="side")
    assert suitability.feature_columns(by_label, types) == ["close", "volume", "open_now", "score"]
    by_price = _request(windows__group_column="side", threshold__price_column="close")
    assert suitability.feature_columns(by_price, types) == ["id", "volume", "open_now", "score"]
    named = _request(windows__feature_columns="volume, close", threshold__price_column="close")
    assert suitability.feature_columns(named, types) == ["volume", "close"]
    assert not suitability.check(named, _dataset())


def test_everything_is_reported_at_once() -> None:
    found = _check(
        _dataset(rows=59, volume={"null_count": 3}, score={"non_finite_count": 2}),
        windows__time_column="symbol",
        windows__group_column="tickers",
        windows__feature_columns="volume,score,closes,when",
        column__name="close",
    )
    texts = {violation.description: violation.field for violation in found}
    expected = {
        "a window takes 60 rows, but the dataset has 59": "data.windows.sequence_length",
        "column 'symbol' is STRING": "data.windows.time_column",
        "no column 'tickers'": "data.windows.group_column",
        "column 'close' is FLOAT": "data.column.name",
        "column 'volume' has 3 missing values": "data.windows.feature_columns",
        "column 'score' has 2 NaN or infinite values": "data.windows.feature_columns",
        "no column 'closes' (did you mean 'close'?)": "data.windows.feature_columns",
        "column 'when' is TIMESTAMP": "data.windows.feature_columns",
    }
    for part, path in expected.items():
        assert [texts[text] for text in texts if part in text] == [path], part
    assert len(found) == len(expected)


def test_a_missing_column_lists_what_is_there() -> None:
    (found,) = _check(_dataset(), column__name="label")
    assert found.field == "data.column.name"
    assert all(name in found.description for name in _KINDS)


def test_a_float_label_comes_with_a_hint() -> None:
    (found,) = _check(_dataset(), column__name="score")
    assert "INTEGER, STRING, BOOLEAN" in found.description
    assert "data.threshold" in found.description


@pytest.mark.parametrize(
    ("settings", "path", "part"),
    [
        (
            {"windows__feature_columns": "close,side", "column__name": "side"},
            "data.windows.feature_columns",
            "must not see its own label",
        ),
        (
            {"windows__feature_columns": "close,id", "windows__time_column": "id"},
            "data.windows.feature_columns",
            "'id' is the time column already",
        ),
        ({"windows__group_column": "side"}, "data.column.name", "'side' is the group column"),
        (
            {"windows__time_column": "id", "windows__group_column": "id"},
            "data.windows.group_column",
            "'id' is the time column already",
        ),
    ],
)
def test_a_column_has_one_role(settings: dict[str, str], path: str, part: str) -> None:
    (found,) = _check(_dataset(), **{"column__name": "side", **settings})
    assert found.field == path
    assert part in found.description


def test_a_price_may_be_a_feature_but_not_the_time() -> None:
    (found,) = _check(
        _dataset(),
        windows__time_column="close",
        windows__feature_columns="volume",
        threshold__price_column="close",
    )
    assert found.field == "data.threshold.price_column"


def test_used_columns_alone_must_be_clean() -> None:
    dataset = _dataset(score={"null_count": 1}, when={"null_count": 1})
    assert not _check(dataset, windows__feature_columns="close", column__name="side")
    assert _paths(_check(dataset, column__name="side")) == ["data.windows.feature_columns"]


def test_no_feature_is_left() -> None:
    dataset = _dataset()
    keep = [column for column in dataset.columns if column.name in {"when", "side", "symbol"}]
    small = dataset_pb2.Dataset(row_count=100, columns=keep)
    found = _check(small, column__name="side", windows__time_column="when")
    assert _paths(found) == ["data.windows.feature_columns"]
    assert "side INTEGER" in found[0].description


def test_row_counts() -> None:
    assert _paths(_check(_dataset(rows=0), column__name="side")) == ["dataset"]
    assert _paths(_check(_dataset(rows=59), column__name="side")) == [
        "data.windows.sequence_length"
    ]
    assert not _check(_dataset(rows=60), column__name="side")


def test_rows_to_scale_by_must_fit_too() -> None:
    chosen = {"column__name": "side", "scaling": "ROLLING", "scaling_window": "41"}
    assert not _check(_dataset(rows=100), **chosen)
    (found,) = _check(_dataset(rows=99), **chosen)
    assert found.field == "data.scaling_window"
    assert "takes 100 rows, but the dataset has 99; allowed: at most 40" in found.description
    (found,) = _check(_dataset(rows=60), **chosen)
    assert found.description.endswith("shorten data.windows.sequence_length too")


def test_the_server_can_check_without_loading_numeric_packages() -> None:
    program = (
        "import sys, trainwire_server.data.suitability;"
        "print(sorted({'numpy', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------ labelled series


def _lists(name: str, *lengths: int, unequal: int | None = None) -> dataset_pb2.DatasetColumn:
    shortest, longest = min(lengths), max(lengths)
    return dataset_pb2.DatasetColumn(
        name=name,
        type=dataset_pb2.COLUMN_TYPE_LIST,
        arrow_type="list<item: double>",
        list_lengths=dataset_pb2.ListLengths(
            shortest=shortest, longest=longest, first_unequal_row=unequal
        ),
    )


def _labelled(*channels: dataset_pb2.DatasetColumn, rows: int = 20) -> dataset_pb2.Dataset:
    dataset = _dataset(rows)
    dataset.columns.extend(channels)
    return dataset


_SERIES = {"samples": "", "column__name": "side"}


def test_channels_default_to_all_columns_of_lists() -> None:
    dataset = _labelled(_lists("x", 24), _lists("y", 24))
    types = {column.name: column.type for column in dataset.columns}
    assert suitability.feature_columns(_request(**_SERIES), types) == ["x", "y"]
    named = _request(**_SERIES, samples__feature_columns="y")
    assert suitability.feature_columns(named, types) == ["y"]
    windows = _request(column__name="side")
    assert not {"x", "y"} & set(suitability.feature_columns(windows, types))
    assert not _check(dataset, **_SERIES)
    assert not _check(dataset, **_SERIES, samples__feature_columns="y,x")


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (
            [_lists("x", 24, 29, unequal=17)],
            "column 'x' holds lists of 24 to 29 values, the first of another length than those "
            "before in row 17 (counted from 0); allowed: lists of one length",
        ),
        (
            [_lists("x", 24), _lists("y", 25)],
            "column 'y' holds lists of 25 values, but 'x' of 24; allowed: one length in all",
        ),
        ([_lists("x", 1)], "column 'x' holds lists of 1 values; allowed: 2 to 4096"),
        ([_lists("x", 4097)], "column 'x' holds lists of 4097 values; allowed: 2 to 4096"),
    ],
)
def test_series_must_be_of_one_length_within_its_range(
    channels: list[dataset_pb2.DatasetColumn], words: str
) -> None:
    (found,) = _check(_labelled(*channels), **_SERIES)
    assert found.field == "data.samples.feature_columns"
    assert words in found.description


def test_missing_values_in_lists_are_placed() -> None:
    channel = _lists("x", 24)
    channel.null_count, channel.first_unusable_row = 3, 7
    (found,) = _check(_labelled(channel), **_SERIES)
    assert "'x' has 3 missing values, the first in row 7 (counted from 0)" in found.description


def test_the_length_of_series_bounds_what_a_window_would() -> None:
    dataset = _labelled(_lists("x", 24))
    for size, broken in (("24", []), ("25", ["model.hybrid_cnn_lstm.pool_size"])):
        request = _request(**_SERIES)
        contract.assign(request, "model.hybrid_cnn_lstm.pool_size", size)
        found = suitability.check(request, dataset)
        assert _paths(found) == broken
        assert all("at most 24, the length of the series" in each.description for each in found)


@pytest.mark.parametrize("data_format", ["ARROW", "CSV"])
def test_without_lists_there_is_nothing_to_learn_from(data_format: str) -> None:
    dataset = _dataset()
    dataset.format = dataset_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{data_format}")
    (found,) = _check(dataset, **_SERIES)
    assert found.field == "data.samples.feature_columns"
    assert "allowed types: LIST" in found.description
    assert ("CSV has no lists" in found.description) == (data_format == "CSV")
    (named,) = _check(dataset, **_SERIES, samples__feature_columns="close")
    assert "'close' is FLOAT (Arrow ?); allowed for a channel column: LIST" in named.description
    assert ("CSV has no lists" in named.description) == (data_format == "CSV")


def test_lists_are_no_features_of_windows() -> None:
    dataset = _labelled(_lists("x", 24), rows=100)
    (found,) = _check(dataset, windows__feature_columns="x", column__name="side")
    assert found.field == "data.windows.feature_columns"
    assert "'x' is LIST" in found.description
    assert "choose data.samples" in found.description
    only = dataset_pb2.Dataset(row_count=100, columns=[_lists("x", 24)])
    only.columns.add(name="side", type=dataset_pb2.COLUMN_TYPE_STRING, arrow_type="string")
    (none,) = _check(only, column__name="side")
    assert "choose data.samples" in none.description


@pytest.mark.parametrize(
    ("column", "part"),
    [
        ("side", "'side' is INTEGER (Arrow ?); allowed for a split column: STRING"),
        ("parts", "no column 'parts'"),
        ("symbol", ""),
    ],
)
def test_a_split_column_is_text(column: str, part: str) -> None:
    found = _check(_dataset(), column__name="id", split_column__name=column)
    assert _paths(found) == (["data.split_column.name"] if part else [])
    assert all(part in each.description for each in found)


def test_a_split_column_has_no_other_role_and_no_gaps() -> None:
    dataset = _dataset(symbol={"null_count": 2})
    assert _paths(_check(dataset, column__name="side", split_column__name="symbol")) == [
        "data.split_column.name"
    ]
    (found,) = _check(_dataset(), column__name="symbol", split_column__name="symbol")
    assert found.field == "data.column.name"
    assert "'symbol' is the split column already" in found.description
    features = suitability.feature_columns(
        _request(column__name="side", split_column__name="symbol"),
        {column.name: column.type for column in _dataset().columns},
    )
    assert "symbol" not in features

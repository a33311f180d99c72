"""What a dataset's profile tells about a request, before anything is trained."""

from __future__ import annotations

import subprocess
import sys

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


def _dataset(rows: int = 1000, **bad: dict[str, int]) -> dataset_pb2.Dataset:
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


def test_the_server_can_check_without_loading_numeric_packages() -> None:
    program = (
        "import sys, trainwire_server.data.suitability;"
        "print(sorted({'numpy', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""What an effective request asks of a dataset's columns, checked against the stored profile alone.

Runs in the server's own process: it must import neither NumPy nor Arrow.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainwire.contract import Violation
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.errors import listed

_FEATURES_PATH = "data.windows.feature_columns"
_NUMERIC = (
    dataset_pb2.COLUMN_TYPE_INTEGER,
    dataset_pb2.COLUMN_TYPE_FLOAT,
    dataset_pb2.COLUMN_TYPE_BOOLEAN,
)
_ALLOWED = {
    "feature": _NUMERIC,
    "price": (dataset_pb2.COLUMN_TYPE_INTEGER, dataset_pb2.COLUMN_TYPE_FLOAT),
    "time": (
        dataset_pb2.COLUMN_TYPE_TIMESTAMP,
        dataset_pb2.COLUMN_TYPE_INTEGER,
        dataset_pb2.COLUMN_TYPE_FLOAT,
    ),
    "group": (
        dataset_pb2.COLUMN_TYPE_STRING,
        dataset_pb2.COLUMN_TYPE_INTEGER,
        dataset_pb2.COLUMN_TYPE_BOOLEAN,
    ),
    "label": (
        dataset_pb2.COLUMN_TYPE_INTEGER,
        dataset_pb2.COLUMN_TYPE_STRING,
        dataset_pb2.COLUMN_TYPE_BOOLEAN,
    ),
}
_FLOAT_LABEL_HINT = (
    "; make it whole numbers or text, or let data.threshold make classes of a price's returns"
)
_MOST_NAMES = 20


@dataclass(frozen=True)
class _Use:
    """A column and what the request uses it for."""

    path: str
    role: str
    column: str


def check(request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset) -> list[Violation]:
    """Everything that keeps the request from being trained on the dataset; empty if nothing does.

    Args:
        request: an effective request (`contract.resolve`).
        dataset: the dataset's stored profile.
    """
    columns = {column.name: column for column in dataset.columns}
    types = {column.name: column.type for column in dataset.columns}
    features = feature_columns(request, types)
    uses = [*_role_uses(request), *(_Use(_FEATURES_PATH, "feature", name) for name in features)]
    found = list(_broken_size(request, dataset))
    for use in uses:
        found += _broken_column(use, columns)
    found += _clashes(uses)
    if not features:
        found.append(_without_features(columns))
    return found


def feature_columns(
    request: training_pb2.TrainingRequest,
    types: Mapping[str, dataset_pb2.ColumnType.ValueType],
) -> list[str]:
    """The columns to learn from: those named, or else every numeric column without another role.

    Args:
        request: an effective request (`contract.resolve`).
        types: what each column of the dataset holds, in file order.
    """
    named = list(request.data.windows.feature_columns)
    taken = {use.column for use in _role_uses(request)}
    free = [name for name, kind in types.items() if kind in _NUMERIC and name not in taken]
    return named or free


def _role_uses(request: training_pb2.TrainingRequest) -> list[_Use]:
    """The columns that mark time, group and label or price."""
    data, windows = request.data, request.data.windows
    uses = []
    if windows.HasField("time_column"):
        uses.append(_Use("data.windows.time_column", "time", windows.time_column))
    if windows.HasField("group_column"):
        uses.append(_Use("data.windows.group_column", "group", windows.group_column))
    if data.WhichOneof("target") == "threshold":
        uses.append(_Use("data.threshold.price_column", "price", data.threshold.price_column))
    else:
        uses.append(_Use("data.column.name", "label", data.column.name))
    return uses


def _broken_size(
    request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset
) -> Iterator[Violation]:
    rows, length = dataset.row_count, request.data.windows.sequence_length
    if rows == 0:
        yield Violation("dataset", "has no rows; upload one with rows to train on")
    elif rows < length:
        yield Violation(
            "data.windows.sequence_length",
            f"a window takes {length} rows, but the dataset has {rows}; allowed: at most {rows}",
        )


def _broken_column(
    use: _Use, columns: Mapping[str, dataset_pb2.DatasetColumn]
) -> Iterator[Violation]:
    column = columns.get(use.column)
    if column is None:
        yield Violation(use.path, _missing(use.column, list(columns)))
        return
    if column.type not in _ALLOWED[use.role]:
        yield Violation(use.path, _wrong_type(use.role, column))
    if column.null_count:
        yield Violation(use.path, _unusable(column, column.null_count, "missing"))
    if column.non_finite_count:
        yield Violation(use.path, _unusable(column, column.non_finite_count, "NaN or infinite"))


def _missing(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"the dataset has no column {name!r}{hint}; there are: {listed(names, _MOST_NAMES)}"


def _wrong_type(role: str, column: dataset_pb2.DatasetColumn) -> str:
    allowed = ", ".join(_type_name(kind) for kind in _ALLOWED[role])
    is_float_label = role == "label" and column.type == dataset_pb2.COLUMN_TYPE_FLOAT
    return (
        f"column {column.name!r} is {_type_name(column.type)} (Arrow {column.arrow_type}); "
        f"allowed for a {role} column: {allowed}{_FLOAT_LABEL_HINT if is_float_label else ''}"
    )


def _type_name(kind: dataset_pb2.ColumnType.ValueType) -> str:
    return dataset_pb2.ColumnType.Name(kind).removeprefix("COLUMN_TYPE_")


def _unusable(column: dataset_pb2.DatasetColumn, count: int, what: str) -> str:
    return (
        f"column {column.name!r} has {count} {what} values; allowed: none "
        "(fill or drop these rows, or do not use the column)"
    )


def _clashes(uses: list[_Use]) -> Iterator[Violation]:
    """Columns in two roles; the first use keeps the column, later ones are blamed."""
    seen: dict[str, list[_Use]] = {}
    for use in uses:
        earlier = seen.setdefault(use.column, [])
        clash = next((other for other in earlier if not _may_share(other, use)), None)
        if clash is not None:
            yield Violation(use.path, _two_roles(clash, use))
        earlier.append(use)


def _may_share(first: _Use, second: _Use) -> bool:
    """A price is known when a window ends, so a model may learn from it as well."""
    return {first.role, second.role} == {"price", "feature"}


def _two_roles(first: _Use, second: _Use) -> str:
    leak = (first.role, second.role) == ("label", "feature")
    why = "; a model must not see its own label" if leak else ""
    return f"column {second.column!r} is the {first.role} column already ({first.path}){why}"


def _without_features(columns: Mapping[str, dataset_pb2.DatasetColumn]) -> Violation:
    allowed = ", ".join(_type_name(kind) for kind in _NUMERIC)
    there = ", ".join(f"{column.name} {_type_name(column.type)}" for column in columns.values())
    return Violation(
        _FEATURES_PATH,
        f"no column is left to learn from besides time, group, label and price; "
        f"allowed types: {allowed}; there are: {there[:1000]}",
    )

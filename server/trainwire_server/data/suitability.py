"""What an effective request asks of a dataset's columns, checked against the stored profile alone.

Runs in the server's own process: it must import neither NumPy nor Arrow.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainwire import contract
from trainwire.contract import Violation
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data.targets import find_target
from trainwire_server.errors import listed

_LENGTH_PATH = "data.windows.sequence_length"
_NUMERIC = (
    dataset_pb2.COLUMN_TYPE_INTEGER,
    dataset_pb2.COLUMN_TYPE_FLOAT,
    dataset_pb2.COLUMN_TYPE_BOOLEAN,
)
_ALLOWED = {
    "feature": _NUMERIC,
    "channel": (dataset_pb2.COLUMN_TYPE_LIST,),
    "split": (dataset_pb2.COLUMN_TYPE_STRING,),
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
    "; make it whole numbers or text, or let data.quantile or data.threshold make classes of a "
    "price's returns"
)
_LIST_FEATURE_HINT = "; lists are channels of labelled series: choose data.samples"
_CSV_HINT = "; CSV has no lists: upload Arrow or Parquet, or .ts and .tsv files by the client"
_FILL_OR_DROP = "let data.missing_values fill or drop missing ones"
_UNLABELLED = "with data.missing_values FORWARD_FILL or DROP such rows have no label"
_WAYS_OUT = {
    "feature": _FILL_OR_DROP,
    "channel": _FILL_OR_DROP,
    "label": _UNLABELLED,
    "price": _UNLABELLED,
}
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
    path, role = _features_path(request), _feature_role(request)
    uses = [*_role_uses(request), *(_Use(path, role, name) for name in features)]
    found = [*_broken_size(request, dataset), *_broken_volatility(request)]
    found += _broken_stop_loss(request)
    allowed = roles_with_gaps(request)
    for use in uses:
        found += _broken_column(use, columns, dataset, may_lack=use.role in allowed)
    found += _clashes(uses)
    if not features:
        found.append(_without_features(request, dataset))
    if role == "channel":
        found += _broken_channels(request, [columns[name] for name in features if name in columns])
    return found


def feature_columns(
    request: training_pb2.TrainingRequest,
    types: Mapping[str, dataset_pb2.ColumnType.ValueType],
) -> list[str]:
    """The columns to learn from: those named, or else every numeric column without another role;
    of labelled series every column of lists of numbers.

    Args:
        request: an effective request (`contract.resolve`).
        types: what each column of the dataset holds, in file order.
    """
    layout = request.data.samples if _feature_role(request) == "channel" else request.data.windows
    allowed = _ALLOWED[_feature_role(request)]
    taken = {use.column for use in _role_uses(request)}
    free = [name for name, kind in types.items() if kind in allowed and name not in taken]
    return list(layout.feature_columns) or free


def roles_with_gaps(request: training_pb2.TrainingRequest) -> tuple[str, ...]:
    """What columns with missing values may be used for, by the request's `missing_values`.

    What labels are made of is never made up: windows that need what is missing have no label.
    """
    refused = request.data.missing_values == training_pb2.MISSING_VALUES_REFUSE
    return () if refused else ("feature", "channel", "label", "price")


def _feature_role(request: training_pb2.TrainingRequest) -> str:
    return "channel" if request.data.WhichOneof("layout") == "samples" else "feature"


def _features_path(request: training_pb2.TrainingRequest) -> str:
    return f"data.{request.data.WhichOneof('layout')}.feature_columns"


def _role_uses(request: training_pb2.TrainingRequest) -> list[_Use]:
    """The columns that mark time, group, split and label or price."""
    data, windows = request.data, request.data.windows
    uses = []
    if windows.HasField("time_column"):
        uses.append(_Use("data.windows.time_column", "time", windows.time_column))
    if windows.HasField("group_column"):
        uses.append(_Use("data.windows.group_column", "group", windows.group_column))
    if data.WhichOneof("split") == "split_column":
        uses.append(_Use("data.split_column.name", "split", data.split_column.name))
    target = find_target(request)
    role = "price" if target.is_price else "label"
    return [*uses, _Use(target.column_path, role, target.column)]


def _broken_size(
    request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset
) -> Iterator[Violation]:
    rows, length = dataset.row_count, request.data.windows.sequence_length
    if rows == 0:
        yield Violation("dataset", "has no rows; upload one with rows to train on")
    elif request.data.WhichOneof("layout") == "windows" and rows < length:
        yield Violation(
            _LENGTH_PATH,
            f"a window takes {length} rows, but the dataset has {rows}; allowed: at most {rows}",
        )
    elif request.data.scaling == training_pb2.SCALING_ROLLING:
        yield from _broken_history(request, rows)


def _broken_history(request: training_pb2.TrainingRequest, rows: int) -> Iterator[Violation]:
    """Of windows that fit into the table, but not with the rows before that scale them."""
    length, window = request.data.windows.sequence_length, request.data.scaling_window
    most = rows - length + 1
    if window > most:
        yield Violation(
            "data.scaling_window",
            f"a window of {length} rows, scaled by {window} rows up to each, takes "
            f"{length + window - 1} rows, but the dataset has {rows}; "
            + (f"allowed: at most {most}" if most > 1 else f"shorten {_LENGTH_PATH} too"),
        )


def _broken_volatility(request: training_pb2.TrainingRequest) -> Iterator[Violation]:
    target = find_target(request)
    if target.volatility_window == 1:
        yield Violation(
            target.volatility_path,
            "1 is not allowed, because the deviation of one return is nothing; "
            "allowed: 0 for relative returns, or at least 2",
        )


def _broken_stop_loss(request: training_pb2.TrainingRequest) -> Iterator[Violation]:
    """Of a barrier that no price above 0 passes, so that nothing would be SELL."""
    barriers = request.data.triple_barrier
    is_chosen = request.data.WhichOneof("target") == "triple_barrier"
    if is_chosen and barriers.volatility_window == 0 and barriers.stop_loss >= 1:
        yield Violation(
            "data.triple_barrier.stop_loss",
            f"{barriers.stop_loss:g} is not allowed, because at volatility_window 0 it is a share "
            "of the price; allowed: below 1",
        )


def _broken_column(
    use: _Use,
    columns: Mapping[str, dataset_pb2.DatasetColumn],
    dataset: dataset_pb2.Dataset,
    *,
    may_lack: bool,
) -> Iterator[Violation]:
    column = columns.get(use.column)
    if column is None:
        yield Violation(use.path, _missing(use.column, list(columns)))
        return
    if column.type not in _ALLOWED[use.role]:
        yield Violation(use.path, _wrong_type(use.role, column, dataset))
    # The profile does not tell NaN, which is missing too, from infinite: the training does.
    if column.null_count and not may_lack:
        yield Violation(use.path, _unusable(use, column, column.null_count, "missing"))
    if column.non_finite_count and not may_lack:
        yield Violation(
            use.path, _unusable(use, column, column.non_finite_count, "NaN or infinite")
        )


def _missing(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"the dataset has no column {name!r}{hint}; there are: {listed(names, _MOST_NAMES)}"


def _wrong_type(role: str, column: dataset_pb2.DatasetColumn, dataset: dataset_pb2.Dataset) -> str:
    allowed = ", ".join(_type_name(kind) for kind in _ALLOWED[role])
    return (
        f"column {column.name!r} is {_type_name(column.type)} (Arrow {column.arrow_type}); "
        f"allowed for a {role} column: {allowed}{_hint(role, column.type, dataset)}"
    )


def _hint(role: str, kind: dataset_pb2.ColumnType.ValueType, dataset: dataset_pb2.Dataset) -> str:
    if role == "channel" and dataset.format == dataset_pb2.DATASET_FORMAT_CSV:
        return _CSV_HINT
    hints = {
        ("label", dataset_pb2.COLUMN_TYPE_FLOAT): _FLOAT_LABEL_HINT,
        ("feature", dataset_pb2.COLUMN_TYPE_LIST): _LIST_FEATURE_HINT,
    }
    return hints.get((role, kind), "")


def _type_name(kind: dataset_pb2.ColumnType.ValueType) -> str:
    return dataset_pb2.ColumnType.Name(kind).removeprefix("COLUMN_TYPE_")


def _unusable(use: _Use, column: dataset_pb2.DatasetColumn, count: int, what: str) -> str:
    row = column.first_unusable_row
    where = f", the first in row {row} (counted from 0)" if _knows_row(column) else ""
    return (
        f"column {column.name!r} has {count} {what} values{where}; allowed: none "
        f"({_WAYS_OUT.get(use.role, 'fill or drop these rows')}, or do not use the column)"
    )


def _knows_row(column: dataset_pb2.DatasetColumn) -> bool:
    """Datasets of older servers do not, and of two kinds of value it is the row of one only."""
    both = column.null_count and column.non_finite_count
    return column.HasField("first_unusable_row") and not both


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
    leak = first.role == "label" and second.role in ("feature", "channel")
    why = "; a model must not see its own label" if leak else ""
    return f"column {second.column!r} is the {first.role} column already ({first.path}){why}"


def _without_features(
    request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset
) -> Violation:
    role = _feature_role(request)
    kinds = {column.type for column in dataset.columns}
    allowed = ", ".join(_type_name(kind) for kind in _ALLOWED[role])
    there = ", ".join(f"{column.name} {_type_name(column.type)}" for column in dataset.columns)
    lists = dataset_pb2.COLUMN_TYPE_LIST in kinds
    kind = dataset_pb2.COLUMN_TYPE_LIST if lists else dataset_pb2.COLUMN_TYPE_UNSPECIFIED
    return Violation(
        _features_path(request),
        f"no column is left to learn from besides time, group, split, label and price; "
        f"allowed types: {allowed}; there are: {there[:1000]}{_hint(role, kind, dataset)}",
    )


# ------------------------------------------------------------------------ labelled series


def _broken_channels(
    request: training_pb2.TrainingRequest, channels: list[dataset_pb2.DatasetColumn]
) -> Iterator[Violation]:
    """Lists must be of one length, in every row and in every channel."""
    path = _features_path(request)
    channels = [each for each in channels if each.type == dataset_pb2.COLUMN_TYPE_LIST]
    for channel in channels:
        lengths = channel.list_lengths
        if lengths.HasField("first_unequal_row"):
            yield Violation(path, _ragged(channel))
        elif lengths.longest != channels[0].list_lengths.longest:
            yield Violation(path, _unequal(channel, channels[0]))
    if channels:
        yield from _broken_length(request, channels[0])


def _ragged(channel: dataset_pb2.DatasetColumn) -> str:
    lengths = channel.list_lengths
    return (
        f"column {channel.name!r} holds lists of {lengths.shortest} to {lengths.longest} values, "
        f"the first of another length than those before in row {lengths.first_unequal_row} "
        "(counted from 0); allowed: lists of one length (cut or pad the series)"
    )


def _unequal(channel: dataset_pb2.DatasetColumn, first: dataset_pb2.DatasetColumn) -> str:
    return (
        f"column {channel.name!r} holds lists of {channel.list_lengths.longest} values, but "
        f"{first.name!r} of {first.list_lengths.longest}; allowed: one length in all channels"
    )


def _broken_length(
    request: training_pb2.TrainingRequest, channel: dataset_pb2.DatasetColumn
) -> Iterator[Violation]:
    """What would be said of `sequence_length`, which the length of the lists takes the place of."""
    length = channel.list_lengths.longest
    window = next(each.param for each in contract.describe() if each.path == _LENGTH_PATH)
    if not window.minimum <= length <= window.maximum:
        yield Violation(
            _features_path(request),
            f"column {channel.name!r} holds lists of {length} values; "
            f"allowed: {window.minimum:.0f} to {window.maximum:.0f}",
        )
        return
    for path, value in contract.bounded_by(request, _LENGTH_PATH):
        if value > length:
            yield Violation(
                path, f"{value} is not allowed; allowed: at most {length}, the length of the series"
            )

"""The stored table: what its Arrow types mean to training, and its columns as NumPy arrays."""

from __future__ import annotations

import errno
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.errors import JobFailure

_KINDS = (
    (pa.types.is_integer, dataset_pb2.COLUMN_TYPE_INTEGER),
    (pa.types.is_floating, dataset_pb2.COLUMN_TYPE_FLOAT),
    (pa.types.is_decimal, dataset_pb2.COLUMN_TYPE_FLOAT),
    (pa.types.is_boolean, dataset_pb2.COLUMN_TYPE_BOOLEAN),
    (pa.types.is_string, dataset_pb2.COLUMN_TYPE_STRING),
    (pa.types.is_large_string, dataset_pb2.COLUMN_TYPE_STRING),
    (pa.types.is_timestamp, dataset_pb2.COLUMN_TYPE_TIMESTAMP),
    (pa.types.is_date, dataset_pb2.COLUMN_TYPE_TIMESTAMP),
)


def column_type(arrow_type: pa.DataType) -> dataset_pb2.ColumnType.ValueType:
    """What a column of this Arrow type holds; a dictionary-encoded one holds what it encodes."""
    if pa.types.is_dictionary(arrow_type):
        return column_type(arrow_type.value_type)
    # By name, because pyarrow has `is_string_view` from version 16 on only.
    if str(arrow_type) == "string_view":
        return dataset_pb2.COLUMN_TYPE_STRING
    if is_list(arrow_type):
        numbers = _is_plain_number(arrow_type.value_type)
        return dataset_pb2.COLUMN_TYPE_LIST if numbers else dataset_pb2.COLUMN_TYPE_OTHER
    kinds = (kind for matches, kind in _KINDS if matches(arrow_type))
    return next(kinds, dataset_pb2.COLUMN_TYPE_OTHER)


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether the values are lists, of one length or of several."""
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(matches(arrow_type) for matches in kinds)


def _is_plain_number(arrow_type: pa.DataType) -> bool:
    numeric = (
        dataset_pb2.COLUMN_TYPE_INTEGER,
        dataset_pb2.COLUMN_TYPE_FLOAT,
        dataset_pb2.COLUMN_TYPE_BOOLEAN,
    )
    return not pa.types.is_dictionary(arrow_type) and column_type(arrow_type) in numeric


class StoredTable:
    """A table as `profile.ingest` wrote it; columns are mapped into memory when asked for.

    Each by itself, so that its pages go with it: one mapping of the whole file would grow to a
    second copy of the table beside what is made of its columns.

    Attributes:
        gaps: the columns that may have missing values, sorted: NaN in numbers, -1 in codes.

    Raises:
        JobFailure: DATA_LOST when the file, or a column asked for, is missing or damaged;
            INVALID_DATA when a column asked for has missing values and is not one of `gaps`, or
            has lists of several lengths.
    """

    def __init__(self, path: Path, gaps: Collection[str] = ()) -> None:
        self._path = path
        self._table = self._map()
        self.gaps = sorted(gaps)

    def with_gaps_in(self, names: Collection[str]) -> StoredTable:
        """The same table, where these columns may have missing values."""
        return StoredTable(self._path, names)

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return int(self._table.num_rows)

    def types(self) -> dict[str, dataset_pb2.ColumnType.ValueType]:
        """What each column holds, in file order."""
        return {field.name: column_type(field.type) for field in self._table.schema}

    def size_bytes(self, names: list[str]) -> int:
        """Bytes that these columns take as stored."""
        return sum(int(self._table[name].nbytes) for name in names)

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A numeric or boolean column as float64 [rows]; false is 0 and true is 1."""
        return _as_floats(self._column(name))

    def lists(self, name: str) -> npt.NDArray[np.float64]:
        """A column of lists of numbers, all of one length, as float64 [rows, steps]."""
        column = self._column(name)
        lengths = sorted(pc.list_value_length(column).unique().drop_null().to_pylist())
        if len(lengths) > 1:
            raise JobFailure(
                training_pb2.FAILURE_REASON_INVALID_DATA,
                f"column {name!r} holds lists of {lengths[0]} to {lengths[-1]} values; "
                "allowed: lists of one length",
            )
        values = pc.list_flatten(column)
        self._refuse_missing(name, values)
        if not column.null_count:
            return _as_floats(values).reshape(self.row_count, -1)
        lists = np.full((self.row_count, lengths[0] if lengths else 1), np.nan)
        lists[column.is_valid().to_numpy()] = _as_floats(values).reshape(-1, lists.shape[1])
        return lists

    def instants(self, name: str) -> npt.NDArray[Any]:
        """A time column as it is, [rows]: datetime64, integers or floats."""
        return np.asarray(self._column(name).to_numpy())

    def codes(self, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
        """A column's distinct values, sorted, as names, and the index of each row's value.

        Integers sort as numbers, text by code point, false before true.

        Returns:
            int64 [rows], and the names.
        """
        column = self._column(name)
        values = sorted(column.unique().drop_null().to_pylist())
        found = pc.index_in(column, value_set=pa.array(values, column.type)).fill_null(-1)
        return np.asarray(found.to_numpy(), dtype=np.int64), [_name(value) for value in values]

    def _map(self, columns: list[int] | None = None) -> pa.Table:
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        try:
            with pa.memory_map(str(self._path)) as file:
                return pa.ipc.open_file(file, options=options).read_all()
        except (OSError, pa.ArrowException) as error:
            _raise_if_short(error)
            # Not Arrow's own words, which have the server's path: callers see these.
            raise _lost("the stored table cannot be read") from error

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._table.column_names:
            raise _lost(f"the stored table has no column {name!r}")
        column = self._map([self._table.column_names.index(name)])[name]
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            _raise_if_short(error)
            raise _lost(f"column {name!r} of the stored table is damaged ({error})") from error
        self._refuse_missing(name, column)
        return column

    def _refuse_missing(self, name: str, values: pa.ChunkedArray) -> None:
        if values.null_count and name not in self.gaps:
            raise JobFailure(
                training_pb2.FAILURE_REASON_INVALID_DATA,
                f"column {name!r} has {values.null_count} missing values; fill or drop them",
            )


def _as_floats(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _raise_if_short(error: Exception) -> None:
    """Raise MemoryError where that is all that is wrong: nothing of the file is lost."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError from error


def _lost(what: str) -> JobFailure:
    return JobFailure(
        training_pb2.FAILURE_REASON_DATA_LOST, f"{what}; upload the dataset once more"
    )


def _name(value: object) -> str:
    """Booleans as the contract writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)

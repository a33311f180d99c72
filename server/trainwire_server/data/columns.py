"""Counts what a column holds while pieces of it pass by: missing values, lengths of lists."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from trainwire.v1 import dataset_pb2
from trainwire_server.data.table import column_type, is_list

_MOST = 2**32 - 1
"""The largest count that a profile can say: lists may hold more missing values than that."""


class ColumnCounts:
    """What is known of a column's values so far."""

    def __init__(self) -> None:
        self._nulls = 0
        self._non_finite = 0
        self._first_unusable: int | None = None
        self._lengths = _Lengths()

    def add_nulls(self, count: int) -> None:
        """Count missing values of a column that nobody looks into."""
        self._nulls += count

    def add(self, values: pa.Array, rows_before: int) -> None:
        """Count a piece of the column that comes after so many rows."""
        nulls, non_finite = _count_unusable(values)
        self._nulls += nulls
        self._non_finite += non_finite
        if (nulls or non_finite) and self._first_unusable is None:
            self._first_unusable = rows_before + _first_unusable(values)
        if is_list(values.type):
            self._lengths.add(values, rows_before)

    def describe(self, field: pa.Field) -> dataset_pb2.DatasetColumn:
        """The column as the dataset's profile has it."""
        column = dataset_pb2.DatasetColumn(
            name=field.name,
            type=column_type(field.type),
            arrow_type=str(field.type),
            null_count=min(self._nulls, _MOST),
            non_finite_count=min(self._non_finite, _MOST),
        )
        if self._first_unusable is not None:
            column.first_unusable_row = self._first_unusable
        if column.type == dataset_pb2.COLUMN_TYPE_LIST:
            column.list_lengths.CopyFrom(self._lengths.describe())
        return column


class _Lengths:
    """How long the lists of a column are; missing ones have no length."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._shortest = 0
        self._longest = 0
        self._first_unequal: int | None = None

    def add(self, lists: pa.Array, rows_before: int) -> None:
        lengths = pc.list_value_length(lists)
        found = pc.min_max(lengths)
        shortest, longest = found["min"].as_py(), found["max"].as_py()
        if shortest is None:
            return
        if self._first is None:
            self._first = self._shortest = self._longest = lengths.drop_null()[0].as_py()
        self._shortest, self._longest = min(self._shortest, shortest), max(self._longest, longest)
        if self._first_unequal is None and self._shortest < self._longest:
            row = pc.index(pc.not_equal(lengths, self._first), True).as_py()
            self._first_unequal = rows_before + row

    def describe(self) -> dataset_pb2.ListLengths:
        return dataset_pb2.ListLengths(
            shortest=self._shortest, longest=self._longest, first_unequal_row=self._first_unequal
        )


def _count_unusable(values: pa.Array) -> tuple[int, int]:
    """Missing values, and NaN and infinite ones; of lists also those in them."""
    if is_list(values.type):
        nulls, non_finite = _count_unusable(pc.list_flatten(values))
        return nulls + values.null_count, non_finite
    if not pa.types.is_floating(values.type):
        return values.null_count, 0
    finite = pc.sum(pc.is_finite(values)).as_py() or 0
    return values.null_count, len(values) - values.null_count - finite


def _first_unusable(values: pa.Array) -> int:
    """Place of the first one of those that there are, by halves."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if any(_count_unusable(values.slice(low, middle - low))):
            high = middle
        else:
            low = middle
    return low

"""Reads an upload once: checks every byte, profiles the columns, writes the table for training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainwire.v1 import dataset_pb2
from trainwire_server.data.columns import ColumnCounts
from trainwire_server.data.damage import apply_to_column
from trainwire_server.data.durable import replacing
from trainwire_server.data.readers import open_upload
from trainwire_server.data.table import column_type, is_list
from trainwire_server.errors import BrokenUpload

_MAX_ROWS = 2**32 - 1
_MAX_CHUNK_ROWS = 2**16
_MAX_CHUNK_VALUES = 2**23


def ingest(
    source: Path, table: Path, data_format: dataset_pb2.DatasetFormat.ValueType
) -> dataset_pb2.Dataset:
    """Check an upload, write its table and describe its columns.

    The table is one uncompressed Arrow IPC file that can be memory-mapped. It holds the columns
    training can use, in plain types: text as large_string, decimals and half floats as floats,
    dictionaries decoded, lists as large_list. It appears under its name only when it is whole and
    on disk.

    Args:
        source: the uploaded bytes: Arrow IPC in file or stream format, Parquet or CSV.
        table: where to write the table; its folder must exist.
        data_format: what the bytes were announced as.

    Returns:
        A Dataset with `row_count` and `columns`; the other fields are the caller's.

    Raises:
        BrokenUpload: the bytes are not of that format, are damaged, or hold no usable table; the
            message says where, and which format was announced.
    """
    try:
        return _ingest(source, table, data_format)
    except BrokenUpload as error:
        name = dataset_pb2.DatasetFormat.Name(data_format)
        raise BrokenUpload(f"{error.message} (announced as {name})") from error


def _ingest(
    source: Path, table: Path, data_format: dataset_pb2.DatasetFormat.ValueType
) -> dataset_pb2.Dataset:
    with open_upload(source, data_format) as (schema, batches):
        profile = _Profile(schema)
        with replacing(table) as sink, pa.ipc.new_file(sink, profile.stored) as writer:
            for chunk in _chunked(_pieces(batches, profile)):
                writer.write_table(chunk)
    return profile.to_proto()


# ------------------------------------------------------------------------ profiling


class _Profile:
    """Counts rows, and what the columns hold, while the batches pass by."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.stored = pa.schema(
            [
                pa.field(field.name, _stored_type(field.type))
                for field in schema
                if column_type(field.type) != dataset_pb2.COLUMN_TYPE_OTHER
            ]
        )
        self.rows = 0
        self.columns: defaultdict[str, ColumnCounts] = defaultdict(ColumnCounts)

    def count_rows(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        if self.rows > _MAX_ROWS:
            raise BrokenUpload(f"the upload has more than {_MAX_ROWS} rows, the most allowed")

    def to_proto(self) -> dataset_pb2.Dataset:
        columns = [self.columns[field.name].describe(field) for field in self.schema]
        return dataset_pb2.Dataset(row_count=self.rows, columns=columns)


def _pieces(batches: Iterator[pa.RecordBatch], profile: _Profile) -> Iterator[pa.RecordBatch]:
    """The batches in stored types and in pieces: decoding a dictionary can multiply its size."""
    for batch in batches:
        profile.count_rows(batch)
        for name in set(batch.schema.names) - set(profile.stored.names):
            profile.columns[name].add_nulls(batch.column(name).null_count)
        if len(profile.stored):
            step = _chunk_rows(batch)
            before = profile.rows - batch.num_rows
            for start in range(0, batch.num_rows, step):
                yield _convert(batch.slice(start, step), before + start, profile)


def _convert(batch: pa.RecordBatch, rows_before: int, profile: _Profile) -> pa.RecordBatch:
    arrays = []
    for field in profile.stored:
        convert = partial(_plain, stored_type=field.type)
        values = apply_to_column(field.name, batch.column(field.name), rows_before, convert)
        profile.columns[field.name].add(values, rows_before)
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, schema=profile.stored)


def _plain(values: pa.Array, stored_type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        return _cast(values.dictionary, stored_type).take(values.indices)
    return _cast(values, stored_type)


def _cast(values: pa.Array, stored_type: pa.DataType) -> pa.Array:
    if values.type == stored_type:
        return values
    # Validation leaves the bytes below a missing value alone, as it should; Arrow's cast (seen in
    # 26.0) follows the pointers of such a view and crashes, Python objects do not.
    if str(values.type) == "string_view" and values.null_count:
        return pa.array(values.to_pylist(), stored_type)
    return values.cast(stored_type)


def _stored_type(arrow_type: pa.DataType) -> pa.DataType:
    """One type per kind of text, and floats for decimals, so that readers meet few types."""
    if pa.types.is_dictionary(arrow_type):
        return _stored_type(arrow_type.value_type)
    if is_list(arrow_type):
        return pa.large_list(_stored_type(arrow_type.value_type))
    if column_type(arrow_type) == dataset_pb2.COLUMN_TYPE_STRING:
        return pa.large_string()
    if pa.types.is_float16(arrow_type):
        return pa.float32()
    return pa.float64() if pa.types.is_decimal(arrow_type) else arrow_type


# ------------------------------------------------------------------------ writing


def _chunk_rows(rows: pa.RecordBatch) -> int:
    """Rows per chunk of the table: bounds the memory of wide tables and of long lists."""
    count = int(rows.num_rows)
    values = sum(_value_count(column) for column in rows.columns)
    return min(_MAX_CHUNK_ROWS, max(1, _MAX_CHUNK_VALUES * count // max(1, values)))


def _value_count(column: pa.Array) -> int:
    """Values of a column, at least one for each row."""
    if not is_list(column.type):
        return len(column)
    values: int | None = pc.sum(pc.list_value_length(column)).as_py()
    return max(len(column), values or 0)


def _chunked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Joins small batches: a table of a million chunks would be slow to read."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _chunk_rows(batch):
            yield pa.Table.from_batches(held).combine_chunks()
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()

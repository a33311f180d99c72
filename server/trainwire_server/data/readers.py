"""Opens an upload of any format as a schema and record batches, with every byte checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainwire.v1 import dataset_pb2
from trainwire_server.data import csv_text
from trainwire_server.data.damage import apply_to_column, guard, refuse_equal_names
from trainwire_server.errors import BrokenUpload

_FILE_MAGIC = b"ARROW1"
_STREAM_MAGIC = b"\xff\xff\xff\xff"
_PARQUET_MAGIC = b"PAR1"
_MAGIC = {
    _FILE_MAGIC: dataset_pb2.DATASET_FORMAT_ARROW,
    _STREAM_MAGIC: dataset_pb2.DATASET_FORMAT_ARROW,
    _PARQUET_MAGIC: dataset_pb2.DATASET_FORMAT_PARQUET,
}
_NAMES = {
    dataset_pb2.DATASET_FORMAT_ARROW: "Arrow IPC",
    dataset_pb2.DATASET_FORMAT_PARQUET: "Parquet",
    dataset_pb2.DATASET_FORMAT_CSV: "CSV",
}
_ALLOWED = {
    dataset_pb2.DATASET_FORMAT_ARROW: "the Arrow IPC file format and the Arrow IPC stream format",
    dataset_pb2.DATASET_FORMAT_PARQUET: "Apache Parquet, which begins with b'PAR1'",
    dataset_pb2.DATASET_FORMAT_CSV: "comma-separated values in UTF-8 with a header line",
}
_PARQUET_ROWS = 2**16
_PARQUET_VALUES = 2**20
Upload = tuple[pa.Schema, Iterator[pa.RecordBatch]]


@contextmanager
def open_upload(source: Path, data_format: dataset_pb2.DatasetFormat.ValueType) -> Iterator[Upload]:
    """The upload's schema and its batches, read as they are asked for.

    Args:
        source: the uploaded bytes.
        data_format: what they were announced as.

    Raises:
        BrokenUpload: the bytes are not of that format or are damaged, column names are missing or
            there twice; also while the batches are read.
    """
    magic = _read_magic(source, data_format)
    if data_format == dataset_pb2.DATASET_FORMAT_CSV:
        yield csv_text.open_csv(source)
        return
    with guard(lambda: pa.memory_map(str(source))) as file:
        schema, batches = _open_parquet(file) if magic == _PARQUET_MAGIC else _open(file, magic)
        yield schema, _validated(batches)


def _read_magic(source: Path, data_format: dataset_pb2.DatasetFormat.ValueType) -> bytes | None:
    """What the first bytes say, if that is what was announced; text says nothing."""
    with source.open("rb") as file:
        head = file.read(8)
    magic = next((known for known in _MAGIC if head.startswith(known)), None)
    found = _MAGIC[magic] if magic else dataset_pb2.DATASET_FORMAT_CSV
    if found == data_format:
        return magic
    hint = f" (they look like {_NAMES[found]})" if magic else ""
    raise BrokenUpload(
        f"the upload is not {_NAMES[data_format]}: its first bytes are {head!r}{hint}; "
        f"allowed: {_ALLOWED[data_format]}"
    )


def _open(file: pa.NativeFile, magic: bytes | None) -> Upload:
    if magic == _STREAM_MAGIC:
        stream = guard(lambda: pa.ipc.open_stream(file))
        return _check_schema(stream.schema), _read_stream(stream)
    reader = guard(lambda: pa.ipc.open_file(file))
    return _check_schema(reader.schema), _read_file(reader)


def _read_stream(reader: Any) -> Iterator[pa.RecordBatch]:
    while (batch := guard(lambda: _read_next(reader))) is not None:
        yield batch


def _read_next(batches: Any) -> pa.RecordBatch | None:
    try:
        return batches.read_next_batch()
    except StopIteration:
        return None


def _read_file(reader: Any) -> Iterator[pa.RecordBatch]:
    for i in range(guard(lambda: int(reader.num_record_batches))):
        yield guard(lambda i=i: reader.get_batch(i))  # type: ignore[misc]


def _open_parquet(file: pa.NativeFile) -> Upload:
    """Page by page: a row group can be larger than memory."""
    reader = guard(lambda: pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True))
    schema = _check_schema(guard(lambda: reader.schema_arrow))
    width: int = guard(lambda: _values_per_row(reader.metadata))
    rows = min(_PARQUET_ROWS, max(1, _PARQUET_VALUES // width))
    return schema, _read_parquet(reader.iter_batches(rows, use_threads=False))


def _values_per_row(metadata: Any) -> int:
    """On average, at least 1; more than there are columns where columns hold lists."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    average = int(values) // max(1, int(metadata.num_rows))
    return max(1, int(metadata.num_columns), average)


def _read_parquet(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while (batch := guard(lambda: next(batches, None))) is not None:
        yield batch


def _validated(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Checks offsets, indices and UTF-8 too: Arrow trusts them later and would crash on them."""
    rows = 0
    for batch in batches:
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            apply_to_column(name, values, rows, _validate)
        guard(lambda batch=batch: batch.validate(full=True))  # type: ignore[misc]
        yield batch
        rows += batch.num_rows


def _validate(values: pa.Array) -> pa.Array:
    values.validate(full=True)
    if pa.types.is_dictionary(values.type):
        values.dictionary.validate(full=True)
    return values


def _check_schema(schema: pa.Schema) -> pa.Schema:
    names = guard(lambda: list(schema.names))
    refuse_equal_names(names)
    return schema

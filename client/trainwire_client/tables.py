"""Files, frames and arrays, ready to upload.

Files are sent as they are: what reads them is the server, so a client that uploads files needs no
Arrow. Frames, arrays and files of labelled series (`series`) become one Arrow IPC stream in a
temporary file, and the same data give the same bytes, whatever library they came from and however
they were chunked there: record batches are cut anew, metadata is dropped, and types that differ
between libraries but not in meaning (dictionary-encoded, large and view strings) become plain ones.
The server names a dataset by the digest of its bytes, so equal data are uploaded once.

Nothing is held whole in memory that was not there before. pyarrow is imported on first use.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwire.v1 import dataset_pb2
from trainwire_client import series
from trainwire_client.errors import MissingExtraError, UnreadableDataError

__all__ = ["CHUNK_BYTES", "Spool", "find_format", "spool"]

CHUNK_BYTES = 2**20
_HASHED_BYTES = 4 * CHUNK_BYTES
_BATCH_BYTES = 16 * 2**20
_BATCH_ROWS = 2**16
_VARIABLE_WIDTH_BITS = 256  # a guess for text: the batch size needs no more
_ARROW_STREAM_SUFFIXES = (".arrow", ".arrows", ".ipc")
_FILE_KINDS = "Parquet (.parquet), CSV (.csv), Arrow IPC or Feather version 2 (.arrow, .feather)"
_SERIES_KINDS = "labelled series (.ts, UCR .tsv)"
_ACCEPTED = (
    f"a path to a {_FILE_KINDS} file, one or two paths to {_SERIES_KINDS}, a pyarrow Table, "
    "a pandas or polars DataFrame, or a mapping of column names to NumPy arrays"
)


@dataclass(frozen=True)
class Spool:
    """Bytes on disk, described as an upload announces them.

    Attributes:
        path: the file; one made from a frame is gone after the `with` block of `spool`.
        format: the format of its bytes.
        size_bytes: its size.
        sha256: its SHA-256, in lower-case hexadecimal.
    """

    path: Path
    format: dataset_pb2.DatasetFormat.ValueType
    size_bytes: int
    sha256: str

    def chunks(self) -> Iterator[bytes]:
        """The bytes, at most `CHUNK_BYTES` at a time.

        The file is opened here, not at the first chunk: gRPC reads ahead in a thread of its own and
        may do so still when the call has ended and the file is deleted.
        """
        return _read_to_end(self.path.open("rb"))


def _read_to_end(file: Any) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def spool(data: Any) -> Iterator[Spool]:
    """The bytes to send for `data`; what had to be written for it goes with the block.

    Args:
        data: path to a Parquet, CSV, Arrow or Feather file, pyarrow Table, pandas or polars
            DataFrame, or mapping of column name -> NumPy array: [n] a value in each row, [n, time]
            a series in each row, [n, channels, time] the channels NAME_0, NAME_1... of series; or
            path to a file of labelled series (.ts, UCR .tsv), or two paths, A_TRAIN and A_TEST.

    Raises:
        UnreadableDataError: it is none of these; the message says what is allowed.
        MissingExtraError: it is not a file that is sent as it is, and pyarrow is not installed.
    """
    files = _paths(data)
    if len(files) == 1 and not series.is_series_file(files[0]):
        yield _described(files[0])
        return
    pa = _pyarrow()
    with tempfile.TemporaryDirectory(prefix="trainwire-") as folder:
        path = Path(folder) / "table.arrows"
        with _readable(data, pa):
            _write(path, series.read_table(files, pa) if files else _table(data, pa), pa)
        yield _described(path)


def _paths(data: Any) -> list[Path]:
    """The files that are meant; none where the data are no files."""
    if isinstance(data, (str, os.PathLike)):
        return [Path(data)]
    if not isinstance(data, Sequence) or not data:
        return []
    if not all(isinstance(item, (str, os.PathLike)) for item in data):
        return []
    paths = [Path(item) for item in data]
    other = [path for path in paths if not series.is_series_file(path)]
    if other and len(paths) > 1:
        raise UnreadableDataError(
            f"cannot upload {other[0]} with others: one dataset is one file; allowed together: "
            f"{_SERIES_KINDS}, A_TRAIN and A_TEST"
        )
    return paths


# ------------------------------------------------------------------------ files


def _described(path: Path) -> Spool:
    try:
        kind = find_format(path)
        with path.open("rb") as file:
            digest = _digest(file)
            size = file.tell()
    except OSError as error:
        raise UnreadableDataError(f"cannot read {path}: {error.strerror or error}") from error
    if not size:
        raise UnreadableDataError(f"cannot read {path}: it is empty")
    return Spool(path, kind, size, digest)


def _digest(file: Any) -> str:
    """SHA-256 of a file.

    The block is a large one for what comes after it: glibc keeps at hand as much freed memory as
    the largest block that was ever freed, twice. With less, every copy of a chunk on its way to the
    wire goes to fresh memory, whose page faults cost more than the copies.
    """
    digest, block = hashlib.sha256(), bytearray(_HASHED_BYTES)
    view = memoryview(block)
    while count := file.readinto(block):
        digest.update(view[:count])
    return digest.hexdigest()


def find_format(path: Path) -> dataset_pb2.DatasetFormat.ValueType:
    """Format of a table in a file: by its first bytes, which do not lie, or else by its name.

    Raises:
        OSError: it cannot be opened.
        UnreadableDataError: a folder, or a format that is not known.
    """
    if path.is_dir():
        raise UnreadableDataError(f"cannot read {path}: it is a folder; allowed: {_ACCEPTED}")
    with path.open("rb") as file:
        magic = file.read(6)
    suffix = path.suffix.lower()
    if magic.startswith(b"PAR1"):
        return dataset_pb2.DATASET_FORMAT_PARQUET
    if magic == b"ARROW1" or suffix in _ARROW_STREAM_SUFFIXES:
        return dataset_pb2.DATASET_FORMAT_ARROW
    if suffix == ".csv":
        return dataset_pb2.DATASET_FORMAT_CSV
    raise UnreadableDataError(
        f"cannot read {path}: not a known format; allowed: {_FILE_KINDS}, {_SERIES_KINDS}"
    )


# ------------------------------------------------------------------------ frames and arrays


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "uploading frames, arrays and labelled series (not other files) needs pyarrow, which "
            "is not installed; "
            "install it with: pip install 'trainwire[data]'"
        ) from error


@contextmanager
def _readable(data: Any, pa: Any) -> Iterator[None]:
    """Turns what Arrow says about data it cannot hold into our error, naming the source."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableDataError(f"cannot read the {type(data).__name__}: {error}") from error


def _table(data: Any, pa: Any) -> Any:
    if isinstance(data, pa.Table):
        return data
    if _is_frame(data, "pandas"):
        return pa.Table.from_pandas(data, preserve_index=False)
    if _is_frame(data, "polars"):
        return data.to_arrow()
    if isinstance(data, Mapping):
        return _table_of_arrays(data, pa)
    raise UnreadableDataError(f"cannot upload a {type(data).__name__}; allowed: {_ACCEPTED}")


def _is_frame(data: Any, library: str) -> bool:
    """Whether it is a DataFrame of a library; who holds one has imported the library."""
    # Another thread may be importing it at this moment: then it is no DataFrame either.
    frame = getattr(sys.modules.get(library), "DataFrame", None)
    return frame is not None and isinstance(data, frame)


def _table_of_arrays(columns: Mapping[Any, Any], pa: Any) -> Any:
    found = [column for name, values in columns.items() for column in _flat(str(name), values)]
    lengths = {name: len(values) for name, values in found}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UnreadableDataError(f"the columns differ in length: {listed}")
    arrays = [_array(name, values, pa) for name, values in found]
    return pa.Table.from_arrays(arrays, names=[name for name, _ in found])


def _flat(name: str, values: Any) -> list[tuple[str, Any]]:
    """Columns of values [n] or series [n, time]: one for each channel."""
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if len(shape) <= 2:
        return [(name, values)]
    if len(shape) == 3:
        return [(f"{name}_{channel}", values[:, channel]) for channel in range(shape[1])]
    raise UnreadableDataError(
        f"column {name!r} has shape {tuple(shape)}; allowed: [n], [n, time] and [n, channels, time]"
    )


def _array(name: str, values: Any, pa: Any) -> Any:
    shape: tuple[int, ...] = getattr(values, "shape", ())
    try:
        if len(shape) < 2:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), shape[1])
    except (pa.ArrowException, TypeError) as error:
        raise UnreadableDataError(f"column {name!r}: {error}") from error


# ------------------------------------------------------------------------ the stream


def _write(path: Path, table: Any, pa: Any) -> None:
    plain = _plain_schema(table.schema, pa)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, plain) as writer:
        for piece in _cut(table, _rows_per_batch(table, plain, pa)):
            for batch in piece.cast(plain).combine_chunks().to_batches():
                writer.write_batch(batch)


def _cut(table: Any, size: int) -> Iterator[Any]:
    """The same rows in tables of `size` rows (the last may be shorter)."""
    return (table.slice(start, size) for start in range(0, table.num_rows, size))


def _plain_schema(schema: Any, pa: Any) -> Any:
    """The schema without metadata, with plain types; refuses names that are there twice."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UnreadableDataError(f"several columns have the same name: {', '.join(twice)}")
    return pa.schema([pa.field(field.name, _plain_type(field.type, pa)) for field in schema])


def _plain_type(kind: Any, pa: Any) -> Any:
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type, pa)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type, pa), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type, pa))
    return kind


def _rows_per_batch(table: Any, schema: Any, pa: Any) -> int:
    """Rows that make a batch of about 16 MiB; follows from the schema and the length of lists."""
    bits = sum(_bit_width(table[field.name], field.type, pa) for field in schema)
    return max(1, min(_BATCH_ROWS, 8 * _BATCH_BYTES // max(bits, 1)))


def _bit_width(column: Any, kind: Any, pa: Any) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _bit_width(column, kind.value_type, pa)
    if pa.types.is_list(kind):
        values = sum(len(chunk.flatten()) for chunk in column.chunks)
        return -(-values // max(1, len(column))) * _bit_width(column, kind.value_type, pa)
    try:
        return int(kind.bit_width)
    except ValueError:
        return _VARIABLE_WIDTH_BITS

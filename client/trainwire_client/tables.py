"""Files and frames -> one Arrow IPC stream on disk, ready to upload.

The same data give the same bytes, whatever they came from and however they were chunked there:
record batches are cut anew, metadata is dropped, and types that differ between libraries but not
in meaning (dictionary-encoded, large and view strings) become plain ones. The server names a
dataset by the digest of its bytes, so equal data are uploaded once.

Nothing is held whole in memory that was not there before. pyarrow is imported on first use.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwire_client.errors import MissingExtraError, UnreadableDataError

__all__ = ["CHUNK_BYTES", "Spool", "spool"]

CHUNK_BYTES = 2**20
_BATCH_BYTES = 16 * 2**20
_BATCH_ROWS = 2**16
_VARIABLE_WIDTH_BITS = 256  # a guess for text: the batch size needs no more
_CSV_BLOCK_BYTES = 16 * 2**20  # column types are inferred from the first block
_FILE_KINDS = "Parquet (.parquet), CSV (.csv, .csv.gz), Arrow IPC or Feather (.arrow, .feather)"
_ACCEPTED = (
    f"a path to a {_FILE_KINDS} file, a pyarrow Table, a pandas or polars DataFrame, "
    "or a mapping of column names to NumPy arrays"
)


@dataclass(frozen=True)
class Spool:
    """An Arrow IPC stream in a temporary file.

    Attributes:
        path: the file; it is gone after the `with` block of `spool`.
        size_bytes: its size.
        sha256: its SHA-256, in lower-case hexadecimal.
        row_count: number of rows in it.
    """

    path: Path
    size_bytes: int
    sha256: str
    row_count: int

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
    """Write `data` to a temporary file as an Arrow IPC stream; the file goes with the block.

    Args:
        data: path to a Parquet, CSV, Arrow or Feather file, pyarrow Table, pandas or polars
            DataFrame, or mapping of column name -> 1-d NumPy array.

    Raises:
        UnreadableDataError: it is none of these, or broken; the message says where.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    with tempfile.TemporaryDirectory(prefix="trainwire-") as folder:
        path = Path(folder) / "table.arrows"
        with _readable(data, pa):
            rows = _write(path, *_batches(data, pa), pa)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield Spool(path, path.stat().st_size, digest, rows)


def _pyarrow(submodule: str = "") -> Any:
    try:
        return importlib.import_module(f"pyarrow{submodule}")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "uploading data needs pyarrow, which is not installed; "
            "install it with: pip install 'trainwire[data]'"
        ) from error


@contextmanager
def _readable(data: Any, pa: Any) -> Iterator[None]:
    """Turns what Arrow says about broken data into our error, naming the source."""
    source = str(data) if isinstance(data, (str, Path)) else f"the {type(data).__name__}"
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableDataError(f"cannot read {source}: {error}") from error
    except OSError as error:
        raise UnreadableDataError(f"cannot read {source}: {error.strerror or error}") from error


# ------------------------------------------------------------------------ sources


def _batches(data: Any, pa: Any) -> tuple[Any, Iterable[Any]]:
    """Schema and record batches of anything that can be uploaded."""
    if isinstance(data, (str, Path)):
        return _file_batches(Path(data), pa)
    table = _table(data, pa)
    return table.schema, table.to_batches()


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
    module = sys.modules.get(library)
    return module is not None and isinstance(data, module.DataFrame)


def _table_of_arrays(columns: Mapping[Any, Any], pa: Any) -> Any:
    lengths = {}
    for name, values in columns.items():
        shape = getattr(values, "shape", None)
        if shape is not None and len(shape) != 1:
            raise UnreadableDataError(
                f"column {name!r} has shape {tuple(shape)}; "
                "allowed: 1-d arrays, one for each column (one for each feature)"
            )
        lengths[str(name)] = len(values)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UnreadableDataError(f"the columns differ in length: {found}")
    return pa.table({str(name): _array(name, values, pa) for name, values in columns.items()})


def _array(name: Any, values: Any, pa: Any) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError) as error:
        raise UnreadableDataError(f"column {name!r}: {error}") from error


def _file_batches(path: Path, pa: Any) -> tuple[Any, Iterable[Any]]:
    """By the first bytes, which do not lie; CSV has none and goes by its name."""
    if path.is_dir():
        raise UnreadableDataError(f"cannot read {path}: it is a folder; allowed: {_ACCEPTED}")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(b"PAR1"):
        return _parquet_batches(path)
    if magic.startswith(b"ARROW1"):
        return _ipc_file_batches(path, pa)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _csv_batches(path)
    if path.suffix.lower() in (".arrow", ".arrows", ".ipc"):
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        return reader.schema, reader
    raise UnreadableDataError(f"cannot read {path}: not a known format; allowed: {_FILE_KINDS}")


def _parquet_batches(path: Path) -> tuple[Any, Iterable[Any]]:
    file = _pyarrow(".parquet").ParquetFile(path)
    schema = file.schema_arrow
    return schema, file.iter_batches(batch_size=_rows_per_batch(schema))


def _ipc_file_batches(path: Path, pa: Any) -> tuple[Any, Iterable[Any]]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _csv_batches(path: Path) -> tuple[Any, Iterable[Any]]:
    csv = _pyarrow(".csv")
    # Without threads the messages about broken lines have their row numbers.
    options = csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False)
    reader = csv.open_csv(path, read_options=options)
    return reader.schema, reader


# ------------------------------------------------------------------------ the stream


def _write(path: Path, schema: Any, batches: Iterable[Any], pa: Any) -> int:
    plain = _plain_schema(schema, pa)
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, plain) as writer:
        for table in _cut(batches, schema, _rows_per_batch(plain)):
            for batch in table.cast(plain).combine_chunks().to_batches():
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


def _cut(batches: Iterable[Any], schema: Any, size: int) -> Iterator[Any]:
    """The same rows in tables of `size` rows (the last may be shorter)."""
    pa = _pyarrow()
    held = schema.empty_table()
    for batch in batches:
        held = pa.concat_tables([held, pa.Table.from_batches([batch], schema)])
        while held.num_rows >= size:
            yield held.slice(0, size)
            held = held.slice(size)
    if held.num_rows:
        yield held


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
    return kind


def _rows_per_batch(schema: Any) -> int:
    """Rows that make a batch of about 16 MiB; follows from the schema alone."""
    bits = sum(_bit_width(field.type) for field in schema)
    return max(1, min(_BATCH_ROWS, 8 * _BATCH_BYTES // max(bits, 1)))


def _bit_width(kind: Any) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:
        return _VARIABLE_WIDTH_BITS

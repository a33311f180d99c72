"""Ingesting uploads: what is kept, what is counted, and that broken bytes are refused."""

from __future__ import annotations

import datetime
import decimal
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire.v1 import dataset_pb2
from trainwire_server.data import profile
from trainwire_server.errors import BrokenUpload


def _encode(table: pa.Table, form: str, compression: str | None = None, rows: int = 3) -> bytes:
    sink = io.BytesIO()
    new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
        out.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def _ingest(folder: Path, content: bytes) -> tuple[dataset_pb2.Dataset, pa.Table]:
    source, table = folder / "source", folder / "table.arrow"
    source.write_bytes(content)
    dataset = profile.ingest(source, table, dataset_pb2.DATASET_FORMAT_ARROW)
    with pa.memory_map(str(table)) as file:
        return dataset, pa.ipc.open_file(file).read_all()


def _every_type() -> pa.Table:
    text = pa.array(["b", "a", None, "b", "a"])
    return pa.table(
        {
            "i": pa.array([1, 2, 3, 4, None], pa.int8()),
            "u": pa.array([0, 1, 2, 3, 2**64 - 1], pa.uint64()),
            "f": pa.array([1.5, float("nan"), float("inf"), None, -float("inf")]),
            "h": pa.array([1.5, 2.5, float("nan"), 0, 0], pa.float16()),
            "d": pa.array([decimal.Decimal("1.25")] * 5, pa.decimal128(10, 2)),
            "b": pa.array([True, False, None, True, True]),
            "s": text,
            "v": text.cast(pa.string_view()),
            "k": text.dictionary_encode(),
            "n": pa.array([7, 8, 7, 7, 8]).dictionary_encode(),
            "t": pa.array(range(5), pa.timestamp("us", tz="UTC")),
            "day": pa.array([datetime.date(2020, 1, 1)] * 5),
            "l": pa.array([[1], [2, 3], None, [], [4]]),
            "null": pa.nulls(5),
        }
    )


_TYPES = {
    "i": "INTEGER",
    "u": "INTEGER",
    "f": "FLOAT",
    "h": "FLOAT",
    "d": "FLOAT",
    "b": "BOOLEAN",
    "s": "STRING",
    "v": "STRING",
    "k": "STRING",
    "n": "INTEGER",
    "t": "TIMESTAMP",
    "day": "TIMESTAMP",
    "l": "LIST",
    "null": "OTHER",
}


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("form", ["file", "stream"])
def test_both_formats_give_the_same_profile_and_table(
    tmp_path: Path, form: str, compression: str | None
) -> None:
    # One batch only: the file format takes one dictionary per column.
    sent = _every_type()
    dataset, stored = _ingest(tmp_path, _encode(sent, form, compression, rows=5))
    columns = {column.name: column for column in dataset.columns}
    assert dataset.row_count == 5
    assert [column.name for column in dataset.columns] == sent.column_names
    assert {
        name: dataset_pb2.ColumnType.Name(column.type).removeprefix("COLUMN_TYPE_")
        for name, column in columns.items()
    } == _TYPES
    assert columns["k"].arrow_type == str(sent.schema.field("k").type)
    assert {name: column.null_count for name, column in columns.items() if column.null_count} == {
        "i": 1, "f": 1, "b": 1, "s": 1, "v": 1, "k": 1, "l": 1, "null": 5,
    }  # fmt: skip
    assert {n: c.non_finite_count for n, c in columns.items() if c.non_finite_count} == {
        "f": 3,
        "h": 1,
    }
    assert stored.column_names == [name for name, kind in _TYPES.items() if kind != "OTHER"]
    assert not any(pa.types.is_dictionary(field.type) for field in stored.schema)
    for name in set(stored.column_names) - {"f", "h"}:
        assert stored[name].to_pylist() == [
            float(value) if name == "d" else value for value in sent[name].to_pylist()
        ]


def test_small_batches_are_joined_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    sent = pa.table({"x": list(range(1000))})
    dataset, stored = _ingest(tmp_path, _encode(sent, "stream", rows=1))
    assert dataset.row_count == 1000
    assert stored["x"].num_chunks == 1
    assert stored["x"].to_pylist() == sent["x"].to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "table.arrow"]


def test_large_batches_are_cut(tmp_path: Path) -> None:
    rows = profile._MAX_CHUNK_ROWS * 2 + 1
    sent = pa.table({"x": pa.array(range(rows)), "k": pa.array(["a"] * rows).dictionary_encode()})
    _, stored = _ingest(tmp_path, _encode(sent, "file", rows=rows))
    assert stored["x"].num_chunks == 3
    assert stored["x"].equals(sent["x"])
    assert stored["k"].unique().to_pylist() == ["a"]


def test_an_empty_table_is_stored(tmp_path: Path) -> None:
    dataset, stored = _ingest(tmp_path, _encode(pa.table({"x": pa.array([], pa.int64())}), "file"))
    assert dataset.row_count == stored.num_rows == 0
    assert [column.name for column in dataset.columns] == ["x"]


def _with_bad_utf8() -> pa.Table:
    buffers = [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    return pa.table({"s": pa.Array.from_buffers(pa.string(), 1, buffers)})


def _with_bad_index() -> pa.Table:
    indices = pa.array([0, 9], pa.int8())
    return pa.table({"k": pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not Arrow IPC"),
        (b"a,b\n1,2\n", "not Arrow IPC"),
        (b"PAR1\x15\x04\x15\x00PAR1", "not Arrow IPC"),
        (b"ARROW1\0\0", "damaged or truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged or truncated"),
        (_encode(pa.table({}), "file"), "no columns"),
        (
            _encode(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "stream"),
            "there twice: 'a'",
        ),
        (_encode(_with_bad_utf8(), "stream"), "UTF8"),
        (_encode(_with_bad_index(), "file"), "out of bounds"),
    ],
)
def test_unusable_uploads_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BrokenUpload, match=message):
        _ingest(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_a_truncated_upload_is_refused(tmp_path: Path, form: str) -> None:
    content = _encode(_every_type(), form, rows=5)
    with pytest.raises(BrokenUpload, match="damaged or truncated"):
        _ingest(tmp_path, content[: len(content) // 2])


def test_a_failed_ingest_keeps_the_table_that_was_there(tmp_path: Path) -> None:
    _ingest(tmp_path, _encode(pa.table({"x": [1, 2]}), "file"))
    before = (tmp_path / "table.arrow").read_bytes()
    with pytest.raises(BrokenUpload):
        _ingest(tmp_path, _encode(_with_bad_index(), "file"))
    assert (tmp_path / "table.arrow").read_bytes() == before


def test_garbage_below_a_missing_text_does_no_harm(tmp_path: Path) -> None:
    """A view's bytes mean nothing where the value is missing, but Arrow's own cast follows them."""
    views = pa.py_buffer(b"\1\0\0\0a".ljust(16, b"\0") + b"\0\0\0\x7f".ljust(16, b"\xff"))
    text = pa.Array.from_buffers(pa.string_view(), 2, [pa.py_buffer(b"\1"), views])
    dataset, stored = _ingest(tmp_path, _encode(pa.table({"v": text}), "stream"))
    assert dataset.columns[0].null_count == 1
    assert stored["v"].to_pylist() == ["a", None]


_SEEDS = [
    _encode(_every_type(), form, compression, rows=5)
    for form in ("file", "stream")
    for compression in (None, "lz4")
]


@settings(derandomize=True, deadline=None)
@given(
    content=st.sampled_from(_SEEDS),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_damaged_bytes_are_refused_or_give_a_table(
    content: bytes, cut: float, flips: list[tuple[float, int]]
) -> None:
    damaged = bytearray(content[: round(cut * len(content))] if not flips else content)
    for place, mask in flips:
        damaged[int(place * len(damaged))] ^= mask
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset, stored = _ingest(Path(folder), bytes(damaged))
        except BrokenUpload:
            return
        assert dataset.row_count == stored.num_rows or not stored.num_columns
        stored.validate(full=True)


# ------------------------------------------------------------------------ lists


_LISTS = [[1.5, 2.0], [3.0, float("nan")], [0.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64(), 2),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["file", "stream"])
def test_lists_of_numbers_are_stored_alike_and_measured(
    tmp_path: Path, form: str, kind: pa.DataType
) -> None:
    sent = pa.table({"x": pa.array(_LISTS, pa.list_(kind.value_type)).cast(kind)})
    dataset, stored = _ingest(tmp_path, _encode(sent, form))
    (column,) = dataset.columns
    assert column.type == dataset_pb2.COLUMN_TYPE_LIST
    assert column.arrow_type == str(kind)
    assert column.list_lengths == dataset_pb2.ListLengths(shortest=2, longest=2)
    assert (column.null_count, column.non_finite_count) == (0, 1)
    assert column.first_unusable_row == 1
    assert pa.types.is_large_list(stored.schema.field("x").type)
    assert stored["x"][0].as_py() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([["a"]] * 2), "OTHER"),
        (pa.array([[[1.0]]] * 2), "OTHER"),
        (pa.array([[datetime.date(2020, 1, 1)]] * 2), "OTHER"),
        (pa.array([[decimal.Decimal("1.5")]] * 2), "LIST"),
        (pa.array([[True, False]] * 2), "LIST"),
        (pa.array([[1, 2]] * 2, pa.list_(pa.uint8())), "LIST"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_lists_of_anything_but_numbers_are_other(
    tmp_path: Path, values: pa.Array, expected: str
) -> None:
    dataset, stored = _ingest(tmp_path, _encode(pa.table({"x": values, "y": [1, 2]}), "file"))
    assert dataset_pb2.ColumnType.Name(dataset.columns[0].type)[12:] == expected
    assert ("x" in stored.column_names) == (expected == "LIST")


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_uneven_and_missing_lists_are_counted_and_placed(tmp_path: Path, rows: int) -> None:
    lists = [None, [1.0, 2.0], [3.0, None], [], [1.0, 2.0], None, [float("inf"), 1.0, 2.0]]
    dataset, _ = _ingest(tmp_path, _encode(pa.table({"x": lists}), "file", rows=rows))
    (column,) = dataset.columns
    assert column.list_lengths == dataset_pb2.ListLengths(
        shortest=0, longest=3, first_unequal_row=3
    )
    assert (column.null_count, column.non_finite_count) == (3, 1)
    assert column.first_unusable_row == 0


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_first_unusable_row_of_plain_columns(tmp_path: Path, rows: int) -> None:
    columns = {
        "f": [1.0, 2.0, 3.0, float("nan"), None],
        "i": [1, 2, None, 4, None],
        "sound": [1, 2, 3, 4, 5],
    }
    dataset, _ = _ingest(tmp_path, _encode(pa.table(columns), "stream", rows=rows))
    found = {
        column.name: column.first_unusable_row
        for column in dataset.columns
        if column.HasField("first_unusable_row")
    }
    assert found == {"f": 3, "i": 2}
    assert not any(column.HasField("list_lengths") for column in dataset.columns)


def test_long_lists_are_cut_into_chunks_by_their_values(tmp_path: Path) -> None:
    steps, rows = 2**16, 300
    values = pa.array(range(steps * rows), pa.int32())
    sent = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, steps)})
    _, stored = _ingest(tmp_path, _encode(sent, "file", rows=rows))
    assert stored["x"].num_chunks == -(-steps * rows // profile._MAX_CHUNK_VALUES)
    assert stored["x"].combine_chunks().flatten().equals(values)

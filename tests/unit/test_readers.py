"""Parquet and CSV uploads: what columns hold, that all formats train alike, where errors are."""

from __future__ import annotations

import csv
import datetime
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import csv_text, profile, readers
from trainwire_server.data.prepare import prepare
from trainwire_server.errors import BrokenUpload

ARROW = dataset_pb2.DATASET_FORMAT_ARROW
PARQUET = dataset_pb2.DATASET_FORMAT_PARQUET
CSV = dataset_pb2.DATASET_FORMAT_CSV


def ingest(
    folder: Path, content: bytes, data_format: dataset_pb2.DatasetFormat.ValueType
) -> tuple[dataset_pb2.Dataset, pa.Table]:
    source, table = folder / "source", folder / "table.arrow"
    source.write_bytes(content)
    dataset = profile.ingest(source, table, data_format)
    with pa.memory_map(str(table)) as file:
        return dataset, pa.ipc.open_file(file).read_all()


def arrow_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=50)
    return sink.getvalue()


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pcsv.write_csv(table, sink)
    return sink.getvalue()


def types(dataset: dataset_pb2.Dataset) -> dict[str, str]:
    return {column.name: column.arrow_type for column in dataset.columns}


# ------------------------------------------------------------------------ all formats


def test_all_formats_train_on_the_same_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    day = datetime.datetime(2024, 1, 1)
    table = pa.table(
        {
            "x": random.normal(size=300),
            "huge": random.normal(size=300) * 1e30,
            "single": random.integers(-99, 99, 300) / 8,
            "flag": random.random(300) < 0.3,
            "count": random.integers(-(2**62), 2**62, 300),
            "at": [day + datetime.timedelta(hours=int(i)) for i in random.permutation(300)],
            "side": random.choice(["buy", "hold", "séll"], 300),
        }
    )
    request = training_pb2.TrainingRequest()
    for path, text in {"column.name": "side", "windows.time_column": "at"}.items():
        contract.assign(request, f"data.{path}", text)
    request.data.windows.sequence_length = 5
    found = []
    for write, data_format in ((arrow_bytes, ARROW), (parquet_bytes, PARQUET), (csv_bytes, CSV)):
        dataset, _ = ingest(tmp_path, write(table), data_format)
        prepared = prepare(contract.resolve(request), tmp_path / "table.arrow")
        splits = (prepared.train, prepared.validation, prepared.test)
        found.append(
            (
                [(c.name, c.type, c.null_count, c.non_finite_count) for c in dataset.columns],
                prepared.feature_columns,
                prepared.class_names,
                prepared.features.tobytes(),
                [(split.starts.tolist(), split.labels.tolist()) for split in splits],
            )
        )
    assert found[0] == found[1] == found[2]
    assert found[0][1] == ["x", "huge", "single", "flag", "count"]


@pytest.mark.parametrize(
    ("content", "announced", "message"),
    [
        (b"a,b\n1,2\n", PARQUET, "not Parquet: its first bytes are b'a,b"),
        (b"a,b\n1,2\n", ARROW, "not Arrow IPC"),
        (parquet_bytes(pa.table({"a": [1]})), CSV, r"not CSV.*they look like Parquet"),
        (parquet_bytes(pa.table({"a": [1]})), ARROW, "look like Parquet"),
        (arrow_bytes(pa.table({"a": [1]})), PARQUET, "look like Arrow IPC"),
        (arrow_bytes(pa.table({"a": [1]})), CSV, "look like Arrow IPC"),
        (b"PAR1 and then nothing PAR1", PARQUET, "damaged or truncated"),
        (b"a\n1,2\n", CSV, "line 2"),
    ],
)
def test_errors_say_what_was_announced(
    tmp_path: Path,
    content: bytes,
    announced: dataset_pb2.DatasetFormat.ValueType,
    message: str,
) -> None:
    name = dataset_pb2.DatasetFormat.Name(announced)
    with pytest.raises(BrokenUpload, match=rf"(?s){message}.*\(announced as {name}\)$"):
        ingest(tmp_path, content, announced)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("at", [0, 70, 149])
def test_text_that_is_not_utf8_is_named_by_row_and_column(tmp_path: Path, at: int) -> None:
    raw = [b"fine"] * 150
    raw[at] = b"\xff"
    table = pa.table({"ok": range(150), "text": pa.array(raw).view(pa.string())})
    for write, announced in ((arrow_bytes, ARROW), (parquet_bytes, PARQUET)):
        with pytest.raises(BrokenUpload, match=rf"row {at + 1}, column 'text'.*UTF"):
            ingest(tmp_path, write(table), announced)
    content = b"ok,text\n" + b"".join(b"1,%s\n" % value for value in raw)
    with pytest.raises(BrokenUpload, match=rf"line {at + 2}, column 'text': b'\\xff' is not UTF"):
        ingest(tmp_path, content, CSV)


def test_an_index_beyond_its_dictionary_is_named_by_row_and_column(tmp_path: Path) -> None:
    indices = pa.array([0, 0, 9, 0], pa.int8())
    broken = pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)
    with pytest.raises(BrokenUpload, match=r"row 3, column 'k'.*out of bounds"):
        ingest(tmp_path, arrow_bytes(pa.table({"k": broken})), ARROW)


def test_a_broken_dictionary_is_no_single_rows_fault(tmp_path: Path) -> None:
    values = pa.array([b"\xff"]).view(pa.string())
    broken = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), values, safe=False)
    with pytest.raises(BrokenUpload, match=r"truncated: column 'k'.*UTF"):
        ingest(tmp_path, arrow_bytes(pa.table({"k": broken})), ARROW)


# ------------------------------------------------------------------------ Parquet


def test_parquet_is_read_in_pieces_with_lists_and_structures(tmp_path: Path) -> None:
    rows = 70_000
    table = pa.table(
        {
            "x": np.arange(rows),
            "list": pa.array([[1]] * (rows - 2) + [None, None]),
            "struct": pa.array([{"a": 1}] * rows),
            "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
            "price": pa.array([1.25] * rows).cast(pa.decimal128(10, 2)),
        }
    )
    dataset, stored = ingest(tmp_path, parquet_bytes(table, row_group_size=rows), PARQUET)
    kinds = [dataset_pb2.ColumnType.Name(column.type)[12:] for column in dataset.columns]
    assert kinds == ["INTEGER", "LIST", "OTHER", "STRING", "FLOAT"]
    assert [column.null_count for column in dataset.columns] == [0, 2, 0, 0, 0]
    assert dataset.row_count == rows
    assert stored.column_names == ["x", "list", "kind", "price"]
    assert stored["x"].to_pylist() == list(range(rows))
    assert stored["price"].unique().to_pylist() == [1.25]


def test_parquet_with_long_lists_is_read_in_smaller_pieces(tmp_path: Path) -> None:
    steps, rows = 4096, 600
    flat = pa.array(np.arange(steps * rows, dtype=np.float32))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(flat, steps), "y": range(rows)})
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(table, row_group_size=rows))
    with readers.open_upload(tmp_path / "t.parquet", PARQUET) as (_, batches):
        sizes = [batch.num_rows for batch in batches]
    assert sum(sizes) == rows
    assert max(sizes) * steps <= 2**20


PARQUET_SEED = parquet_bytes(
    pa.table({"i": range(50), "f": np.arange(50) / 3, "s": ["a", None] * 25, "l": [[1, 2]] * 50})
)


@settings(max_examples=60)
@given(
    cut=st.integers(0, len(PARQUET_SEED)),
    flips=st.lists(
        st.tuples(st.integers(0, len(PARQUET_SEED) - 1), st.integers(1, 255)), max_size=3
    ),
)
def test_damaged_parquet_is_refused_or_gives_a_table(
    cut: int, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(PARQUET_SEED if flips else PARQUET_SEED[:cut])
    for place, mask in flips:
        damaged[place] ^= mask
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset, stored = ingest(Path(folder), bytes(damaged), PARQUET)
        except BrokenUpload:
            return
        assert dataset.row_count == stored.num_rows or not stored.num_columns
        stored.validate(full=True)


# ------------------------------------------------------------------------ CSV


def test_types_are_found_out(tmp_path: Path) -> None:
    dataset, stored = ingest(
        tmp_path,
        b"\xef\xbb\xbfi,f,b,d,t,z,s,none,w\r\n"
        b"1,1,true,2024-01-31,2024-01-31T09:30:00.123456789,2024-01-31T09:30:00Z,a,, 7\r\n"
        b"-9223372036854775808,2.5,False,1600-01-01,2024-01-31 09:30,"
        b"2024-01-31T09:30:00+02:00,12,,8 \r\n"
        b",nan,,,2024-01-31,,NA,,\r\n",
        CSV,
    )
    assert types(dataset) == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "d": "date32[day]",
        "t": "timestamp[ns]",
        "z": "timestamp[ns, tz=UTC]",
        "s": "string",
        "none": "null",
        "w": "int64",
    }
    assert [column.null_count for column in dataset.columns] == [1, 0, 1, 1, 0, 1, 0, 3, 1]
    assert [column.non_finite_count for column in dataset.columns] == [0, 1] + 7 * [0]
    assert stored["i"].to_pylist() == [1, -(2**63), None]
    assert stored["f"].to_pylist()[:2] == [1.0, 2.5]
    assert stored["b"].to_pylist() == [True, False, None]
    assert stored["s"].to_pylist() == ["a", "12", "NA"]
    assert stored["w"].to_pylist() == [7, 8, None]
    utc = datetime.UTC
    assert stored["z"].cast(pa.timestamp("s", "UTC")).to_pylist() == [
        datetime.datetime(2024, 1, 31, 9, 30, tzinfo=utc),
        datetime.datetime(2024, 1, 31, 7, 30, tzinfo=utc),
        None,
    ]
    assert stored["t"].cast(pa.int64())[0].as_py() % 10**9 == 123_456_789


def test_what_a_column_holds_is_decided_by_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_text, "_BLOCK_BYTES", 64)
    lines = [f"{i}," for i in range(200)] + [f"{i}.5,x" for i in range(5)]
    dataset, stored = ingest(tmp_path, "\n".join(["late,text", *lines]).encode(), CSV)
    assert types(dataset) == {"late": "double", "text": "string"}
    assert stored["late"].to_pylist() == [*map(float, range(200)), 0.5, 1.5, 2.5, 3.5, 4.5]
    assert dataset.columns[1].null_count == 200


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    dataset, _ = ingest(tmp_path, b"a,b\n", CSV)
    assert (dataset.row_count, [c.name for c in dataset.columns]) == (0, ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3,x\n5,6\n", "line 3, column 'b': 'x' is not a whole number"),
        (b"a,b\n1,2.5\n3,x\n5,6\n", "line 3, column 'b': 'x' is not a number"),
        (b"a,b\n1,2\n3,NA\n5,6\n", "line 3, column 'b': 'NA' is not.*leave the field empty"),
        (b"a\ntrue\nfalse\nmaybe\n", "line 4, column 'a': 'maybe' is not true or false"),
        (b"a\n2024-01-01\n2024-01-02\n2024-02-30\n", "line 4.*'2024-02-30' is not a date"),
        (b"a\n2024-01-01T10:00\n2024-01-01T10:00Z\n2024-01-01T10:01\n", "line 3.*without a zone"),
        (b"a\n2024-01-01T10:00Z\n2024-01-01T10:00\n2024-01-01T10:01Z\n", "line 3.*with a zone"),
        (b"a\n1\n9223372036854775808\n3\n", "line 3.*at most 64 bits"),
        # Blank lines and values of several lines: the line is that of the file.
        (b'a,b\n\n"x\ny",1\n\n\nz,2\n"p\nq",no\nr,3\n', "line 8, column 'b': 'no'"),
        (b"a,b\r\n\r\n1,2\r\n3\r\n", "line 4: 1 fields where the header has 2: '3'"),
        (b"a,b\n1,2,3\n", "line 2: 3 fields where the header has 2: '1,2,3'"),
        (b"a,b,a\n1,2,3\n", "there twice: 'a'"),
        (b"a,,c\n1,2,3\n", "column 2 has no name"),
        (b"1,2\n3,4\n", "line 1 must name the columns"),
        (b"a,b\n1,2\n" + b"x" * 3_000_000 + b",2\n", "a line is longer than 1048576 bytes"),
        (b"", "cannot be read as CSV"),
        (b"\n\n", "cannot be read as CSV"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; allowed"),
        (b"\xe9t\xe9,b\n1,2\n", "cannot be read as CSV.*utf-8"),
    ],
    # A name by its message: the longest content would be a name of megabytes.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_csv_errors_say_where(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BrokenUpload, match=message):
        ingest(tmp_path, content, CSV)


def test_lines_are_counted_beyond_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_text, "_BLOCK_BYTES", 64)
    good = [f"{i},{i}" for i in range(500)]
    for line, bad in (("oops,1", "column 'a': 'oops'"), ("1,2,3", "3 fields")):
        content = "\n".join(["a,b", *good, line, *good]).encode()
        with pytest.raises(BrokenUpload, match=f"line 502.*{bad}"):
            ingest(tmp_path, content, CSV)


fields = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=64),
    st.booleans(),
    st.dates(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
    st.none(),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(fields, fields), max_size=12))
def test_any_csv_is_stored_or_refused(rows: list[tuple[Any, Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("one", "two"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset, stored = ingest(Path(folder), text.getvalue().encode(), CSV)
        except BrokenUpload:
            return
    kept = [row for row in rows if row not in ((None, None), ("", ""))]
    assert dataset.row_count >= len(kept)
    for column in dataset.columns:
        if column.arrow_type == "int64":
            values = [row[column.name == "two"] for row in rows]
            numbers = [value for value in values if value not in (None, "")]
            assert [v for v in stored[column.name].to_pylist() if v is not None] == [
                int(value) for value in numbers
            ]

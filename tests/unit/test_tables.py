"""Anything that holds columns becomes the same Arrow stream."""

from __future__ import annotations

import datetime
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from trainwire_client import tables
from trainwire_client.errors import MissingExtraError, UnreadableDataError


def _columns(rows: int = 1000) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "price": random.normal(size=rows),
        "volume": random.integers(0, 100, rows),
        "side": np.array(["BUY", "SELL"])[random.integers(0, 2, rows)],
        "open": random.integers(0, 2, rows).astype(bool),
    }


def _digest(data: Any) -> str:
    with tables.spool(data) as spool:
        return spool.sha256


def _read(data: Any) -> pa.Table:
    with tables.spool(data) as spool:
        return pa.ipc.open_stream(b"".join(spool.chunks())).read_all()


def _write_files(folder: Path, table: pa.Table) -> Iterator[Path]:
    yield folder / "t.parquet"
    pq.write_table(table, folder / "t.parquet", row_group_size=70)
    yield folder / "t.feather"
    pyarrow.feather.write_feather(table, folder / "t.feather", chunksize=33)
    yield folder / "t.csv"
    pyarrow.csv.write_csv(table, folder / "t.csv")
    yield folder / "t.arrow"
    with pa.ipc.new_stream(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=11)


def test_every_source_of_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    columns = _columns()
    table = pa.table(columns)
    paths = list(_write_files(tmp_path, table))
    sources = [columns, table, pd.DataFrame(columns), pl.DataFrame(columns), *paths, str(paths[0])]
    assert len({_digest(source) for source in sources}) == 1
    assert _digest(table.slice(1)) != _digest(table)


def test_the_stream_holds_the_data_and_is_described_truly() -> None:
    columns = _columns(50)
    with tables.spool(columns) as spool:
        data = b"".join(spool.chunks())
        assert spool.size_bytes == len(data)
        assert spool.sha256 == hashlib.sha256(data).hexdigest()
        assert spool.row_count == 50
    table = pa.ipc.open_stream(data).read_all()
    assert table.column_names == list(columns)
    for name, values in columns.items():
        assert table[name].to_pylist() == values.tolist()


def test_missing_values_and_times_survive_and_stay_deterministic(tmp_path: Path) -> None:
    start = datetime.datetime(2020, 1, 1)
    times = [start + datetime.timedelta(hours=hour) for hour in range(300)]
    prices = [None if hour % 7 == 0 else hour / 2 for hour in range(300)]
    texts = [None if hour % 5 == 0 else str(hour) for hour in range(300)]
    table = pa.table({"time": times, "price": prices, "text": texts})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=41)
    assert _read(table).to_pydict() == table.to_pydict()
    pieces = pa.concat_tables([table.slice(0, 13), table.slice(13)])
    assert _digest(table) == _digest(pieces) == _digest(tmp_path / "t.parquet")


def test_types_that_differ_between_libraries_become_plain() -> None:
    text = pa.array(["a", "b", None, "a"])
    table = pa.table(
        {"coded": text.dictionary_encode(), "large": text.cast(pa.large_string()), "plain": text}
    )
    read = _read(table)
    assert {field.type for field in read.schema} == {pa.string()}
    assert read["coded"].to_pylist() == ["a", "b", None, "a"]
    categories = pl.DataFrame({"c": ["x", "y"]}, schema={"c": pl.Categorical})
    assert _read(categories).schema.field("c").type == pa.string()
    assert _read(pd.DataFrame({"c": pd.Categorical(["x", "y"])}))["c"].to_pylist() == ["x", "y"]


def test_the_index_of_a_pandas_frame_is_not_a_column() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index([7, 8], name="key"))
    assert _read(frame).column_names == ["a"]


def test_batches_are_bounded_whatever_the_width() -> None:
    wide = pa.table({f"c{i}": np.zeros(3000) for i in range(2000)})
    with tables.spool(wide) as spool:
        batches = list(pa.ipc.open_stream(b"".join(spool.chunks())))
    assert max(batch.nbytes for batch in batches) <= 16 * 2**20
    assert len(batches) == 3


def test_chunks_are_one_mebibyte_and_outlive_the_file() -> None:
    with tables.spool({"a": np.arange(400_000)}) as spool:
        late = spool.chunks()
        sizes = [len(chunk) for chunk in spool.chunks()]
    assert set(sizes[:-1]) == {tables.CHUNK_BYTES}
    assert sum(sizes) == spool.size_bytes == sum(len(chunk) for chunk in late)
    assert not spool.path.exists()


def test_a_table_without_rows_is_still_a_stream() -> None:
    assert _read(pa.table({"a": pa.array([], pa.int64())})).num_rows == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"x": np.zeros((3, 2))}, r"column 'x' has shape \(3, 2\); allowed: 1-d"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, "differ in length: x: 3, y: 2"),
        ({"x": np.array([1, "a", object()], dtype=object)}, "column 'x'"),
        ([1, 2], "cannot upload a list; allowed: a path"),
        ("no/such/file.csv", r"no/such/file\.csv: No such file"),
        (pl.DataFrame({"a": [1]}).lazy(), "cannot upload a LazyFrame"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "same name: a"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(UnreadableDataError, match=words), tables.spool(data):
        pass


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("short.csv", "a,b\n1,2\n3\n", "Row #3: Expected 2 columns, got 1"),
        ("empty.csv", "", "Empty CSV"),
        ("notes.txt", "hello", r"notes.txt: not a known format; allowed: Parquet"),
        ("broken.parquet", "PAR1 and nothing else", "broken.parquet"),
        ("broken.arrow", "no stream", "broken.arrow"),
        ("broken.feather", "ARROW1 and nothing else", "broken.feather"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UnreadableDataError, match=words), tables.spool(tmp_path / name):
        pass


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDataError, match="it is a folder"), tables.spool(tmp_path):
        pass


def test_a_value_that_does_not_fit_its_column_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_CSV_BLOCK_BYTES", 64)
    lines = ["price", *(str(i) for i in range(100)), "oops"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with (
        pytest.raises(UnreadableDataError, match=r"Row #102.*'oops'"),
        tables.spool(tmp_path / "t.csv"),
    ):
        pass


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"trainwire\[data\]"), tables.spool({}):
        pass

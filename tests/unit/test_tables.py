"""Files are sent as they are; frames and arrays become the same Arrow stream."""

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

from trainwire.v1 import dataset_pb2
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


def _write_files(folder: Path, table: pa.Table) -> Iterator[tuple[Path, int]]:
    pq.write_table(table, folder / "t.parquet")
    yield folder / "t.parquet", dataset_pb2.DATASET_FORMAT_PARQUET
    pyarrow.feather.write_feather(table, folder / "t.feather")
    yield folder / "t.feather", dataset_pb2.DATASET_FORMAT_ARROW
    with pa.ipc.new_file(folder / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    yield folder / "file.arrow", dataset_pb2.DATASET_FORMAT_ARROW
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    yield folder / "stream.arrow", dataset_pb2.DATASET_FORMAT_ARROW
    pyarrow.csv.write_csv(table, folder / "t.CSV")
    yield folder / "t.CSV", dataset_pb2.DATASET_FORMAT_CSV


def test_files_are_sent_byte_by_byte_without_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list(_write_files(tmp_path, pa.table(_columns())))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path, kind in files:
        for given in (path, str(path)):
            with tables.spool(given) as spool:
                assert spool.format == kind
                assert b"".join(spool.chunks()) == path.read_bytes()
                assert spool.size_bytes == path.stat().st_size
                assert spool.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.exists()


def test_the_first_bytes_tell_more_than_the_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.csv")
    with tables.spool(tmp_path / "t.csv") as spool:
        assert spool.format == dataset_pb2.DATASET_FORMAT_PARQUET


def test_every_source_of_the_same_data_gives_the_same_bytes() -> None:
    columns = _columns()
    table = pa.table(columns)
    sources = [columns, table, pd.DataFrame(columns), pl.DataFrame(columns)]
    assert len({_digest(source) for source in sources}) == 1
    assert _digest(table.slice(1)) != _digest(table)


def test_the_stream_holds_the_data_and_is_described_truly() -> None:
    columns = _columns(50)
    with tables.spool(columns) as spool:
        data = b"".join(spool.chunks())
        assert spool.format == dataset_pb2.DATASET_FORMAT_ARROW
        assert spool.size_bytes == len(data)
        assert spool.sha256 == hashlib.sha256(data).hexdigest()
    table = pa.ipc.open_stream(data).read_all()
    assert table.column_names == list(columns)
    for name, values in columns.items():
        assert table[name].to_pylist() == values.tolist()


def test_missing_values_and_times_survive_and_stay_deterministic() -> None:
    start = datetime.datetime(2020, 1, 1)
    times = [start + datetime.timedelta(hours=hour) for hour in range(300)]
    prices = [None if hour % 7 == 0 else hour / 2 for hour in range(300)]
    texts = [None if hour % 5 == 0 else str(hour) for hour in range(300)]
    table = pa.table({"time": times, "price": prices, "text": texts})
    assert _read(table).to_pydict() == table.to_pydict()
    pieces = pa.concat_tables([table.slice(0, 13), table.slice(13)])
    assert _digest(table) == _digest(pieces)


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
        ("empty.csv", "", r"empty.csv: it is empty"),
        ("notes.txt", "hello", r"notes.txt: not a known format; allowed: Parquet"),
        ("packed.csv.gz", "a", r"packed.csv.gz: not a known format"),
        ("old.feather", "FEA1", r"old.feather: not a known format; allowed: .*Feather version 2"),
    ],
)
def test_files_that_cannot_be_sent_are_named(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UnreadableDataError, match=words), tables.spool(tmp_path / name):
        pass


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDataError, match="it is a folder"), tables.spool(tmp_path):
        pass


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"trainwire\[data\]"), tables.spool({}):
        pass

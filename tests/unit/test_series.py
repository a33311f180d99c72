"""Files of labelled series: what they become, and which are refused in what words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from trainwire_client import tables
from trainwire_client.errors import MissingExtraError, UnreadableDataError

HEADER = """\
# A comment with : and , and (brackets)
%another
@problemName Small
@timeStamps false
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true Run Walk
@data
"""
TS = f"{HEADER}0.5,1,-2:4,5,6e2:Walk\n\n# between\n1,2,3: 7,?,NaN :Run\n"
TSV = "2\t0.5\t1.5\n-1\t2.5\tNaN\n"


def _read(data: Any) -> pa.Table:
    with tables.spool(data) as spool:
        return pa.ipc.open_stream(b"".join(spool.chunks())).read_all()


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_ts_file_has_a_column_for_each_channel(tmp_path: Path) -> None:
    table = _read(_write(tmp_path, "small.TS", TS))
    assert table.to_pydict() == {
        "channel_0": [[0.5, 1, -2], [1, 2, 3]],
        "channel_1": [[4, 5, 600], [7, None, None]],
        "label": ["Walk", "Run"],
    }
    assert table.schema.field("channel_0").type == pa.list_(pa.float64(), 3)


def test_a_ucr_file_has_its_label_first(tmp_path: Path) -> None:
    table = _read(str(_write(tmp_path, "small.tsv", TSV)))
    assert table.to_pydict() == {"channel_0": [[0.5, 1.5], [2.5, None]], "label": [2, -1]}
    text = _read(_write(tmp_path, "text.tsv", "2\t1\t2\nb\t1\t2\n"))
    assert text["label"].to_pylist() == ["2", "b"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_training_and_a_test_file_become_one_table(tmp_path: Path, reverse: bool) -> None:
    paths = [
        _write(tmp_path, "A_TRAIN.tsv", "1\t1\t2\n2\t3\t4\n"),
        _write(tmp_path, "A_test.tsv", "1\t5\t6\n"),
    ]
    table = _read(sorted(paths, reverse=reverse))
    assert table.to_pydict() == {
        "channel_0": [[1, 2], [3, 4], [5, 6]],
        "label": [1, 2, 1],
        "split": ["train", "train", "test"],
    }


def test_labels_are_numbers_in_both_files_or_in_none(tmp_path: Path) -> None:
    paths = [
        _write(tmp_path, "A_TRAIN.tsv", "1\t1\t2\n"),
        _write(tmp_path, "A_TEST.tsv", "x\t5\t6\n"),
    ]
    assert _read(paths)["label"].to_pylist() == ["1", "x"]


def test_the_same_series_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [_write(tmp_path, name, TSV) for name in ("a.tsv", "b.tsv")]
    digests = []
    for path in paths:
        with tables.spool(path) as spool:
            digests.append(spool.sha256)
    assert digests[0] == digests[1]


def _header(**changed: str) -> str:
    lines = HEADER.splitlines(keepends=True)
    return "".join(changed.get(line.split()[0].strip("@"), line) for line in lines)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.ts", f"{HEADER}1,2,3:1,2,3:Run\n1,2:1,2,3:Run\n", "line 12: 2 values in channel_0, "),
        ("a.ts", f"{HEADER}1,2,3:1,2:Run\n", "line 11: 2 values in channel_1, but 3 in .*line 11"),
        ("a.ts", f"{HEADER}1,2,3:1,2,3:Run\n1,2,3:Run\n", "line 12: 1 channels, but 2 in .*line 1"),
        ("a.ts", f"{HEADER}1,2,3:1,2,3:Fly\n", "'Fly' is no label; @classLabel allows: Run, Walk"),
        ("a.ts", f"{HEADER}1,2,x:1,2,3:Run\n", "line 11: 'x' is not a number; allowed: numbers, "),
        ("a.ts", f"{HEADER}1,2,3\n", "line 11: no label; allowed: VALUES:LABEL"),
        ("a.ts", f"{HEADER}(0,1),(1,2):Run\n", "line 11: the file has time stamps; allowed: val"),
        ("a.ts", _header(timeStamps="@timestamps True\n"), "line 4: the file has time stamps"),
        ("a.ts", _header(classLabel="@targetlabel true\n"), "no class labels .* of regression"),
        ("a.ts", _header(classLabel="@classLabel false\n"), "line 10: no class labels were named"),
        ("a.ts", HEADER, "there is no series in it"),
        ("a.ts", "1,2,3:Run\n", "line 1: @data is missing before it; is this a .ts file"),
        ("a.ts", "@problemName A\n", "line 1: @data is missing before it"),
        ("a.ts", "", "the file: @data is missing"),
        ("a.tsv", "", "there is no series in it"),
        ("a.tsv", "1\t2\t3\n1\t2\n", "line 2: 1 values in channel_0, but 2 in .*line 1; allowed"),
        ("a.tsv", "time,price\n1,2\n", "line 1: no tab in it; allowed in a .tsv file: a label"),
        ("a.tsv", "time\tprice\n1\t2\n", "line 1: 'price' is not a number"),
        ("a.tsv", "1\t\t3\n", "line 1: '' is not a number"),
    ],
)
def test_what_is_no_file_of_series_is_refused_by_line(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    path = _write(tmp_path, name, text)
    with pytest.raises(UnreadableDataError, match=words) as refused, tables.spool(path):
        pass
    assert name in str(refused.value) or "the file" in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"1\t\xff\xfe\n")
    with pytest.raises(UnreadableDataError, match="not UTF-8"), tables.spool(tmp_path / "a.tsv"):
        pass


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a_TRAIN.ts", "b.ts"], "cannot tell which file trains"),
        (["a_TRAIN.ts", "b_TRAIN.ts"], "cannot tell which file trains"),
        (["a_TRAIN.ts", "a_TEST.ts", "b_TEST.ts"], "allowed: one file, or two"),
        (["a_TRAIN.ts", "a_TEST.csv"], r"a_TEST.csv with others: one dataset is one file"),
        (["a.csv", "b.csv"], r"a.csv with others"),
        (["a.ts"], r"a.ts: No such file"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(UnreadableDataError, match=words), tables.spool(names):
        pass


def test_without_pyarrow_series_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = _write(tmp_path, "a.tsv", TSV)
    with pytest.raises(MissingExtraError, match=r"trainwire\[data\]"), tables.spool(path):
        pass


# ------------------------------------------------------------------------ arrays


def test_arrays_of_series_become_list_columns() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    table = _read({"x": values, "one": values[:, 0], "label": np.array(["a", "b"])})
    assert table.column_names == ["x_0", "x_1", "x_2", "one", "label"]
    for channel in range(3):
        assert table[f"x_{channel}"].to_pylist() == values[:, channel].tolist()
    assert table["one"].to_pylist() == values[:, 0].tolist()
    assert table.schema.field("x_1").type == pa.list_(pa.float32(), 4)


def test_the_order_of_an_array_in_memory_does_not_count() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    fortran = {"x": np.asfortranarray(values)}
    assert _read(fortran).equals(_read({"x": values}))


def test_nan_stays_nan_in_arrays() -> None:
    (value,) = _read({"x": np.array([[1.0, np.nan]])})["x"].to_pylist()
    assert value[0] == 1
    assert np.isnan(value[1])


def test_lists_of_all_libraries_are_plain() -> None:
    lists = [[1.0, 2.0], [3.0, 4.0]]
    sources = [
        pa.table({"x": pa.array(lists, pa.large_list(pa.float64()))}),
        pd.DataFrame({"x": lists}),
        pl.DataFrame({"x": lists}),
    ]
    for source in sources:
        table = _read(source)
        assert table.schema.field("x").type == pa.list_(pa.float64())
        assert table["x"].to_pylist() == lists
    digests = set()
    for source in sources:
        with tables.spool(source) as spool:
            digests.add(spool.sha256)
    assert len(digests) == 1


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 2**14)], ids=str)
def test_batches_of_long_series_are_bounded(kind: pa.DataType) -> None:
    flat = np.zeros(300 * 2**14)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2**14).cast(kind)
    with tables.spool(pa.table({"x": column})) as spool:
        batches = list(pa.ipc.open_stream(b"".join(spool.chunks())))
    assert max(batch.nbytes for batch in batches) < 17 * 2**20
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": np.zeros((2, 3, 4, 5))}, r"shape \(2, 3, 4, 5\); allowed: \[n\], \[n, time\] and"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3)}, "differ in length: x: 2, y: 3"),
        ({"x": np.zeros((2, 0))}, "column 'x'"),
        ({"x": np.zeros((2, 2, 3)), "x_1": np.zeros(2)}, "same name: x_1"),
        ({"x": np.array([["a", object()]], dtype=object)}, "column 'x'"),
    ],
)
def test_arrays_that_are_no_series_are_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(UnreadableDataError, match=words), tables.spool(columns):
        pass

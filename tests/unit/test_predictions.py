"""From a file to predictions: which rows make a window, in which order, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from trainwire.v1 import training_pb2
from trainwire_client.bundle import load_bundle
from trainwire_client.errors import (
    InvalidRequestError,
    UnreadableDataError,
    UnreadableModelError,
)
from trainwire_client.onnx_model import load_onnx_model
from trainwire_client.predictions import (
    _windows,
    json_rows,
    predict,
    report_lines,
    skipped_text,
    write,
)
from trainwire_server.data.prepare import Prepared

MakeRequest = Callable[..., training_pb2.TrainingRequest]
TrainIn = Callable[..., list[training_pb2.TrainingEvent]]
FEATURES = ["f0", "f1", "f2"]
CLASSES = ["hold", "buy", "sell"]


@pytest.fixture(scope="module")
def train(
    train_in: TrainIn,
    make_request: MakeRequest,
    make_prepared: Callable[..., Prepared],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Trains with a request that names these columns; the folder of the bundle."""

    def make(history: int = 0, **changes: str) -> Path:
        job = tmp_path_factory.mktemp("predictions") / "job"
        request = make_request(trainer__epochs="5", **changes)
        train_in(job, request, make_prepared(history=history))
        return job / "bundle"

    return make


@pytest.fixture(scope="module")
def plain(train: Callable[..., Path]) -> Path:
    """A bundle of a table that is one series, in the order of its rows."""
    return train()


@pytest.fixture(scope="module")
def grouped(train: Callable[..., Path]) -> Path:
    """A bundle of a table with several series and times."""
    return train(data__windows__time_column="time", data__windows__group_column="name")


@pytest.fixture(scope="module")
def series(train: Callable[..., Path]) -> Path:
    """A bundle of labelled series."""
    return train(data__samples__feature_columns="f0,f1,f2")


def treating_gaps(bundle: Path, policy: str, folder: Path) -> Path:
    """A copy of a bundle, as of a training with these `missing_values`."""
    shutil.copytree(bundle, folder)
    request = json.loads((folder / "request.json").read_text())
    request["data"]["missing_values"] = f"MISSING_VALUES_{policy}"
    (folder / "request.json").write_text(json.dumps(request))
    return folder


def features(rows: int) -> dict[str, Any]:
    values = np.random.default_rng(5).normal([0, 100, -3], [1, 5, 0.2], (rows, 3))
    return dict(zip(FEATURES, values.T, strict=True))


def saved(columns: Any, path: Path) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_every_row_that_ends_a_window_is_predicted(plain: Path, tmp_path: Path) -> None:
    columns = features(30)
    found = predict(plain, saved(columns, tmp_path / "t.parquet"))
    assert found.skipped == 7
    assert found.table["row"].to_pylist() == list(range(7, 30))
    matrix = np.stack([columns[name] for name in FEATURES], axis=1)
    windows = np.stack([matrix[end - 7 : end + 1] for end in range(7, 30)])
    model = load_bundle(plain)
    scores = np.stack([found.table[f"probability_{name}"] for name in CLASSES], axis=1)
    assert scores == pytest.approx(model.predict_proba(windows), abs=1e-5)
    assert found.table["predicted"].to_pylist() == model.predict(windows)
    assert load_onnx_model(plain).predict(windows) == model.predict(windows)


def test_rows_are_ordered_by_series_and_time(grouped: Path, plain: Path, tmp_path: Path) -> None:
    by_name = {}
    for index, name in enumerate("ab"):
        part = {key: values[index * 20 : index * 20 + 20] for key, values in features(40).items()}
        by_name[name] = pa.table(part).append_column("name", pa.array([name] * 20))
    days = np.arange(20).astype("datetime64[D]").astype("datetime64[ns]")
    parts = [part.append_column("time", pa.array(days)) for part in by_name.values()]
    table = pa.concat_tables([*parts, parts[0].slice(0, 3).set_column(3, "name", pa.array("ccc"))])
    table = table.take(np.random.default_rng(0).permutation(43))
    found = predict(grouped, saved(table, tmp_path / "t.parquet"))
    assert found.skipped == 7 + 7 + 3
    assert found.table.column_names[:4] == ["row", "name", "time", "predicted"]
    assert found.table["row"].to_pylist() == sorted(found.table["row"].to_pylist())
    for name in "name", "time":
        assert found.table[name] == table[name].take(found.table["row"])
    # The series by themselves, in order, say the same.
    for name, part in by_name.items():
        alone = predict(plain, saved(part, tmp_path / "alone.parquet")).table
        mine = found.table.filter(pa.compute.equal(found.table["name"], name)).sort_by("time")
        assert mine["predicted"] == alone["predicted"]


@pytest.mark.parametrize("suffix", ["csv", "feather", "arrows"])
def test_files_of_every_format_say_the_same(suffix: str, plain: Path, tmp_path: Path) -> None:
    columns = {"text": ["x"] * 20, **features(20), "f1": np.arange(20) % 2 == 0}
    table, path = pa.table(columns), tmp_path / f"t.{suffix}"
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    elif suffix == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    expected = predict(plain, saved(columns, tmp_path / "t.parquet"))
    assert predict(plain, path) == expected


def test_labelled_series_are_rows(series: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(5).normal(0, 1, (9, 3, 8)) * [[1], [5], [0.2]]
    windows += [[0], [100], [-3]]
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(windows[:, i].reshape(-1)), 8)
        for i, name in enumerate(FEATURES)
    }
    found = predict(series, saved(columns, tmp_path / "t.parquet"))
    assert found.table["row"].to_pylist() == list(range(9))
    assert found.table["predicted"].to_pylist() == load_bundle(series).predict(windows)
    short = {name: [[1.0] * 7] for name in FEATURES}
    with pytest.raises(UnreadableDataError, match=r"lists of 7 to 7 values; allowed: 8"):
        predict(series, saved(short, tmp_path / "t.parquet"))
    with pytest.raises(UnreadableDataError, match="'f0' is double; allowed: lists"):
        predict(series, saved(features(9), tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    "policy", [training_pb2.MISSING_VALUES_REFUSE, training_pb2.MISSING_VALUES_FORWARD_FILL]
)
def test_a_table_without_gaps_is_copied_once(
    policy: training_pb2.MissingValues.ValueType, plain: Path
) -> None:
    names, values = [f"f{i}" for i in range(20)], np.ones(20_000)
    model = replace(load_onnx_model(plain), feature_columns=names)
    table = pa.table(dict.fromkeys(names, values))
    tracemalloc.start()
    _windows(table, model, {}, policy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * len(names) * values.nbytes


@pytest.fixture(scope="module")
def rolling(train: Callable[..., Path]) -> Path:
    """A bundle whose windows are scaled by the rows before, of a table whose gaps are filled."""
    return train(
        history=4,
        data__windows__time_column="time",
        data__windows__group_column="name",
        data__scaling="ROLLING",
        data__scaling_window="5",
        data__missing_values="FORWARD_FILL",
    )


def test_windows_come_with_the_rows_that_scale_them(rolling: Path, tmp_path: Path) -> None:
    columns = changed(time=np.arange(20))
    whole = {**columns, "f0": columns["f0"].copy()}
    whole["f0"][9] = whole["f0"][8]
    columns["f0"][[0, 9]] = np.nan
    found = predict(rolling, saved(columns, tmp_path / "t.parquet"))
    assert (found.skipped, found.dropped, found.filled) == (1 + 11, 1, 1)
    assert found.table["row"].to_pylist() == list(range(12, 20))
    assert skipped_text(found).splitlines() == [
        "11 rows have no prediction: too few rows of their series come before",
        "1 rows have no prediction: values are missing",
        "1 missing values were taken from before",
    ]
    matrix = np.stack([whole[name] for name in FEATURES], axis=1)
    windows = np.stack([matrix[end - 11 : end + 1] for end in range(12, 20)])
    model = load_bundle(rolling)
    assert (model.history, model.sequence_length) == (4, 8)
    scores = np.stack([found.table[f"probability_{name}"] for name in CLASSES], axis=1)
    assert scores == pytest.approx(model.predict_proba(windows), abs=1e-5)
    assert json.loads((rolling / "preprocessing.json").read_text())["history"] == 4
    card = (rolling / "MODEL_CARD.md").read_text()
    assert "the last 8 rows of 3 features and the 4 rows before them" in card
    assert card.count("[n, 12, 3]") == 2
    with pytest.raises(ValueError, match=r"expected \[n, 12 rows, 3 features\]"):
        model.predict_proba(windows[:, 4:])
    columns["f0"][3] = np.inf
    with pytest.raises(UnreadableDataError, match="'f0' has 1 infinite values"):
        predict(rolling, saved(columns, tmp_path / "t.parquet"))


def test_values_are_filled_within_a_series_and_in_its_order(rolling: Path, tmp_path: Path) -> None:
    columns = changed(time=np.arange(20), name=["a"] * 14 + ["b"] * 6)
    columns["f0"][14] = np.nan
    table = pa.table(columns)
    order = np.random.default_rng(0).permutation(20)
    found = predict(rolling, saved(table.take(order), tmp_path / "t.parquet"))
    assert (found.dropped, found.filled) == (1, 0)
    assert sorted(found.table["time"].to_pylist()) == [11, 12, 13]


def test_dropped_rows_make_neighbours(plain: Path, tmp_path: Path) -> None:
    bundle = treating_gaps(plain, "DROP", tmp_path / "model")
    columns = features(30)
    columns["f1"][[10, 11]] = np.nan
    found = predict(bundle, saved(columns, tmp_path / "t.parquet"))
    assert (found.skipped, found.dropped, found.filled) == (9, 2, 0)
    kept = {name: np.delete(values, [10, 11]) for name, values in columns.items()}
    alone = predict(bundle, saved(kept, tmp_path / "kept.parquet")).table
    assert found.table["predicted"] == alone["predicted"]
    assert found.table["row"].to_pylist() == [7, 8, 9, *range(12, 30)]


@pytest.mark.parametrize(("policy", "dropped", "filled"), [("DROP", 3, 0), ("FORWARD_FILL", 2, 1)])
def test_labelled_series_that_lack_values(
    policy: str, dropped: int, filled: int, series: Path, tmp_path: Path
) -> None:
    bundle = treating_gaps(series, policy, tmp_path / "model")
    columns: dict[str, Any] = {name: [[float(i)] * 8 for i in range(6)] for name in FEATURES}
    columns["f0"][1] = [1.0, None, *[1.0] * 6]
    columns["f1"][2] = None
    columns["f2"][4] = [np.nan, *[4.0] * 7]
    found = predict(bundle, saved(columns, tmp_path / "t.parquet"))
    assert (found.skipped, found.dropped, found.filled) == (dropped, dropped, filled)
    rows = [row for row in range(6) if row not in (2, 4) and (filled or row != 1)]
    assert found.table["row"].to_pylist() == rows
    whole = np.array([[[float(row)] * 8] * 3 for row in rows])
    assert found.table["predicted"].to_pylist() == load_bundle(series).predict(whole)


def changed(**columns: Any) -> dict[str, Any]:
    return {
        **features(20),
        "name": ["a"] * 20,
        "time": np.arange(20),
        **columns,
    }


REFUSED: dict[str, dict[str, Any]] = {
    "no column 'f1', 'time', which": {"f1": None, "time": None},
    "'f1' is string; allowed for a feature": {"f1": ["1"] * 20},
    "'f2' has 1 missing": {"f2": [None, *range(19)]},
    "'f2' has 2 missing": {"f2": [np.nan, np.inf, *range(18)]},
    "'name' has 20 missing": {"name": pa.nulls(20, pa.string())},
    "'time' is string; allowed for times": {"time": [f"day {i}" for i in range(20)]},
    "rows 0 and 3 have the same time": {"time": [3, 1, 2, 3, *range(4, 20)]},
    "none of the 20 rows ends a window: that takes 8": {"name": list("abcdefghij") * 2},
    "too large for float32": {"f0": [1e300] * 20},
}


@pytest.mark.parametrize("message", REFUSED)
def test_data_that_cannot_be_used_are_refused(message: str, grouped: Path, tmp_path: Path) -> None:
    columns = {k: v for k, v in changed(**REFUSED[message]).items() if v is not None}
    with pytest.raises(UnreadableDataError, match=message):
        predict(grouped, saved(columns, tmp_path / "t.parquet"))


def test_a_column_with_the_name_of_a_result_is_refused(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = train(data__windows__group_column="predicted")
    data = saved({**features(20), "predicted": ["a"] * 20}, tmp_path / "t.parquet")
    with pytest.raises(UnreadableDataError, match="column 'predicted' of the data"):
        predict(bundle, data)


def test_what_is_no_table_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing more")
    for path in (tmp_path / "t.parquet", tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UnreadableDataError, match=f"cannot read {path}"):
            predict(plain, path)


def test_a_bundle_that_cannot_be_used_is_refused(plain: Path, tmp_path: Path) -> None:
    data = saved(features(20), tmp_path / "t.parquet")
    with pytest.raises(UnreadableModelError, match=r"has no model\.onnx"):
        predict(tmp_path, data)
    whole = (plain / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableModelError, match=r"cannot read .*model\.onnx: it is damaged"):
        predict(tmp_path, data)
    (tmp_path / "model.onnx").write_bytes(whole)
    (tmp_path / "request.json").write_text('{"data": {"unheard_of": 1}}')
    with pytest.raises(InvalidRequestError, match=r"data\.unheard_of"):
        predict(tmp_path, data)


def test_windows_of_another_shape_are_refused(plain: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 3, 8\]; expected \['n', 8, 3\]"):
        load_onnx_model(plain).predict_proba(np.zeros((2, 3, 8)))
    assert load_onnx_model(plain).predict_proba(np.zeros((0, 8, 3))).shape == (0, 3)


def test_results_are_written_whole_and_read_back(grouped: Path, tmp_path: Path) -> None:
    days = np.arange(20).astype("datetime64[D]").astype("datetime64[ns]")
    found = predict(grouped, saved(changed(time=days), tmp_path / "t.parquet"))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "p.parquet").touch()
    write(found.table, folder / "p.parquet")
    write(found.table, folder / "p.csv")
    assert pyarrow.parquet.read_table(folder / "p.parquet") == found.table
    assert pyarrow.csv.read_csv(folder / "p.csv")["predicted"] == found.table["predicted"]
    assert sorted(path.name for path in folder.iterdir()) == ["p.csv", "p.parquet"]
    first = next(json_rows(found.table))
    assert (first["row"], first["name"], first["time"][:10]) == (7, "a", "1970-01-08")
    lines = list(report_lines(found))
    assert lines[0].split()[:4] == ["ROW", "NAME", "TIME", "PREDICTED"]
    assert len(lines) == 1 + 13 + 1 + len(set(found.table["predicted"].to_pylist()))


@pytest.mark.parametrize("package", ["numpy", "onnxruntime", "pyarrow"])
def test_a_missing_package_is_named(package: str, plain: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from trainwire_client.predictions import predict\n"
        f"predict({str(plain)!r}, 'x.csv')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert f"predicting needs {package}, which is not installed" in ended.stderr
    assert "pip install 'trainwire[predict]'" in ended.stderr


def test_importing_it_loads_none_of_them() -> None:
    code = (
        "import sys, trainwire_client.predictions;"
        "sys.exit(bool({'numpy', 'onnxruntime', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

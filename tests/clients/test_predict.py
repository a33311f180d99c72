"""`trainwire predict`: without torch it gives the classes that the server measured."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

Columns = dict[str, Any]
WITHOUT = ("torch", "safetensors", "onnx", "trainwire_server")
"""What predicting must not import."""


@dataclass(frozen=True)
class Trained:
    """A table, what was trained on it, and the folder of the model."""

    columns: Columns
    started: training_pb2.JobStarted
    bundle: Path


@pytest.fixture(scope="module")
def trained(
    client: TrainingClient,
    columns: Callable[..., Columns],
    small: Callable[..., training_pb2.TrainingRequest],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """A model of two classes, calibrated and with decision thresholds.

    One of its features is about a million and varies by hundredths. Four rows of five have a label.
    """
    table = columns(rows=600, seed=51)
    table["a"] = 1e6 + 0.01 * table["a"].astype(np.float64)
    labels = [label if row % 5 else None for row, label in enumerate(table["y"].tolist())]
    request = small(client.upload(pa.table({**table, "y": labels})).name, epochs=4)
    request.data.windows.time_column = "time"
    request.data.missing_values = training_pb2.MISSING_VALUES_DROP
    request.prediction.calibrate_probabilities = request.prediction.tune_thresholds = True
    job = client.submit(request)
    events = list(client.watch(job))
    folder = tmp_path_factory.mktemp("predict") / "model"
    client.download(events[-1].succeeded.model, folder)
    started = next(event.started for event in events if event.HasField("started"))
    return Trained(table, started, folder)


def predict(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`trainwire predict` where none of `WITHOUT` can be imported, nor a server reached."""
    program = (
        "import sys\n"
        f"for name in {WITHOUT}: sys.modules[name] = None\n"
        "from trainwire_client.__main__ import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "predict", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def write_csv(path: Path, columns: Columns, rows: list[int]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([column[row].item() for column in columns.values()] for row in rows)
    return path


def test_it_gives_the_classes_that_the_server_measured(trained: Trained, tmp_path: Path) -> None:
    # In any order: the time column says which row comes after which.
    shuffled = np.random.default_rng(0).permutation(600).tolist()
    data = write_csv(tmp_path / "bars.csv", trained.columns, shuffled)
    done = predict(trained.bundle, data, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == "7 rows have no prediction: too few rows of their series come before\n"
    assert {row["row"]: row["time"] for row in rows} == {
        index: time for index, time in enumerate(shuffled) if time >= 7
    }
    # The windows of the test split are the last ones; those without a label are left out there.
    assert (trained.started.dropped_rows, trained.started.unlabelled_windows) == (0, 118)
    labelled = sorted((row for row in rows if row["time"] % 5), key=lambda row: row["time"])
    of_test = labelled[-trained.started.test.windows :]
    true = [trained.columns["y"][row["time"]] for row in of_test]
    matrix, plain = np.zeros((2, 2, 2), dtype=int)
    np.add.at(matrix, (true, [int(row["predicted"]) for row in of_test]), 1)
    np.add.at(plain, (true, [int(row["probability_1"] > 0.5) for row in of_test]), 1)
    metrics = json.loads((trained.bundle / "metrics.json").read_text())
    adjusted = metrics["adjusted"]["test"]
    assert matrix.ravel().tolist() == adjusted["confusion_matrix"]
    assert plain.ravel().tolist() == metrics["test"]["confusion_matrix"]
    assert matrix.sum(axis=0).min() > 0
    assert (matrix != plain).any()
    said = [[row[f"probability_{name}"] for name in (0, 1)] for row in of_test]
    assert np.sum(said, axis=1) == pytest.approx(np.ones(len(said)))
    own = np.array(said)[np.arange(len(said)), true]
    assert -np.log(own).mean() == pytest.approx(adjusted["loss"], rel=1e-5)
    assert adjusted["loss"] != pytest.approx(metrics["test"]["loss"], rel=1e-3)


def test_gaps_are_filled_and_rows_scaled_as_in_training(
    client: TrainingClient,
    columns: Callable[..., Columns],
    small: Callable[..., training_pb2.TrainingRequest],
    tmp_path: Path,
) -> None:
    table = columns(rows=600, seed=53)
    gaps = np.random.default_rng(0).permutation(600)[:60]
    table["a"] = 1e6 + np.cumsum(table["a"].astype(np.float64))
    table["a"][gaps] = np.nan
    table["b"] = np.where(np.arange(600) < 3, np.nan, table["b"])
    request = small(client.upload(table).name, epochs=4)
    request.data.windows.time_column = "time"
    request.data.scaling = training_pb2.SCALING_ROLLING
    request.data.scaling_window = 20
    request.data.missing_values = training_pb2.MISSING_VALUES_FORWARD_FILL
    events = list(client.watch(client.submit(request)))
    started = next(event.started for event in events if event.HasField("started"))
    assert (started.dropped_rows, started.unscaled_windows) == (3, 19)
    assert started.filled_values == (gaps >= 3).sum()
    client.download(events[-1].succeeded.model, tmp_path / "model")
    data = write_csv(tmp_path / "bars.csv", table, list(range(600)))
    done = predict(tmp_path / "model", data, "--json")
    assert done.stderr.splitlines() == [
        "26 rows have no prediction: too few rows of their series come before",
        "3 rows have no prediction: values are missing",
        f"{started.filled_values} missing values were taken from before",
    ]
    rows = [json.loads(line) for line in done.stdout.splitlines()][-started.test.windows :]
    matrix = np.zeros((2, 2), dtype=int)
    for row in rows:
        matrix[table["y"][row["time"]], int(row["predicted"])] += 1
    metrics = json.loads((tmp_path / "model/metrics.json").read_text())["test"]
    assert matrix.ravel().tolist() == metrics["confusion_matrix"]
    assert matrix.sum(axis=0).min() > 0


def test_it_shows_the_last_rows_and_writes_all(trained: Trained, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "bars.csv", trained.columns, list(range(600)))
    shown = predict(trained.bundle, data, "--output", tmp_path / "out.csv").stdout.splitlines()
    assert shown[0] == "the last 20 of 593 predictions (--json or --output has all)"
    assert shown[1].split() == ["ROW", "TIME", "PREDICTED", "PROBABILITY_0", "PROBABILITY_1"]
    written = pyarrow.csv.read_csv(tmp_path / "out.csv")
    last = written.slice(573).to_pylist()[0]
    cells = [f"{last[f'probability_{name}']:.4f}" for name in (0, 1)]
    assert shown[2].split() == ["580", "580", str(last["predicted"]), *cells]
    assert sum(int(line.split()[2]) for line in shown[-2:]) == written.num_rows == 593
    refused = predict(trained.bundle, data, "--output", tmp_path / "out.csv", status=1)
    assert "already there" in refused.stderr
    predict(trained.bundle, data, "--output", tmp_path / "out.csv", "--overwrite", "--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.csv", "out.csv"]
    other = predict(trained.bundle, data, "--output", tmp_path / "out.xlsx", status=2)
    assert ".csv or .parquet" in other.stderr


def test_what_is_wrong_is_told(trained: Trained, tmp_path: Path) -> None:
    columns = {name: values for name, values in trained.columns.items() if name not in "ab"}
    data = write_csv(tmp_path / "bars.csv", columns, list(range(20)))
    assert "has no column 'a', 'b'" in predict(trained.bundle, data, status=1).stderr
    assert "has no model.onnx" in predict(tmp_path, data, status=1).stderr

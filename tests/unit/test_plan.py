"""The dry run: what a run would start with, nothing written, and the memory that it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import fit, memory
from trainwire_server.training.plan import plan
from trainwire_server.training.setup import set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]


def store(folder: Path, rows: int = 1200) -> Path:
    """A table of 5 features, one of them constant, and three classes."""
    random = np.random.default_rng(0)
    columns: dict[str, npt.NDArray[Any]] = {f"f{i}": random.normal(size=rows) for i in range(4)}
    columns["constant"] = np.ones(rows)
    columns["label"] = random.choice(3, rows, p=[0.7, 0.2, 0.1])
    table = pa.table(columns)
    with pa.ipc.new_file(folder / "table.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "table.arrow"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"balancing__use_undersampling": "true", "balancing__undersample_ratio": "0.8"},
        {"trainer__precision": "BF16", "trainer__deterministic": "false"},
        {"data__scaling": "NONE", "balancing__use_oversampling": "false"},
        {"balancing__oversample_method": "SMOTE", "balancing__smote_k_neighbors": "900"},
        {"trainer__mixup_alpha": "0.2", "trainer__batch_size": "1"},
    ],
)
def test_a_plan_says_what_the_run_says(
    tmp_path: Path, make_request: MakeRequest, changes: dict[str, str]
) -> None:
    table = store(tmp_path)
    request = make_request(**changes)
    (tmp_path / "job").mkdir()
    planned, warnings = plan(request, table, 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["job", "table.arrow"]
    told = []
    for event in fit.fit(request, table, tmp_path / "job", 1, lambda: False):
        if event.HasField("started"):
            assert event.started == planned.started
            break
        told.append(event.warning)
    assert told == warnings
    scaled = request.data.scaling != training_pb2.SCALING_NONE
    is_smote = request.balancing.oversample_method == training_pb2.OVERSAMPLE_METHOD_SMOTE
    is_alone = request.trainer.mixup_alpha > 0
    assert len(warnings) == scaled + is_smote + is_alone
    # What the libraries take that make new windows.
    most = 2 ** (28 + is_smote)
    assert most / 2 < planned.memory_estimate_bytes < most


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    request = training_pb2.TrainingRequest()
    contract.assign(request, "dataset", "datasets/x")
    contract.assign(request, "data.column.name", "label")
    planned, _ = plan(request, store(tmp_path), 1)
    assert planned.started.request == contract.resolve(request)


def test_a_plan_fails_as_the_run_would(tmp_path: Path, make_request: MakeRequest) -> None:
    request = make_request(data__windows__sequence_length="500")
    with pytest.raises(JobFailure) as planned:
        plan(request, store(tmp_path), 1)
    with pytest.raises(JobFailure) as run:
        list(fit.fit(request, tmp_path / "table.arrow", tmp_path, 1, lambda: False))
    assert planned.value.to_proto() == run.value.to_proto()


def test_undersampling_comes_before_oversampling(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    prepared = make_prepared()
    request = make_request(
        balancing__use_undersampling="true",
        balancing__undersample_ratio="0.4",
        balancing__oversample_ratio="0.9",
    )
    balance = set_up(request, prepared, 1).balance
    counts = np.bincount(prepared.train.labels)
    ceiling = round(counts.min() / 0.4)
    left = np.minimum(counts, ceiling)
    expected = np.maximum(left, round(0.9 * left.max()))
    assert balance.counts.tolist() == counts.tolist()
    assert balance.balanced_counts.tolist() == expected.tolist()
    assert np.bincount(prepared.train.labels[balance.positions]).tolist() == expected.tolist()
    raw = 1 / expected
    np.testing.assert_allclose(balance.weights, raw / raw.mean())
    # Large classes are cut, not cut and then repeated.
    cut = balance.positions[prepared.train.labels[balance.positions] == counts.argmax()]
    assert len(set(cut.tolist())) == len(cut) == ceiling


def test_the_estimate_grows_with_what_takes_memory(tmp_path: Path) -> None:
    table = store(tmp_path)

    def estimate(*settings: str) -> int:
        request = training_pb2.TrainingRequest(dataset="datasets/x")
        for setting in ("data.column.name=label", "trainer.batch_size=64", *settings):
            path, _, text = setting.partition("=")
            contract.assign(request, path, text)
        return plan(request, table, 1)[0].memory_estimate_bytes

    plain = estimate()
    size = "model.hybrid_cnn_lstm"
    # Of an LSTM's weights, two directions with four gates of 512 x 512, each with a gradient, two
    # moments and a best one, copies of itself and the moments, and a file of four of them.
    small = estimate("trainer.batch_size=1")
    larger = estimate("trainer.batch_size=1", f"{size}.lstm_hidden_size=512")
    assert larger > small + 12 * 4 * 2 * 4 * 512 * 512
    assert estimate("trainer.batch_size=256") > plain + 10_000_000
    assert estimate("data.windows.sequence_length=20") < plain
    # Of 800 windows, four matrices of windows by windows, and 84 features of each.
    rocket = "model.mini_rocket.features_per_kernel=1"
    begun, plain = estimate(rocket), estimate(rocket, "model.mini_rocket.ridge_windows=0")
    assert begun > plain + 10_000_000


def test_the_estimate_counts_what_is_there(
    tmp_path: Path, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    table, prepared = store(tmp_path), make_prepared(history=4)
    prepared.feature_columns[:] = ["f0", "f1", "f2"]

    def estimate(prepared: Prepared, **changes: str) -> int:
        request = make_request(balancing__oversample_ratio="0.01", **changes)
        return memory.estimate_bytes(request, prepared, set_up(request, prepared, 1), table)

    whole = estimate(prepared)
    raw = prepared.raw_windows
    assert raw is not None
    assert whole - estimate(replace(prepared, raw_windows=None)) == raw.values.nbytes
    # No class has to grow.
    assert whole == estimate(prepared, balancing__oversample_method="SMOTE")


def test_measuring_leaves_the_weights_as_they_are(
    tmp_path: Path, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request, prepared = make_request(), make_prepared()
    setup = set_up(request, prepared, 1)
    before = {name: value.clone() for name, value in setup.model.state_dict().items()}
    table = store(tmp_path)
    prepared.feature_columns[:] = ["f0", "f1", "f2"]
    memory.estimate_bytes(request, prepared, setup, table)
    assert all(torch.equal(before[name], v) for name, v in setup.model.state_dict().items())
    assert all(parameter.grad is None for parameter in setup.model.parameters())
    assert not any(module._forward_hooks for module in setup.model.modules())


PEAKS = """
import json, os, sys
from pathlib import Path
import trainwire_server.execution.preload
from trainwire.v1 import training_pb2
from trainwire_server.training.fit import fit

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

for line in sys.stdin:
    if os.fork() == 0:
        serialized, table, folder = json.loads(line)
        request = training_pb2.TrainingRequest.FromString(bytes.fromhex(serialized))
        before = peak()
        list(fit(request, Path(table), Path(folder), 1, lambda: False))
        print(peak() - before, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def measure_peak() -> Iterator[Callable[..., int]]:
    """Peak memory of a run, in bytes beyond an idle training process."""
    # A child for each run, as from the fork server: a peak is that of all a process ever did.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PEAKS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:

        def measure(request: training_pb2.TrainingRequest, table: Path, folder: Path) -> int:
            assert parent.stdin
            assert parent.stdout
            arguments = [request.SerializeToString().hex(), str(table), str(folder)]
            print(json.dumps(arguments), file=parent.stdin, flush=True)
            return int(parent.stdout.readline())

        yield measure


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("rows", "large"),
    [
        (700, {"trainer.epochs": "1", "trainer.batch_size": "700"}),
        # Six million weights, whose checkpoint is written while the next epoch trains.
        (
            100,
            {
                "trainer.epochs": "2",
                "model.hybrid_cnn_lstm.lstm_hidden_size": "800",
                "data.windows.sequence_length": "4",
            },
        ),
        # Ten thousand features of each window, which are kept.
        (
            12_000,
            {
                "trainer.epochs": "1",
                "trainer.use_augmentation": "false",
                "model.mini_rocket.features_per_kernel": "119",
                "data.windows.sequence_length": "9",
            },
        ),
        # As much again of synthetic windows as the table has rows, each of 60 of these.
        (
            25_000,
            {
                "trainer.epochs": "1",
                "model.linear.pool_size": "60",
                "data.windows.sequence_length": "60",
                "balancing.oversample_method": "SMOTE",
                "balancing.oversample_ratio": "1",
            },
        ),
    ],
    ids=["batch", "network", "features", "smote"],
)
def test_the_estimate_is_right_within_a_factor_of_two(
    rows: int, large: dict[str, str], measure_peak: Callable[..., int], tmp_path: Path
) -> None:
    request = training_pb2.TrainingRequest(dataset="datasets/x")
    same = {
        "data.column.name": "label",
        "data.chronological.embargo_rows": "0",
        "resources.device": "CPU",
    }
    for path, text in (same | large).items():
        contract.assign(request, path, text)
    table = store(tmp_path, rows)
    estimate = plan(request, table, 1)[0].memory_estimate_bytes
    measured = measure_peak(request, table, tmp_path)
    assert measured > 2 * 2**27, "too small a run to tell"
    assert measured / 2 < estimate < measured * 2

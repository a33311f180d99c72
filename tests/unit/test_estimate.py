"""The least that a job takes, from its request and its dataset's profile; and what is refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trainwire import contract
from trainwire.v1 import dataset_pb2, system_pb2, training_pb2
from trainwire_server.data import profile
from trainwire_server.errors import JobTooLarge
from trainwire_server.jobs.estimate import (
    BESIDE_GPU,
    ON_CPU,
    ON_GPU,
    MemoryLimit,
    estimate,
    find_shape,
)

GIB = 2**30
HYBRID = "model.hybrid_cnn_lstm"
MAXIMA = {
    f"{HYBRID}.{name}": str(value)
    for name, value in {
        "conv_blocks": 16, "conv_channels": 2048, "kernel_size": 255, "lstm_hidden_size": 2048,
        "lstm_layers": 8, "attention_heads": 64, "attention_head_size": 512,
    }.items()
}  # fmt: skip


class Machine:
    """Devices that are known, in place of those that a probe finds."""

    def __init__(self, **gib: int) -> None:
        self._info = system_pb2.SystemInfo()
        for name, size in gib.items():
            self._info.devices.add(name=name, memory_bytes=size * GIB)

    async def found(self) -> system_pb2.SystemInfo:
        return self._info


def dataset(rows: int = 400, **nulls: int) -> dataset_pb2.Dataset:
    """Two features and a label; of which so many values are missing."""
    columns = [
        dataset_pb2.DatasetColumn(name=name, type=kind, null_count=nulls.get(name, 0))
        for name, kind in (
            ("a", dataset_pb2.COLUMN_TYPE_FLOAT),
            ("b", dataset_pb2.COLUMN_TYPE_FLOAT),
            ("y", dataset_pb2.COLUMN_TYPE_STRING),
        )
    ]
    return dataset_pb2.Dataset(name="datasets/x", row_count=rows, columns=columns)


def request(**fields: str) -> training_pb2.TrainingRequest:
    made = training_pb2.TrainingRequest(dataset="datasets/x")
    for path, text in {"data.column.name": "y", **fields}.items():
        contract.assign(made, path, text)
    assert not contract.violations(made)
    return contract.resolve(made)


def refuse(
    machine: Machine,
    mib: int,
    made: training_pb2.TrainingRequest,
    data: dataset_pb2.Dataset | None = None,
) -> JobTooLarge:
    limit: Any = MemoryLimit(machine, mib * 2**20)  # type: ignore[arg-type]
    with pytest.raises(JobTooLarge) as caught:
        asyncio.run(limit.check(made, data or dataset()))
    return caught.value


def accept(
    machine: Machine,
    mib: int,
    made: training_pb2.TrainingRequest,
    data: dataset_pb2.Dataset | None = None,
) -> None:
    limit: Any = MemoryLimit(machine, mib * 2**20)  # type: ignore[arg-type]
    asyncio.run(limit.check(made, data or dataset()))


# ------------------------------------------------------------------------ refusals


def test_the_message_names_fields_estimate_and_limit() -> None:
    error = refuse(Machine(cpu=16), 300, request(**{f"{HYBRID}.lstm_hidden_size": "2000"}))
    assert "a training process may allocate (--job-memory-mb)" in error.message
    assert "more than the 300 MiB" in error.message
    (field,) = error.violations
    assert field.field == f"{HYBRID}.lstm_hidden_size"
    assert field.description.startswith("2,000: half of it would take ")
    assert int(error.metadata["least_bytes"]) > int(error.metadata["limit_bytes"]) == 300 * 2**20


def test_all_maxima_at_once_are_refused_in_no_time() -> None:
    accept(Machine(cpu=16), 0, request())  # what is made at the first call
    made = request(**MAXIMA, **{"data.windows.sequence_length": "4096"})
    began = time.perf_counter()
    error = refuse(Machine(cpu=16), 0, made, dataset(rows=2**32 - 1))
    assert time.perf_counter() - began < 0.05
    assert "the server's machine has" in error.message
    assert f"{HYBRID}.conv_channels" in {each.field for each in error.violations}


@pytest.mark.parametrize("architecture", ["linear", "inception_time", "mini_rocket"])
def test_so_are_those_of_the_others_where_they_are_too_large(architecture: str) -> None:
    described = {each.path: each.param for each in contract.describe()}
    largest = {
        path: str(int(param.maximum or 1))
        for path, param in described.items()
        if path.startswith(f"model.{architecture}.")
    }
    made = request(**largest)
    least = estimate(made, find_shape(made, dataset()), ON_CPU).total
    limit = least // 2**20
    accept(Machine(cpu=1000), limit + 1, made)
    if least > 2**28:  # of the others every machine has room for any
        refuse(Machine(cpu=1000), limit, made)


def test_data_that_do_not_fit_are_blamed_on_the_data() -> None:
    error = refuse(Machine(cpu=16), 300, request(), dataset(rows=50_000_000))
    assert [each.field for each in error.violations] == ["data.windows.feature_columns", "dataset"]
    assert error.violations[1].description.startswith("50,000,000 rows: half of it")
    # Rows that lack a feature may be left out: for all that is known here, these are.
    made = request(**{"data.missing_values": "DROP"})
    accept(Machine(cpu=16), 300, made, dataset(rows=50_000_000, a=20_000_000, b=29_000_000))


def test_a_gpu_is_asked_where_the_job_would_train() -> None:
    large = {f"{HYBRID}.lstm_hidden_size": "2000"}  # 1 GiB on a CPU, a half on a GPU
    accept(Machine(cpu=16, gpu=1), 300, request(**large))
    refuse(Machine(cpu=16, gpu=1), 300, request(**large, **{"resources.device": "CPU"}))
    error = refuse(Machine(cpu=1000, gpu=4, other=8), 0, request(**MAXIMA))
    assert "more than the 8,192 MiB that the server's largest GPU has" in error.message
    # Data and best weights are on the host as well.
    error = refuse(Machine(cpu=16, gpu=1000), 300, request(), dataset(rows=50_000_000))
    assert "--job-memory-mb" in error.message


def test_a_machine_with_less_than_its_limit_is_the_limit() -> None:
    error = refuse(Machine(cpu=1), 4096, request(), dataset(rows=200_000_000))
    assert "more than the 1,024 MiB that the server's machine has" in error.message


def test_what_nobody_knows_refuses_nothing() -> None:
    accept(Machine(), 0, request(**MAXIMA))


def test_bfloat16_takes_half_for_activations() -> None:
    made = request(**{f"{HYBRID}.conv_channels": "512", "data.windows.sequence_length": "4096"})
    shape = find_shape(made, dataset())
    on_cpu, on_gpu = (estimate(made, shape, place) for place in (ON_CPU, ON_GPU))
    weights = 4 * on_cpu.parameters
    assert on_cpu.computing - weights == 2 * (on_gpu.computing - weights)
    assert estimate(made, shape, BESIDE_GPU).computing == 0


# ------------------------------------------------------------------------ dry runs


@pytest.mark.parametrize(
    ("machine", "device", "gib"),
    [
        (Machine(cpu=64), "AUTO", 8),
        (Machine(cpu=64, gpu=16), "AUTO", 40),
        (Machine(cpu=64, gpu=16), "CUDA", 40),
        (Machine(cpu=64, gpu=16), "CPU", 8),
        # No more than the machine has, on whose memory the GPU's part is computed.
        (Machine(cpu=64, gpu=140), "AUTO", 64),
        (Machine(cpu=6), "CPU", 6),
        (Machine(), "AUTO", 8),
    ],
)
def test_a_dry_run_may_allocate_so_much(machine: Machine, device: str, gib: int) -> None:
    made = request(**{"resources.device": device})
    limit, unlimited = (MemoryLimit(machine, size) for size in (4 * GIB, 0))  # type: ignore[arg-type]
    assert asyncio.run(limit.of_dry_run(made)) == gib * GIB
    assert asyncio.run(unlimited.of_dry_run(made)) == 0


# ------------------------------------------------------------------------ beside what happens


TRAIN = """
import sys
from pathlib import Path
import trainwire_server.execution.preload
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure
from trainwire_server.execution.worker import _limit_memory
from trainwire_server.training.fit import fit

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
request = training_pb2.TrainingRequest.FromString((folder / "request").read_bytes())
_limit_memory(limit)
try:
    for _ in fit(request, folder / "table", folder / "job", 1, lambda: False):
        pass
except JobFailure as failure:
    print(training_pb2.FailureReason.Name(failure.reason))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA")
@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (300, {f"{HYBRID}.lstm_hidden_size": "800"}),
        (300, {f"{HYBRID}.conv_channels": "600", f"{HYBRID}.conv_blocks": "5"}),
        (300, {f"{HYBRID}.attention_heads": "64", f"{HYBRID}.attention_head_size": "512"}),
        (
            300,
            {"model.inception_time.filters": "256", "model.inception_time.bottleneck_size": "64"},
        ),
        (3_000_000, {"model.linear.pool_size": "1"}),
        (
            12_000,
            {
                f"{HYBRID}.conv_channels": "500",
                f"{HYBRID}.conv_blocks": "16",
                f"{HYBRID}.kernel_size": "1",
                "data.windows.sequence_length": "1500",
            },
        ),
    ],
    ids=["lstm", "convolutions", "attention", "inception", "rows", "activations"],
)
def test_what_is_refused_could_not_have_been_trained(
    rows: int, sizes: dict[str, str], tmp_path: Path
) -> None:
    """With exactly the least that is estimated, memory runs out, however small the parts."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"f{i}": random.normal(size=rows) for i in range(10)}
    table = pa.table({**columns, "y": random.choice(2, rows)})
    with pa.ipc.new_file(tmp_path / "source", table.schema) as writer:
        writer.write_table(table, max_chunksize=2**16)
    arrow = dataset_pb2.DATASET_FORMAT_ARROW
    described = profile.ingest(tmp_path / "source", tmp_path / "table", arrow)
    same = {
        "data.chronological.embargo_rows": "0",
        "data.windows.sequence_length": "8",
        "resources.device": "CPU",
        "trainer.epochs": "1",
    }
    made = request(**(same | sizes))
    least = estimate(made, find_shape(made, described), ON_CPU).total
    assert least > 2**26, "too small a job to tell"
    (tmp_path / "request").write_bytes(made.SerializeToString())
    (tmp_path / "job").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path), str(least)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "FAILURE_REASON_OUT_OF_MEMORY", done.stderr

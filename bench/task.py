"""What everybody trains here: one table, one request, the same windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import profile
from trainwire_server.data.prepare import Prepared, prepare

ROWS, FEATURES, TIME = 9_000, 16, 60
"""Enough for epochs of two seconds on two cores that have nothing else to do."""
BATCH = 128
EPOCHS = 3
"""The first one warms up; the others count."""
LABELS = ("down", "flat", "up")
LOSS_MEAN, LOSS_DEVIATION = 0.288, 0.011
"""Of the idiomatic loop's final validation loss over eight seeds, measured once."""
OUR_LOSS_MEAN, OUR_LOSS_DEVIATION = 0.286, 0.041
"""The same of ours."""
LOSS_TOLERANCE = 0.08
"""Two deviations of the side that spreads more: means of its runs differ by themselves."""

Columns = dict[str, npt.NDArray[Any]]


def make_columns(rows: int = ROWS, features: int = FEATURES, seed: int = 0) -> Columns:
    """A table with something to learn: noisy features, and the direction of a wave."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(rows + 5) / 8)
    values = random.standard_normal((features, rows), dtype=np.float32)
    values[0] += 2 * wave[:rows]
    change = wave[5:] - wave[:-5]
    columns: Columns = {f"f{i}": values[i] for i in range(features)}
    columns["label"] = np.array(LABELS)[np.digitize(change, [-0.25, 0.25])]
    return columns


def make_request(dataset: str, seed: int = 0) -> training_pb2.TrainingRequest:
    """The default network with a plain objective, which every peer has."""
    request = training_pb2.TrainingRequest(dataset=dataset)
    request.data.column.name = "label"
    request.data.windows.sequence_length = TIME
    trainer, balancing = request.trainer, request.balancing
    trainer.epochs, trainer.batch_size, trainer.learning_rate = EPOCHS, BATCH, 1e-3
    trainer.scheduler_type, trainer.seed = training_pb2.SCHEDULER_TYPE_CONSTANT, seed
    trainer.label_smoothing, trainer.use_augmentation = 0.0, False
    balancing.use_focal_loss = balancing.use_class_weights = balancing.use_oversampling = False
    request.resources.device = training_pb2.DEVICE_CPU
    return request


@dataclass(frozen=True)
class Task:
    """The same training for loops in this process.

    Attributes:
        request: effective parameters (`contract.resolve`).
        prepared: features scaled, windows split.
        threads: threads to compute with on the CPU.
    """

    request: training_pb2.TrainingRequest
    prepared: Prepared
    threads: int


def store(columns: Columns, folder: Path) -> Path:
    """The table as the server stores it; a file in `folder`."""
    source, table = folder / "source", folder / "table"
    data = pa.table(columns)
    with pa.ipc.new_file(str(source), data.schema) as writer:
        writer.write_table(data)
    profile.ingest(source, table, dataset_pb2.DATASET_FORMAT_ARROW)
    return table


def make_task(request: training_pb2.TrainingRequest, table: Path, threads: int) -> Task:
    """The request resolved, and its data prepared."""
    effective = contract.resolve(request)
    return Task(effective, prepare(effective, table), threads)

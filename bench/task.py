"""What everybody trains here: one table, one request, the same windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2

ROWS, FEATURES, TIME = 4_000, 16, 60
BATCH = 128
EPOCHS = 2
"""The first one warms up; the second one counts."""
LABELS = ("down", "flat", "up")


def make_columns(seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """A table with something to learn: noisy features, and the direction of a slow wave."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(ROWS + 5) / 40)
    features = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    features[:, 0] += wave[:ROWS]
    change = wave[5:] - wave[:-5]
    columns: dict[str, Any] = {f"f{i}": features[:, i] for i in range(FEATURES)}
    columns["label"] = np.array(LABELS)[np.digitize(change, [-0.05, 0.05])]
    return columns


def make_request(dataset: str) -> training_pb2.TrainingRequest:
    """The default network with a plain objective, which every peer has."""
    request = training_pb2.TrainingRequest(dataset=dataset)
    request.data.column.name = "label"
    trainer, balancing = request.trainer, request.balancing
    trainer.epochs, trainer.batch_size, trainer.learning_rate = EPOCHS, BATCH, 1e-3
    trainer.scheduler_type = training_pb2.SCHEDULER_TYPE_CONSTANT
    trainer.label_smoothing, trainer.use_augmentation = 0.0, False
    balancing.use_focal_loss = balancing.use_class_weights = balancing.use_oversampling = False
    request.resources.device = training_pb2.DEVICE_CPU
    return request

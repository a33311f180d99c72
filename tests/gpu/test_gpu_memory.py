"""Memory of a GPU that really runs out: the same training in smaller parts.

``PYTHONPATH=proto:server:client python3 -m pytest tests/gpu``
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.training.fit import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TIME, ROWS = 100, 4000
HALVED = training_pb2.WARNING_REASON_MICRO_BATCH_HALVED
Events = list[training_pb2.TrainingEvent]


def _prepared() -> Prepared:
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(ROWS) / 9)
    labels = np.digitize(wave, [0.5, 0.95]).astype(np.int16)
    features = rng.standard_normal((ROWS, 4)).astype(np.float32)
    features[:, 0] = wave + 0.1 * features[:, 0]

    def split(first: int, last: int) -> Split:
        starts = np.arange(first, last, dtype=np.int32)
        return Split(starts, labels[starts + TIME - 1], last - first + TIME - 1)

    return Prepared(
        features=features,
        sequence_length=TIME,
        feature_columns=["a", "b", "c", "d"],
        class_names=["hold", "buy", "sell"],
        mean=np.zeros(4),
        scale=np.ones(4),
        train=split(0, 2500),
        validation=split(2700, 3200),
        test=split(3400, 3900),
        purged_windows=0,
        unlabelled_windows=0,
        warnings=[],
    )


def _request() -> training_pb2.TrainingRequest:
    """Nothing drawn at random: a run in parts is the run to rounding."""
    request = training_pb2.TrainingRequest(dataset="datasets/sha256-0")
    request.data.column.name = "label"
    request.data.windows.sequence_length = TIME
    request.model.dropout = 0
    request.trainer.use_augmentation = False
    request.trainer.epochs = 2
    request.trainer.batch_size = 1024
    request.trainer.precision = training_pb2.PRECISION_FP32
    request.resources.device = training_pb2.DEVICE_CUDA
    return contract.resolve(request)


def _run(folder: Path) -> Events:
    folder.mkdir()
    # What a run before left would let memory run out at another place.
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return list(train(_request(), _prepared(), folder, 1, lambda: False))


def _epochs(events: Events) -> list[training_pb2.EpochCompleted]:
    return [event.epoch for event in events if event.HasField("epoch")]


@pytest.fixture
def total() -> Iterator[int]:
    """Memory of the device; a limit that the test sets is lifted."""
    yield torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_batches_that_do_not_fit_are_computed_in_parts(total: int, tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    peak = torch.cuda.max_memory_allocated()
    assert peak > 1 << 28, "too small a run to tell"
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    parts = [_run(tmp_path / name) for name in ("one", "two")]
    warnings = [event.warning for event in parts[0] if event.HasField("warning")]
    assert [warning.reason for warning in warnings if warning.reason == HALVED]
    for one, other in zip(_epochs(whole), _epochs(parts[0]), strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-3)
        assert other.validation.loss == pytest.approx(one.validation.loss, rel=1e-3)
        assert other.peak_memory_bytes < 0.6 * peak
    # Memory ran out at the same place twice, so that the bits are the same as well.
    bundles = [tmp_path / name / "bundle/model.safetensors" for name in ("one", "two")]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()

"""Small prepared data, small requests and short runs for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from trainwire import contract, rolling
from trainwire.v1 import training_pb2
from trainwire_server.data.features import RawWindows
from trainwire_server.data.prepare import Prepared, Split

# The same examples every time, and no limit that a busy machine could break.
settings.register_profile("trainwire", deadline=None, derandomize=True)
settings.load_profile("trainwire")

TIME, FEATURES = 8, 3
TINY = {
    "dataset": "datasets/sha256-0",
    "data.column.name": "label",
    "data.windows.sequence_length": str(TIME),
    "model.dropout": "0.1",
    "model.hybrid_cnn_lstm.conv_blocks": "1",
    "model.hybrid_cnn_lstm.conv_channels": "4",
    "model.hybrid_cnn_lstm.kernel_size": "3",
    "model.hybrid_cnn_lstm.lstm_hidden_size": "4",
    "model.hybrid_cnn_lstm.attention_heads": "2",
    "model.hybrid_cnn_lstm.attention_head_size": "2",
    "trainer.epochs": "3",
    "trainer.batch_size": "64",
    "trainer.learning_rate": "0.01",
}

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Run = Callable[..., list[training_pb2.TrainingEvent]]


def _split(labels: npt.NDArray[np.int64], first: int, windows: int) -> Split:
    starts = np.arange(first, first + windows)
    return Split(starts, labels[starts + TIME - 1], windows + TIME - 1)


def _make_prepared(seed: int = 0, blow_up: float = 1.0, history: int = 0) -> Prepared:
    """Three classes of about 67, 23 and 10 %: the height of a wave that the first feature shows.

    With a history rows are scaled by so many rows before them.
    """
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((400, FEATURES)) * [1.0, 5.0, 0.2] + [0.0, 100.0, -3.0]
    wave = np.sin(np.arange(400) / 6)
    raw[:, 0] = wave + 0.1 * raw[:, 0]
    labels = np.digitize(wave, [0.5, 0.95]).astype(np.int64)
    mean, scale = raw[:257].mean(axis=0), raw[:257].std(axis=0)
    features = (raw - mean) / scale * blow_up
    validation, test = _split(labels, 260, 60), _split(labels, 330, 60)
    if history:
        features = np.full(raw.shape, np.nan)
        features[history:] = rolling.scale(raw, history + 1)
        mean, scale = np.zeros(FEATURES), np.ones(FEATURES)
    held_out = np.concatenate([validation.starts, test.starts])
    windows = raw[held_out[:, None] + np.arange(-history, TIME)]
    return Prepared(
        features=features.astype(np.float32),
        sequence_length=TIME,
        feature_columns=[f"f{i}" for i in range(FEATURES)],
        class_names=["hold", "buy", "sell"],
        mean=mean,
        scale=scale,
        train=_split(labels, history, 250 - history),
        validation=validation,
        test=test,
        purged_windows=23,
        unlabelled_windows=0,
        warnings=[],
        history=history,
        raw_windows=RawWindows(held_out, windows) if history else None,
    )


def _make_request(**changes: str) -> training_pb2.TrainingRequest:
    """The tiny request with changes, dots in the paths written as two underscores; effective."""
    request = training_pb2.TrainingRequest()
    for path, text in (TINY | {k.replace("__", "."): v for k, v in changes.items()}).items():
        contract.assign(request, path, text)
    assert not contract.violations(request)
    return contract.resolve(request)


@pytest.fixture(scope="session")
def make_prepared() -> MakePrepared:
    return _make_prepared


@pytest.fixture(scope="session")
def make_request() -> MakeRequest:
    return _make_request


def _train_in(
    folder: Path,
    request: training_pb2.TrainingRequest,
    prepared: Prepared | None = None,
    **options: Any,
) -> list[training_pb2.TrainingEvent]:
    # Here, so that tests of other parts do not load torch.
    from trainwire_server.training.fit import train

    folder.mkdir(exist_ok=True)
    return list(train(request, prepared or _make_prepared(), folder, 1, lambda: False, **options))


@pytest.fixture(scope="session")
def train_in() -> Callable[..., list[training_pb2.TrainingEvent]]:
    """Trains in a given folder; returns all events."""
    return _train_in


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trains in a folder of its own; returns all events."""

    def _run(
        request: training_pb2.TrainingRequest,
        prepared: Prepared | None = None,
        folder: str = "job",
        **options: Any,
    ) -> list[training_pb2.TrainingEvent]:
        return _train_in(tmp_path / folder, request, prepared, **options)

    return _run

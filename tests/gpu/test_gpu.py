"""Training on a GPU: the same promises as on the CPU.

Needs torch, NumPy, pyarrow, safetensors, protobuf and pytest, nothing else:
``PYTHONPATH=proto:server:client python3 -m pytest tests/gpu``
"""

from __future__ import annotations

import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.training import graphs
from trainwire_server.training.fit import evaluate, train
from trainwire_server.training.graphs import Step
from trainwire_server.training.setup import set_up
from trainwire_server.training.steps import Part, set_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TIME, FEATURES = 20, 5
NAMES = ["hold", "buy", "sell"]


def _prepared() -> Prepared:
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(4000) / 9)
    labels = np.digitize(wave, [0.5, 0.95]).astype(np.int16)
    features = rng.standard_normal((4000, FEATURES)).astype(np.float32)
    features[:, 0] = wave + 0.1 * features[:, 0]

    def split(first: int, last: int) -> Split:
        starts = np.arange(first, last, dtype=np.int32)
        return Split(starts, labels[starts + TIME - 1], last - first + TIME - 1)

    return Prepared(
        features=features,
        sequence_length=TIME,
        feature_columns=[f"f{i}" for i in range(FEATURES)],
        class_names=NAMES,
        mean=np.zeros(FEATURES),
        scale=np.ones(FEATURES),
        train=split(0, 2500),
        validation=split(2600, 3200),
        test=split(3300, 3900),
        purged_windows=0,
        unlabelled_windows=0,
        warnings=[],
    )


def _request(precision: str, deterministic: bool = True) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/sha256-0")
    request.data.column.name = "label"
    request.data.windows.sequence_length = TIME
    request.trainer.epochs = 6
    request.trainer.learning_rate = 2e-3
    request.trainer.deterministic = deterministic
    request.trainer.precision = training_pb2.Precision.Value(f"PRECISION_{precision}")
    request.resources.device = training_pb2.DEVICE_CUDA
    return contract.resolve(request)


def _run(request: training_pb2.TrainingRequest, folder: Path) -> list[training_pb2.TrainingEvent]:
    folder.mkdir()
    torch.cuda.reset_peak_memory_stats()
    return list(train(request, _prepared(), folder, 1, lambda: False))


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_equal_runs_are_bit_equal(precision: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        events = _run(_request(precision), tmp_path / name)
        assert events[0].started.device == "cuda:0"
        assert events[-1].succeeded.test.macro_f1 > 0.7
    one, two = (tmp_path / name / "bundle/model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("mixup", "heads"), [(0, 1), (0.4, 1), (0.4, 2)])
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_graphs_give_the_bits_of_single_kernels(
    precision: str, mixup: float, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, replays, capture = _request(precision), [], graphs.capture
    request.trainer.mixup_alpha = mixup
    request.model.hybrid_cnn_lstm.convolution_head = heads == 2
    request.model.hybrid_cnn_lstm.channel_noise = 0.2 if heads == 2 else 0

    def count(step: Step) -> Step:
        replay = capture(step)

        def counted() -> list[Part]:
            replays.append(1)
            return replay()

        return counted

    monkeypatch.setattr(graphs, "capture", count)
    events = _run(request, tmp_path / "graphs")
    reasons = [event.warning.reason for event in events if event.HasField("warning")]
    assert training_pb2.WARNING_REASON_NO_CUDA_GRAPH not in reasons
    # Of 2,500 windows 9 batches are full, in each of six epochs; three come before the graph.
    assert len(replays) >= 6 * 9 - 3

    def refuse(_: Step) -> Step:
        raise RuntimeError("no graphs")

    monkeypatch.setattr(graphs, "capture", refuse)
    _run(request, tmp_path / "kernels")
    one, two = (tmp_path / name / "bundle/model.safetensors" for name in ("graphs", "kernels"))
    assert one.read_bytes() == two.read_bytes()


def test_a_capture_that_fails_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    # In a process of its own, which may be left unable to compute.
    process = get_context("spawn").Process(target=_train_with_a_step_that_waits, args=(tmp_path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def _train_with_a_step_that_waits(folder: Path) -> None:
    def wait(*args: Any, **kwargs: Any) -> list[Part]:
        torch.zeros((), device="cuda").item()  # no capture allows it
        return set_gradients(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "set_gradients", wait)
        events = _run(_request("FP32"), folder / "waits")
    reasons = [event.warning.reason for event in events if event.HasField("warning")]
    assert reasons.count(training_pb2.WARNING_REASON_NO_CUDA_GRAPH) == 1
    assert events[-1].succeeded.test.macro_f1 > 0.7


def test_streamed_windows_give_the_bits_of_resident_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(_request("FP32"), tmp_path / "resident")
    monkeypatch.setattr("trainwire_server.training.setup.has_room", lambda *_: False)
    events = _run(_request("FP32"), tmp_path / "streamed")
    reasons = [event.warning.reason for event in events if event.HasField("warning")]
    assert training_pb2.WARNING_REASON_WINDOWS_STREAMED in reasons
    one, two = (tmp_path / name / "bundle/model.safetensors" for name in ("resident", "streamed"))
    assert one.read_bytes() == two.read_bytes()


def test_fast_kernels_learn_as_well(tmp_path: Path) -> None:
    events = _run(_request("AUTO", deterministic=False), tmp_path / "job")
    assert not events[0].started.deterministic
    assert events[-1].succeeded.test.macro_f1 > 0.7
    epochs = [event.epoch for event in events if event.HasField("epoch")]
    # Of torch's allocator: a process with CUDA in it takes far more than this network.
    assert 0 < epochs[-1].peak_memory_bytes < 1 << 30


def test_the_bundle_predicts_on_the_cpu_what_the_gpu_measured(tmp_path: Path) -> None:
    bundle = pytest.importorskip("trainwire_client.bundle", reason="needs the client's packages")
    events = _run(_request("FP32"), tmp_path / "job")
    prepared, model = _prepared(), bundle.load_bundle(tmp_path / "job/bundle")
    rows = prepared.test.starts[:, None] + np.arange(TIME)
    probabilities = model.predict_proba(prepared.features[rows])
    own = probabilities[np.arange(len(rows)), prepared.test.labels]
    assert -np.log(own).mean() == pytest.approx(events[-1].succeeded.test.loss, rel=1e-3)


def test_a_first_epoch_agrees_with_the_cpu_before_any_step() -> None:
    gpu, cpu = _request("FP32"), _request("FP32")
    cpu.resources.device = training_pb2.DEVICE_CPU
    losses = []
    for request in (gpu, cpu):
        setup = set_up(request, _prepared(), 1)
        losses.append(evaluate(setup, setup.validation, 256, lambda: None).loss())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_batches_do_not_wait_for_the_device() -> None:
    setup = set_up(_request("FP32"), _prepared(), 1)
    evaluate(setup, setup.validation, 32, lambda: None)  # kernels are loaded now
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(setup, setup.validation, 32, lambda: None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(w.message) for w in caught if "synchron" in str(w.message)] == []

"""Memory that runs out in training: smaller parts of a batch, the same step.

The allocator's failure is put where it comes from, into the network's forward pass; all else is
real.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainwire.architectures.hybrid_cnn_lstm import HybridCnnLstm
from trainwire.v1 import training_pb2
from trainwire_server.data.checkpoints import FOLDER
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import fit
from trainwire_server.training.devices import memory_errors_explained
from trainwire_server.training.losses import focal_loss
from trainwire_server.training.setup import EVALUATION_FACTOR, Setup, set_up
from trainwire_server.training.steps import set_gradients

pytestmark = pytest.mark.usefixtures("without_onnx")

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Events = list[training_pb2.TrainingEvent]
Run = Callable[..., Events]
Forward = Callable[[HybridCnnLstm, Tensor], Tensor]

CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
ERRORS: list[tuple[type[Exception], str]] = [
    (torch.OutOfMemoryError, "CUDA out of memory"),
    (RuntimeError, CPU_ALLOCATOR),
    (MemoryError, ""),
]
HALVED = training_pb2.WARNING_REASON_MICRO_BATCH_HALVED
# What makes a part's gradient differ from its share of the batch's by more than rounding.
EXACT = {"model__dropout": "0", "trainer__use_augmentation": "false"}


@pytest.fixture(scope="session")
def make_request(make_request: MakeRequest) -> MakeRequest:
    """As elsewhere, in batches of 32, which the halves are counted from."""
    return partial(make_request, trainer__batch_size="32")


class Allocator:
    """Memory for so many windows with gradients and so many without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = ERRORS[1]
        self.training = self.evaluation = 10**9
        self.seen: list[int] = []
        self.forward: Forward = HybridCnnLstm.forward
        monkeypatch.setattr(HybridCnnLstm, "forward", self._patched())

    def _patched(self) -> Forward:
        def forward(module: HybridCnnLstm, windows: Tensor) -> Tensor:
            logits = self.forward(module, windows)
            most = self.training if module.training else self.evaluation
            if len(windows) > most:
                kind, message = self.error
                raise kind(message)
            if module.training:
                self.seen.append(len(windows))
            return logits

        return forward


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    return Allocator(monkeypatch)


def kinds(events: Events) -> list[str]:
    """All but the heartbeats of a slow machine."""
    return [str(event.WhichOneof("event")) for event in events if not event.HasField("progress")]


def halvings(events: Events) -> list[str]:
    """What the warnings of halvings say."""
    warnings = [event.warning for event in events if event.warning.reason == HALVED]
    assert {warning.field for warning in warnings} <= {"trainer.batch_size"}
    return [warning.message for warning in warnings]


def epochs_of(events: Events) -> list[training_pb2.EpochCompleted]:
    return [event.epoch for event in events if event.HasField("epoch")]


def weights_in(folder: Path) -> bytes:
    return (folder / "bundle" / "model.safetensors").read_bytes()


def collect(events: Iterator[training_pb2.TrainingEvent], seen: Events) -> None:
    """Keeps what came before an exception."""
    for event in events:
        seen.append(event)


# ------------------------------------------------------------------------ the same step


def gradients(setup: Setup, batch: int, micro_batch: int) -> list[Tensor]:
    taken = setup.train.take(slice(batch))
    set_gradients(setup, 0.1, taken.starts, taken.labels, micro_batch)
    return [p.grad.clone() for p in setup.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro_batch", [1, 7, 16, 31])
def test_gradients_of_parts_add_up_to_that_of_the_batch(
    micro_batch: int, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(**EXACT), make_prepared(), 1)
    whole = gradients(setup, 32, 32)
    parts = gradients(setup, 32, micro_batch)
    assert len(whole) == len(list(setup.model.parameters()))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_of_two_heads_the_loss_is_the_mean_and_the_verdict_the_mean_of_their_logits(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    two = {"model__hybrid_cnn_lstm__convolution_head": "true"}
    setup = set_up(make_request(**EXACT, **two), make_prepared(), 1)
    taken = setup.train.take(slice(32))
    ((loss, weight, logits, _),) = set_gradients(setup, 0.1, taken.starts, taken.labels, 32)
    heads = setup.replicas.one.model(setup.inputs[taken.starts])
    sums = [
        focal_loss(each, taken.labels, setup.weights, setup.gamma, 0.1) for each in heads.unbind(1)
    ]
    mean = (sums[0][0] + sums[1][0]) / 2
    torch.testing.assert_close(loss, mean)
    assert torch.equal(weight, sums[0][1])
    torch.testing.assert_close(logits, setup.model.eval()(setup.inputs[taken.starts]))
    expected = torch.autograd.grad(mean / weight, list(setup.replicas.one.model.parameters()))
    for parameter, gradient in zip(setup.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_classes_that_lie_unevenly_in_the_parts_weigh_the_same(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    # Sorted by class, the parts have very different denominators of their own.
    setup = set_up(make_request(**EXACT), make_prepared(), 1)
    order = setup.train.labels.argsort(stable=True)
    order = torch.cat([order[:16], order[-16:]])
    taken = setup.train.take(order)
    assert not set(taken.labels[:16].tolist()) & set(taken.labels[16:].tolist())
    found = []
    for micro_batch in (32, 16):
        set_gradients(setup, 0.1, taken.starts, taken.labels, micro_batch)
        found.append([p.grad.clone() for p in setup.model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("threads", "micro_batch"), [(1, 32), (1, 7), (2, 32), (2, 9)])
def test_mixtures_are_those_of_the_batch_however_it_is_cut(
    threads: int, micro_batch: int, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    setup = set_up(make_request(**EXACT), make_prepared(), threads)
    taken = setup.train.take(slice(32))
    starts, labels = taken.starts, taken.labels
    shares = torch.rand(32, generator=torch.Generator().manual_seed(0))
    shares[3] = 0.5
    parts = set_gradients(setup, 0.1, starts, labels, micro_batch, shares)
    found = [p.grad.clone() for p in setup.model.parameters() if p.grad is not None]

    # By hand: each window with the one before it in the batch, the first with the last.
    one = setup.windows[starts]
    mixed = shares[:, None, None] * one + (1 - shares)[:, None, None] * one.roll(1, 0)
    logits = setup.replicas.one.model(mixed)
    arguments = (setup.weights, setup.gamma, 0.1)
    losses = [
        share * focal_loss(logits[i : i + 1], label[None], *arguments)[0]
        for i in range(32)
        for share, label in ((shares[i], labels[i]), (1 - shares[i], labels[i - 1]))
    ]
    weight = sum(
        float(shares[i] * setup.weights[labels[i]] + (1 - shares[i]) * setup.weights[labels[i - 1]])
        for i in range(32)
    )
    loss = torch.stack(losses).sum() / weight
    expected = torch.autograd.grad(loss, list(setup.replicas.one.model.parameters()))
    for gradient, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-6)
    above, below, _, counted = zip(*parts, strict=True)
    assert float(sum(above) / sum(below)) == pytest.approx(float(loss.detach()), rel=1e-5)
    # Metrics count the label with the larger share.
    larger = [labels[i] if shares[i] >= 0.5 else labels[i - 1] for i in range(32)]
    assert torch.cat(counted).tolist() == torch.stack(larger).tolist()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error[0].__name__)
def test_a_run_in_parts_is_the_run_to_rounding(
    error: tuple[type[Exception], str],
    run: Run,
    allocator: Allocator,
    make_request: MakeRequest,
) -> None:
    request = make_request(**EXACT)
    whole = run(request, folder="whole")
    sizes = set(allocator.seen)
    assert max(sizes) == 32
    allocator.seen.clear()
    allocator.error, allocator.training = error, 10
    parts = run(request)
    assert halvings(parts) == [
        f"memory ran out with {before} windows at once; batches go on in parts of {after}, whose "
        "gradients add up to the step of the whole batch"
        for before, after in ((32, 16), (16, 8))
    ]
    assert kinds(parts)[:3] == ["started", "warning", "warning"]
    assert max(allocator.seen) == 8
    for one, other in zip(epochs_of(whole), epochs_of(parts), strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-3)
        assert other.validation.loss == pytest.approx(one.validation.loss, rel=1e-3)
        # Every sample is counted once, those of the tries that failed are not.
        support = [metrics.support for metrics in one.train.classes]
        assert [metrics.support for metrics in other.train.classes] == support


def test_a_try_that_fails_after_some_parts_leaves_no_trace(
    run: Run,
    allocator: Allocator,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Nothing is drawn at random, so that the redone batch would be the same from its start.
    request = make_request(trainer__epochs="1", **EXACT)
    allocator.training = 8
    undisturbed = run(request, folder="undisturbed")
    # Now parts of 16 fit at first, and the second one of the fourth batch does not.
    allocator.training, real = 16, allocator.forward

    def third_is_too_much(module: HybridCnnLstm, windows: Tensor) -> Tensor:
        if allocator.seen.count(16) == 1 and len(windows) == 16:
            allocator.training = 8
        return real(module, windows)

    allocator.seen.clear()
    allocator.forward = third_is_too_much
    events = run(request)
    assert allocator.seen[:3] == [16, 8, 8]
    assert len(halvings(events)) == 2
    assert weights_in(tmp_path / "job") == weights_in(tmp_path / "undisturbed")
    assert epochs_of(events)[0].train == epochs_of(undisturbed)[0].train


def test_the_tensors_of_a_failed_try_are_gone_before_the_next(
    run: Run, allocator: Allocator, make_request: MakeRequest
) -> None:
    failed: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    real = allocator.forward

    def note(module: HybridCnnLstm, windows: Tensor) -> Tensor:
        alive.append(sum(tensor() is not None for tensor in failed))
        logits = real(module, windows)
        if module.training and len(windows) > allocator.training:
            failed.extend([weakref.ref(windows), weakref.ref(logits)])
        return logits

    allocator.forward, allocator.training = note, 8
    gc.disable()
    try:
        run(make_request(trainer__epochs="1"))
    finally:
        gc.enable()
    assert len(failed) == 4
    assert set(alive) == {0}


def test_a_backward_pass_that_runs_out_is_redone_as_well(
    run: Run,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    request = make_request(**EXACT)
    differentiate = torch.autograd.grad
    passes: list[int] = []

    def fail_once_afterwards(loss: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        gradients = differentiate(loss, parameters)
        passes.append(1)
        if len(passes) == 1:
            raise RuntimeError(CPU_ALLOCATOR)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", fail_once_afterwards)
    events = run(request)
    assert halvings(events)[0].startswith("memory ran out with 32 windows")
    monkeypatch.undo()
    whole = run(request, folder="whole")
    # Had the gradients of the failed try stayed, the first step would be twice as long.
    first, expected = epochs_of(events)[0].train.loss, epochs_of(whole)[0].train.loss
    assert first == pytest.approx(expected, rel=1e-3)


def test_a_batch_larger_than_the_data_is_halved_from_their_number(
    run: Run, allocator: Allocator, make_request: MakeRequest
) -> None:
    allocator.training = 100
    request = make_request(trainer__batch_size="65536", balancing__use_oversampling="false")
    told = halvings(run(request))
    assert ["250 windows" in told[0], "parts of 62," in told[-1], len(told)] == [True, True, 2]


# ------------------------------------------------------------------------ evaluation


def test_evaluation_follows_and_is_redone(
    run: Run, allocator: Allocator, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="2", **EXACT)
    whole = run(request, folder="whole")
    # The validation's 60 windows come at once in batches of 4 x 32 and 4 x 16, but not of 4 x 8.
    allocator.evaluation = EVALUATION_FACTOR * 8
    events = run(request)
    assert kinds(events) == ["started", "warning", "warning", "epoch", "epoch", "succeeded"]
    assert halvings(events)[-1].startswith("memory ran out with 16 windows")
    one, other = (epochs_of(each)[0].validation for each in (whole, events))
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.confusion_matrix == one.confusion_matrix
    assert set(allocator.seen[-30:]) & {8} == {8}


def test_the_test_split_may_run_out_as_well(
    run: Run, allocator: Allocator, make_request: MakeRequest
) -> None:
    whole = run(make_request(trainer__epochs="1"), folder="whole")
    real = allocator.forward

    def run_out_at_the_end(module: HybridCnnLstm, windows: Tensor) -> Tensor:
        allocator.evaluation = 32 if "validated" in told else 10**9
        told.extend(["validated"] * (not module.training and len(told) == 0))
        return real(module, windows)

    told: list[str] = []
    allocator.forward = run_out_at_the_end
    events = run(make_request(trainer__epochs="1"))
    assert kinds(events) == ["started", "epoch", "warning", "warning", "succeeded"]
    assert events[-1].succeeded.test.loss == pytest.approx(whole[-1].succeeded.test.loss, rel=1e-5)


# ------------------------------------------------------------------------ going on


def test_the_micro_batch_is_gone_on_with_bit_for_bit(
    run: Run,
    allocator: Allocator,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    # With dropout and noise, which draw differently in parts.
    request = make_request(trainer__epochs="4", model__dropout="0.3")
    allocator.training = 10
    undisturbed = run(request, folder="undisturbed")
    folder = tmp_path / "job"
    folder.mkdir()
    events = fit.train(request, make_prepared(), folder, 1, lambda: False)
    next(event for event in events if event.epoch.epoch == 3)
    events.close()
    allocator.seen.clear()
    resumed = run(request, is_started=True)
    assert kinds(resumed) == ["resumed", "epoch", "epoch", "succeeded"]
    assert resumed[0].resumed.epoch == 2
    assert max(allocator.seen) == 8
    assert weights_in(folder) == weights_in(tmp_path / "undisturbed")
    assert resumed[-1] == undisturbed[-1]


# ------------------------------------------------------------------------ the end


def test_a_window_that_does_not_fit_ends_the_run(
    allocator: Allocator, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    allocator.training = 0
    seen: Events = []
    events = fit.train(make_request(), make_prepared(), tmp_path, 1, lambda: False)
    with pytest.raises(JobFailure) as caught, memory_errors_explained():
        collect(events, seen)
    assert caught.value.reason == training_pb2.FAILURE_REASON_OUT_OF_MEMORY
    assert "batch_size" not in caught.value.message
    assert [message.split()[4] for message in halvings(seen)] == ["32", "16", "8", "4", "2"]


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_one_window_is_enough(
    fits: int, run: Run, allocator: Allocator, make_request: MakeRequest
) -> None:
    allocator.training = allocator.evaluation = fits
    events = run(make_request(trainer__epochs="1"))
    assert kinds(events)[-1] == "succeeded"


def test_other_errors_end_the_run_at_once(
    allocator: Allocator, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    allocator.training, allocator.error = 10, (RuntimeError, "shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(fit.train(make_request(), make_prepared(), tmp_path, 1, lambda: False))
    assert not list((tmp_path / FOLDER).glob("*"))

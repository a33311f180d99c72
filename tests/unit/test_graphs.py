"""Steps as graphs: what decides whether one is used. A CPU has none, so a stand-in takes its place.

That a CUDA graph gives the gradients of its kernels is for tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training.graphs import Gradients, Step, gradients_of
from trainwire_server.training.seeds import reseed
from trainwire_server.training.setup import Setup, set_up
from trainwire_server.training.steps import Part, set_gradients

MakeRequest = Callable[..., training_pb2.TrainingRequest]
MakePrepared = Callable[..., Prepared]

SIZE, FULL = 32, 7


@pytest.fixture
def setup(make_request: MakeRequest, make_prepared: MakePrepared) -> Setup:
    return set_up(make_request(model__dropout="0.3"), make_prepared(), 1)


class Replayed:
    """Stands for a graph: reads its batch where the capture found it, and counts."""

    def __init__(self, spoil: Callable[[], None] = lambda: None) -> None:
        self.captured = self.replayed = 0
        self._spoil = spoil

    def capture(self, step: Step) -> Step:
        self.captured += 1

        def replay() -> list[Part]:
            self.replayed += 1
            parts = step()
            self._spoil()
            return parts

        return replay


def batches(setup: Setup) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Full ones and a smaller one, each with shares for mixtures."""
    count = FULL * SIZE + 5
    shares = torch.rand(count, generator=torch.Generator().manual_seed(1))
    taken = setup.train.take(slice(count))
    columns = (taken.starts, taken.labels, shares)
    return list(zip(*(torch.split(column, SIZE) for column in columns), strict=True))


def results(
    setup: Setup, compute: Callable[..., list[Part]], micro_batch: int = SIZE
) -> list[list[Tensor]]:
    """Losses and gradients of each batch."""
    reseed(0, 1, setup.replicas.generators)
    found = []
    for starts, labels, shares in batches(setup):
        parts = compute(starts, labels, micro_batch, shares=shares)
        losses = [value.clone() for part in parts for value in part[:2]]
        grads = [p.grad.clone() for p in setup.model.parameters() if p.grad is not None]
        found.append(losses + grads)
    return found


def plain(setup: Setup) -> Callable[..., list[Part]]:
    def compute(*batch: Any, **how: Any) -> list[Part]:
        return set_gradients(setup, 0.1, *batch, **how)

    return compute


def assert_same(one: list[list[Tensor]], other: list[list[Tensor]]) -> None:
    pairs = zip(one, other, strict=True)
    assert all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


def test_a_graph_takes_over_full_batches_and_draws_what_kernels_would(setup: Setup) -> None:
    stand_in = Replayed()
    fast = Gradients(setup, 0.1, SIZE, stand_in.capture)
    assert_same(results(setup, fast.set), results(setup, plain(setup)))
    # After three batches one is computed both ways; the graph has it and the full ones after it.
    assert (stand_in.captured, stand_in.replayed) == (1, FULL - 3)
    assert list(fast.warnings()) == []


def test_a_graph_of_other_gradients_is_not_used(setup: Setup) -> None:
    def spoil() -> None:
        gradient = next(setup.model.parameters()).grad
        assert gradient is not None
        gradient *= 1 + 1e-6

    stand_in = Replayed(spoil)
    fast = Gradients(setup, 0.1, SIZE, stand_in.capture)
    assert_same(results(setup, fast.set), results(setup, plain(setup)))
    assert (stand_in.captured, stand_in.replayed) == (1, 1)
    (event,) = fast.warnings()
    assert event.warning.reason == training_pb2.WARNING_REASON_NO_CUDA_GRAPH
    assert "other gradients" in event.warning.message
    assert list(fast.warnings()) == []


@pytest.mark.parametrize(("change", "replays"), [(1e-7, FULL - 3), (0.1, 1)])
def test_fast_kernels_may_differ_by_rounding_alone(
    change: float, replays: int, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(
        trainer__deterministic="false",
        model__hybrid_cnn_lstm__conv_channels="16",
        model__hybrid_cnn_lstm__normalization="INSTANCE_NORM",
    )
    setup = set_up(request, make_prepared(), 1)
    bias = setup.model.get_parameter("blocks.0.body.0.bias")

    def spoil() -> None:
        # Taken off again by the normalisation, it has a gradient of 0.
        assert bias.grad is not None
        bias.grad += change

    stand_in = Replayed(spoil)
    fast = Gradients(setup, 0.1, SIZE, stand_in.capture)
    results(setup, fast.set)
    assert (stand_in.captured, stand_in.replayed) == (1, replays)


def test_a_capture_that_fails_leaves_the_kernels(setup: Setup) -> None:
    def fail(step: Step) -> Step:
        step()  # draws random numbers before it fails
        raise RuntimeError("operation not permitted when stream is capturing\nat cudaMalloc")

    fast = Gradients(setup, 0.1, SIZE, fail)
    assert_same(results(setup, fast.set), results(setup, plain(setup)))
    (event,) = fast.warnings()
    assert "operation not permitted when stream is capturing; the" in event.warning.message


def test_a_run_that_is_short_of_memory_has_no_graph(setup: Setup) -> None:
    stand_in = Replayed()
    fast = Gradients(setup, 0.1, SIZE, stand_in.capture)
    results(setup, fast.set)
    before = stand_in.replayed
    results(setup, fast.set, SIZE // 2)
    results(setup, fast.set)
    assert (stand_in.captured, stand_in.replayed) == (1, before)
    assert list(fast.warnings()) == []


def test_a_cpu_has_no_graphs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwire_server.training.graphs.capture", None)
    assert_same(results(setup, gradients_of(setup, 0.1, SIZE).set), results(setup, plain(setup)))

"""The gradients of full batches on a GPU, launched as one CUDA graph.

A step of a small network is hundreds of kernels of a few microseconds each. Launching them one by
one takes the CPU longer than the GPU needs for them; a graph launches them all at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.training.devices import free_memory
from trainwire_server.training.setup import Setup
from trainwire_server.training.steps import Part, set_gradients

Step = Callable[[], list[Part]]
"""Gives every parameter its gradient of one batch."""

_BATCHES_BEFORE = 3
"""Libraries make what they need when first called, which a capture does not allow."""
_TOLERANCE = 1e-2
"""Of losses and gradients in relation to their norm, where kernels need not give the same bits."""
_NEGLIGIBLE = 1e-3
"""A gradient of less than this share of the largest one is held against that share."""


def capture(step: Step) -> Step:
    """The step as a CUDA graph: each call computes it anew, in the same memory.

    The graph has torch's generator of the device, which goes on as it would without a graph.

    Raises:
        RuntimeError: something of it cannot be captured, or memory ran out.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads may talk to the device meanwhile: one writes checkpoints.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            parts = step()
    except RuntimeError:
        _leave_capture(stream)
        raise

    def replay() -> list[Part]:
        graph.replay()
        return parts

    return replay


def _leave_capture(stream: torch.cuda.Stream) -> None:
    """Do what torch 2.11 leaves undone when a capture fails."""
    torch.cuda.set_stream(stream)
    # Else the generator takes every later draw for one of the capture (pytorch/pytorch#171263).
    generator = torch.cuda.default_generators[stream.device_index]
    generator.graphsafe_set_state(generator.clone_state())


@dataclass(frozen=True)
class _Outcome:
    """What a batch came to: its losses and the gradient of each parameter."""

    losses: list[Tensor]
    gradients: list[Tensor]

    def equals(self, other: _Outcome) -> bool:
        """Whether it is the same: to the bit where the run is to be reproducible."""
        if torch.are_deterministic_algorithms_enabled():
            pairs = zip(self.losses + self.gradients, other.losses + other.gradients, strict=True)
            return all(torch.equal(one, two) for one, two in pairs)
        # The gradient of a bias before a normalisation is 0, and rounding is all that it shows.
        largest = max(float(gradient.norm()) for gradient in other.gradients)
        floor = _NEGLIGIBLE * largest
        return _are_close(self.losses, other.losses, 0.0) and _are_close(
            self.gradients, other.gradients, floor
        )


def _are_close(found: Sequence[Tensor], expected: Sequence[Tensor], floor: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(float((a - b).norm()) <= _TOLERANCE * max(float(b.norm()), floor) for a, b in pairs)


class Gradients:
    """Gives parameters the gradients of batch after batch: `set_gradients`, in its fastest form.

    On a GPU full batches are computed by a graph, once one has been computed both ways with the
    same result: the same bits where `trainer.deterministic` asks for that. Others, and all batches
    on a CPU or where windows are computed when first asked for, go kernel by kernel.

    Args:
        setup: what the run holds.
        smoothing: share of each label that is spread over all classes.
        batch_size: windows of a full batch.
        make_graph: `capture`, or what stands for it; None for no graphs.
    """

    def __init__(
        self,
        setup: Setup,
        smoothing: float,
        batch_size: int,
        make_graph: Callable[[Step], Step] | None,
    ) -> None:
        self._setup = setup
        self._smoothing = smoothing
        self._size = batch_size
        self._make_graph = make_graph
        self._batches = 0
        self._inputs: list[Tensor] = []
        self._graph: Step | None = None
        self._problem = ""

    def set(
        self, starts: Tensor, labels: Tensor, micro_batch: int, shares: Tensor | None = None
    ) -> list[Part]:
        """`set_gradients` of a batch. What it returned before is overwritten by the next call."""
        if micro_batch < self._size:
            # Memory is short, and a graph keeps its own.
            self._drop()
        if self._make_graph is None or len(starts) < self._size:
            return set_gradients(
                self._setup, self._smoothing, starts, labels, micro_batch, shares=shares
            )
        self._fill(starts, labels, *(() if shares is None else (shares,)))
        self._batches += 1
        if self._batches <= _BATCHES_BEFORE:
            return self._step()
        return self._begin(self._make_graph) if self._graph is None else self._graph()

    def warnings(self) -> Iterator[training_pb2.TrainingEvent]:
        """Once, that there is no graph where there should be one."""
        if self._problem:
            message = f"{self._problem}; the training gives the same results, more slowly"
            reason = training_pb2.WARNING_REASON_NO_CUDA_GRAPH
            self._problem = ""
            yield training_pb2.TrainingEvent(
                warning=training_pb2.JobWarning(reason=reason, message=message)
            )

    def _fill(self, *batch: Tensor) -> None:
        """A graph reads its batch where it was when it was captured."""
        if not self._inputs:
            self._inputs = [torch.empty_like(column) for column in batch]
        for own, column in zip(self._inputs, batch, strict=True):
            own.copy_(column)

    def _step(self) -> list[Part]:
        starts, labels, *shares = self._inputs
        mixture = shares[0] if shares else None
        return set_gradients(
            self._setup, self._smoothing, starts, labels, self._size, shares=mixture
        )

    def _begin(self, make_graph: Callable[[Step], Step]) -> list[Part]:
        """Compute a batch both ways, and go on with the graph if that gives the same."""
        states = [generator.get_state() for generator in self._generators()]
        try:
            graph = make_graph(self._step)
            captured = self._copy(graph())
        except (MemoryError, RuntimeError) as error:
            words = str(error).splitlines() or [type(error).__name__]
            self._refuse(f"a step could not be captured as a CUDA graph: {words[0]}")
            captured = None
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)
        parts = self._step()
        if captured is None:
            return parts
        if captured.equals(self._copy(parts)):
            self._graph = graph
        else:
            self._refuse("a step gave other gradients as a CUDA graph than kernel by kernel")
        return parts

    def _generators(self) -> Sequence[torch.Generator]:
        own = self._setup.replicas.generators
        return own or [torch.cuda.default_generators[self._setup.device.index]]

    def _copy(self, parts: list[Part]) -> _Outcome:
        gradients = (parameter.grad for parameter in self._setup.model.parameters())
        return _Outcome(
            [value.clone() for loss, weight, *_ in parts for value in (loss, weight)],
            [gradient.clone() for gradient in gradients if gradient is not None],
        )

    def _refuse(self, problem: str) -> None:
        self._problem = problem
        # torch 2.11 cannot give memory back after a capture that failed (pytorch/pytorch#180395).
        with suppress(RuntimeError):
            self._drop()

    def _drop(self) -> None:
        if self._make_graph is not None:
            self._make_graph = self._graph = None
            free_memory(self._setup.device)


def gradients_of(setup: Setup, smoothing: float, batch_size: int) -> Gradients:
    """The gradients of a run's batches, by graphs where there is a GPU that takes them."""
    # Features that are computed when first asked for make steps of different kernels.
    graphs = setup.device.type == "cuda" and isinstance(setup.inputs, Tensor)
    return Gradients(setup, smoothing, batch_size, capture if graphs else None)

"""Measures training on a GPU: `python -m bench.gpu`.

Needs torch, NumPy, pyarrow, safetensors and protobuf, nothing else:
``PYTHONPATH=proto:server:client:. python3 -m bench.gpu``
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from bench import loops
from bench.events import read_events
from bench.figures import Check, Figure, Result
from bench.loops import Run
from bench.machine import describe_machine
from bench.task import LOSS_TOLERANCE, Task, make_columns, make_request, make_task, store

from trainwire.v1 import training_pb2
from trainwire_server.training.devices import find_precision
from trainwire_server.training.fit import train

ROWS, BATCH = 200_000, 256
ROUNDS, THREADS = 5, 4
WARM_UP = 20
LOADER_ROWS = 20_000
"""Enough for the two loaders to be told apart before the rounds."""
RESULTS = Path(__file__).with_name("results")

LOOP = Figure(
    "GPU, batch 256: windows/s of trainwire / an idiomatic PyTorch loop",
    [],
    5,
    how="The trainer in-process against Dataset, DataLoader with 0 or 2 workers (the faster, tried "
    "before) and pinned memory, `.item()` per batch, plain `torch.nn` network, same precision.",
)
REPLAY = Figure(
    "GPU, batch 256: windows/s of trainwire / replay of its own captured step",
    [],
    0.9,
    how="The trainer's step on one batch, captured as a CUDA graph and replayed as often as an "
    "epoch has batches, with nothing in between.",
)


def main() -> None:
    """Measure, print the table, write the results."""
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: torch finds no CUDA device here; nothing was measured or written")
    with tempfile.TemporaryDirectory() as folder:
        table = store(make_columns(ROWS), Path(folder))
        figures = _measure(table)
    print("\n".join(figure.row() for figure in figures))
    name = torch.cuda.get_device_name()
    facts = describe_machine(["torch", "numpy", "pyarrow"]) | {"threads": str(THREADS)}
    path = RESULTS / f"{name.lower().replace(' ', '-')}.json"
    Result(name, facts, figures).write(path)
    print(f"wrote {path}; `make bench-page` brings it to docs/benchmarks.md")


def _measure(table: Path) -> list[Figure]:
    workers = _faster_loader()
    loop, replay, losses = [], [], []
    for number in range(ROUNDS):
        task = make_task(_request(number), table, THREADS)
        ours, theirs = _ours(task), _idiomatic(task, workers)
        again = _replayed(task)
        loop.append(ours.rate / theirs.rate)
        replay.append(ours.rate / again)
        losses.append((ours.loss, theirs.loss))
        print(
            f"round {number + 1}, windows/s: trainwire {ours.rate:,.0f} ({ours.loss:.3f}), "
            f"idiomatic loop with {workers} workers {theirs.rate:,.0f} ({theirs.loss:.3f}), "
            f"captured step {again:,.0f}",
            flush=True,
        )
    check = Check("validation loss", [a for a, _ in losses], [b for _, b in losses], LOSS_TOLERANCE)
    return [_filled(LOOP, loop, check), _filled(REPLAY, replay)]


def _filled(empty: Figure, values: Sequence[float], check: Check | None = None) -> Figure:
    return Figure(empty.name, values, empty.bar, how=empty.how, check=check)


def _request(seed: int) -> training_pb2.TrainingRequest:
    request = make_request("datasets/sha256-0", seed)
    request.trainer.batch_size = BATCH
    request.resources.device = training_pb2.DEVICE_CUDA
    return request


def _faster_loader() -> int:
    """How many workers make the idiomatic loop faster, tried on a smaller table."""
    with tempfile.TemporaryDirectory() as folder:
        table = store(make_columns(LOADER_ROWS), Path(folder))
        task = make_task(_request(0), table, THREADS)
        rates = {workers: _idiomatic(task, workers).rate for workers in (0, 2)}
    return max(rates, key=lambda count: rates[count])


def _ours(task: Task) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        events = train(task.request, task.prepared, Path(folder), THREADS, lambda: False)
        return read_events(events).run


def _idiomatic(task: Task, workers: int) -> Run:
    device = torch.device("cuda:0")
    bf16 = find_precision(task.request.trainer.precision, device) == training_pb2.PRECISION_BF16
    precision = torch.bfloat16 if bf16 else torch.float32
    return loops.idiomatic(task, workers, _score, device, precision)


def _score(true: Sequence[int], predicted: Sequence[int]) -> np.ndarray:
    """The confusion matrix; scikit-learn is not here."""
    matrix = np.zeros((3, 3), dtype=np.int64)
    np.add.at(matrix, (np.asarray(true), np.asarray(predicted)), 1)
    return matrix


def _replayed(task: Task) -> float:
    """Windows per second of the trainer's step as a CUDA graph, replayed back to back."""
    # Kept: the graph reads the step's tensors where they are.
    step = loops.make_step(task, capturable=True)
    graph = _capture(step)
    count = len(task.prepared.train.starts) // BATCH
    _timed(graph.replay, WARM_UP)
    return count * BATCH / _timed(graph.replay, count)


def _capture(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    # As torch's documentation has it: a few steps on another stream first, so that lazily made
    # state (optimizer, cuDNN, cuBLAS) is there before the capture, which may not make any.
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _timed(action: Callable[[], None], times: int) -> float:
    """Seconds until the device has done so many of them."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        action()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

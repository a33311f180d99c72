"""Measures trainwire beside what people write by hand: `python -m bench`.

Every figure is a ratio of two things measured in turns on the same machine, in one run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from bench import loops, task
from bench.figures import Figure, write_json

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_client import TrainingClient
from trainwire_server.data import profile
from trainwire_server.data.prepare import Prepared, prepare
from trainwire_server.training.fit import fit

THREADS = 2
ROUNDS = 5
RESULTS = Path(__file__).with_name("results") / "cpu.json"


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    client: TrainingClient
    request: training_pb2.TrainingRequest
    table: Path
    prepared: Prepared


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, float]]:
    """A server's address, and the seconds it took to be ready."""
    flags = ["--listen", "127.0.0.1:0", "--data-dir", str(folder), "--threads", str(THREADS)]
    command = [sys.executable, "-m", "trainwire_server", "--log-format", "json", *flags]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = json.loads(process.stderr.readline())
        yield ready["address"], time.perf_counter() - began
        process.terminate()
        process.stderr.read()


@contextmanager
def prepare_bench(folder: Path) -> Iterator[Bench]:
    """A warm server, and the same data for the loops in this process."""
    columns = task.make_columns()
    with serve(folder / "server") as (address, _), TrainingClient(address) as client:
        request = task.make_request(client.upload(columns).name)
        source, table = folder / "source", folder / "table"
        data = pa.table(columns)
        with pa.ipc.new_file(str(source), data.schema) as writer:
            writer.write_table(data)
        profile.ingest(source, table, dataset_pb2.DATASET_FORMAT_ARROW)
        yield Bench(client, request, table, prepare(contract.resolve(request), table))


def last_epoch(events: Iterator[training_pb2.TrainingEvent]) -> training_pb2.EpochCompleted:
    """The last epoch of a run that succeeds."""
    found = training_pb2.EpochCompleted()
    for event in events:
        found = event.epoch if event.HasField("epoch") else found
    return found


def over_the_wire(bench: Bench) -> tuple[training_pb2.EpochCompleted, float]:
    """The last epoch as a client sees it, and the seconds from submit to `started`."""
    began, started, epoch = time.perf_counter(), 0.0, training_pb2.EpochCompleted()
    for event in bench.client.train(bench.request):
        if event.HasField("started"):
            started = time.perf_counter() - began
        epoch = event.epoch if event.HasField("epoch") else epoch
    return epoch, started


def bare_fit(bench: Bench) -> training_pb2.EpochCompleted:
    """The last epoch of the trainer alone, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return last_epoch(fit(bench.request, bench.table, Path(folder), THREADS, lambda: False))


def measure(bench: Bench) -> list[Figure]:
    """All figures of training, everything in turns."""
    compute, idiomatic, bare, started = [], [], [], []
    for number in range(ROUNDS):
        epoch, seconds = over_the_wire(bench)
        alone = loops.compute_only(bench.request, bench.prepared, THREADS)
        peers = [
            loops.idiomatic(bench.request, bench.prepared, THREADS, workers) for workers in (0, 2)
        ]
        fastest = max(peers, key=lambda run: run.rate)
        own = bare_fit(bench)
        compute.append(epoch.windows_per_second / alone.rate)
        idiomatic.append(epoch.windows_per_second / fastest.rate)
        bare.append(epoch.seconds / own.seconds)
        started.append(1000 * seconds)
        print(
            f"round {number + 1}: {epoch.windows_per_second:,.0f} windows/s over the wire, "
            f"{alone.rate:,.0f} compute only, {fastest.rate:,.0f} idiomatic loop, "
            f"{own.windows_per_second:,.0f} bare fit; validation loss {epoch.validation.loss:.4f} "
            f"and {fastest.loss:.4f}",
            flush=True,
        )
    return [
        Figure("windows/s over the wire / compute only", compute, 0.95),
        Figure("windows/s over the wire / idiomatic loop", idiomatic, 1.25),
        Figure("epoch seconds over the wire / bare fit", bare, 1.02, at_least=False),
        # The first one waits for the fork server to have loaded torch.
        Figure("warm submit to started", started[1:], 150, at_least=False, unit="ms"),
    ]


def start_seconds() -> list[float]:
    """Seconds from the command to a server that is ready, several times."""
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (_, took):
            seconds.append(took)
    return seconds


def main() -> None:
    """Measure, print the table, write the results."""
    with tempfile.TemporaryDirectory() as folder, prepare_bench(Path(folder)) as bench:
        figures = measure(bench)
    figures.append(Figure("server start to ready", start_seconds(), 1.5, at_least=False, unit="s"))
    print("\n".join(figure.row() for figure in figures))
    device = f"CPU, {os.cpu_count()} cores, torch {torch.__version__}, {THREADS} threads"
    write_json(RESULTS, device, figures)
    print(f"{sum(figure.passes for figure in figures)} of {len(figures)} bars kept on {device}")


if __name__ == "__main__":
    main()

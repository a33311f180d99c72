"""Training over the wire beside everything it is held against, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import loops, toolkits
from bench.events import Trained, read_events
from bench.figures import Check, Figure
from bench.loops import Run
from bench.servers import serve
from bench.task import (
    LOSS_TOLERANCE,
    make_columns,
    make_request,
    make_task,
    store,
)
from sklearn.metrics import accuracy_score, f1_score

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient
from trainwire_server.training.fit import fit

WORKERS = (0, 2)
"""Processes that load batches; the faster choice counts."""


@dataclass(frozen=True)
class Bench:
    """A warm server that has the data, and the same data for this process."""

    client: TrainingClient
    dataset: str
    table: Path
    threads: int


@dataclass(frozen=True)
class Round:
    """One turn of everybody."""

    wire: Trained
    bare: Trained
    compute: Run
    idiomatic: Run
    lightning: Run
    tsai: Run

    def describe(self) -> str:
        """All speeds and losses in one line."""
        runs = {
            "over the wire": self.wire.run,
            "bare fit": self.bare.run,
            "compute only": self.compute,
            "idiomatic loop": self.idiomatic,
            "Lightning": self.lightning,
            "tsai": self.tsai,
        }
        return ", ".join(f"{name} {run.rate:,.0f} ({run.loss:.3f})" for name, run in runs.items())


def measure_training(threads: int, rounds: int) -> list[Figure]:
    """Windows per second against compute alone, loops and toolkits."""
    toolkits.define_missing_operators()
    with tempfile.TemporaryDirectory() as folder, _prepare(Path(folder), threads) as bench:
        # The first job waits for the fork server to have loaded torch.
        _over_the_wire(bench, make_request(bench.dataset, seed=rounds))
        done = []
        for number in range(rounds):
            done.append(_turn(bench, number))
            print(f"round {number + 1}, windows/s (loss): {done[-1].describe()}", flush=True)
    return _figures(done)


@contextmanager
def _prepare(folder: Path, threads: int) -> Iterator[Bench]:
    columns = make_columns()
    with (
        serve(folder / "server", "--threads", str(threads)) as (address, _),
        TrainingClient(address) as client,
    ):
        dataset = client.upload(columns).name
        yield Bench(client, dataset, store(columns, folder), threads)


def _turn(bench: Bench, seed: int) -> Round:
    request = make_request(bench.dataset, seed)
    task = make_task(request, bench.table, bench.threads)
    loaded = {workers: loops.idiomatic(task, workers, _score) for workers in WORKERS}
    workers = max(loaded, key=lambda count: loaded[count].rate)
    return Round(
        wire=_over_the_wire(bench, request),
        compute=loops.compute_only(task),
        bare=_bare_fit(bench, request),
        idiomatic=loaded[workers],
        lightning=toolkits.lightning(task, workers),
        tsai=toolkits.tsai(task),
    )


def _score(true: Sequence[int], predicted: Sequence[int]) -> tuple[float, float]:
    return accuracy_score(true, predicted), f1_score(true, predicted, average="macro")


def _over_the_wire(bench: Bench, request: training_pb2.TrainingRequest) -> Trained:
    return read_events(bench.client.train(request))


def _bare_fit(bench: Bench, request: training_pb2.TrainingRequest) -> Trained:
    """The trainer alone, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return read_events(
            fit(request, bench.table, Path(folder), bench.threads, cancelled=lambda: False)
        )


def _figures(rounds: Sequence[Round]) -> list[Figure]:
    return [
        Figure(
            "windows/s over the wire / the same steps on one batch",
            [done.wire.run.rate / done.compute.rate for done in rounds],
            0.95,
            how="The trainer's own steps (gradients, clipping, optimizer), as many as in an epoch, "
            "over and over on one batch, in this process.",
        ),
        _against(
            "an idiomatic PyTorch loop",
            [(done.wire.run, done.idiomatic) for done in rounds],
            "Dataset of window slices, DataLoader with 0 and with 2 workers (the faster counts), "
            "`.item()` per batch, scikit-learn's accuracy and macro F1 per epoch; plain `torch.nn` "
            "network of the same architecture.",
        ),
        _against(
            "PyTorch Lightning",
            [(done.wire.run, done.lightning) for done in rounds],
            "Its Trainer on the same network and loaders, without logger, checkpoints, progress "
            "bar or metrics; its set-up and teardown do not count.",
        ),
        _against(
            "tsai",
            [(done.wire.run, done.tsai) for done in rounds],
            "Its data loaders (which take whole batches from an array of all windows) and fastai's "
            "Learner on the same network, without progress bar or metrics. No bar was set for it "
            "alone; it is held to that of the other two.",
        ),
        Figure(
            "epoch seconds over the wire / bare `fit()` in-process",
            [done.wire.seconds / done.bare.seconds for done in rounds],
            1.02,
            at_least=False,
            how="The same generator of events, iterated in this process, without server, "
            "connection or database; epochs with their validation.",
            check=Check(
                "validation loss",
                [done.wire.run.loss for done in rounds],
                [done.bare.run.loss for done in rounds],
                0.0,
            ),
        ),
    ]


def _against(whom: str, runs: Sequence[tuple[Run, Run]], how: str) -> Figure:
    losses = [(ours.loss, theirs.loss) for ours, theirs in runs]
    return Figure(
        f"windows/s over the wire / {whom}",
        [ours.rate / theirs.rate for ours, theirs in runs],
        1.25,
        how=how,
        check=Check(
            "validation loss",
            [ours for ours, _ in losses],
            [theirs for _, theirs in losses],
            LOSS_TOLERANCE,
        ),
    )

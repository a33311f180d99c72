"""How long a server takes to start, and a job on a server that runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.figures import Figure
from bench.servers import serve
from bench.task import FEATURES, ROWS, make_columns, make_request

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

SUBMITS = 25


def measure_start(rounds: int) -> Figure:
    """Seconds from the command to a server that is ready."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (_, took):
            seconds.append(took)
    return Figure(
        "server start to ready",
        seconds,
        1.5,
        at_least=False,
        unit="s",
        how="From the start of the process to its line that says it serves, with an empty data "
        "directory; torch is loaded in the background.",
    )


def measure_submit(threads: int) -> Figure:
    """Milliseconds from a submit to the event `started`, on a server that has torch loaded."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), "--threads", str(threads)) as (address, _),
        TrainingClient(address) as client,
    ):
        request = make_request(client.upload(make_columns()).name)
        # The first job waits for the fork server to have loaded torch.
        seconds = [_start(client, request) for _ in range(1 + SUBMITS)][1:]
    return Figure(
        "warm submit to `started`, p50",
        [1000 * value for value in seconds],
        150,
        at_least=False,
        unit="ms",
        how=f"{SUBMITS} jobs one after the other, each cancelled once it has started, on a table "
        f"of {ROWS:,} x {FEATURES}: the worker prepares the data and builds the network in "
        "between.",
    )


def _start(client: TrainingClient, request: training_pb2.TrainingRequest) -> float:
    """Seconds from the call to `started`; the job is gone afterwards."""
    began, took = time.perf_counter(), 0.0
    for event in client.train(request):
        if event.HasField("started"):
            took = time.perf_counter() - began
            client.cancel(event.job)
    return took

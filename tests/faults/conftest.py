"""What the trials share: requests, what they come to undisturbed, and chance that comes again."""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from tests.conftest import Server, make_columns, small_request
from tests.faults.failing_server import PROGRAM, Failure, environment

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

SEED = os.environ.get("FAULTS_SEED") or secrets.token_hex(4)
IS_FULL = bool(os.environ.get("FAULTS_FULL"))
"""Whether there is time for all trials."""


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of one test; what is printed makes them come again."""
    print(f"make test-faults SEED={SEED}")  # noqa: T201 - shown when the test fails
    return random.Random(f"{SEED} {request.node.name}")


@dataclass(frozen=True)
class Work:
    """Jobs to disturb.

    Attributes:
        data_dir: of a server that has the dataset and nothing else; to be copied.
        requests: what is trained.
        weights: what each comes to if nothing happens.
        epochs: what each tells of its epochs, but for times and memory.
    """

    data_dir: Path
    requests: list[training_pb2.TrainingRequest]
    weights: list[bytes]
    epochs: list[list[training_pb2.EpochCompleted]]

    def copy_to(self, data_dir: Path) -> Path:
        """A data directory to work in."""
        return shutil.copytree(self.data_dir, data_dir)

    def named(self, client: int, times: int = 1) -> list[training_pb2.TrainingRequest]:
        """The requests, each so many times, as one client sends them."""
        found = []
        for number, request in enumerate(self.requests * times):
            named = training_pb2.TrainingRequest()
            named.CopyFrom(request)
            named.request_id = f"client-{client}-{number}"
            named.labels["work"] = str(number % len(self.requests))
            found.append(named)
        return found

    def differences(self, client: Any, job: training_pb2.TrainingJob, folder: Path) -> list[str]:
        """In what a job differs from an undisturbed one: nothing, it should be."""
        number = int(job.labels["work"])
        found = ["weights"] if weights_of(client, job, folder) != self.weights[number] else []
        return found + (["epochs"] if epochs_of(client.watch(job)) != self.epochs[number] else [])


def epochs_of(events: Iterator[training_pb2.TrainingEvent]) -> list[training_pb2.EpochCompleted]:
    """The epochs without what the clock and the machine have to do with."""
    found = [event.epoch for event in events if event.HasField("epoch")]
    for epoch in found:
        for field in ("seconds", "windows_per_second", "peak_memory_bytes"):
            epoch.ClearField(field)
    return found


def requests_for(dataset: str) -> list[training_pb2.TrainingRequest]:
    """Requests of a dozen epochs or more, the last of which may stop early."""
    plateau = training_pb2.SCHEDULER_TYPE_REDUCE_ON_PLATEAU
    return [
        small_request(dataset, epochs=16, early_stopping_patience=0),
        small_request(
            dataset, epochs=12, early_stopping_patience=0, seed=7, scheduler_type=plateau
        ),
        small_request(dataset, epochs=20, early_stopping_patience=5, batch_size=16),
    ]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """`requests_for` one dataset, trained by a server that nothing happens to."""
    data_dir, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("undisturbed")
    server = Server(data_dir)
    with server.client() as client:
        requests = requests_for(client.upload(make_columns()).name)
        jobs = [client.wait(client.submit(request)) for request in requests]
        weights = [weights_of(client, job, folder) for job in jobs]
        epochs = [epochs_of(client.watch(job)) for job in jobs]
        for job in jobs:
            client.delete(job)
            client.delete(job.model)
    assert server.stop() == 0
    return Work(data_dir, requests, weights, epochs)


def weights_of(client: TrainingClient, job: training_pb2.TrainingJob, folder: Path) -> bytes:
    """The weights of a job that has succeeded."""
    return (client.download(job.model, folder / job.name) / "model.safetensors").read_bytes()


@pytest.fixture
def start_failing(work: Work, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with failures in them (see `environment`), on a data directory with the data
    of `work`; each sees that no job ever has two processes."""
    data_dir, alone = work.copy_to(tmp_path / "data"), tmp_path / "alone"
    alone.mkdir()
    started: list[Server] = []

    def start(
        *flags: str,
        failures: Sequence[Failure] = (),
        clock: Path | None = None,
        constants: Mapping[str, float] = MappingProxyType({}),
        listen: str = "127.0.0.1:0",
    ) -> Server:
        variables = environment(*failures, clock=clock, alone=alone, constants=constants)
        options: dict[str, Any] = {"listen": listen, "environment": variables}
        started.append(Server(data_dir, *flags, program=PROGRAM, **options))
        return started[-1]

    yield start
    for server in started:
        server.kill()

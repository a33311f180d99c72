"""`kill -9` of servers and of training processes, at random moments and at the worst ones."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import IS_FULL, Work
from tests.faults.failing_server import Failure, overlaps
from tests.faults.recorder import History, Recorder, problems

from trainwire.v1 import training_pb2

StartServer = Callable[..., Any]

SERVER_TRIALS, SERVER_KILLS = (6, 5) if IS_FULL else (2, 4)
WORKER_TRIALS, WORKER_KILLS = (3, 10) if IS_FULL else (1, 8)
FLAGS = ("--max-concurrent-jobs", "2", "--max-attempts", "20")
STORE = "trainwire_server.jobs.store:Store"
CATALOG = "trainwire_server.data.catalog:Catalog"

pytestmark = pytest.mark.timeout(300)


def check(history: History, work: Work, recorder: Recorder, folder: Path) -> None:
    """All promises were kept, and every job came to what it comes to undisturbed."""
    assert problems(history) == []
    succeeded = training_pb2.JOB_STATE_SUCCEEDED
    assert {job.state for job in history.found.values()} == {succeeded}
    differences = {
        name: found
        for name, job in history.found.items()
        if (found := work.differences(recorder.client, job, folder))
    }
    assert differences == {}
    assert overlaps(folder / "alone") == []


def kill_after(random_: random.Random, recorder: Recorder, server: Any, epochs: int) -> None:
    """Kill the server when so many epochs are known, or a while after its start if none need be."""
    if epochs:
        assert recorder.wait_for_epochs(epochs)
    time.sleep(random_.uniform(0, 0.05 if epochs else 4))
    server.kill()


@pytest.mark.parametrize("trial", range(SERVER_TRIALS))
def test_a_server_that_is_killed_at_any_moment_loses_nothing(
    trial: int, start_failing: StartServer, work: Work, chance: random.Random, tmp_path: Path
) -> None:
    clients = [work.named(1), work.named(2)]
    expected = sum(len(epochs) for epochs in work.epochs) * len(clients)
    # The first while requests come in, the others over the whole of what there is to do.
    moments = [0, *sorted(chance.sample(range(1, expected), SERVER_KILLS - 1))]
    server = start_failing(*FLAGS)
    with Recorder(server.address, seed=str(trial)) as recorder:
        recorder.submit_all(*clients)
        for moment in moments:
            kill_after(chance, recorder, server, moment)
            server = start_failing(*FLAGS, listen=server.address)
        check(recorder.finish(), work, recorder, tmp_path)


def wait_for_death(server: Any) -> None:
    assert server.process.wait(60) == -signal.SIGKILL


SUBMITTED_AND_TRAINED = (
    Failure(f"{STORE}.create_job", when="before", count=2),
    Failure(f"{STORE}.create_job", when="after"),
    # The job is RUNNING and has no process yet.
    Failure(f"{STORE}.save", when="after"),
    Failure("trainwire_server.execution.local:LocalExecutor.start", when="after"),
    Failure(f"{STORE}.save", event="epoch", when="before", count=5),
    Failure(f"{STORE}.save", event="epoch", when="after", count=5),
)
ENDED = (
    Failure(f"{CATALOG}.keep_bundle", when="before"),
    # The bundle lies among the models, and no row speaks of it.
    Failure(f"{CATALOG}.keep_bundle", when="after"),
    Failure(f"{STORE}.save", event="succeeded", when="before"),
    Failure(f"{STORE}.save", event="succeeded", when="after"),
)


@pytest.mark.parametrize("failures", [SUBMITTED_AND_TRAINED, ENDED], ids=["submit", "end"])
def test_a_server_that_dies_at_its_worst_moments_loses_nothing(
    failures: Sequence[Failure], start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    server = start_failing(*FLAGS, failures=failures[:1])
    with Recorder(server.address) as recorder:
        recorder.submit_all(work.named(1), work.named(2))
        for failure in (*failures[1:], None):
            wait_for_death(server)
            server = start_failing(
                *FLAGS, listen=server.address, failures=[failure] if failure else []
            )
        check(recorder.finish(), work, recorder, tmp_path)


@pytest.mark.parametrize("trial", range(WORKER_TRIALS))
def test_a_training_process_that_is_killed_at_any_moment_costs_no_result(
    trial: int, start_failing: StartServer, work: Work, chance: random.Random, tmp_path: Path
) -> None:
    clients = [work.named(1), work.named(2)]
    expected = sum(len(epochs) for epochs in work.epochs) * len(clients)
    server = start_failing(*FLAGS)
    with Recorder(server.address, seed=str(trial)) as recorder:
        recorder.submit_all(*clients)
        for moment in sorted(chance.sample(range(1, expected - 5), WORKER_KILLS)):
            assert recorder.wait_for_epochs(moment)
            time.sleep(chance.uniform(0, 0.1))
            for pid in chance.sample(server.children(), min(1, len(server.children()))):
                os.kill(pid, signal.SIGKILL)
        check(recorder.finish(), work, recorder, tmp_path)
        assert max(job.attempt for job in recorder.history.found.values()) > 1


REPLACE = "pathlib:Path.replace"
WRITE = "trainwire_server.training.checkpoint:write_file"
IN_A_PROCESS = {
    "checkpoint written": Failure(REPLACE, path="/checkpoints/", when="before", count=4),
    "checkpoint renamed": Failure(REPLACE, path="/checkpoints/", when="after", count=7),
    "best weights written": Failure(REPLACE, path="best.safetensors", when="before"),
    "best weights renamed": Failure(REPLACE, path="best.safetensors", when="after", count=2),
    "checkpoint not begun": Failure(WRITE, path="/checkpoints/", when="before", count=3),
    "bundle begun": Failure(REPLACE, path="bundle.partial/request.json", when="before"),
    "bundle written": Failure("os:rename", path="bundle.partial", when="before"),
    "bundle renamed": Failure("os:rename", path="bundle.partial", when="after"),
    "told of its success": Failure(
        "trainwire_server.execution.frames:Connection.send", event="succeeded", when="after"
    ),
}


def test_a_training_process_that_dies_at_its_worst_moments_costs_no_result(
    start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    marks = {tmp_path / name.replace(" ", "-"): failure for name, failure in IN_A_PROCESS.items()}
    failures = [
        Failure(**{**vars(failure), "process": "worker", "mark": str(mark)})
        for mark, failure in marks.items()
    ]
    server = start_failing(*FLAGS, failures=failures)
    with Recorder(server.address) as recorder:
        recorder.submit_all(work.named(1), work.named(2))
        check(recorder.finish(), work, recorder, tmp_path)
    assert [mark.name for mark in marks if not mark.exists()] == []

"""A cancel at every stage of a job's life: the job ends once, and nothing of it is left behind.

The stages are reached by pausing there: `pausing_server.py` is the real server with real workers.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from tests.conftest import FAULTS, Server
from tests.faults.conftest import IS_FULL
from tests.service.test_tenants import Guarded, make_tokens

from trainwire.v1 import training_pb2
from trainwire_client import FailedPreconditionError, NotFoundError, TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
Events = list[training_pb2.TrainingEvent]

pytestmark = pytest.mark.timeout(1_800 if IS_FULL else 120)
TIMES = 10 if IS_FULL else 3
ENDINGS = {
    training_pb2.JOB_STATE_SUCCEEDED: "succeeded",
    training_pb2.JOB_STATE_FAILED: "failed",
    training_pb2.JOB_STATE_CANCELLED: "cancelled",
}
SUCCEEDED, CANCELLED = training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_CANCELLED
EPOCHS = 3
BETWEEN = {"forking": 0, "reading": 0, "batch": 30, "evaluating": 1, "best": 0, "checkpoint": 2}
"""Points before the last epoch, and how often a job passes them before it pauses."""
FINISHING = {"evaluating": EPOCHS, "bundling": 0, "bundle-file": 0, "keeping": 0}
"""Points after it."""
OF_SERVER = ("forking", "keeping")
"""Points where the server pauses, not its worker."""


# ------------------------------------------------------------------------ pauses


@dataclass(frozen=True)
class Pause:
    """A point that the next job pauses at."""

    folder: Path
    point: str

    @property
    def pipes(self) -> tuple[Path, Path]:
        return self.folder / f"{self.point}.reached", self.folder / f"{self.point}.go"

    def wait(self) -> int:
        """Wait until somebody is there; its process id."""
        return int(self.pipes[0].read_text())

    def let_others_pass(self) -> None:
        """Let nobody pause here again."""
        self.pipes[0].unlink(missing_ok=True)

    def release(self) -> None:
        """Let it go on, and nobody pause here again."""
        self.let_others_pass()
        self.pipes[1].write_text("")


@contextmanager
def pause_at(folder: Path, point: str, skip: int) -> Iterator[Pause]:
    """A pause; at the end nobody stops there any more."""
    pause = Pause(folder, point)
    (folder / f"{point}.skip").write_text(str(skip))
    for pipe in pause.pipes:
        os.mkfifo(pipe)
    yield pause
    for pipe in pause.pipes:
        pipe.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def pauses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pauses")


def program(pauses: Path) -> dict[str, Any]:
    """What makes a server one that pauses."""
    path = str(Path(__file__).with_name("pausing_server.py"))
    return {"program": (path,), "environment": {"TRAINWIRE_PAUSES": str(pauses)}}


@pytest.fixture(scope="module")
def pausing(pauses: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that can be made to pause; a second is what a cancelled training gets to end."""
    running = Server(
        tmp_path_factory.mktemp("pausing"),
        *("--grace", "1"),
        **program(pauses),
    )
    yield running
    assert running.stop() == 0
    assert not [record for record in running.records if record["event"] in FAULTS]


@pytest.fixture(scope="module")
def client(pausing: Any) -> Iterator[TrainingClient]:
    """A client of the server that pauses."""
    with pausing.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def request_for(
    client: TrainingClient, columns: Callable[..., Any], small: RequestFor
) -> RequestFor:
    name = client.upload(columns()).name
    return lambda **trainer: small(name, early_stopping_patience=0, **trainer)


# ------------------------------------------------------------------------ what must hold


@dataclass
class Watched:
    """What a watcher saw, and which training processes there were as the last event came."""

    events: Events
    left: list[int]


def watch(server: Any, client: TrainingClient, job: training_pb2.TrainingJob) -> Watched:
    events: Events = []
    left: list[int] = []
    for event in client.watch(job):
        left = server.children() if kind(event) in ENDINGS.values() else left
        events += [event] if event.sequence else []
    return Watched(events, left)


@contextmanager
def submitted(
    server: Any, client: TrainingClient, request: training_pb2.TrainingRequest
) -> Iterator[tuple[training_pb2.TrainingJob, Future[Watched]]]:
    """A job and what a watcher sees of it; it does not outlive a test that fails."""
    with ThreadPoolExecutor(1) as threads:
        job = client.submit(request)
        watching = threads.submit(watch, server, client, job)
        try:
            yield job, watching
        finally:
            client.cancel(job)


def kind(event: training_pb2.TrainingEvent) -> str:
    return event.WhichOneof("event") or ""


def check_end(
    server: Any, client: TrainingClient, watched: Watched, name: str
) -> training_pb2.TrainingJob:
    """All that holds of a job that has ended, however it did; the job."""
    job, events = client.get(name), watched.events
    assert watched.left == []
    assert [event.sequence for event in events] == list(range(1, job.last_sequence + 1))
    endings = [kind(event) for event in events if kind(event) in ENDINGS.values()]
    assert endings == [kind(events[-1])] == [ENDINGS[job.state]]
    assert [event for event in client.watch(job) if event.sequence] == events
    assert [client.cancel(job), client.cancel(job), client.get(job)] == [job] * 3
    check_model(server, client, job)
    done = [event.epoch.epoch for event in events if event.HasField("epoch")]
    assert done == list(range(1, job.progress.epoch + 1))
    if job.state == CANCELLED:
        ended = events[-1].cancelled
        assert (ended.epochs_run, ended.best_epoch) == (len(done), job.progress.best_epoch)
    return job


def check_model(server: Any, client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    """The model of a job is there, on disk and by name, if and only if the job succeeded."""
    models = [model.name for model in client.models() if model.job == job.name]
    name = f"models/{job.name.partition('/')[2]}"
    assert models == ([job.model] if job.state == SUCCEEDED else [])
    assert job.model == (name if job.state == SUCCEEDED else "")
    assert (server.data_dir / name).exists() == (job.state == SUCCEEDED)


def check_folder(server: Any, job: training_pb2.TrainingJob, written: bool = True) -> None:
    """The best weights are there if they were written, and nothing there is half of something."""
    folder = server.data_dir / job.name
    best = folder / "best.safetensors"
    assert best.exists() == (written and job.progress.epoch > 0)
    assert not best.exists() or safetensors.numpy.load_file(best)
    for path in (folder / "checkpoints").glob("*.safetensors"):
        assert safetensors.numpy.load_file(path)
    assert [*folder.rglob("*.partial"), *folder.glob("bundle*")] == []
    assert list((server.data_dir / "uploads").iterdir()) == []


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def check_next(client: TrainingClient, request_for: RequestFor) -> None:
    """The place of the job is free: another one trains."""
    assert client.info().running_jobs == 0
    assert client.wait(client.submit(request_for(epochs=1))).state == SUCCEEDED


# ------------------------------------------------------------------------ the stages


def ids(stages: dict[str, int]) -> list[str]:
    return [point for point in stages if point not in OF_SERVER]


@pytest.mark.parametrize("point", BETWEEN)
def test_a_cancel_before_the_last_epoch(
    point: str, pausing: Any, client: TrainingClient, request_for: RequestFor, pauses: Path
) -> None:
    request = request_for(epochs=100_000)
    with (
        pause_at(pauses, point, BETWEEN[point]) as pause,
        submitted(pausing, client, request) as (job, watching),
    ):
        pid = pause.wait()
        for _ in range(2):
            assert client.cancel(job).state == training_pb2.JOB_STATE_CANCELLING
        assert not is_gone(pid)
        pause.release()
        watched = watching.result()
    ended = check_end(pausing, client, watched, job.name)
    assert ended.state == CANCELLED
    assert (ended.progress.epoch > 0) == (point not in ("forking", "reading"))
    check_folder(pausing, ended)
    check_next(client, request_for)


@pytest.mark.parametrize("point", FINISHING)
def test_a_cancel_after_the_last_epoch(
    point: str, pausing: Any, client: TrainingClient, request_for: RequestFor, pauses: Path
) -> None:
    """It may come too late, but the job, its log and its model then say the same."""
    request = request_for(epochs=EPOCHS)
    with (
        pause_at(pauses, point, FINISHING[point]) as pause,
        submitted(pausing, client, request) as (job, watching),
    ):
        pause.wait()
        for _ in range(2):
            assert client.cancel(job).state == training_pb2.JOB_STATE_CANCELLING
        pause.release()
        watched = watching.result()
    ended = check_end(pausing, client, watched, job.name)
    assert ended.state in (SUCCEEDED, CANCELLED)
    assert ended.progress.epoch == EPOCHS
    check_folder(pausing, ended)
    check_next(client, request_for)


@pytest.mark.parametrize(
    ("point", "skip", "epochs"),
    [(point, BETWEEN[point], 100_000) for point in ids(BETWEEN)]
    + [(point, FINISHING[point], EPOCHS) for point in ids(FINISHING)],
)
def test_a_worker_that_does_not_go_on_is_killed(
    point: str,
    skip: int,
    epochs: int,
    pausing: Any,
    client: TrainingClient,
    request_for: RequestFor,
    pauses: Path,
) -> None:
    """At each of the stages: what it was about to write is not there, what was there is whole."""
    request = request_for(epochs=epochs)
    with (
        pause_at(pauses, point, skip) as pause,
        submitted(pausing, client, request) as (job, watching),
    ):
        pid = pause.wait()
        assert client.cancel(job).state == training_pb2.JOB_STATE_CANCELLING
        watched = watching.result()
        assert is_gone(pid)
    ended = check_end(pausing, client, watched, job.name)
    assert ended.state == CANCELLED
    # The first weights are lost if their writing never ended.
    check_folder(pausing, ended, written=point != "best")
    check_next(client, request_for)


def test_a_cancel_of_a_waiting_job(
    pausing: Any, client: TrainingClient, request_for: RequestFor, pauses: Path
) -> None:
    with ThreadPoolExecutor(1) as threads, pause_at(pauses, "reading", 0) as pause:
        running, waiting = (client.submit(request_for(epochs=1)) for _ in range(2))
        pause.wait()
        watching = threads.submit(lambda: [e for e in client.watch(waiting) if e.sequence])
        assert [client.cancel(waiting).state for _ in range(2)] == [CANCELLED] * 2
        events = watching.result()
        pause.release()
    assert client.wait(running).state == SUCCEEDED
    ended = check_end(pausing, client, Watched(events, []), waiting.name)
    assert (ended.attempt, [kind(event) for event in events]) == (0, ["queued", "cancelled"])
    check_next(client, request_for)


def test_cancels_at_once(
    pausing: Any, client: TrainingClient, request_for: RequestFor, pauses: Path
) -> None:
    callers = 8
    barrier = threading.Barrier(callers)

    def cancel(job: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
        barrier.wait()
        return client.cancel(job)

    request = request_for(epochs=100_000)
    with (
        ThreadPoolExecutor(callers) as threads,
        pause_at(pauses, "batch", 30) as pause,
        submitted(pausing, client, request) as (job, watching),
    ):
        pause.wait()
        answers = list(threads.map(cancel, [job] * callers))
        assert {answer.state for answer in answers} == {training_pb2.JOB_STATE_CANCELLING}
        pause.release()
        watched = watching.result()
    ended = check_end(pausing, client, watched, job.name)
    assert ended.state == CANCELLED
    check_folder(pausing, ended)


@pytest.mark.parametrize("kill_first", [True, False])
def test_a_cancel_as_the_process_dies(
    kill_first: bool,
    pausing: Any,
    client: TrainingClient,
    request_for: RequestFor,
    pauses: Path,
) -> None:
    """The job is lost, or waits again, or trains in another process as the cancel comes."""
    request = request_for(epochs=100_000)
    for _ in range(TIMES):
        with (
            pause_at(pauses, "batch", 30) as pause,
            submitted(pausing, client, request) as (job, watching),
        ):
            pid = pause.wait()
            if kill_first:
                os.kill(pid, signal.SIGKILL)
            client.cancel(job)
            if not kill_first:
                os.kill(pid, signal.SIGKILL)
            watched = watching.result()
        ended = check_end(pausing, client, watched, job.name)
        assert (ended.state, ended.progress.epoch > 0) == (CANCELLED, True)
        check_folder(pausing, ended, written=True)
    check_next(client, request_for)


# ------------------------------------------------------------------------ in quick succession


def test_a_cancel_soon_after_the_submit(
    pausing: Any, client: TrainingClient, request_for: RequestFor
) -> None:
    """Not at a chosen stage but anywhere on the way to the first epochs; most come at once."""
    chance = random.Random(0)
    for number in range(10 * TIMES):
        job = client.submit(request_for(epochs=100_000))
        time.sleep(chance.uniform(0, 0.2) if number % 2 else 0)
        assert client.cancel(job).state in (training_pb2.JOB_STATE_CANCELLING, CANCELLED)
        ended = check_end(pausing, client, watch(pausing, client, job), job.name)
        assert ended.state == CANCELLED
        check_folder(pausing, ended)
    check_next(client, request_for)


def test_cancels_of_a_queue(pausing: Any, client: TrainingClient, request_for: RequestFor) -> None:
    """Many jobs, cancelled from four threads in any order while they start one after the other."""
    found = [client.submit(request_for(epochs=100_000)) for _ in range(10 * TIMES)]
    shuffled = random.Random(0).sample(found, len(found))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(client.cancel, shuffled))
    for job in found:
        ended = check_end(pausing, client, watch(pausing, client, job), job.name)
        assert ended.state == CANCELLED
        check_folder(pausing, ended)
    check_next(client, request_for)


def test_delete_and_submit_again_right_after_a_cancel(
    pausing: Any, client: TrainingClient, request_for: RequestFor
) -> None:
    request = request_for(epochs=100_000)
    request.request_id = "again"
    names = []
    for _ in range(TIMES):
        job = client.submit(request)
        next(event for event in client.watch(job) if event.HasField("epoch"))
        client.cancel(job)
        # Still the same job, whether it has ended by now or not.
        assert client.submit(request).name == job.name
        delete_when_ended(client, job)
        assert not (pausing.data_dir / job.name).exists()
        for call in (client.get, client.cancel, client.delete, lambda job: list(client.watch(job))):
            with pytest.raises(NotFoundError):
                call(job)
        names.append(job.name)
    assert len(set(names)) == TIMES
    assert pausing.children() == []
    check_next(client, request_for)


def delete_when_ended(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    try:
        client.delete(job)
    except FailedPreconditionError:
        assert list(client.watch(job))
        client.delete(job)


# ------------------------------------------------------------------------ uploads


def test_an_upload_that_is_being_stored_holds_up_no_other_tenant(
    start_server: Callable[..., Server], columns: Callable[..., Any], tmp_path: Path
) -> None:
    """It holds its tenant's datasets meanwhile, for as long as the disk takes."""
    flag = f"--token-file={make_tokens(tmp_path, 'alpha', 'beta')}"
    server = start_server(flag, secure=False, **program(tmp_path))
    guarded = Guarded(server, tmp_path)
    with (
        guarded.client("alpha") as alpha,
        guarded.client("beta") as beta,
        pause_at(tmp_path, "storing", 0) as pause,
        ThreadPoolExecutor() as threads,
    ):
        held = threads.submit(alpha.upload, columns())
        pause.wait()
        pause.let_others_pass()
        try:
            other = threads.submit(beta.upload, columns())
            assert other.result(30).row_count == 400
            assert not held.done()
        finally:
            pause.release()
        assert held.result(30).name == other.result().name

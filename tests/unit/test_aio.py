"""The asyncio client against a server that fails in ways a healthy one does not."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import trainwire_client
from trainwire.contract import Violation
from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_client.aio import TrainingClient
from trainwire_client.backoff import Backoff

JOB = "jobs/one"
FAST = Backoff(initial=0.001, maximum=0.002)
RUNNING = training_pb2.TrainingJob(name=JOB, state=training_pb2.JOB_STATE_RUNNING, last_sequence=9)
SECONDS = 20
"""What nothing here comes near, unless it hangs."""

Behaviour = Callable[[Any, Any], Awaitable[Any]]


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), SECONDS))

    return run


class FaultyServer(
    training_pb2_grpc.TrainingServiceServicer,
    dataset_pb2_grpc.DatasetServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Plays one script entry for each call: a message, a list to stream, or a behaviour."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[Any] = []

    async def _next(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        answer = self.script.pop(0)
        if callable(answer):
            return await answer(request, context)
        if not isinstance(answer, list):
            return answer
        for message in answer:
            await context.write(message)
        return None

    Train = SubmitTraining = GetTraining = ListTrainings = _next  # type: ignore[assignment]
    WatchTraining = CancelTraining = DeleteTraining = _next  # type: ignore[assignment]
    ResumeTraining = SetModelAlias = _next
    UploadDataset = GetDataset = ListDatasets = DeleteDataset = _next  # type: ignore[assignment]
    GetModel = ListModels = DownloadModel = DeleteModel = _next  # type: ignore[assignment]


@asynccontextmanager
async def connected(server: FaultyServer, **options: Any) -> AsyncIterator[TrainingClient]:
    """A client of the server, which runs inside the block."""
    running = grpc.aio.server()
    training_pb2_grpc.add_TrainingServiceServicer_to_server(server, running)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(server, running)
    model_pb2_grpc.add_ModelServiceServicer_to_server(server, running)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    patience = {"backoff": FAST, "retry_for": 5, "reconnect_for": 5, **options}
    try:
        async with TrainingClient(f"127.0.0.1:{port}", **patience) as client:
            yield client
    finally:
        await running.stop(None)


def refuse(code: grpc.StatusCode, *before: Any) -> Behaviour:
    """Streams some messages, then ends the call with this status."""

    async def behave(_: Any, context: Any) -> None:
        for message in before:
            await context.write(message)
        await context.abort(code, "for a reason")

    return behave


class Endless:
    """A behaviour that streams some messages, then waits until its call is cancelled."""

    def __init__(self, *before: Any) -> None:
        self.before = before
        self.reached = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, _: Any, context: Any) -> None:
        for message in self.before:
            await context.write(message)
        self.reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def sound_request() -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "label"
    return request


def log(*sequences: int, end: str = "epoch") -> list[training_pb2.TrainingEvent]:
    """Epoch events with these numbers; the last is of the kind `end`."""
    events = [training_pb2.TrainingEvent(job=JOB, sequence=sequence) for sequence in sequences]
    for event in events[:-1]:
        event.epoch.SetInParent()
    getattr(events[-1], end).SetInParent()
    return events


async def watched(server: FaultyServer, after: int = 0, **options: Any) -> list[int]:
    """Numbers of the events that a watcher sees."""
    async with connected(server, **options) as client:
        return [event.sequence async for event in client.watch(JOB, after)]


# ------------------------------------------------------------------------ watch


@asynchronous
async def test_watch_goes_on_where_the_stream_broke() -> None:
    server = FaultyServer(
        refuse(grpc.StatusCode.UNAVAILABLE, *log(1, 2)),
        refuse(grpc.StatusCode.UNAVAILABLE),
        log(2, 3, 4, end="succeeded"),
    )
    assert await watched(server) == [1, 2, 3, 4]
    assert [request.after_sequence for request in server.requests] == [0, 2, 2]


@asynchronous
async def test_duplicates_are_dropped_and_progress_is_no_event_of_the_log() -> None:
    progress = log(0, end="progress")
    stream = [*log(1, 1, 2), *progress, *log(1, 3, 4, end="failed"), *log(5)]
    assert await watched(FaultyServer(stream)) == [1, 2, 0, 3, 4]


@asynchronous
async def test_a_gap_is_an_error() -> None:
    with pytest.raises(trainwire_client.DataLossError, match="event 4 came after event 2"):
        await watched(FaultyServer(log(1, 2, 4, end="succeeded")))


@asynchronous
async def test_a_stream_that_ends_without_a_terminal_event_is_not_the_end() -> None:
    server = FaultyServer(log(1), RUNNING, log(2, end="cancelled"))
    assert await watched(server) == [1, 2]
    assert server.requests[2].after_sequence == 1


@asynchronous
async def test_an_outage_after_the_end_of_a_stream_is_one_of_the_watch() -> None:
    """`reconnect_for` limits it, not the `retry_for` of single calls."""
    unavailable = refuse(grpc.StatusCode.UNAVAILABLE)
    server = FaultyServer(log(1), unavailable, unavailable, log(2, end="succeeded"))
    assert await watched(server, retry_for=0) == [1, 2]
    assert [type(request).__name__ for request in server.requests] == [
        "WatchTrainingRequest",
        "GetTrainingRequest",
        "WatchTrainingRequest",
        "WatchTrainingRequest",
    ]


@asynchronous
async def test_a_job_whose_terminal_event_was_seen_before_has_nothing_to_watch() -> None:
    done = training_pb2.TrainingJob(state=training_pb2.JOB_STATE_SUCCEEDED, last_sequence=4)
    assert await watched(FaultyServer([], done), after=4) == []


@asynchronous
async def test_watch_gives_up_and_says_where_it_was() -> None:
    server = FaultyServer(refuse(grpc.StatusCode.UNAVAILABLE, *log(1)))
    with pytest.raises(trainwire_client.UnavailableError, match="again after event 1"):
        await watched(server, reconnect_for=0)


@asynchronous
async def test_other_errors_end_the_watch() -> None:
    server = FaultyServer(refuse(grpc.StatusCode.OUT_OF_RANGE, *log(1)))
    with pytest.raises(trainwire_client.OutOfRangeError):
        await watched(server)


@asynchronous
async def test_cancelling_the_watching_task_cancels_the_call_and_nothing_else() -> None:
    endless = Endless(*log(1))
    async with connected(FaultyServer(endless, RUNNING)) as client:

        async def watch() -> None:
            async for _ in client.watch(JOB):
                pass

        task = asyncio.create_task(watch())
        await endless.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await endless.cancelled.wait()
        assert await client.get(JOB) == RUNNING


@asynchronous
async def test_closing_the_iterator_of_train_ends_the_stream() -> None:
    endless = Endless(*log(1))
    async with connected(FaultyServer(RUNNING, endless)) as client:
        async with aclosing(client.train(sound_request())) as events:
            assert (await anext(events)).sequence == 1
        await endless.cancelled.wait()


@asynchronous
async def test_wait_raises_the_failure_of_the_job() -> None:
    failed = training_pb2.TrainingJob(name=JOB, state=training_pb2.JOB_STATE_FAILED)
    failed.failure.reason = training_pb2.FAILURE_REASON_EMPTY_SPLIT
    async with connected(FaultyServer(log(1, end="failed"), failed)) as client:
        with pytest.raises(trainwire_client.JobFailedError, match="EMPTY_SPLIT"):
            await client.wait(JOB)


# ------------------------------------------------------------------------ unary calls


@asynchronous
async def test_submit_tries_again_with_the_same_request_id() -> None:
    unavailable, request = refuse(grpc.StatusCode.UNAVAILABLE), sound_request()
    server = FaultyServer(unavailable, unavailable, RUNNING)
    async with connected(server) as client:
        assert await client.submit(request) == RUNNING
    assert len({sent.request_id for sent in server.requests}) == 1
    assert server.requests[0].request_id
    assert not request.HasField("request_id")


@asynchronous
async def test_what_is_wrong_with_a_request_is_said_before_it_is_sent() -> None:
    wrong, dry = sound_request(), sound_request()
    wrong.trainer.epochs = 0
    dry.validate_only = True
    server = FaultyServer()
    async with connected(server) as client:
        for request, path in ((wrong, "trainer.epochs"), (dry, "validate_only")):
            with pytest.raises(trainwire_client.InvalidRequestError, match=path):
                client.train(request)
    assert not server.requests


@asynchronous
async def test_details_are_decoded() -> None:
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason="DATASET_UNSUITABLE", domain="trainwire"))
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="data.column.name", description="no column 'x'")
    details[1].Pack(bad)
    status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, details=details)

    async def behave(_: Any, context: Any) -> None:
        await context.abort_with_status(rpc_status.to_status(status))

    async with connected(FaultyServer(behave)) as client:
        with pytest.raises(trainwire_client.DatasetUnsuitableError) as caught:
            await client.submit(sound_request())
    assert caught.value.violations == (Violation("data.column.name", "no column 'x'"),)


@asynchronous
async def test_resume_tries_again_with_the_same_request_id() -> None:
    changes = training_pb2.TrainingRequest(display_name="longer")
    server = FaultyServer(refuse(grpc.StatusCode.UNAVAILABLE), RUNNING)
    async with connected(server) as client:
        assert await client.resume("one", epochs=300, changes=changes) == RUNNING
    first, second = server.requests
    assert first == second
    assert (first.name, first.changes.trainer.epochs) == (JOB, 300)
    assert first.changes.request_id
    assert first.changes.display_name == "longer"
    assert changes == training_pb2.TrainingRequest(display_name="longer")


@asynchronous
async def test_aliases_are_set_and_removed() -> None:
    model = model_pb2.Model(name="models/m", aliases=["production"])
    unavailable, gone = refuse(grpc.StatusCode.UNAVAILABLE), refuse(grpc.StatusCode.NOT_FOUND)
    server = FaultyServer(model, unavailable, gone, gone)
    async with connected(server) as client:
        assert await client.set_alias("production", "m") == model
        await client.remove_alias("production")
        with pytest.raises(trainwire_client.NotFoundError):
            await client.remove_alias("production")
        for wrong in (client.set_alias("Production", "m"), client.remove_alias("Production")):
            with pytest.raises(trainwire_client.InvalidRequestError, match="alias"):
                await wrong
    named = model_pb2.SetModelAliasRequest(alias="production", name="models/m")
    nameless = model_pb2.SetModelAliasRequest(alias="production")
    assert server.requests == [named, nameless, nameless, nameless]


@asynchronous
async def test_a_server_that_stops_is_asked_again_when_it_said() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(200)
    detail = any_pb2.Any()
    detail.Pack(retry)
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="stopping", details=[detail])

    async def stopping(_: Any, context: Any) -> None:
        await context.abort_with_status(rpc_status.to_status(status))

    loop = asyncio.get_running_loop()
    server = FaultyServer(stopping, RUNNING, stopping, log(1, end="succeeded"))
    async with connected(server, backoff=Backoff(initial=0.001, maximum=1)) as client:
        began = loop.time()
        await client.get(JOB)
        asked = loop.time()
        assert [event.sequence async for event in client.watch(JOB)] == [1]
        assert min(asked - began, loop.time() - asked) >= 0.2


@asynchronous
async def test_validate_asks_for_validation_only() -> None:
    server, request = FaultyServer(training_pb2.TrainingJob()), sound_request()
    async with connected(server) as client:
        await client.validate(request)
    assert server.requests[0].validate_only
    assert not request.HasField("validate_only")


@asynchronous
async def test_list_goes_through_all_pages_with_its_filters() -> None:
    jobs = [training_pb2.TrainingJob(name=f"jobs/{i}") for i in range(3)]
    server = FaultyServer(
        training_pb2.ListTrainingsResponse(jobs=jobs[:2], next_page_token="more"),
        training_pb2.ListTrainingsResponse(jobs=jobs[2:]),
    )
    failed = training_pb2.JOB_STATE_FAILED
    async with connected(server) as client:
        found = client.list(states=[failed], labels={"team": "a"}, page_size=2)
        assert [job async for job in found] == jobs
    assert [request.page_token for request in server.requests] == ["", "more"]
    for request in server.requests:
        assert (list(request.states), dict(request.labels)) == ([failed], {"team": "a"})


@pytest.mark.parametrize(
    ("resource", "kind"),
    [
        (training_pb2.TrainingJob(name=JOB), training_pb2.DeleteTrainingRequest),
        ("datasets/d", dataset_pb2.DeleteDatasetRequest),
        ("models/m", model_pb2.DeleteModelRequest),
    ],
)
@asynchronous
async def test_what_is_gone_after_a_lost_answer_was_deleted(resource: Any, kind: Any) -> None:
    gone = refuse(grpc.StatusCode.NOT_FOUND)
    server = FaultyServer(refuse(grpc.StatusCode.UNAVAILABLE), gone, gone)
    async with connected(server) as client:
        await client.delete(resource)
        assert server.requests == [kind(name=getattr(resource, "name", resource))] * 2
        with pytest.raises(trainwire_client.NotFoundError):
            await client.delete(resource)


def test_a_client_without_an_event_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        TrainingClient("127.0.0.1:1")


# ------------------------------------------------------------------------ upload


TABLE_BYTES = 4_800_008


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file of `TABLE_BYTES`, which are several chunks."""
    path = tmp_path / "table.csv"
    path.write_text("a,label\n" + "1.5,0\n" * 800_000)
    assert path.stat().st_size == TABLE_BYTES
    return path


async def receive_all(messages: Any, _: Any) -> dataset_pb2.Dataset:
    """Takes the upload as announced."""
    received = [message async for message in messages]
    data = b"".join(message.chunk.data for message in received[1:])
    header = received[0].header
    assert (header.size_bytes, header.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return dataset_pb2.Dataset(name="datasets/d", size_bytes=len(data), format=header.format)


@asynchronous
async def test_upload_sends_all_bytes_and_reads_them_in_threads(table: Path) -> None:
    seen: list[tuple[int, int]] = []
    threads: set[int] = set()

    def report(sent: int, size: int) -> None:
        seen.append((sent, size))
        threads.add(threading.get_ident())

    server = FaultyServer(refuse(grpc.StatusCode.UNAVAILABLE), receive_all)
    async with connected(server) as client:
        dataset = await client.upload(table, on_progress=report)
    assert dataset.size_bytes == TABLE_BYTES
    assert dataset.format == dataset_pb2.DATASET_FORMAT_CSV
    assert seen[-1] == (TABLE_BYTES, TABLE_BYTES)
    assert threading.get_ident() not in threads


@asynchronous
async def test_upload_accepts_an_answer_to_the_header_alone(table: Path) -> None:
    async def known(_: Any, context: Any) -> dataset_pb2.Dataset:
        return dataset_pb2.Dataset(sha256=(await context.read()).header.sha256)

    async with connected(FaultyServer(known)) as client:
        assert len((await client.upload(table)).sha256) == 64


@asynchronous
async def test_a_refusal_amid_an_upload_keeps_its_status(table: Path) -> None:
    async def refuse_header(_: Any, context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk is full")

    tries = 40  # the race that could lose the status is lost in one of twenty
    async with connected(FaultyServer(*[refuse_header] * tries)) as client:
        for _ in range(tries):
            with pytest.raises(trainwire_client.ResourceExhaustedError, match="disk is full"):
                await client.upload(table)


@asynchronous
async def test_an_error_while_reading_ends_the_upload(table: Path) -> None:
    def fail(*_: int) -> None:
        raise ValueError("cannot go on")

    async with connected(FaultyServer(receive_all, RUNNING)) as client:
        with pytest.raises(ValueError, match="cannot go on"):
            await client.upload(table, on_progress=fail)
        assert await client.get(JOB) == RUNNING


@asynchronous
async def test_cancelling_an_upload_cancels_its_call(table: Path) -> None:
    endless = Endless()
    async with connected(FaultyServer(endless)) as client:
        task = asyncio.create_task(client.upload(table))
        await endless.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await endless.cancelled.wait()


# ------------------------------------------------------------------------ download

WEIGHTS = b"weights" * 1000
FILE = model_pb2.ModelFile(
    name="model.safetensors", size_bytes=len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest()
)
MODEL = model_pb2.Model(name="models/m", files=[FILE])
HEAD = model_pb2.DownloadModelResponse(file=FILE)


def body(data: bytes) -> model_pb2.DownloadModelResponse:
    return model_pb2.DownloadModelResponse(chunk=model_pb2.ModelChunk(data=data))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@asynchronous
async def test_download_tries_again_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    broken = refuse(grpc.StatusCode.UNAVAILABLE, HEAD, body(b"weig"))
    server = FaultyServer(MODEL, broken, [HEAD, body(WEIGHTS[:999]), body(WEIGHTS[999:])])
    async with connected(server) as client:
        assert await client.download("m", tmp_path / "new") == tmp_path / "new"
    assert content(tmp_path / "new") == {FILE.name: WEIGHTS}


@asynchronous
async def test_a_damaged_download_leaves_no_file(tmp_path: Path) -> None:
    damaged = [HEAD, body(WEIGHTS[::-1])]
    async with connected(FaultyServer(MODEL, damaged)) as client:
        with pytest.raises(trainwire_client.DataLossError, match="another SHA-256"):
            await client.download("m", tmp_path)
    assert content(tmp_path) == {}


@asynchronous
async def test_a_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    endless = Endless(HEAD, body(b"weig"))
    async with connected(FaultyServer(MODEL, endless)) as client:
        task = asyncio.create_task(client.download("m", tmp_path))
        await endless.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await endless.cancelled.wait()
    assert content(tmp_path) == {}


# ------------------------------------------------------------------------ imports


def test_the_client_is_light() -> None:
    heavy = ["torch", "numpy", "pyarrow", "rich", "typer", "pandas", "safetensors"]
    code = (
        "import sys, trainwire_client; before = 'trainwire_client.aio' in sys.modules;"
        "import trainwire_client.aio;"
        f"print(before, [name for name in {heavy} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "False []\n"

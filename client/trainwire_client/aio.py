"""The client for asyncio: the verbs, arguments, errors and guarantees of the blocking one.

    async with TrainingClient("localhost:50051") as client:
        dataset = await client.upload("prices.csv")
        request = TrainingRequest(dataset=dataset.name)
        request.data.column.name = "label"
        async for event in client.train(request):
            print(event.sequence, event.WhichOneof("event"))

What blocks (hashing and reading files, conversion to Arrow, writing a model's files) is done in
threads; the event loop goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, ExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_client import downloads, tables, uploads
from trainwire_client.backoff import Backoff, Outage
from trainwire_client.channel import DEFAULT_TARGET, Security
from trainwire_client.cursor import Cursor
from trainwire_client.errors import NotFoundError, succeeded, unavailable
from trainwire_client.requests import (
    check,
    deletion,
    refuse_validate_only,
    resource_name,
    resumption,
    validation,
    with_request_id,
)

__all__ = ["TrainingClient"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_PageT = TypeVar("_PageT", bound=_Page)


class TrainingClient:
    """Talks to one trainwire server from one event loop; to be made where the loop is running.

    As `trainwire_client.TrainingClient`, which says what the arguments and errors of each method
    are. Cancelling a task cancels the call it waits for, never the job.

    Args:
        target: ``HOST:PORT`` of the server.
        timeout: seconds a unary call may take, each try.
        retry_for: seconds for which unary calls, uploads and downloads are tried again.
        reconnect_for: seconds for which `watch` tries to reconnect without any success.
        backoff: the waits between tries.
        ca: file of the CAs that the server's certificate may be of, in PEM; None for no TLS.
        cert: file of this client's certificate in PEM, where the server asks for one.
        key: file of its key.
        token_file: file that holds the token, and nothing else; read before every call.
        insecure: whether the token may travel in the clear to another machine.

    Raises:
        RuntimeError: no event loop is running.
        CredentialsError: a file cannot be used, or the token would travel in the clear.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        retry_for: float = 5.0,
        reconnect_for: float = 300.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - immutable
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        token_file: str | os.PathLike[str] | None = None,
        insecure: bool = False,
    ) -> None:
        # Without a running loop grpc.aio would bind the channel to a loop that never runs.
        asyncio.get_running_loop()
        self.target = target
        self._timeout = timeout
        self._retry_for = retry_for
        self._reconnect_for = reconnect_for
        self._backoff = backoff
        self._channel = Security(ca, cert, key, token_file, insecure).aio_channel(target)
        self._trainings = cast(
            "training_pb2_grpc.TrainingServiceAsyncStub",
            training_pb2_grpc.TrainingServiceStub(self._channel),
        )
        self._datasets = cast(
            "dataset_pb2_grpc.DatasetServiceAsyncStub",
            dataset_pb2_grpc.DatasetServiceStub(self._channel),
        )
        self._models = cast(
            "model_pb2_grpc.ModelServiceAsyncStub", model_pb2_grpc.ModelServiceStub(self._channel)
        )
        self._system = cast(
            "system_pb2_grpc.SystemServiceAsyncStub",
            system_pb2_grpc.SystemServiceStub(self._channel),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel the calls on it; jobs go on."""
        await self._channel.close()

    # -------------------------------------------------------------------- trainings

    async def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """Submit a training and return the queued job."""
        return await self._unary(self._trainings.SubmitTraining, with_request_id(request))

    async def validate(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """What `request` would train, found out on its dataset without training."""
        sent = validation(request)
        check(sent)
        return await self._retry(lambda: self._trainings.SubmitTraining(sent))

    def train(
        self, request: training_pb2.TrainingRequest
    ) -> AsyncGenerator[training_pb2.TrainingEvent, None]:
        """Submit a training, then `watch` it from its first event.

        The request is checked at once and submitted when the first event is asked for.
        """
        refuse_validate_only(request)
        sent = with_request_id(request)
        check(sent)
        return self._train(sent)

    async def _train(
        self, request: training_pb2.TrainingRequest
    ) -> AsyncGenerator[training_pb2.TrainingEvent, None]:
        async with aclosing(self.watch(await self.submit(request))) as events:
            async for event in events:
                yield event

    def watch(
        self, job: training_pb2.TrainingJob | str, after_sequence: int = 0
    ) -> AsyncGenerator[training_pb2.TrainingEvent, None]:
        """The events of a job, as they come, up to its terminal one.

        Reconnects by itself and continues after the last event, without duplicate or gap.
        A loop that is left early ends the stream when the iterator is collected; to end it at
        once, hold the iterator in `contextlib.aclosing`.
        """
        request = training_pb2.WatchTrainingRequest(
            name=resource_name("jobs", job), after_sequence=after_sequence
        )
        check(request)
        return self._watch(request)

    async def wait(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Wait until a job has succeeded and return it."""
        async for _ in self.watch(job):
            pass
        return succeeded(await self.get(job))

    async def get(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """One job, as it is now."""
        request = training_pb2.GetTrainingRequest(name=resource_name("jobs", job))
        return await self._unary(self._trainings.GetTraining, request)

    async def cancel(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Tell a job to stop; its events say when it has. A finished job stays as it is."""
        request = training_pb2.CancelTrainingRequest(name=resource_name("jobs", job))
        return await self._unary(self._trainings.CancelTraining, request)

    async def resume(
        self,
        job: training_pb2.TrainingJob | str,
        *,
        epochs: int | None = None,
        changes: training_pb2.TrainingRequest | None = None,
    ) -> training_pb2.TrainingJob:
        """Continue a cancelled or failed job from its last checkpoint, and return the new job."""
        request = resumption(job, epochs, changes)
        return await self._unary(self._trainings.ResumeTraining, request)

    async def list(
        self,
        *,
        states: Iterable[training_pb2.JobState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncGenerator[training_pb2.TrainingJob, None]:
        """Jobs in any of these states with all of these labels, most recently updated first."""
        request = training_pb2.ListTrainingsRequest(
            page_size=page_size, states=states, labels=labels
        )
        async for page in self._pages(self._trainings.ListTrainings, request):
            for job in page.jobs:
                yield job

    # -------------------------------------------------------------------- datasets

    async def upload(
        self, data: Any, *, on_progress: uploads.Progress | None = None
    ) -> dataset_pb2.Dataset:
        """Upload a file, frame or arrays; nothing is sent that the server has already.

        `on_progress` is called from another thread; what it raises ends the upload.
        """
        async with _entered(tables.spool(data)) as spool:
            return await self._retry(lambda: self._upload(spool, on_progress))

    async def _upload(
        self, spool: tables.Spool, on_progress: uploads.Progress | None
    ) -> dataset_pb2.Dataset:
        messages = await _in_thread(uploads.messages, spool, on_progress)
        return await _send(self._datasets.UploadDataset(), messages)

    async def dataset(self, dataset: dataset_pb2.Dataset | str) -> dataset_pb2.Dataset:
        """One dataset and its profile."""
        request = dataset_pb2.GetDatasetRequest(name=resource_name("datasets", dataset))
        return await self._unary(self._datasets.GetDataset, request)

    async def datasets(self, *, page_size: int = 100) -> AsyncGenerator[dataset_pb2.Dataset, None]:
        """All datasets, newest first, fetched page by page."""
        request = dataset_pb2.ListDatasetsRequest(page_size=page_size)
        async for page in self._pages(self._datasets.ListDatasets, request):
            for dataset in page.datasets:
                yield dataset

    # -------------------------------------------------------------------- models

    async def model(self, model: model_pb2.Model | str) -> model_pb2.Model:
        """One model, by id or by alias: its files, classes and test metrics."""
        request = model_pb2.GetModelRequest(name=resource_name("models", model))
        return await self._unary(self._models.GetModel, request)

    async def models(self, *, page_size: int = 100) -> AsyncGenerator[model_pb2.Model, None]:
        """All models, newest first, fetched page by page."""
        request = model_pb2.ListModelsRequest(page_size=page_size)
        async for page in self._pages(self._models.ListModels, request):
            for model in page.models:
                yield model

    async def download(
        self,
        model: model_pb2.Model | str,
        directory: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> Path:
        """Write the files of a model into a directory (made if need be) and return its path."""
        described = await self.model(model)
        folder = await _in_thread(
            downloads.prepare, described.files, directory, overwrite=overwrite
        )
        await self._retry(lambda: self._download(described, folder))
        return folder

    async def _download(self, model: model_pb2.Model, folder: Path) -> None:
        request = model_pb2.DownloadModelRequest(name=model.name)
        async with (
            _entered(downloads.receiver(model.files, folder)) as receiver,
            aclosing(_stream(self._models.DownloadModel(request))) as messages,
        ):
            async for message in messages:
                await _in_thread(receiver.take, message)

    async def set_alias(self, alias: str, model: model_pb2.Model | str) -> model_pb2.Model:
        """Give a model a second name, taken from the model that had it; returns the model."""
        name = resource_name("models", model)
        request = model_pb2.SetModelAliasRequest(alias=alias, name=name)
        return await self._unary(self._models.SetModelAlias, request)

    async def remove_alias(self, alias: str) -> None:
        """Take an alias away from the model that has it; the model stays."""
        request = model_pb2.SetModelAliasRequest(alias=alias)
        check(request)
        await self._remove(self._models.SetModelAlias, request)

    # -------------------------------------------------------------------- deleting

    async def delete(
        self, resource: training_pb2.TrainingJob | dataset_pb2.Dataset | model_pb2.Model | str
    ) -> None:
        """Delete a finished job, a dataset or a model, given as a message or by its full name."""
        request = deletion(resource)
        methods: dict[type[Message], Callable[..., Awaitable[Message]]] = {
            training_pb2.DeleteTrainingRequest: self._trainings.DeleteTraining,
            dataset_pb2.DeleteDatasetRequest: self._datasets.DeleteDataset,
            model_pb2.DeleteModelRequest: self._models.DeleteModel,
        }
        await self._remove(methods[type(request)], request)

    async def _remove(self, method: Callable[..., Awaitable[Message]], request: Message) -> None:
        outage = Outage(self._backoff, self._retry_for)
        try:
            await self._retry(lambda: method(request, timeout=self._timeout), outage)
        except NotFoundError:
            # After a try whose answer was lost, that it is gone is what was asked for.
            if not outage.ongoing:
                raise

    # -------------------------------------------------------------------- the server

    async def info(self) -> system_pb2.SystemInfo:
        """Versions and devices of the server, and the state of its queue."""
        return await self._unary(self._system.GetSystemInfo, system_pb2.GetSystemInfoRequest())

    # -------------------------------------------------------------------- calls

    async def _unary(self, method: Callable[..., Awaitable[_R]], request: Message) -> _R:
        check(request)
        return await self._retry(lambda: method(request, timeout=self._timeout))

    async def _retry(self, call: Callable[[], Awaitable[_R]], outage: Outage | None = None) -> _R:
        outage = outage or Outage(self._backoff, self._retry_for)
        while True:
            try:
                return await call()
            except grpc.RpcError as error:
                delay = outage.delay_after(unavailable(error, self.target))
            await asyncio.sleep(delay)

    async def _pages(
        self, method: Callable[..., Awaitable[_PageT]], request: Any
    ) -> AsyncGenerator[_PageT, None]:
        while True:
            page = await self._unary(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _watch(
        self, request: training_pb2.WatchTrainingRequest
    ) -> AsyncGenerator[training_pb2.TrainingEvent, None]:
        cursor = Cursor(request, self.target, self._backoff, self._reconnect_for)
        while not cursor.finished:
            call = self._trainings.WatchTraining(cursor.next_request())
            try:
                async with aclosing(_stream(call)) as events:
                    async for event in events:
                        if cursor.accept(event):
                            yield event
                        if cursor.finished:
                            return
                # One try: whatever fails here is part of the outage that the cursor counts.
                asked = training_pb2.GetTrainingRequest(name=cursor.job)
                job = await self._trainings.GetTraining(asked, timeout=self._timeout)
                if cursor.nothing_follows(job):
                    return
                delay = cursor.delay_after_end()
            except grpc.RpcError as error:
                delay = cursor.delay_after_error(error)
            await asyncio.sleep(delay)


async def _stream(call: grpc.aio.UnaryStreamCall[Any, _R]) -> AsyncGenerator[_R, None]:
    """The messages of a call, which ends with the loop over them."""
    try:
        async for message in call:
            yield message
    finally:
        call.cancel()


async def _send(
    call: grpc.aio.StreamUnaryCall[dataset_pb2.UploadDatasetRequest, dataset_pb2.Dataset],
    messages: Iterator[dataset_pb2.UploadDatasetRequest],
) -> dataset_pb2.Dataset:
    """Send the messages and return the answer, which may come before all are sent."""
    writing = asyncio.create_task(_write(call, messages))

    def stop_writing(_: Any) -> None:
        writing.cancel()

    # A write that fails because the server has answered already would put a status INTERNAL in
    # place of the server's: it is stopped before it can.
    call.add_done_callback(stop_writing)
    try:
        await asyncio.wait({writing})
        if not writing.cancelled():
            writing.result()
        return await call
    finally:
        writing.cancel()
        call.cancel()
        await asyncio.wait({writing})


async def _write(
    call: grpc.aio.StreamUnaryCall[dataset_pb2.UploadDatasetRequest, dataset_pb2.Dataset],
    messages: Iterator[dataset_pb2.UploadDatasetRequest],
) -> None:
    # A call that has ended says itself how.
    with suppress(grpc.RpcError, asyncio.InvalidStateError):
        while (message := await _in_thread(next, messages, None)) is not None:
            await call.write(message)
        await call.done_writing()


async def _in_thread(function: Callable[_P, _R], *args: _P.args, **options: _P.kwargs) -> _R:
    """Run what blocks in a thread.

    A caller that is cancelled waits for it: a thread cannot be stopped, and what it works with must
    not be closed meanwhile.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **options))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


@asynccontextmanager
async def _entered(manager: AbstractContextManager[_R]) -> AsyncGenerator[_R, None]:
    """A context manager that blocks, entered and left in a thread."""
    stack = ExitStack()
    try:
        yield await _in_thread(stack.enter_context, manager)
    except BaseException as error:
        await _in_thread(stack.__exit__, type(error), error, error.__traceback__)
        raise
    await _in_thread(stack.close)

"""The client: one method per verb, each a call or a stream of calls to the server."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from trainwire import contract
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
from trainwire_client import downloads, tables
from trainwire_client.backoff import Backoff, Outage
from trainwire_client.errors import (
    DataLossError,
    JobCancelledError,
    JobFailedError,
    UnavailableError,
    from_rpc_error,
    invalid_request,
)

__all__ = ["DEFAULT_TARGET", "TERMINAL_EVENTS", "TERMINAL_STATES", "TrainingClient"]

DEFAULT_TARGET = "127.0.0.1:50051"
TERMINAL_EVENTS = ("succeeded", "failed", "cancelled")
TERMINAL_STATES = (
    training_pb2.JOB_STATE_SUCCEEDED,
    training_pb2.JOB_STATE_FAILED,
    training_pb2.JOB_STATE_CANCELLED,
)

_KEEPALIVE_SECONDS = 30
_KEEPALIVE_TIMEOUT_SECONDS = 10
# A stream that stood this long was alive, though no event came: keepalive would have ended it.
_ALIVE_SECONDS = 1.5 * (_KEEPALIVE_SECONDS + _KEEPALIVE_TIMEOUT_SECONDS)
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 1000 * _KEEPALIVE_SECONDS),
    ("grpc.keepalive_timeout_ms", 1000 * _KEEPALIVE_TIMEOUT_SECONDS),
    # A watch may be silent for hours (a queued job): pings go on without data.
    ("grpc.http2.max_pings_without_data", 0),
    # By default a channel tries to connect ever more rarely, up to once in two minutes; `Backoff`
    # decides here when to try.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

_R = TypeVar("_R")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_P = TypeVar("_P", bound=_Page)


class TrainingClient:
    """Talks to one trainwire server; usable as a context manager, from several threads.

    Jobs, datasets and models may be named by their message, their full name (``jobs/abc``) or their
    id (``abc``). Calls that change nothing a second time (all of them: `submit` sends an
    idempotency key) are tried again while the server is UNAVAILABLE. Every method raises the
    exceptions of `trainwire_client.errors`; requests are checked against the contract before they
    are sent.

    Args:
        target: ``HOST:PORT`` of the server.
        timeout: seconds a unary call may take, each try.
        retry_for: seconds for which unary calls, uploads and downloads are tried again.
        reconnect_for: seconds for which `watch` tries to reconnect without any success.
        backoff: the waits between tries.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        retry_for: float = 5.0,
        reconnect_for: float = 300.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - immutable
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._retry_for = retry_for
        self._reconnect_for = reconnect_for
        self._backoff = backoff
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._trainings = training_pb2_grpc.TrainingServiceStub(self._channel)
        self._datasets = dataset_pb2_grpc.DatasetServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._system = system_pb2_grpc.SystemServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; jobs go on."""
        self._channel.close()

    # -------------------------------------------------------------------- trainings

    def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """Submit a training and return the queued job.

        `request` is not changed; a `request_id` is filled in where there is none, so that a try
        whose answer was lost does not become a second job.

        Raises:
            InvalidRequestError: the request breaks the contract (nothing was sent).
            NotFoundError: there is no such dataset.
            FailedPreconditionError: the dataset cannot be trained on like this.
            AlreadyExistsError: the `request_id` was used with other fields.
        """
        sent = training_pb2.TrainingRequest()
        sent.CopyFrom(request)
        if not sent.HasField("request_id"):
            sent.request_id = uuid.uuid4().hex
        return self._unary(self._trainings.SubmitTraining, sent)

    def train(self, request: training_pb2.TrainingRequest) -> Iterator[training_pb2.TrainingEvent]:
        """Submit a training, then `watch` it from its first event. Submits at once."""
        return self.watch(self.submit(request))

    def watch(
        self, job: training_pb2.TrainingJob | str, after_sequence: int = 0
    ) -> Iterator[training_pb2.TrainingEvent]:
        """The events of a job, as they come, up to its terminal one.

        Reconnects by itself and continues after the last event, without duplicate or gap.
        `progress` events are not numbered and may be missing. Leaving the loop ends the stream, not
        the job.

        Args:
            job: the job.
            after_sequence: number of the last event already seen.

        Raises:
            UnavailableError: no success for `reconnect_for` seconds.
            DataLossError: the server left out an event.
            NotFoundError: there is no such job.
            OutOfRangeError: the job has no event `after_sequence`.
        """
        request = training_pb2.WatchTrainingRequest(
            name=_name("jobs", job), after_sequence=after_sequence
        )
        _check(request)
        return self._watch(request)

    def wait(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Wait until a job has succeeded and return it.

        Raises:
            JobFailedError: it failed.
            JobCancelledError: it was cancelled.
        """
        for _ in self.watch(job):
            pass
        finished = self.get(job)
        if finished.state == training_pb2.JOB_STATE_FAILED:
            raise JobFailedError(finished)
        if finished.state == training_pb2.JOB_STATE_CANCELLED:
            raise JobCancelledError(finished)
        return finished

    def get(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """One job, as it is now."""
        request = training_pb2.GetTrainingRequest(name=_name("jobs", job))
        return self._unary(self._trainings.GetTraining, request)

    def cancel(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Tell a job to stop; its events say when it has. A finished job stays as it is."""
        request = training_pb2.CancelTrainingRequest(name=_name("jobs", job))
        return self._unary(self._trainings.CancelTraining, request)

    def list(self, *, page_size: int = 100) -> Iterator[training_pb2.TrainingJob]:
        """All jobs, most recently updated first, fetched page by page."""
        request = training_pb2.ListTrainingsRequest(page_size=page_size)
        for page in self._pages(self._trainings.ListTrainings, request):
            yield from page.jobs

    # -------------------------------------------------------------------- datasets

    def upload(
        self, data: Any, *, on_progress: Callable[[int, int], None] | None = None
    ) -> dataset_pb2.Dataset:
        """Upload a table and return the dataset; nothing is sent that the server has already.

        Args:
            data: path to a Parquet, CSV, Arrow or Feather file, pyarrow Table, pandas or polars
                DataFrame, or mapping of column name -> 1-d NumPy array.
            on_progress: called with the bytes sent and the bytes in all, from another thread.

        Raises:
            UnreadableDataError: the data cannot be read.
            MissingExtraError: pyarrow is not installed.
            BrokenUploadError: what arrived is not what was sent.
        """
        with tables.spool(data) as spool:
            return self._retry(
                lambda: self._datasets.UploadDataset(_upload_messages(spool, on_progress))
            )

    def dataset(self, dataset: dataset_pb2.Dataset | str) -> dataset_pb2.Dataset:
        """One dataset and its profile."""
        request = dataset_pb2.GetDatasetRequest(name=_name("datasets", dataset))
        return self._unary(self._datasets.GetDataset, request)

    def datasets(self, *, page_size: int = 100) -> Iterator[dataset_pb2.Dataset]:
        """All datasets, newest first, fetched page by page."""
        request = dataset_pb2.ListDatasetsRequest(page_size=page_size)
        for page in self._pages(self._datasets.ListDatasets, request):
            yield from page.datasets

    # -------------------------------------------------------------------- models

    def model(self, model: model_pb2.Model | str) -> model_pb2.Model:
        """One model: its files, classes and test metrics."""
        request = model_pb2.GetModelRequest(name=_name("models", model))
        return self._unary(self._models.GetModel, request)

    def models(self, *, page_size: int = 100) -> Iterator[model_pb2.Model]:
        """All models, newest first, fetched page by page."""
        request = model_pb2.ListModelsRequest(page_size=page_size)
        for page in self._pages(self._models.ListModels, request):
            yield from page.models

    def download(
        self,
        model: model_pb2.Model | str,
        directory: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> Path:
        """Write the files of a model into a directory (made if need be) and return its path.

        Sizes and digests are checked; either all files are there at the end, or none was written.

        Raises:
            FileExistsError: a file is there already and `overwrite` is false.
            DataLossError: what arrived is not what was announced, or would lead out of `directory`.
        """
        described, folder = self.model(model), Path(directory)
        downloads.check_names(described.files, folder, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        request = model_pb2.DownloadModelRequest(name=described.name)
        self._retry(
            lambda: downloads.receive(
                _stream(self._models.DownloadModel(request)), described.files, folder
            )
        )
        return folder

    # -------------------------------------------------------------------- the server

    def info(self) -> system_pb2.SystemInfo:
        """Versions and devices of the server, and the state of its queue."""
        return self._unary(self._system.GetSystemInfo, system_pb2.GetSystemInfoRequest())

    # -------------------------------------------------------------------- calls

    def _unary(self, method: Callable[..., _R], request: Message) -> _R:
        _check(request)
        return self._retry(lambda: method(request, timeout=self._timeout))

    def _retry(self, call: Callable[[], _R]) -> _R:
        outage = Outage(self._backoff, self._retry_for)
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.target)
                delay = outage.next_delay() if isinstance(failure, UnavailableError) else None
                if delay is None:
                    raise failure from error
            time.sleep(delay)

    def _pages(self, method: Callable[..., _P], request: Any) -> Iterator[_P]:
        while True:
            page = self._unary(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _watch(
        self, request: training_pb2.WatchTrainingRequest
    ) -> Iterator[training_pb2.TrainingEvent]:
        cursor = _Cursor(request.after_sequence)
        outage = Outage(self._backoff, self._reconnect_for)
        while not cursor.finished:
            connected = time.monotonic()
            try:
                for event in _stream(self._trainings.WatchTraining(request)):
                    outage.end()
                    if cursor.accept(event):
                        yield event
                    if cursor.finished:
                        return
                if self._nothing_follows(request.name, cursor.sequence):
                    return
                outage.answered()
                failure = UnavailableError(f"the server ended the stream of {request.name}")
            except grpc.RpcError as error:
                failure = _only_unavailable(error, self.target)
                if time.monotonic() - connected > _ALIVE_SECONDS:
                    outage.end()
            self._pause(outage, failure, request.name, cursor.sequence)
            request.after_sequence = cursor.sequence

    def _nothing_follows(self, name: str, sequence: int) -> bool:
        """Whether the caller had already seen the terminal event when it began to watch."""
        job = self.get(name)
        return job.state in TERMINAL_STATES and job.last_sequence <= sequence

    def _pause(self, outage: Outage, failure: UnavailableError, job: str, sequence: int) -> None:
        delay = outage.next_delay()
        if delay is None:
            failure.message += (
                f"\ngave up after {self._reconnect_for:g} s without success; {job} may go on: "
                f"watch it again after event {sequence}"
            )
            raise failure
        time.sleep(delay)


class _Cursor:
    """Where a watcher is in the log of a job."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.finished = False

    def accept(self, event: training_pb2.TrainingEvent) -> bool:
        """Whether the event is news; moves on to it.

        Raises:
            DataLossError: events before it are missing.
        """
        if event.WhichOneof("event") == "progress":
            return True
        if event.sequence <= self.sequence:
            return False
        if event.sequence > self.sequence + 1:
            raise DataLossError(
                f"{event.job}: event {event.sequence} came after event {self.sequence}: "
                "events between the two are missing",
                grpc.StatusCode.DATA_LOSS,
            )
        self.sequence = event.sequence
        self.finished = event.WhichOneof("event") in TERMINAL_EVENTS
        return True


def _stream(call: Any) -> Iterator[Any]:
    """The messages of a call, which ends with the loop over them."""
    try:
        yield from call
    finally:
        call.cancel()


def _only_unavailable(error: grpc.RpcError, target: str) -> UnavailableError:
    """The failure, if reconnecting may help; raises it if not."""
    failure = from_rpc_error(error, target)
    if not isinstance(failure, UnavailableError):
        raise failure from error
    return failure


def _check(request: Message) -> None:
    violations = contract.violations(request)
    if violations:
        raise invalid_request(violations)


def _name(collection: str, resource: Message | str) -> str:
    """Full resource name of a message, a full name or a bare id."""
    given: str = resource if isinstance(resource, str) else getattr(resource, "name", "")
    name = given if "/" in given else f"{collection}/{given}"
    if not name.startswith(f"{collection}/") or name == f"{collection}/":
        problem = f"{given!r} is not allowed; allowed: {collection}/ID, or ID alone"
        raise invalid_request([contract.Violation("name", problem)])
    return name


def _upload_messages(
    spool: tables.Spool, on_progress: Callable[[int, int], None] | None
) -> Iterator[dataset_pb2.UploadDatasetRequest]:
    header = dataset_pb2.DatasetHeader(
        format=dataset_pb2.DATASET_FORMAT_ARROW, size_bytes=spool.size_bytes, sha256=spool.sha256
    )
    return _upload(header, spool.chunks(), on_progress)


def _upload(
    header: dataset_pb2.DatasetHeader,
    chunks: Iterable[bytes],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[dataset_pb2.UploadDatasetRequest]:
    yield dataset_pb2.UploadDatasetRequest(header=header)
    sent = 0
    for chunk in chunks:
        yield dataset_pb2.UploadDatasetRequest(chunk=dataset_pb2.DatasetChunk(data=chunk))
        sent += len(chunk)
        if on_progress is not None:
            on_progress(sent, header.size_bytes)

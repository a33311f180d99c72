"""The client: one method per verb, each a call or a stream of calls to the server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

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
from trainwire_client.cursor import TERMINAL_EVENTS, TERMINAL_STATES, Cursor
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

__all__ = ["DEFAULT_TARGET", "TERMINAL_EVENTS", "TERMINAL_STATES", "TrainingClient"]

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
        ca: file of the CAs that the server's certificate may be of, in PEM; None for no TLS.
        cert: file of this client's certificate in PEM, where the server asks for one.
        key: file of its key.
        token_file: file that holds the token, and nothing else; read before every call.
        insecure: whether the token may travel in the clear to another machine.

    Raises:
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
        self.target = target
        self._timeout = timeout
        self._retry_for = retry_for
        self._reconnect_for = reconnect_for
        self._backoff = backoff
        self._channel = Security(ca, cert, key, token_file, insecure).channel(target)
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
            QueueFullError: as many jobs wait as may wait.
            QuotaExceededError: as many of this tenant's do, or it stores as much as it may.
            StorageFullError: the server's disk is full.
        """
        return self._unary(self._trainings.SubmitTraining, with_request_id(request))

    def validate(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """What `request` would train, found out on its dataset without training.

        The answer is a job without a name, which is stored nowhere: its `plan` has counts, splits,
        parameters, device and an estimate of memory, beside `request` (effective), `set_fields` and
        `warnings`. It takes as long as reading the dataset does. `request` is not changed.

        Raises:
            InvalidRequestError: the request breaks the contract (nothing was sent).
            NotFoundError: there is no such dataset.
            FailedPreconditionError: the job would be refused, or would fail; `reason` says why.
        """
        sent = validation(request)
        check(sent)
        return self._retry(lambda: self._trainings.SubmitTraining(sent))

    def train(self, request: training_pb2.TrainingRequest) -> Iterator[training_pb2.TrainingEvent]:
        """Submit a training, then `watch` it from its first event. Submits at once."""
        refuse_validate_only(request)
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
            QuotaExceededError: this tenant has as many watches open as it may.
        """
        request = training_pb2.WatchTrainingRequest(
            name=resource_name("jobs", job), after_sequence=after_sequence
        )
        check(request)
        return self._watch(request)

    def wait(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Wait until a job has succeeded and return it.

        Raises:
            JobFailedError: it failed.
            JobCancelledError: it was cancelled.
        """
        for _ in self.watch(job):
            pass
        return succeeded(self.get(job))

    def get(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """One job, as it is now."""
        request = training_pb2.GetTrainingRequest(name=resource_name("jobs", job))
        return self._unary(self._trainings.GetTraining, request)

    def cancel(self, job: training_pb2.TrainingJob | str) -> training_pb2.TrainingJob:
        """Tell a job to stop; its events say when it has. A finished job stays as it is."""
        request = training_pb2.CancelTrainingRequest(name=resource_name("jobs", job))
        return self._unary(self._trainings.CancelTraining, request)

    def resume(
        self,
        job: training_pb2.TrainingJob | str,
        *,
        epochs: int | None = None,
        changes: training_pb2.TrainingRequest | None = None,
    ) -> training_pb2.TrainingJob:
        """Continue a cancelled or failed job from its last checkpoint, and return the new job.

        The old job and its events stay as they are; `resumed_from` of the new one names it. A
        `request_id` is filled in where `changes` has none, as `submit` does.

        Args:
            job: the job to continue.
            epochs: epochs at most, those of the old job included: `trainer.epochs` of `changes`.
            changes: a request in which only what is to be different is set: `trainer.epochs`,
                `request_id`, `display_name`, `labels`. It is not changed.

        Raises:
            InvalidRequestError: `changes` breaks the contract, or has what may not change
                (``changes.trainer.learning_rate``); every such field is named.
            NotFoundError: there is no such job.
            JobNotResumableError: the job has not ended, or has succeeded, or has no checkpoint.
            AlreadyExistsError: the `request_id` was used for another job.
            QueueFullError: as many jobs wait as may wait.
            QuotaExceededError: as many of this tenant's do, or it stores as much as it may.
        """
        return self._unary(self._trainings.ResumeTraining, resumption(job, epochs, changes))

    def list(
        self,
        *,
        states: Iterable[training_pb2.JobState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[training_pb2.TrainingJob]:
        """Jobs, most recently updated first, fetched page by page.

        Args:
            states: only jobs in one of these states; empty means any.
            labels: only jobs that have all of these labels.
            page_size: number of jobs fetched at a time.
        """
        request = training_pb2.ListTrainingsRequest(
            page_size=page_size, states=states, labels=labels
        )
        for page in self._pages(self._trainings.ListTrainings, request):
            yield from page.jobs

    # -------------------------------------------------------------------- datasets

    def upload(
        self, data: Any, *, on_progress: Callable[[int, int], None] | None = None
    ) -> dataset_pb2.Dataset:
        """Upload a table and return the dataset; nothing is sent that the server has already.

        A file is sent as it is, byte by byte; frames, arrays and labelled series are sent as Arrow,
        which needs pyarrow (the extra `data`).

        Args:
            data: path to a Parquet, CSV, Arrow or Feather file, pyarrow Table, pandas or polars
                DataFrame, or mapping of column name -> NumPy array: [n] a value in each row,
                [n, time] a series in each row, [n, channels, time] the channels NAME_0, NAME_1...
                of series; or path to a file of labelled series (.ts, UCR .tsv), or two paths,
                A_TRAIN and A_TEST.
            on_progress: called with the bytes sent and the bytes in all, from another thread.

        Raises:
            UnreadableDataError: there is no such file, or it is none of these.
            MissingExtraError: it is not a file sent as it is, and pyarrow is not installed.
            BrokenUploadError: the server cannot read it; the message says where.
            StorageFullError: the server's disk has no room for it.
            QuotaExceededError: this tenant would store more than it may.
        """
        with tables.spool(data) as spool:
            return self._retry(
                lambda: self._datasets.UploadDataset(uploads.messages(spool, on_progress))
            )

    def dataset(self, dataset: dataset_pb2.Dataset | str) -> dataset_pb2.Dataset:
        """One dataset and its profile."""
        request = dataset_pb2.GetDatasetRequest(name=resource_name("datasets", dataset))
        return self._unary(self._datasets.GetDataset, request)

    def datasets(self, *, page_size: int = 100) -> Iterator[dataset_pb2.Dataset]:
        """All datasets, newest first, fetched page by page."""
        request = dataset_pb2.ListDatasetsRequest(page_size=page_size)
        for page in self._pages(self._datasets.ListDatasets, request):
            yield from page.datasets

    # -------------------------------------------------------------------- models

    def model(self, model: model_pb2.Model | str) -> model_pb2.Model:
        """One model, by id or by alias: its files, classes and test metrics."""
        request = model_pb2.GetModelRequest(name=resource_name("models", model))
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
        They are those of one model, though the alias that named it be moved meanwhile.

        Raises:
            FileExistsError: a file is there already and `overwrite` is false.
            DataLossError: what arrived is not what was announced, or would lead out of `directory`.
        """
        described = self.model(model)
        folder = downloads.prepare(described.files, directory, overwrite=overwrite)
        self._retry(lambda: self._download(described, folder))
        return folder

    def _download(self, model: model_pb2.Model, folder: Path) -> None:
        request = model_pb2.DownloadModelRequest(name=model.name)
        with downloads.receiver(model.files, folder) as receiver:
            for message in _stream(self._models.DownloadModel(request)):
                receiver.take(message)

    def set_alias(self, alias: str, model: model_pb2.Model | str) -> model_pb2.Model:
        """Give a model a second name, taken from the model that had it; returns the model.

        With the alias ``production`` it is also ``models/production``, for every method that takes
        a model. A model that has an alias is not deleted.

        Args:
            alias: lower-case letters, digits and hyphens, a letter first.
            model: the model, by id or by another alias.

        Raises:
            InvalidRequestError: the alias is not allowed, or names a model by its id.
            NotFoundError: there is no such model.
        """
        name = resource_name("models", model)
        request = model_pb2.SetModelAliasRequest(alias=alias, name=name)
        return self._unary(self._models.SetModelAlias, request)

    def remove_alias(self, alias: str) -> None:
        """Take an alias away from the model that has it; the model stays.

        Raises:
            InvalidRequestError: it is no alias.
            NotFoundError: no model has it.
        """
        request = model_pb2.SetModelAliasRequest(alias=alias)
        check(request)
        self._remove(self._models.SetModelAlias, request)

    # -------------------------------------------------------------------- deleting

    def delete(
        self, resource: training_pb2.TrainingJob | dataset_pb2.Dataset | model_pb2.Model | str
    ) -> None:
        """Delete a finished job, a dataset or a model, given as a message or by its full name.

        A job takes its events with it, but not its model.

        Raises:
            InvalidRequestError: it is no full name; an id alone could be any of the three.
            NotFoundError: it does not exist.
            FailedPreconditionError: the job has not ended, or jobs refer to the dataset.
            ModelInUseError: the model has an alias.
        """
        request = deletion(resource)
        methods: dict[type[Message], Callable[..., Message]] = {
            training_pb2.DeleteTrainingRequest: self._trainings.DeleteTraining,
            dataset_pb2.DeleteDatasetRequest: self._datasets.DeleteDataset,
            model_pb2.DeleteModelRequest: self._models.DeleteModel,
        }
        self._remove(methods[type(request)], request)

    def _remove(self, method: Callable[..., Message], request: Message) -> None:
        outage = Outage(self._backoff, self._retry_for)
        try:
            self._retry(lambda: method(request, timeout=self._timeout), outage)
        except NotFoundError:
            # After a try whose answer was lost, that it is gone is what was asked for.
            if not outage.ongoing:
                raise

    # -------------------------------------------------------------------- the server

    def info(self) -> system_pb2.SystemInfo:
        """Versions and devices of the server, and the state of its queue."""
        return self._unary(self._system.GetSystemInfo, system_pb2.GetSystemInfoRequest())

    # -------------------------------------------------------------------- calls

    def _unary(self, method: Callable[..., _R], request: Message) -> _R:
        check(request)
        return self._retry(lambda: method(request, timeout=self._timeout))

    def _retry(self, call: Callable[[], _R], outage: Outage | None = None) -> _R:
        outage = outage or Outage(self._backoff, self._retry_for)
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                delay = outage.delay_after(unavailable(error, self.target))
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
        cursor = Cursor(request, self.target, self._backoff, self._reconnect_for)
        while not cursor.finished:
            try:
                for event in _stream(self._trainings.WatchTraining(cursor.next_request())):
                    if cursor.accept(event):
                        yield event
                    if cursor.finished:
                        return
                # One try: whatever fails here is part of the outage that the cursor counts.
                asked = training_pb2.GetTrainingRequest(name=cursor.job)
                job = self._trainings.GetTraining(asked, timeout=self._timeout)
                if cursor.nothing_follows(job):
                    return
                delay = cursor.delay_after_end()
            except grpc.RpcError as error:
                delay = cursor.delay_after_error(error)
            time.sleep(delay)


def _stream(call: Any) -> Iterator[Any]:
    """The messages of a call, which ends with the loop over them."""
    try:
        yield from call
    finally:
        call.cancel()

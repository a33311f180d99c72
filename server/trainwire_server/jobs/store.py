"""Jobs, their numbered events, datasets, models and their aliases, in SQLite.

One connection does all the work, in one thread of its own, so that the event loop never waits for
the disk and writes never meet. A write is on the disk before it returns (synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_server.errors import InvalidRequest, ModelInUse, NotFound, listed
from trainwire_server.jobs import database
from trainwire_server.jobs.database import transaction
from trainwire_server.jobs.finish import finish
from trainwire_server.meters import Meters

_P = ParamSpec("_P")
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

_SQL = database.read_blocks(Path(__file__).with_suffix(".sql"))
_FIRST_PAGE = 2**62
_PAGE_BYTES = 1_000_000
"""A page that would be larger ends early: gRPC holds twice as much until it has been read."""
_NAMED_ALIASES = 5


class Store:
    """The database of one server.

    Whatever writes raises StorageFull when there is no room, and has then written nothing.
    """

    def __init__(self, path: Path, meters: Meters | None = None) -> None:
        self._meters = meters or Meters()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            self._connection = self._thread.submit(database.connect, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def close(self) -> None:
        """Finish what was begun and close the database."""
        await self._call(sqlite3.Connection.close)
        self._thread.shutdown()

    async def _call(
        self,
        function: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            self._thread, lambda: function(self._connection, *args, **kwargs)
        )
        return await finish(work)

    async def _write(
        self,
        function: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Call a function that is one transaction, from its begin to the disk."""

        def timed(connection: sqlite3.Connection) -> _T:
            begun = time.perf_counter()
            result = function(connection, *args, **kwargs)
            self._meters.transaction_ended(time.perf_counter() - begun)
            return result

        return await self._call(timed)

    # -------------------------------------------------------------------- jobs

    async def create_job(
        self,
        job: training_pb2.TrainingJob,
        request: training_pb2.TrainingRequest,
        events: Sequence[training_pb2.TrainingEvent],
    ) -> None:
        """Store a new job with the first events of its log."""
        await self._write(_create_job, job, request, events)

    async def save(
        self,
        job: training_pb2.TrainingJob,
        event: training_pb2.TrainingEvent | None = None,
        model: model_pb2.Model | None = None,
    ) -> None:
        """Store a changed job, with the event that changed it and the model it made."""
        await self._write(_save, job, event, model)

    async def job(self, name: str) -> training_pb2.TrainingJob | None:
        """The job of this name, or None."""
        return await self._call(_select, "select_job", name, training_pb2.TrainingJob)

    async def submitted(
        self, name: str
    ) -> tuple[training_pb2.TrainingRequest, training_pb2.TrainingJob] | None:
        """The request that a job was made of, as it came, and the job."""
        return await self._call(_request_and_job, "select_submitted", {"id": _id(name)})

    async def job_by_request_id(
        self, request_id: str
    ) -> tuple[training_pb2.TrainingRequest, training_pb2.TrainingJob] | None:
        """The request that came with this idempotency key, and its job."""
        key = {"request_id": request_id}
        return await self._call(_request_and_job, "select_job_by_request_id", key)

    async def jobs(
        self,
        before: int | None,
        limit: int,
        states: Sequence[training_pb2.JobState.ValueType] = (),
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[list[training_pb2.TrainingJob], int | None]:
        """A page of jobs, most recently updated first, and where the next page begins.

        Args:
            before: where the page begins; None at the newest.
            limit: jobs at most; fewer if they are large.
            states: only jobs in one of them; empty for any.
            labels: only jobs that have them all.
        """
        filters = {"states": json.dumps(list(states)), "labels": json.dumps(dict(labels))}
        kind = training_pb2.TrainingJob
        return await self._call(_page, "list_jobs", kind, before, limit, filters)

    async def delete_job(self, name: str) -> None:
        """Delete a job with its events."""
        await self._write(_delete, "delete_job", name)

    async def delete_job_and_model(self, job: training_pb2.TrainingJob) -> bool:
        """Delete a job with its events and its model, unless that has an alias; whether it did."""
        return await self._write(_delete_job_and_model, job)

    async def event_bytes(self, name: str) -> int:
        """What the events of a job take."""
        return await self._call(_event_bytes, name)

    async def jobs_in_states(
        self, *states: training_pb2.JobState.ValueType
    ) -> list[training_pb2.TrainingJob]:
        """All jobs in one of the states, in the order they were submitted."""
        return await self._call(_jobs_in_states, states)

    async def events(self, name: str, after: int, limit: int) -> list[training_pb2.TrainingEvent]:
        """Up to `limit` events of a job with a sequence number above `after`, in order."""
        return await self._call(_events, name, after, limit)

    # -------------------------------------------------------------------- datasets and models

    async def add_dataset(self, dataset: dataset_pb2.Dataset) -> None:
        """Store a dataset's description; one that is there already stays as it is."""
        await self._write(_insert, "insert_dataset", dataset)

    async def jobs_of_dataset(self, name: str, limit: int) -> list[str]:
        """Names of the first jobs that refer to a dataset."""
        return await self._call(_jobs_of_dataset, name, limit)

    async def jobs_of_datasets(self) -> dict[str, int]:
        """Number of jobs that refer to each dataset any job refers to."""
        return await self._call(_jobs_of_datasets)

    async def delete_dataset(self, name: str) -> None:
        """Delete a dataset's description."""
        await self._write(_delete, "delete_dataset", name)

    async def dataset(self, name: str) -> dataset_pb2.Dataset | None:
        """The dataset of this name, or None."""
        return await self._call(_select, "select_dataset", name, dataset_pb2.Dataset)

    async def datasets(
        self, before: int | None, limit: int
    ) -> tuple[list[dataset_pb2.Dataset], int | None]:
        """A page of datasets, newest first, and where the next page begins."""
        return await self._call(_page, "list_datasets", dataset_pb2.Dataset, before, limit)

    async def delete_model(self, name: str) -> None:
        """Delete a model's description.

        Raises:
            ModelInUse: it has an alias.
        """
        await self._write(_delete_model, name)

    async def model(self, name: str) -> model_pb2.Model | None:
        """The model of this name, by id or else by alias, or None."""
        return await self._call(_model, name)

    async def set_alias(self, alias: str, name: str | None) -> model_pb2.Model:
        """Give a model an alias, which another one may have had; None takes it away.

        Args:
            name: of the model, by id or else by alias.

        Returns:
            The model that has the alias now, or had it last.

        Raises:
            NotFound: no such model; or no such alias to take away.
            InvalidRequest: the alias is the id of a model.
        """
        return await self._write(_set_alias, alias, name)

    async def aliased_models(self) -> set[str]:
        """Names of the models that have an alias."""
        return await self._call(_aliased_models)

    async def models(
        self, before: int | None, limit: int
    ) -> tuple[list[model_pb2.Model], int | None]:
        """A page of models, newest first, and where the next page begins."""
        return await self._call(_page, "list_models", model_pb2.Model, before, limit)

    # -------------------------------------------------------------------- all of it

    async def names(self) -> set[str]:
        """Names of all jobs, datasets and models."""
        return await self._call(_names)

    async def used_bytes(self) -> int:
        """Bytes that the rows take; the file is larger by what deleted ones took, and its log."""
        return await self._call(_used_bytes)


# ------------------------------------------------------------------------ in the store's thread


def _id(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def _create_job(
    connection: sqlite3.Connection,
    job: training_pb2.TrainingJob,
    request: training_pb2.TrainingRequest,
    events: Sequence[training_pb2.TrainingEvent],
) -> None:
    row = {
        **_job_row(job),
        "request_id": request.request_id or None,
        "dataset": request.dataset,
        "request": request.SerializeToString(),
    }
    with transaction(connection):
        connection.execute(_SQL["insert_job"], row)
        connection.executemany(_SQL["insert_label"], _label_rows(job))
        connection.executemany(_SQL["insert_event"], [_event_row(event) for event in events])


def _save(
    connection: sqlite3.Connection,
    job: training_pb2.TrainingJob,
    event: training_pb2.TrainingEvent | None,
    model: model_pb2.Model | None,
) -> None:
    with transaction(connection):
        connection.execute(_SQL["update_job"], _job_row(job))
        if event is not None:
            connection.execute(_SQL["insert_event"], _event_row(event))
        if model is not None:
            connection.execute(_SQL["insert_model"], _row(model))


def _job_row(job: training_pb2.TrainingJob) -> dict[str, Any]:
    return {"id": _id(job.name), "state": job.state, "body": job.SerializeToString()}


def _label_rows(job: training_pb2.TrainingJob) -> list[dict[str, Any]]:
    return [{"job": _id(job.name), "key": key, "value": value} for key, value in job.labels.items()]


def _event_row(event: training_pb2.TrainingEvent) -> dict[str, Any]:
    return {
        "job": _id(event.job),
        "sequence": event.sequence,
        "epoch": event.epoch.epoch if event.HasField("epoch") else None,
        "body": event.SerializeToString(),
    }


def _row(resource: dataset_pb2.Dataset | model_pb2.Model) -> dict[str, Any]:
    return {"id": _id(resource.name), "body": resource.SerializeToString()}


def _insert(
    connection: sqlite3.Connection, block: str, resource: dataset_pb2.Dataset | model_pb2.Model
) -> None:
    with transaction(connection):
        connection.execute(_SQL[block], _row(resource))


def _select(connection: sqlite3.Connection, block: str, name: str, kind: type[_M]) -> _M | None:
    row = connection.execute(_SQL[block], {"id": _id(name)}).fetchone()
    return None if row is None else kind.FromString(row[0])


def _delete(connection: sqlite3.Connection, block: str, name: str) -> None:
    with transaction(connection):
        connection.execute(_SQL[block], {"id": _id(name)})


def _delete_job_and_model(connection: sqlite3.Connection, job: training_pb2.TrainingJob) -> bool:
    with transaction(connection):
        if job.model and _aliases(connection, job.model):
            return False
        connection.execute(_SQL["delete_model"], {"id": _id(job.model)})
        connection.execute(_SQL["delete_job"], {"id": _id(job.name)})
    return True


def _page(
    connection: sqlite3.Connection,
    block: str,
    kind: type[_M],
    before: int | None,
    limit: int,
    filters: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[_M], int | None]:
    bounds = {"before": _FIRST_PAGE if before is None else before, "limit": limit + 1}
    page: list[_M] = []
    size, last = 0, None
    for rank, *row in connection.execute(_SQL[block], {**bounds, **filters}):
        size += sum(map(len, row))
        if page and (len(page) == limit or size > _PAGE_BYTES):
            return page, last
        page.append(_read(kind, *row))
        last = rank
    return page, None


def _read(kind: type[_M], body: bytes, aliases: str = "") -> _M:
    """A resource as it is stored; a model with its aliases, which are stored beside it."""
    resource = kind.FromString(body)
    if isinstance(resource, model_pb2.Model):
        resource.aliases[:] = sorted(json.loads(aliases))
    return resource


def _model(connection: sqlite3.Connection, name: str) -> model_pb2.Model | None:
    row = connection.execute(_SQL["select_model"], {"id": _id(name)}).fetchone()
    return None if row is None else _read(model_pb2.Model, *row)


def _aliases(connection: sqlite3.Connection, name: str) -> list[str]:
    model = _model(connection, name)
    return list(model.aliases) if model is not None and model.name == name else []


def _delete_model(connection: sqlite3.Connection, name: str) -> None:
    with transaction(connection):
        aliases = _aliases(connection, name)
        if aliases:
            raise ModelInUse(
                f"{name} has the alias {listed(aliases, _NAMED_ALIASES)}; "
                "give it to another model or remove it first"
            )
        connection.execute(_SQL["delete_model"], {"id": _id(name)})


def _set_alias(connection: sqlite3.Connection, alias: str, name: str | None) -> model_pb2.Model:
    with transaction(connection):
        if name is None:
            return _remove_alias(connection, alias)
        _refuse_id(connection, alias)
        model = _existing_model(connection, name)
        connection.execute(_SQL["set_alias"], {"alias": alias, "model": _id(model.name)})
        return _existing_model(connection, model.name)


def _remove_alias(connection: sqlite3.Connection, alias: str) -> model_pb2.Model:
    row = connection.execute(_SQL["select_alias"], {"alias": alias}).fetchone()
    if row is None:
        raise NotFound(f"no model has the alias {alias}")
    connection.execute(_SQL["delete_alias"], {"alias": alias})
    return _existing_model(connection, f"models/{row[0]}")


def _refuse_id(connection: sqlite3.Connection, alias: str) -> None:
    if connection.execute(_SQL["is_model_id"], {"id": alias}).fetchone():
        description = f"models/{alias} is a model's own name; allowed: any other alias"
        violation = contract.Violation("alias", description)
        raise InvalidRequest(str(violation), (violation,))


def _existing_model(connection: sqlite3.Connection, name: str) -> model_pb2.Model:
    model = _model(connection, name)
    if model is None:
        raise NotFound(f"{name} does not exist")
    return model


def _aliased_models(connection: sqlite3.Connection) -> set[str]:
    return {f"models/{identity}" for (identity,) in connection.execute(_SQL["list_aliased_models"])}


def _request_and_job(
    connection: sqlite3.Connection, block: str, key: dict[str, str]
) -> tuple[training_pb2.TrainingRequest, training_pb2.TrainingJob] | None:
    found = connection.execute(_SQL[block], key).fetchone()
    if found is None:
        return None
    request, body = found
    return (
        training_pb2.TrainingRequest.FromString(request),
        training_pb2.TrainingJob.FromString(body),
    )


def _jobs_of_dataset(connection: sqlite3.Connection, name: str, limit: int) -> list[str]:
    bounds = {"dataset": name, "limit": limit}
    rows = connection.execute(_SQL["list_jobs_of_dataset"], bounds)
    return [f"jobs/{identity}" for (identity,) in rows]


def _jobs_in_states(
    connection: sqlite3.Connection, states: tuple[training_pb2.JobState.ValueType, ...]
) -> list[training_pb2.TrainingJob]:
    rows = connection.execute(_SQL["list_jobs_in_states"], {"states": json.dumps(states)})
    return [training_pb2.TrainingJob.FromString(body) for (body,) in rows]


def _events(
    connection: sqlite3.Connection, name: str, after: int, limit: int
) -> list[training_pb2.TrainingEvent]:
    bounds = {"job": _id(name), "after": after, "limit": limit}
    rows = connection.execute(_SQL["list_events"], bounds)
    return [training_pb2.TrainingEvent.FromString(body) for (body,) in rows]


def _jobs_of_datasets(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute(_SQL["count_jobs_of_datasets"]).fetchall())


def _event_bytes(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(_SQL["sum_events"], {"id": _id(name)}).fetchone()[0])


def _names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute(_SQL["list_ids"])}


def _used_bytes(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_SQL["count_used_bytes"]).fetchone()[0])

"""What any user of the Python clients does, done with the blocking and with the asyncio one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import trainwire_client
import trainwire_client.aio
from trainwire.v1 import dataset_pb2, training_pb2

RequestFor = Callable[..., training_pb2.TrainingRequest]
Columns = dict[str, Any]
END = object()

FORMATS = {
    "csv": (dataset_pb2.DATASET_FORMAT_CSV, pa.csv.write_csv),
    "parquet": (dataset_pb2.DATASET_FORMAT_PARQUET, pa.parquet.write_table),
}


class Driven:
    """The asyncio client, each of its verbs driven to its end by an event loop."""

    def __init__(self, server: Any, runner: asyncio.Runner) -> None:
        async def connect() -> trainwire_client.aio.TrainingClient:
            return trainwire_client.aio.TrainingClient(server.address, **server.credentials)

        self._runner = runner
        self._client = runner.run(connect())

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            answer = getattr(self._client, verb)(*arguments, **options)
            if isinstance(answer, AsyncGenerator):
                return self._iterate(answer)
            return self._runner.run(answer)

        return call

    def _iterate(self, items: AsyncGenerator[Any, None]) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(items, END)

        try:
            while (item := self._runner.run(step())) is not END:
                yield item
        finally:
            self._runner.run(items.aclose())


@pytest.fixture(scope="module", params=["blocking", "asyncio"])
def user(request: pytest.FixtureRequest, server: Any) -> Iterator[Any]:
    """A client of the shared server, of either kind."""
    if request.param == "blocking":
        with server.client() as client:
            yield client
        return
    with asyncio.Runner() as runner, closing(Driven(server, runner)) as driven:
        yield driven


def stored(events: Iterator[training_pb2.TrainingEvent]) -> list[training_pb2.TrainingEvent]:
    return [event for event in events if event.WhichOneof("event") != "progress"]


# ------------------------------------------------------------------------ from a file to a model


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_becomes_a_model(
    user: Any,
    suffix: str,
    tmp_path: Path,
    columns: Callable[..., Columns],
    small: RequestFor,
) -> None:
    kind, write = FORMATS[suffix]
    path = tmp_path / f"table.{suffix}"
    write(pa.table(columns()), path)
    dataset = user.upload(path)
    assert (dataset.format, dataset.row_count) == (kind, 400)
    assert dataset.size_bytes == path.stat().st_size
    assert [column.name for column in dataset.columns] == list(columns())
    assert user.upload(path) == user.dataset(dataset) == dataset
    assert dataset.name in {other.name for other in user.datasets(page_size=2)}

    events = stored(user.train(small(dataset.name)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["queued", "started", "epoch", "epoch", "epoch", "succeeded"]
    assert [event.sequence for event in events] == list(range(1, 7))

    job = user.wait(events[0].job)
    model = user.model(events[-1].succeeded.model)
    assert job.model == model.name
    assert model.name in {other.name for other in user.models(page_size=2)}
    folder = user.download(model, tmp_path / "model")
    assert {file.name: file.size_bytes for file in model.files} == {
        file.name: file.stat().st_size for file in folder.iterdir()
    }


def test_a_request_is_validated_without_a_job(user: Any, request_for: RequestFor) -> None:
    before = {job.name for job in user.list()}
    checked = user.validate(request_for(epochs=2))
    assert checked.name == ""
    assert checked.request.trainer.epochs == 2
    assert list(checked.plan.started.class_names) == ["0", "1"]
    assert checked.plan.started.train.windows > checked.plan.started.test.windows > 0
    assert {job.name for job in user.list()} == before


# ------------------------------------------------------------------------ jobs


def test_a_stream_is_resumed_from_its_middle(user: Any, request_for: RequestFor) -> None:
    job = user.submit(request_for())
    seen = []
    with closing(user.watch(job)) as events:
        for event in events:
            seen.append(event)
            if event.sequence == 3:
                break
    rest = stored(user.watch(job, after_sequence=3))
    assert [event.sequence for event in rest] == [4, 5, 6]
    assert stored(user.watch(job)) == [*stored(iter(seen)), *rest]
    assert list(user.watch(job, after_sequence=6)) == []
    with pytest.raises(trainwire_client.OutOfRangeError):
        list(user.watch(job, after_sequence=7))


def test_a_running_job_is_cancelled(user: Any, request_for: RequestFor) -> None:
    job = user.submit(request_for(epochs=100_000, early_stopping_patience=0))
    events = user.watch(job)
    next(event for event in events if event.HasField("epoch"))
    assert user.cancel(job).state == training_pb2.JOB_STATE_CANCELLING
    last = stored(events)[-1]
    assert last.cancelled.epochs_run >= 1
    assert user.get(job).state == training_pb2.JOB_STATE_CANCELLED
    with pytest.raises(trainwire_client.JobCancelledError):
        user.wait(job)


def test_the_same_request_id_is_the_same_job(user: Any, request_for: RequestFor) -> None:
    request = request_for(epochs=1)
    request.request_id = uuid.uuid4().hex
    job = user.submit(request)
    assert user.submit(request).name == job.name
    assert {event.job for event in user.train(request)} == {job.name}
    request.trainer.epochs = 2
    with pytest.raises(trainwire_client.AlreadyExistsError) as caught:
        user.submit(request)
    assert [violation.field for violation in caught.value.violations] == ["trainer.epochs"]


def test_jobs_are_listed_by_label_and_state_and_deleted(user: Any, request_for: RequestFor) -> None:
    label, done = {"batch": uuid.uuid4().hex}, [training_pb2.JOB_STATE_SUCCEEDED]
    names = set()
    for _ in range(3):
        request = request_for(epochs=1)
        request.labels.update(label)
        names.add(user.wait(user.submit(request)).name)
    listed = [job.name for job in user.list(labels=label, states=done, page_size=2)]
    assert (len(listed), set(listed)) == (3, names)
    assert not list(user.list(labels=label, states=[training_pb2.JOB_STATE_FAILED]))
    user.delete(listed[0])
    assert {job.name for job in user.list(labels=label)} == set(listed[1:])
    with pytest.raises(trainwire_client.NotFoundError):
        user.get(listed[0])


# ------------------------------------------------------------------------ resuming


def test_a_cancelled_job_goes_on_in_a_new_one(user: Any, request_for: RequestFor) -> None:
    old = user.submit(request_for(epochs=30, early_stopping_patience=0))
    for event in user.watch(old):
        if event.HasField("epoch") and event.epoch.epoch == 3:
            user.cancel(old)
    before, log = user.get(old), stored(user.watch(old))
    assert before.state == training_pb2.JOB_STATE_CANCELLED

    new = user.resume(old, epochs=32)
    assert (new.resumed_from, new.name == old.name) == (old.name, False)
    assert (new.request.trainer.epochs, old.request.trainer.epochs) == (32, 30)
    events = stored(user.watch(new))
    (resumed,) = [event.resumed for event in events if event.HasField("resumed")]
    assert 1 <= resumed.epoch < 30
    epochs = [event.epoch.epoch for event in events if event.HasField("epoch")]
    assert epochs == list(range(resumed.epoch + 1, 33))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert user.wait(new).state == training_pb2.JOB_STATE_SUCCEEDED
    assert (user.get(old), stored(user.watch(old))) == (before, log)
    with pytest.raises(trainwire_client.JobNotResumableError):
        user.resume(new)


def test_the_same_request_id_is_the_same_resumed_job(
    user: Any, cancelled_job: training_pb2.TrainingJob
) -> None:
    changes = training_pb2.TrainingRequest(request_id=uuid.uuid4().hex, display_name="on")
    new = user.resume(cancelled_job, changes=changes)
    try:
        assert user.resume(cancelled_job, changes=changes).name == new.name
        assert new.display_name == "on"
        changes.trainer.epochs = 70_000
        with pytest.raises(trainwire_client.AlreadyExistsError):
            user.resume(cancelled_job, changes=changes)
    finally:
        user.cancel(new)


def test_a_resumed_job_keeps_all_but_its_epochs(
    user: Any, cancelled_job: training_pb2.TrainingJob
) -> None:
    changes = training_pb2.TrainingRequest(dataset="datasets/other")
    changes.trainer.epochs = 70_000
    changes.trainer.learning_rate = 0.5
    changes.model.dropout = 0.0
    with pytest.raises(trainwire_client.InvalidRequestError) as caught:
        user.resume(cancelled_job, changes=changes)
    assert {violation.field for violation in caught.value.violations} == {
        "changes.dataset",
        "changes.trainer.learning_rate",
        "changes.model.dropout",
    }
    with pytest.raises(trainwire_client.InvalidRequestError, match=r"changes\.trainer\.epochs"):
        user.resume(cancelled_job, epochs=2)
    with pytest.raises(trainwire_client.NotFoundError):
        user.resume("none")


def test_a_running_job_is_not_resumed(user: Any, endless_job: training_pb2.TrainingJob) -> None:
    with pytest.raises(trainwire_client.JobNotResumableError, match="RUNNING"):
        user.resume(endless_job)


# ------------------------------------------------------------------------ aliases


def test_an_alias_moves_from_model_to_model(
    user: Any, request_for: RequestFor, tmp_path: Path
) -> None:
    first, second = (user.wait(user.submit(request_for(epochs=1))).model for _ in range(2))
    alias = f"a{uuid.uuid4().hex}"
    assert list(user.set_alias(alias, first).aliases) == [alias]
    assert user.model(alias).name == user.model(f"models/{alias}").name == first
    moved = user.set_alias(alias, second)
    assert (moved.name, list(moved.aliases)) == (second, [alias])
    assert list(user.model(first).aliases) == []
    folder = user.download(alias, tmp_path / "model")
    assert {file.name for file in moved.files} == {file.name for file in folder.iterdir()}

    with pytest.raises(trainwire_client.ModelInUseError):
        user.delete(second)
    user.remove_alias(alias)
    with pytest.raises(trainwire_client.NotFoundError):
        user.remove_alias(alias)
    with pytest.raises(trainwire_client.NotFoundError):
        user.model(alias)
    with pytest.raises(trainwire_client.NotFoundError):
        user.set_alias(alias, "none")
    user.delete(second)


# ------------------------------------------------------------------------ requests


def test_zeros_and_false_arrive_as_set(user: Any, request_for: RequestFor) -> None:
    request = request_for(epochs=1, early_stopping_patience=0, weight_decay=0.0)
    request.model.dropout = 0.0
    request.balancing.use_focal_loss = False
    request.balancing.use_oversampling = False
    request.data.column.horizon = 0
    job = user.submit(request)
    assert set(job.set_fields) >= {
        "trainer.early_stopping_patience",
        "trainer.weight_decay",
        "model.dropout",
        "balancing.use_focal_loss",
        "balancing.use_oversampling",
        "data.column.horizon",
    }
    used = user.wait(job).request
    assert (used.trainer.early_stopping_patience, used.trainer.weight_decay) == (0, 0.0)
    assert (used.model.dropout, used.data.column.horizon) == (0.0, 0)
    assert (used.balancing.use_focal_loss, used.balancing.use_oversampling) == (False, False)
    # What was left alone has its default, and is not said to be set.
    assert used.balancing.use_class_weights
    assert "balancing.use_class_weights" not in job.set_fields


def test_all_violations_come_at_once(user: Any, request_for: RequestFor) -> None:
    request = request_for(epochs=0, learning_rate=7)
    request.model.dropout = 0.95
    with pytest.raises(trainwire_client.InvalidRequestError) as caught:
        user.submit(request)
    assert {violation.field: violation.description for violation in caught.value.violations} == {
        "trainer.epochs": "0 is not allowed; allowed: [1, 100000]",
        "trainer.learning_rate": "7 is not allowed; allowed: (0, 1)",
        "model.dropout": "0.95 is not allowed; allowed: [0, 0.9]",
    }


def test_what_the_server_finds_has_paths_too(user: Any, request_for: RequestFor) -> None:
    request = request_for()
    request.data.column.name = "z"
    request.data.windows.time_column = "tme"
    with pytest.raises(trainwire_client.DatasetUnsuitableError) as caught:
        user.submit(request)
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert set(found) == {"data.column.name", "data.windows.time_column"}
    assert "no column 'tme' (did you mean 'time'?)" in found["data.windows.time_column"]


def test_the_server_describes_itself(user: Any) -> None:
    info = user.info()
    assert info.devices[0].name == "cpu"
    assert info.contract_version

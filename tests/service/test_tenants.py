"""Tenants never meet, whatever is called with whatever name; and no tenant takes it all."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.message import Message
from tests.conftest import Server, make_columns, small_request
from tests.service.test_errors import methods
from tests.service.test_security import bearer, invoke, open_stream, path_of, until

from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2
from trainwire_client import QuotaExceededError, TrainingClient
from trainwire_server.identity import Identity, Role
from trainwire_server.tokens import line_of, new_token

Refusal = Callable[[Callable[[], Any]], Any]

ALIAS, REQUEST_ID = "production", "nightly-1"
LABELS = {"desk": "rates"}


@dataclass
class Guarded:
    """A server with tokens, one or more tenants for each.

    Attributes:
        server: the process.
        folder: the tokens' files; `NAME.token` has that of the tenant NAME, who may do everything.
    """

    server: Server
    folder: Path

    def token(self, tenant: str) -> str:
        return (self.folder / f"{tenant}.token").read_text()

    @contextmanager
    def client(self, tenant: str) -> Iterator[TrainingClient]:
        file = self.folder / f"{tenant}.token"
        with TrainingClient(self.server.address, token_file=file) as opened:
            yield opened

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.server.address) as opened:
            yield opened

    def house(self, tenant: str) -> Path:
        return self.server.data_dir / "tenants" / tenant


def make_tokens(folder: Path, *tenants: str) -> Path:
    """A token file with an admin of each tenant."""
    lines = []
    for tenant in tenants:
        token = new_token()
        (folder / f"{tenant}.token").write_text(token)
        lines.append(line_of(token, Identity(f"{tenant}-ops", Role.ADMIN, tenant)))
    path = folder / "tokens"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def endless(dataset: str, **fields: Any) -> training_pb2.TrainingRequest:
    request = small_request(dataset, epochs=100_000, early_stopping_patience=0)
    request.MergeFrom(training_pb2.TrainingRequest(**fields))
    return request


def first_epoch(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    next(event for event in client.watch(job) if event.HasField("epoch"))


# ------------------------------------------------------------------------ tenants apart


@dataclass(frozen=True)
class Things:
    """Names of what a tenant has; two of them have the same data under the same alias."""

    dataset: str
    model: str
    finished: str
    cancelled: str
    waiting: str
    alias: str

    @property
    def ids(self) -> list[str]:
        """What nobody else has."""
        names = (self.model, self.finished, self.cancelled, self.waiting)
        return [name.partition("/")[2] for name in names]


NOTHING = Things(
    dataset=f"datasets/sha256-{'0' * 64}",
    model=f"models/{'0' * 16}",
    finished=f"jobs/{'1' * 16}",
    cancelled=f"jobs/{'2' * 16}",
    waiting=f"jobs/{'3' * 16}",
    alias="nothing",
)
"""Names that nothing has ever had."""


def begin(client: TrainingClient) -> Things:
    """A dataset, a model with an alias, and a job that can go on."""
    dataset = client.upload(make_columns())
    finished = client.wait(client.submit(small_request(dataset.name, epochs=1)))
    client.set_alias(ALIAS, finished.model)
    cancelled = client.submit(endless(dataset.name))
    first_epoch(client, cancelled)
    client.cancel(cancelled)
    assert list(client.watch(cancelled))
    return Things(dataset.name, finished.model, finished.name, cancelled.name, "", ALIAS)


def wait_in_line(client: TrainingClient, things: Things) -> Things:
    return replace(things, waiting=client.submit(again(things)).name)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server on which a job of `alpha` trains as long as this file is tested."""
    folder = tmp_path_factory.mktemp("tokens")
    tokens = make_tokens(folder, "default", "alpha", "twin", "nobody", "leaver")
    data = tmp_path_factory.mktemp("tenants")
    server = Server(data, f"--token-file={tokens}", "--grace", "2", secure=False)
    yield Guarded(server, folder)
    assert server.stop() == 0
    found = [r for r in server.records if r["event"] in ("rpc.error", "unstructured")]
    assert not found, [r.get("exception", r) for r in found]


@pytest.fixture(scope="module")
def both(guarded: Guarded) -> tuple[Things, Things]:
    """The things of `alpha` and of `twin`."""
    with guarded.client("alpha") as alpha, guarded.client("twin") as twin:
        first, second = begin(alpha), begin(twin)
        first_epoch(alpha, alpha.submit(endless(first.dataset)))
        return wait_in_line(alpha, first), wait_in_line(twin, second)


@pytest.fixture(scope="module")
def alpha(both: tuple[Things, Things]) -> Things:
    return both[0]


@dataclass(frozen=True)
class Entry:
    """How an RPC is called with the names of another tenant's things.

    Attributes:
        named: makes requests that name them.
        open: requests that name nothing, with what is answered to a tenant that has nothing.
    """

    named: Callable[[Things], Sequence[Message]] = lambda _: ()
    open: Sequence[tuple[Message, Message]] = ()


def again(things: Things, **fields: Any) -> training_pb2.TrainingRequest:
    """The request of the job that waits."""
    return endless(things.dataset, request_id=REQUEST_ID, labels=LABELS, **fields)


def of_job(kind: Any, *names: str, **fields: Any) -> Entry:
    return Entry(lambda things: [kind(name=getattr(things, name), **fields) for name in names])


def of_dataset(kind: Any) -> Entry:
    return Entry(lambda things: [kind(name=things.dataset)])


def of_model(kind: Any) -> Entry:
    return Entry(lambda things: [kind(name=things.model), kind(name=f"models/{things.alias}")])


def listing(kind: Any, answer: Any, *filters: dict[str, Any]) -> Entry:
    return Entry(open=[(kind(**f), answer()) for f in ({}, {"page_token": "3"}, *filters)])


ENTRIES = {
    "TrainingService.Train": Entry(lambda things: [again(things)]),
    "TrainingService.SubmitTraining": Entry(
        lambda things: [again(things), again(things, validate_only=True)]
    ),
    "TrainingService.GetTraining": of_job(
        training_pb2.GetTrainingRequest, "finished", "cancelled", "waiting"
    ),
    "TrainingService.ListTrainings": listing(
        training_pb2.ListTrainingsRequest, training_pb2.ListTrainingsResponse, {"labels": LABELS}
    ),
    "TrainingService.WatchTraining": of_job(
        training_pb2.WatchTrainingRequest, "finished", "waiting", after_sequence=1
    ),
    "TrainingService.CancelTraining": of_job(
        training_pb2.CancelTrainingRequest, "finished", "waiting"
    ),
    "TrainingService.ResumeTraining": of_job(training_pb2.ResumeTrainingRequest, "cancelled"),
    "TrainingService.DeleteTraining": of_job(
        training_pb2.DeleteTrainingRequest, "finished", "waiting"
    ),
    # Has tests of its own: whoever has not sent the bytes does not have the dataset.
    "DatasetService.UploadDataset": Entry(),
    "DatasetService.GetDataset": of_dataset(dataset_pb2.GetDatasetRequest),
    "DatasetService.ListDatasets": listing(
        dataset_pb2.ListDatasetsRequest, dataset_pb2.ListDatasetsResponse
    ),
    "DatasetService.DeleteDataset": of_dataset(dataset_pb2.DeleteDatasetRequest),
    "ModelService.GetModel": of_model(model_pb2.GetModelRequest),
    "ModelService.ListModels": listing(model_pb2.ListModelsRequest, model_pb2.ListModelsResponse),
    "ModelService.DownloadModel": of_model(model_pb2.DownloadModelRequest),
    "ModelService.SetModelAlias": Entry(
        lambda things: [
            model_pb2.SetModelAliasRequest(alias="mine", name=things.model),
            model_pb2.SetModelAliasRequest(alias="mine", name=f"models/{things.alias}"),
            model_pb2.SetModelAliasRequest(alias=things.alias),
        ]
    ),
    "ModelService.DeleteModel": of_model(model_pb2.DeleteModelRequest),
    # Has a test of its own: most of what it says is of no tenant.
    "SystemService.GetSystemInfo": Entry(),
}


def test_every_rpc_has_an_entry() -> None:
    """A new RPC fails here until it is said what one tenant gets for the names of another."""
    assert set(ENTRIES) == set(methods())


def all_there_is(client: TrainingClient) -> dict[str, Any]:
    """What a tenant sees of its own; of what trains, only that it does."""
    jobs = {
        job.name: (job.state, job.end_time.ToNanoseconds(), job.request_digest)
        for job in client.list()
    }
    info = client.info()
    return {
        "jobs": jobs,
        "datasets": [dataset.SerializeToString() for dataset in client.datasets()],
        "models": [model.SerializeToString() for model in client.models()],
        "busy": (info.running_jobs, info.queued_jobs),
    }


@pytest.mark.parametrize("rpc", sorted(ENTRIES))
def test_what_another_tenant_has_is_not_there(
    rpc: str, guarded: Guarded, alpha: Things, refusal: Refusal
) -> None:
    def send(request: Message) -> Any:
        metadata = bearer(guarded.token("nobody"))
        return invoke(channel, path_of(rpc), metadata, [request.SerializeToString()])

    entry = ENTRIES[rpc]
    with guarded.client("alpha") as owner, guarded.channel() as channel:
        before = all_there_is(owner)
        for request, other in zip(entry.named(alpha), entry.named(NOTHING), strict=True):
            refused, unknown = refusal(partial(send, request)), refusal(partial(send, other))
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
            # Nothing tells it apart from what has never been anybody's.
            for name, nothing in zip(vars(alpha).values(), vars(NOTHING).values(), strict=True):
                refused = replace(refused, message=refused.message.replace(name, nothing))
            assert refused == unknown
        for request, answer in entry.open:
            assert [type(answer).FromString(got) for got in send(request)] == [answer]
        assert all_there_is(owner) == before
    with guarded.client("nobody") as nobody:
        assert all_there_is(nobody) == {"jobs": {}, "datasets": [], "models": [], "busy": (0, 0)}


@pytest.mark.parametrize("rpc", sorted(ENTRIES))
def test_who_has_the_same_gets_its_own(
    rpc: str, guarded: Guarded, both: tuple[Things, Things], refusal: Refusal
) -> None:
    """With the names of `alpha`, `twin` reaches what it has itself under them, or nothing."""
    alpha, twin = both
    entry, metadata = ENTRIES[rpc], bearer(guarded.token("twin"))
    requests = [*entry.named(alpha), *(request for request, _ in entry.open)]
    with guarded.client("alpha") as owner, guarded.channel() as channel:
        before = all_there_is(owner)
        for request in requests:
            stream = invoke(channel, path_of(rpc), metadata, [request.SerializeToString()])
            code, said = first_answer(stream)
            name = getattr(request, "name", "").partition("/")[2]
            assert (code is grpc.StatusCode.NOT_FOUND) == (name in alpha.ids)
            said = said.replace(name, "") if name in alpha.ids else said
            assert not [found for found in alpha.ids if found in said]
        assert all_there_is(owner) == before
    with guarded.client("twin") as client:
        assert {job.name for job in client.list()} == {twin.finished, twin.cancelled, twin.waiting}
        assert [dataset.name for dataset in client.datasets()] == [twin.dataset]
        if rpc == "ModelService.SetModelAlias":
            assert list(client.model(twin.model).aliases) == ["mine"]
            client.remove_alias("mine")
            client.set_alias(ALIAS, twin.model)


def first_answer(stream: Any) -> tuple[grpc.StatusCode, str]:
    """The code of a call, and what of its first answer, or of its refusal, can be read."""
    try:
        said = next(stream).decode(errors="replace")
    except grpc.RpcError:
        return stream.code(), stream.details()
    stream.cancel()
    return grpc.StatusCode.OK, said


def test_who_knows_a_digest_alone_does_not_have_the_data(
    guarded: Guarded, alpha: Things, refusal: Refusal
) -> None:
    with guarded.client("alpha") as owner:
        dataset = owner.dataset(alpha.dataset)
    header = dataset_pb2.DatasetHeader(
        format=dataset.format, size_bytes=dataset.size_bytes, sha256=dataset.sha256
    )
    message = dataset_pb2.UploadDatasetRequest(header=header).SerializeToString()
    path = path_of("DatasetService.UploadDataset")
    with guarded.channel() as channel:
        metadata = bearer(guarded.token("nobody"))
        refused = refusal(lambda: invoke(channel, path, metadata, [message]))
        assert (refused.reason, "0 bytes came" in refused.message) == ("BROKEN_UPLOAD", True)
        # Its owner need not send them.
        (answer,) = invoke(channel, path, bearer(guarded.token("alpha")), [message])
    assert dataset_pb2.Dataset.FromString(answer) == dataset


def test_a_tenant_counts_its_own_jobs_and_waits_behind_all(
    guarded: Guarded, both: tuple[Things, Things]
) -> None:
    with guarded.client("alpha") as alpha, guarded.client("twin") as twin:
        assert (alpha.info().running_jobs, alpha.info().queued_jobs) == (1, 1)
        assert (twin.info().running_jobs, twin.info().queued_jobs) == (0, 1)
        places = [alpha.get(both[0].waiting), twin.get(both[1].waiting)]
    assert [job.queue_position for job in places] == [1, 2]


def test_the_same_names_mean_two_things(guarded: Guarded, both: tuple[Things, Things]) -> None:
    assert both[0].dataset == both[1].dataset
    assert not set(both[0].ids) & set(both[1].ids)
    for tenant, things in zip(("alpha", "twin"), both, strict=True):
        with guarded.client(tenant) as client:
            assert client.model(f"models/{ALIAS}").name == things.model
            # The same request_id is the same job, and never the other's.
            assert client.submit(again(things)).name == things.waiting
            assert [job.name for job in client.list(labels=LABELS)] == [things.waiting]
            assert next(client.watch(things.finished)).job == things.finished
            assert [model.name for model in client.models()] == [things.model]
    folders = [guarded.house(tenant) / both[0].dataset for tenant in ("alpha", "twin")]
    assert not (folders[0] / "table").samefile(folders[1] / "table")


def test_where_a_page_goes_on_is_the_tenants_own(
    guarded: Guarded, both: tuple[Things, Things]
) -> None:
    path = path_of("TrainingService.ListTrainings")
    answer = training_pb2.ListTrainingsResponse

    def page(channel: grpc.Channel, tenant: str, **fields: Any) -> Any:
        request = training_pb2.ListTrainingsRequest(**fields).SerializeToString()
        (got,) = invoke(channel, path, bearer(guarded.token(tenant)), [request])
        return answer.FromString(got)

    with guarded.channel() as channel, guarded.client("twin") as twin:
        token = page(channel, "alpha", page_size=1).next_page_token
        assert token
        own = {job.name for job in twin.list()}
        assert {job.name for job in page(channel, "twin", page_token=token).jobs} <= own


def test_a_deletion_takes_nothing_from_another_tenant(guarded: Guarded) -> None:
    with guarded.client("default") as default, guarded.client("twin") as twin:
        spare = make_columns(seed=5)
        name = default.upload(spare).name
        assert twin.upload(spare).name == name
        default.delete(name)
        assert [d.name for d in default.datasets() if d.name == name] == []
        assert twin.validate(small_request(name)).plan.started.class_names == ["0", "1"]
        twin.delete(name)
    # What is the default tenant's lies where it always has.
    assert not (guarded.house("default")).exists()
    assert (guarded.server.data_dir / "datasets").exists()


def test_the_log_says_whose_call_it_was(guarded: Guarded, alpha: Things) -> None:
    queued = guarded.server.wait_for_log("job.queued", lambda r: r["job"] == alpha.waiting)
    assert (queued["caller"], queued["tenant"]) == ("alpha-ops", "alpha")


def test_the_log_says_whose_job_it_is(guarded: Guarded, both: tuple[Things, Things]) -> None:
    def is_of(job: str, record: dict[str, Any]) -> bool:
        return bool(record.get("job") == job)

    for tenant, things in zip(("alpha", "twin"), both, strict=True):
        guarded.server.wait_for_log("job.ended", partial(is_of, things.finished))
        lines = [r for r in guarded.server.records if is_of(things.finished, r)]
        events = {line["event"] for line in lines}
        assert events >= {"job.queued", "job.started", "job.epoch", "job.ended"}
        assert {line.get("tenant") for line in lines} == {tenant}


def test_a_token_that_changes_its_tenant_leaves_the_streams_of_the_old_one(
    guarded: Guarded, alpha: Things, refusal: Refusal
) -> None:
    tokens = guarded.folder / "tokens"
    text = tokens.read_text()
    request = training_pb2.WatchTrainingRequest(name=alpha.waiting).SerializeToString()
    path = path_of("TrainingService.WatchTraining")
    with guarded.channel() as channel:
        watch = invoke(channel, path, bearer(guarded.token("alpha")), [request])
        assert next(watch)
        try:
            tokens.write_text(text.replace("alpha-ops alpha", "alpha-ops leaver"))
            guarded.server.process.send_signal(signal.SIGHUP)
            refused = refusal(partial(list, watch))
            assert (refused.reason, "another tenant" in refused.message) == ("TOKEN_UNKNOWN", True)
            call = partial(invoke, channel, path, bearer(guarded.token("alpha")), [request])
            assert refusal(call).reason == "NOT_FOUND"
        finally:
            tokens.write_text(text)
            before = len(guarded.server.records)
            guarded.server.process.send_signal(signal.SIGHUP)
            log = guarded.server.records
            guarded.server.wait_for_log("server.reloaded", lambda r: r in log[before:])


@pytest.mark.slow
def test_jobs_go_on_after_a_restart_whoever_may_still_call(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    tokens = make_tokens(tmp_path, "alpha", "beta")
    flags = (f"--token-file={tokens}", "--grace", "2")
    guarded = Guarded(start_server(*flags, secure=False), tmp_path)
    with guarded.client("beta") as beta, guarded.client("alpha") as alpha:
        data = alpha.upload(make_columns())
        assert beta.upload(make_columns()).name == data.name
        jobs = [client.submit(endless(data.name)) for client in (alpha, beta)]
        last = alpha.submit(small_request(data.name, epochs=1))
        first_epoch(alpha, jobs[0])
    guarded.server.kill()
    lines = tokens.read_text()
    tokens.write_text("".join(line for line in lines.splitlines(True) if "alpha" not in line))
    guarded = Guarded(start_server(*flags, secure=False), tmp_path)
    # Whose token was taken away has not taken its jobs back: they go on, and in their order.
    resumed = guarded.server.wait_for_log("job.started", lambda r: r["job"] == jobs[0].name)
    assert resumed["attempt"] == 2
    with guarded.client("beta") as beta:
        assert beta.get(jobs[1]).queue_position == 1
        assert [job.name for job in beta.list()] == [jobs[1].name]
    tokens.write_text(lines)
    guarded.server.process.send_signal(signal.SIGHUP)
    guarded.server.wait_for_log("server.reloaded")
    with guarded.client("alpha") as alpha, guarded.client("beta") as beta:
        assert {job.name for job in alpha.list()} == {jobs[0].name, last.name}
        for client, job in zip((alpha, beta), jobs, strict=True):
            client.cancel(job)
        assert alpha.wait(last).state == training_pb2.JOB_STATE_SUCCEEDED
        assert [model.name for model in alpha.models()] == [alpha.get(last).model]
        assert list(beta.models()) == []


# ------------------------------------------------------------------------ quotas

STORED_BYTES = 1_000_000


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server of two places on which every tenant may have little; a tenant for each test."""
    folder = tmp_path_factory.mktemp("tokens")
    tenants = (
        "queued",
        "running",
        "watches",
        "stored",
        "together",
        "announced",
        "idle",
        "dry",
        "other",
    )
    flags = (
        f"--token-file={make_tokens(folder, *tenants)}",
        "--max-concurrent-jobs=2",
        "--tenant-queued-jobs=2",
        "--tenant-running-jobs=1",
        "--tenant-watches=2",
        f"--tenant-stored-bytes={STORED_BYTES}",
        "--upload-idle-seconds=1.5",
        "--grace=2",
    )
    server = Server(tmp_path_factory.mktemp("limited"), *flags, secure=False)
    yield Guarded(server, folder)
    assert server.stop() == 0
    found = [r for r in server.records if r["event"] in ("rpc.error", "unstructured")]
    assert not found, [r.get("exception", r) for r in found]


def is_over(refused: Any, quota: str, limit: str, tenant: str) -> bool:
    """Whether a call was refused for this quota, told to people and to programs."""
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "QUOTA_EXCEEDED"
    assert refused.quotas == {f"tenant:{tenant}": refused.message}
    flag = f"--{quota.replace('_', '-')}"
    assert (flag in refused.message, limit in refused.message) == (True, True)
    found: dict[str, str] = refused.metadata
    return found == {"quota": quota, "limit": limit}


def submit(channel: grpc.Channel, guarded: Guarded, tenant: str, request: Message) -> Any:
    path = path_of("TrainingService.SubmitTraining")
    sent = [request.SerializeToString()]
    (answer,) = invoke(channel, path, bearer(guarded.token(tenant)), sent)
    return training_pb2.TrainingJob.FromString(answer)


@pytest.mark.slow
def test_a_tenant_has_so_many_jobs_waiting(limited: Guarded, refusal: Refusal) -> None:
    with limited.client("queued") as client, limited.channel() as channel, ExitStack() as stack:
        request = endless(client.upload(make_columns()).name)
        jobs = [client.submit(request) for _ in range(1)]
        first_epoch(client, jobs[0])
        jobs += [client.submit(request) for _ in range(2)]
        stack.callback(lambda: [client.cancel(job) for job in reversed(jobs)])
        send = partial(submit, channel, limited, "queued", request)
        assert is_over(refusal(send), "tenant_queued_jobs", "2", "queued")
        client.cancel(jobs.pop())
        jobs.append(send())
        # What resumes waits as well; the same request_id is the same job, however many wait.
        request.request_id = "again"
        assert is_over(refusal(send), "tenant_queued_jobs", "2", "queued")
        client.cancel(jobs.pop())
        jobs.append(send())
        assert send().name == jobs[-1].name


def test_jobs_over_the_running_quota_wait_and_hold_nobody_up(limited: Guarded) -> None:
    with limited.client("running") as client, limited.client("other") as other:
        name = client.upload(make_columns()).name
        running, waiting = (client.submit(endless(name)) for _ in range(2))
        first_epoch(client, running)
        job = other.submit(small_request(other.upload(make_columns()).name, epochs=1))
        assert job.queue_position in (0, 2)
        # It overtakes: there is a place, and not for the one before it.
        assert other.wait(job).state == training_pb2.JOB_STATE_SUCCEEDED
        assert client.get(waiting).state == training_pb2.JOB_STATE_QUEUED
        info = client.info()
        assert (info.running_jobs, info.queued_jobs) == (1, 1)
        client.cancel(running)
        first_epoch(client, waiting)
        client.cancel(waiting)


def test_a_tenant_has_so_many_watches_open(limited: Guarded, refusal: Refusal) -> None:
    watch, train_ = (path_of(f"TrainingService.{name}") for name in ("WatchTraining", "Train"))
    metadata = bearer(limited.token("watches"))
    with limited.client("watches") as client, limited.channel() as channel:
        request = endless(client.upload(make_columns()).name)
        begun = invoke(channel, train_, metadata, [request.SerializeToString()])
        name = training_pb2.TrainingEvent.FromString(next(begun)).job
        watching = training_pb2.WatchTrainingRequest(name=name).SerializeToString()
        second = invoke(channel, watch, metadata, [watching])
        assert next(second)
        for path, message in ((watch, watching), (train_, request.SerializeToString())):
            refused = refusal(partial(invoke, channel, path, metadata, [message]))
            assert is_over(refused, "tenant_watches", "2", "watches")
        # A Train that is refused leaves no job behind.
        assert [job.name for job in client.list()] == [name]
        for stream, path in ((begun, watch), (second, watch)):
            stream.cancel()
            until(lambda path=path: opens(channel, path, metadata, watching))  # type: ignore[misc]
        client.cancel(name)
        # Those that ended by themselves count no more either.
        for _ in range(3):
            assert list(client.watch(name))[-1].HasField("cancelled")


def opens(channel: grpc.Channel, path: str, metadata: Any, message: bytes) -> bool:
    """Whether a stream begins; it ends at once."""
    code, _ = first_answer(invoke(channel, path, metadata, [message]))
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return code is grpc.StatusCode.OK


def some_columns(rows: int) -> dict[str, Any]:
    """Columns of 24 bytes a row, in a file that the server makes a table of the same size from."""
    columns = make_columns(rows=rows, seed=rows)
    return {name: columns[name] for name in ("a", "b", "y", "time")}


@pytest.mark.slow
def test_a_tenant_stores_so_many_bytes(limited: Guarded, refusal: Refusal) -> None:
    with limited.client("stored") as client, limited.channel() as channel:
        # More than allowed as it comes; and with the table that is made of it.
        for rows in (50_000, 30_000):
            with pytest.raises(QuotaExceededError, match="--tenant-stored-bytes"):
                client.upload(some_columns(rows))
        large = client.upload(some_columns(18_700))
        with pytest.raises(QuotaExceededError):
            client.upload(some_columns(10_000))
        request = small_request(large.name, epochs=1)
        send = partial(submit, channel, limited, "stored", request)
        # What it makes is more than there is room for: it ends well, and is the last.
        assert client.wait(send()).state == training_pb2.JOB_STATE_SUCCEEDED
        request.request_id = "one-more"
        assert is_over(refusal(send), "tenant_stored_bytes", str(STORED_BYTES), "stored")
        client.delete(next(client.list()).name)
        client.delete(large.name)
        request.dataset = client.upload(some_columns(500)).name
        assert client.wait(send()).state == training_pb2.JOB_STATE_SUCCEEDED


def test_uploads_at_the_same_time_do_not_share_what_room_is_left(limited: Guarded) -> None:
    path, metadata = path_of("DatasetService.UploadDataset"), bearer(limited.token("together"))
    with limited.channel() as channel:
        # Each is small as it comes, and more than half of the quota as a table.
        send: Any = channel.stream_unary(path)
        uploads = [send.future(iter(parquet_of(i)), metadata=metadata) for i in range(4)]
        codes = [upload.code() for upload in uploads]
    assert codes.count(grpc.StatusCode.OK) == 1
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
    tables = limited.house("together").glob("datasets/*/table")
    assert sum(table.stat().st_size for table in tables) < STORED_BYTES


def parquet_of(value: int, share: float = 0.6, **options: Any) -> list[bytes]:
    """The messages of an upload whose table is such a share of the quota."""
    file = io.BytesIO()
    values = np.full(int(share * STORED_BYTES) // 8, float(value))
    pq.write_table(pa.table({"a": values}), file, **options)
    data = file.getvalue()
    header = dataset_pb2.DatasetHeader(
        format=dataset_pb2.DATASET_FORMAT_PARQUET,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    chunk = dataset_pb2.DatasetChunk(data=data)
    parts = ({"header": header}, {"chunk": chunk})
    return [dataset_pb2.UploadDatasetRequest(**part).SerializeToString() for part in parts]


def test_the_same_bytes_at_the_same_time_are_stored_once(
    start_server: Callable[..., Server],
) -> None:
    """Three times as they come and once as a table they are more than there is room for."""
    server = start_server(f"--tenant-stored-bytes={STORED_BYTES}", secure=False)
    header, *chunks = parquet_of(0, share=0.3, use_dictionary=False, compression="none")
    is_here = threading.Event()

    def messages() -> Iterator[bytes]:
        yield header
        assert is_here.wait(60)
        yield from chunks

    with server.channel() as channel:
        send: Any = channel.stream_unary(path_of("DatasetService.UploadDataset"))
        uploads = [send.future(messages()) for _ in range(3)]
        folder = server.data_dir / "uploads"
        until(lambda: len(list(folder.iterdir())) == 3)
        is_here.set()
        assert len({upload.result() for upload in uploads}) == 1
    server.wait_for_log("dataset.stored")
    assert sum(record["event"] == "dataset.stored" for record in server.records) == 1


def test_bytes_that_are_announced_count_until_the_upload_ends(
    limited: Guarded, refusal: Refusal
) -> None:
    path, metadata = path_of("DatasetService.UploadDataset"), bearer(limited.token("announced"))
    with limited.channel() as channel:
        first = open_stream(channel, path, metadata, header_of(STORED_BYTES // 2))
        uploads = limited.house("announced") / "uploads"
        until(lambda: uploads.exists() and bool(list(uploads.iterdir())))
        second = partial(invoke, channel, path, metadata, [header_of(STORED_BYTES // 2)])
        refused = refusal(second)
        assert is_over(refused, "tenant_stored_bytes", str(STORED_BYTES), "announced")
        first.cancel()
        until(lambda: not list(uploads.iterdir()))
        # Let in, and then refused for what is sent: nothing.
        until(lambda: refusal(second).reason == "BROKEN_UPLOAD")


def header_of(size_bytes: int, sha256: str = "0" * 64) -> bytes:
    header = dataset_pb2.DatasetHeader(
        format=dataset_pb2.DATASET_FORMAT_CSV, size_bytes=size_bytes, sha256=sha256
    )
    return dataset_pb2.UploadDatasetRequest(header=header).SerializeToString()


def test_an_upload_of_which_nothing_comes_ends(limited: Guarded, refusal: Refusal) -> None:
    path, metadata = path_of("DatasetService.UploadDataset"), bearer(limited.token("idle"))
    with limited.channel() as channel:
        begun = open_stream(channel, path, metadata, header_of(100))
        silent = invoke(channel, path, metadata, silence(begun))
        started = time.monotonic()
        for stream in (begun, silent):
            refused = refusal(partial(list, stream))
            assert is_over(refused, "upload_idle_seconds", "1.5", "idle")
        assert time.monotonic() - started < 10
        assert list((limited.house("idle") / "uploads").iterdir()) == []


def test_an_upload_that_drips_ends_and_a_slow_one_does_not(
    limited: Guarded, refusal: Refusal
) -> None:
    path, metadata = path_of("DatasetService.UploadDataset"), bearer(limited.token("idle"))
    with limited.channel() as channel:
        ended = threading.Event()
        dripping = invoke(channel, path, metadata, paced(bytes(10_000), 1, 0.2, ended))
        dripping.add_done_callback(lambda _: ended.set())
        assert is_over(refusal(partial(list, dripping)), "upload_idle_seconds", "1.5", "idle")
        # Longer than the others may be silent, and 64 KiB at a time.
        data = b"a\n" + b"1.2345678901234\n" * 2**14
        slow = invoke(channel, path, metadata, paced(data, 2**16, 0.5, threading.Event()))
        assert dataset_pb2.Dataset.FromString(next(slow)).row_count == 2**14


def paced(data: bytes, size: int, seconds: float, ended: threading.Event) -> Iterator[bytes]:
    """The messages of an upload of CSV, so many bytes at a time with a pause between them."""
    yield header_of(len(data), hashlib.sha256(data).hexdigest())
    for start in range(0, len(data), size):
        chunk = dataset_pb2.DatasetChunk(data=data[start : start + size])
        yield dataset_pb2.UploadDatasetRequest(chunk=chunk).SerializeToString()
        if ended.wait(seconds):
            return


def test_a_tenant_has_so_many_uploads_and_downloads_open(
    start_server: Callable[..., Server], tmp_path: Path, refusal: Refusal
) -> None:
    tokens = make_tokens(tmp_path, "alpha", "beta")
    flags = (f"--token-file={tokens}", "--tenant-transfers=2")
    guarded = Guarded(start_server(*flags, secure=False), tmp_path)
    upload, download = (
        path_of("DatasetService.UploadDataset"),
        path_of("ModelService.DownloadModel"),
    )
    metadata = bearer(guarded.token("alpha"))
    with guarded.client("alpha") as alpha, guarded.channel() as channel:
        job = alpha.wait(alpha.submit(small_request(alpha.upload(make_columns()).name, epochs=1)))
        enlarge(guarded.house("alpha") / job.model)
        request = model_pb2.DownloadModelRequest(name=job.model).SerializeToString()
        first = open_stream(channel, upload, metadata, header_of(100))
        uploads = guarded.house("alpha") / "uploads"
        until(lambda: bool(list(uploads.iterdir())))
        second = invoke(channel, download, metadata, [request])
        assert next(second)
        for path, message in ((upload, header_of(100)), (download, request)):
            refused = refusal(partial(list, invoke(channel, path, metadata, [message])))
            assert is_over(refused, "tenant_transfers", "2", "alpha")
        # Watches are counted by themselves, and every tenant's by themselves.
        assert list(alpha.watch(job))
        with guarded.client("beta") as beta:
            assert beta.upload(make_columns()).row_count == 400
        first.cancel()
        until(lambda: opens(channel, download, metadata, request))
        second.cancel()


def test_one_tenant_does_not_take_all_places(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    tokens = make_tokens(tmp_path, "alpha", "beta")
    flags = (f"--token-file={tokens}", "--max-transfers=4", "--upload-idle-seconds=600")
    guarded = Guarded(start_server(*flags, secure=False), tmp_path)
    path, metadata = path_of("DatasetService.UploadDataset"), bearer(guarded.token("alpha"))
    with guarded.client("beta") as beta, guarded.channel() as channel:
        send: Any = channel.stream_unary(path)
        ended = threading.Event()
        uploads = [send.future(stay(number, ended), metadata=metadata) for number in range(4)]
        folder = guarded.house("alpha") / "uploads"
        until(lambda: folder.exists() and len(list(folder.iterdir())) == 2)
        assert beta.upload(make_columns()).row_count == 400
        assert len(list(folder.iterdir())) == 2
        ended.set()
        for upload in uploads:
            upload.cancel()


def stay(number: int, ended: threading.Event) -> Iterator[bytes]:
    """The messages of an upload of which nothing comes after the header."""
    yield header_of(100, f"{number:064x}")
    ended.wait(600)


def enlarge(model: Path, size: int = 2**24) -> None:
    """Give a model a file that does not fit between a caller that does not read and the server."""
    os.truncate(model / "model.safetensors", size)


def silence(other: Any) -> Iterator[bytes]:
    """No message until another call is over, nor then."""
    until(lambda: not other.is_active())
    yield from ()


def dry_runs(channel: grpc.Channel, guarded: Guarded, tenant: str, count: int) -> list[Any]:
    """So many at once."""
    with guarded.client(tenant) as client:
        request = small_request(client.upload(make_columns()).name)
    request.validate_only = True
    send: Any = channel.unary_unary(path_of("TrainingService.SubmitTraining"))
    metadata, message = bearer(guarded.token(tenant)), request.SerializeToString()
    return [send.future(message, metadata=metadata, timeout=100) for _ in range(count)]


def test_dry_runs_of_one_tenant_do_not_hold_up_those_of_another(
    guarded: Guarded, alpha: Things
) -> None:
    with guarded.channel() as channel:
        (own,) = dry_runs(channel, guarded, "alpha", 1)
        assert own.result()
        many = dry_runs(channel, guarded, "twin", 20)
        assert many[0].result()
        (one,) = dry_runs(channel, guarded, "alpha", 1)
        assert training_pb2.TrainingJob.FromString(one.result()).HasField("plan")
        # Behind those that computed until it had come, and two more.
        assert sum(run.done() for run in many) < 10
        assert all(run.result() for run in many)


def test_a_tenant_has_so_many_dry_runs_waiting(limited: Guarded, refusal: Refusal) -> None:
    with limited.channel() as channel:
        runs = dry_runs(channel, limited, "dry", 12)
        codes = [run.code() for run in runs]
        # One computes and two wait, at least.
        assert codes.count(grpc.StatusCode.OK) >= 3
        refused = [run for run in runs if run.code() is not grpc.StatusCode.OK]
        assert refused
        for run in refused:
            assert is_over(refusal(run.result), "tenant_queued_jobs", "2", "dry")


def test_there_is_one_system_for_all(guarded: Guarded, both: tuple[Things, Things]) -> None:
    path = path_of("SystemService.GetSystemInfo")
    with guarded.channel() as channel:
        found = [
            system_pb2.SystemInfo.FromString(
                next(invoke(channel, path, bearer(guarded.token(tenant))))
            )
            for tenant in ("alpha", "nobody")
        ]
    assert [info.running_jobs for info in found] == [1, 0]
    for info in found:
        info.ClearField("running_jobs")
        info.ClearField("queued_jobs")
    assert found[0] == found[1]

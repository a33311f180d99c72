"""Answers that nobody reads: what a server holds of them, and whom they hold up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.conftest import FAULTS, Server, make_columns, refusal_of, small_request
from tests.service.bare_http2 import LARGEST_WINDOW, BareConnection
from tests.service.test_security import bearer, until
from tests.service.test_tenants import Guarded, make_tokens
from tests.service.test_untrusted import MEBIBYTE, resident_bytes

from trainwire.v1 import dataset_pb2, dataset_pb2_grpc, training_pb2
from trainwire_client import QuotaExceededError

pytestmark = pytest.mark.slow

Connect = Callable[..., BareConnection]

UNREAD_MEBIBYTES = 64
"""What `--max-unread-mb` is if nothing else is said."""
GROWTH_BYTES = 2 * UNREAD_MEBIBYTES * MEBIBYTE
GET_DATASET = "/trainwire.v1.DatasetService/GetDataset"
LIST_DATASETS = "/trainwire.v1.DatasetService/ListDatasets"
GET_TRAINING = "/trainwire.v1.TrainingService/GetTraining"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@pytest.fixture
def guarded(tmp_path: Path, start_server: Callable[..., Server]) -> Guarded:
    tokens = make_tokens(tmp_path, "alpha", "beta")
    server = start_server(f"--token-file={tokens}", "--grace=2", secure=False)
    return Guarded(server, tmp_path)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens bare connections, which end with the test."""
    with contextlib.ExitStack() as opened:

        def open_one(server: Server, token: str = "", window: int = 0) -> BareConnection:
            headers = [("authorization", f"Bearer {token}")] if token else []
            connection = BareConnection(server.address, window, headers)
            opened.callback(connection.close)
            return connection

        yield open_one


def wide_table() -> pa.Table:
    """Its description takes half a megabyte."""
    return pa.table({f"{i:06d}" + "x" * 200: [1.0] for i in range(2_300)})


def is_refused(guarded: Guarded, tenant: str, request: dataset_pb2.GetDatasetRequest) -> bool:
    with guarded.channel() as channel:
        stub: Any = dataset_pb2_grpc.DatasetServiceStub(channel)
        metadata = bearer(guarded.token(tenant))
        call = stub.GetDataset.future(request, metadata=metadata, timeout=30)
        if call.exception() is None:
            return False
        refused = refusal_of(call.result)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.metadata == {"quota": "max_unread_mb", "limit": str(UNREAD_MEBIBYTES)}
    return True


@pytest.mark.parametrize("window", [0, LARGEST_WINDOW], ids=["no window", "a window unread"])
@pytest.mark.parametrize("path", [GET_DATASET, LIST_DATASETS])
def test_answers_that_nobody_reads(
    path: str, window: int, guarded: Guarded, connect: Connect
) -> None:
    with guarded.client("alpha") as alpha, guarded.client("beta") as beta:
        name = alpha.upload(wide_table()).name
        assert beta.upload(wide_table()).name == name
    pid = guarded.server.process.pid
    before = resident_bytes(pid)
    request = dataset_pb2.GetDatasetRequest(name=name)
    message = request.SerializeToString() if path == GET_DATASET else b""
    connection = connect(guarded.server, guarded.token("alpha"), window)
    if window:
        for _ in range(400):
            connection.call(path, message)
    else:
        connection.calls(400, path, message)
        assert len(connection.refused) > 300
    until(lambda: is_refused(guarded, "alpha", request))
    assert not is_refused(guarded, "beta", request)
    assert resident_bytes(pid) - before < GROWTH_BYTES
    connection.close()
    until(lambda: not is_refused(guarded, "alpha", request))
    assert not [record for record in guarded.server.records if record["event"] in FAULTS]


def test_small_answers_that_nobody_reads(
    start_server: Callable[..., Server], connect: Connect
) -> None:
    server = start_server("--grace=2", secure=False)
    with server.client() as client:
        job = client.submit(small_request(client.upload(make_columns()).name, epochs=1))
        client.wait(job)
        before = resident_bytes(server.process.pid)
        request = training_pb2.GetTrainingRequest(name=job.name).SerializeToString()
        connection = connect(server)
        connection.calls(3_000, GET_TRAINING, request)
        assert 1_000 < len(connection.begun) < 1_500
        with pytest.raises(QuotaExceededError):
            client.get(job)
        # Nor is anything done for callers who would not be told of it.
        with pytest.raises(QuotaExceededError):
            client.submit(small_request(job.request.dataset, epochs=2))
        assert resident_bytes(server.process.pid) - before < GROWTH_BYTES
        connection.close()
        until(lambda: answers(lambda: client.get(job)))
        assert len(list(client.list())) == 1


def answers(call: Callable[[], Any]) -> bool:
    try:
        call()
    except QuotaExceededError:
        return False
    return True


def test_the_answer_of_an_upload_is_counted_too(
    start_server: Callable[..., Server], connect: Connect
) -> None:
    """Of bytes that are there already it comes at the header."""
    server = start_server("--grace=2", "--max-unread-mb=4", secure=False)
    with server.client() as client:
        dataset = client.upload(wide_table())
    header = dataset_pb2.DatasetHeader(
        format=dataset.format, size_bytes=dataset.size_bytes, sha256=dataset.sha256
    )
    request = dataset_pb2.UploadDatasetRequest(header=header).SerializeToString()
    connection = connect(server)
    connection.calls(20, "/trainwire.v1.DatasetService/UploadDataset", request)
    assert (len(connection.begun), len(connection.refused)) == (3, 17)


def test_calls_of_a_connection_are_not_without_number(
    start_server: Callable[..., Server], connect: Connect
) -> None:
    """Nothing but their headers comes."""
    server = start_server("--grace=2", secure=False)
    before = resident_bytes(server.process.pid)
    connection = connect(server)
    for _ in range(5_000):
        connection.call(GET_TRAINING, message=None)
    connection.wait_for_answers(1_000)
    with server.client() as client:
        assert client.info()
    assert (len(connection.begun), len(connection.refused)) == (0, 1_000)
    assert resident_bytes(server.process.pid) - before < GROWTH_BYTES


# ------------------------------------------------------------------------ health, without a token


def first_of_watch(stub: Any) -> Any:
    return next(iter(stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)))


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_calls_of_health_that_nobody_reads(path: str, guarded: Guarded, connect: Connect) -> None:
    server = guarded.server
    before = resident_bytes(server.process.pid)
    connection = connect(server)
    connection.calls(5_000, path)
    assert (len(connection.begun), len(connection.refused)) == (100, 4_900)
    assert resident_bytes(server.process.pid) - before < 64 * MEBIBYTE
    with guarded.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for answer in (stub.Check(health_pb2.HealthCheckRequest()), first_of_watch(stub)):
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    # Those that are open do not hold up the end.
    assert server.stop() == 0


def test_calls_of_health_without_a_message_count(guarded: Guarded, connect: Connect) -> None:
    connection = connect(guarded.server)
    for _ in range(300):
        connection.call(CHECK, message=None)
    connection.wait_for_answers(200)
    assert (len(connection.begun), len(connection.refused)) == (0, 200)


def test_watches_of_health_are_not_without_number(
    guarded: Guarded, connect: Connect, refusal: Callable[..., Any]
) -> None:
    connections = [connect(guarded.server) for _ in range(10)]
    for connection in connections:
        connection.calls(100, WATCH)
    assert not any(connection.refused for connection in connections)
    with guarded.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        refused = refusal(lambda: first_of_watch(stub))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.metadata == {"quota": "health_watches", "limit": "1000"}
        assert stub.Check(health_pb2.HealthCheckRequest())
        connections[0].close()
        until(lambda: bool(starts(stub)))


def starts(stub: Any) -> Any:
    try:
        return first_of_watch(stub)
    except grpc.RpcError:
        return None

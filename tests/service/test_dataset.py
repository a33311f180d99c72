"""DatasetService over the wire."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from trainwire.v1 import dataset_pb2, dataset_pb2_grpc
from trainwire_client import InvalidRequestError, TrainingClient

Refusal = Callable[[Callable[[], Any]], Any]
Columns = Callable[..., dict[str, Any]]

CHUNK_BYTES = 1000


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> dataset_pb2_grpc.DatasetServiceStub:
    return dataset_pb2_grpc.DatasetServiceStub(channel)


def arrow_bytes(columns: dict[str, Any], file: bool = False) -> bytes:
    """The columns in Arrow's IPC stream (or file) format."""
    table, sink = pa.table(columns), io.BytesIO()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.fixture
def data(request: pytest.FixtureRequest, columns: Columns) -> bytes:
    """A table that no other test uploads."""
    return arrow_bytes(
        columns(seed=int(hashlib.md5(request.node.name.encode()).hexdigest()[:8], 16))
    )


def header(data: bytes, **changes: Any) -> dataset_pb2.UploadDatasetRequest:
    fields = {
        "format": dataset_pb2.DATASET_FORMAT_ARROW,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **changes,
    }
    return dataset_pb2.UploadDatasetRequest(header=dataset_pb2.DatasetHeader(**fields))


def chunk(data: bytes) -> dataset_pb2.UploadDatasetRequest:
    return dataset_pb2.UploadDatasetRequest(chunk=dataset_pb2.DatasetChunk(data=data))


def chunks(data: bytes) -> list[dataset_pb2.UploadDatasetRequest]:
    starts = range(0, len(data), CHUNK_BYTES)
    return [chunk(data[start : start + CHUNK_BYTES]) for start in starts]


@pytest.mark.parametrize("file", [False, True])
def test_an_upload_is_described_by_its_profile(
    file: bool, stub: dataset_pb2_grpc.DatasetServiceStub, columns: Columns
) -> None:
    columns_sent = columns(seed=11)
    columns_sent["a"][3] = float("nan")
    data = arrow_bytes(columns_sent, file)
    stored = stub.UploadDataset(iter([header(data), *chunks(data)]))
    digest = hashlib.sha256(data).hexdigest()
    assert stored.name == f"datasets/sha256-{digest}"
    assert (stored.sha256, stored.size_bytes) == (digest, len(data))
    assert stored.format == dataset_pb2.DATASET_FORMAT_ARROW
    assert stored.row_count == 400
    assert [column.name for column in stored.columns] == ["a", "b", "y", "price", "time", "group"]
    assert [column.arrow_type for column in stored.columns[:3]] == ["float", "float", "int64"]
    assert [column.non_finite_count for column in stored.columns] == [1, 0, 0, 0, 0, 0]
    assert stored.create_time.ToSeconds() > 0
    assert stub.GetDataset(dataset_pb2.GetDatasetRequest(name=stored.name)) == stored


def test_a_known_digest_is_answered_before_its_bytes_are_sent(
    stub: dataset_pb2_grpc.DatasetServiceStub, columns: Columns
) -> None:
    data = arrow_bytes(columns(seed=11))
    first = stub.UploadDataset(iter([header(data), *chunks(data)]))
    answered = threading.Event()

    def messages() -> Iterator[dataset_pb2.UploadDatasetRequest]:
        yield header(data)
        assert answered.wait(30), "the server waited for the bytes"

    again = stub.UploadDataset(messages(), timeout=30)
    answered.set()
    assert again == first


def broken_uploads() -> Iterator[Any]:
    """Uploads that must be refused, and words of the message."""

    def case(name: str, words: str, messages: Callable[[bytes], Iterable[object]]) -> Any:
        return pytest.param(messages, words, id=name)

    yield case("nothing", "no header", lambda data: [])
    yield case("no header", "first message must be the header", chunks)
    yield case("header alone", "0 bytes came", lambda data: [header(data)])
    yield case("a chunk is missing", "bytes came", lambda data: [header(data), *chunks(data)[:-1]])
    yield case(
        "a chunk too many",
        "more bytes than",
        lambda data: [header(data), *chunks(data), chunk(b"x")],
    )
    yield case("two headers", "only chunks may come", lambda data: [header(data), header(data)])
    yield case(
        "a header at the end",
        "only chunks may come",
        lambda data: [header(data), *chunks(data), header(data)],
    )
    yield case(
        "chunks out of order",
        "the bytes have SHA-256",
        lambda data: [header(data), *chunks(data)[::-1]],
    )
    yield case("no Arrow", "Arrow", lambda data: upload_of(b"time,a,b\n1,2,3\n"))
    yield case("half of it", "damaged or truncated", lambda data: upload_of(data[: len(data) // 2]))
    yield case("damaged", "Arrow", lambda data: upload_of(b"\0" * 64 + data[64:]))


def upload_of(data: bytes) -> list[dataset_pb2.UploadDatasetRequest]:
    """An upload that says the truth about its bytes."""
    return [header(data), *chunks(data)]


@pytest.mark.parametrize(("messages", "words"), list(broken_uploads()))
def test_a_broken_upload_is_refused_and_leaves_nothing(
    messages: Callable[[bytes], Iterable[dataset_pb2.UploadDatasetRequest]],
    words: str,
    data: bytes,
    server: Any,
    client: TrainingClient,
    stub: dataset_pb2_grpc.DatasetServiceStub,
    refusal: Refusal,
) -> None:
    before = list(client.datasets())
    refused = refusal(lambda: stub.UploadDataset(iter(messages(data))))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "BROKEN_UPLOAD"
    assert words in refused.message
    assert list((server.data_dir / "uploads").iterdir()) == []
    assert list(client.datasets()) == before
    names = {dataset.name for dataset in before}
    assert {f"datasets/{path.name}" for path in (server.data_dir / "datasets").iterdir()} == names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 63}, "[0-9a-f]{64}"),
        ({"sha256": "A" * 64}, "[0-9a-f]{64}"),
        ({"sha256": None}, "required"),
        ({"size_bytes": 0}, "[1, inf)"),
        ({"size_bytes": None}, "required"),
        ({"format": 77}, "77 is not a value of DatasetFormat; allowed: DATASET_FORMAT_ARROW"),
        ({"format": dataset_pb2.DATASET_FORMAT_UNSPECIFIED}, "allowed: DATASET_FORMAT_ARROW"),
    ],
)
def test_a_header_that_breaks_the_contract_is_refused(
    changes: dict[str, Any],
    words: str,
    data: bytes,
    stub: dataset_pb2_grpc.DatasetServiceStub,
    refusal: Refusal,
) -> None:
    messages = [header(data, **changes), *chunks(data)]
    refused = refusal(lambda: stub.UploadDataset(iter(messages)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"
    assert set(refused.fields) == {f"header.{name}" for name in changes}
    assert all(words in description for description in refused.fields.values())


def test_a_chunk_with_more_than_bytes_in_it_is_refused(
    data: bytes, stub: dataset_pb2_grpc.DatasetServiceStub, refusal: Refusal
) -> None:
    unknown = b"\x50\x01"  # field 10, which no message of an upload has
    inside = dataset_pb2.DatasetChunk.FromString(chunk(data).chunk.SerializeToString() + unknown)
    beside = dataset_pb2.UploadDatasetRequest.FromString(chunk(data).SerializeToString() + unknown)
    cases = {"chunk.10": dataset_pb2.UploadDatasetRequest(chunk=inside), "10": beside}
    for path, message in cases.items():
        refused = refusal(partial(stub.UploadDataset, iter([header(data), message])))
        assert refused.reason == "INVALID_REQUEST"
        assert set(refused.fields) == {path}


def test_chunks_may_be_encoded_in_other_ways(data: bytes, channel: grpc.Channel) -> None:
    """As no generated code does, but the encoding allows."""
    halves = [chunk(half).SerializeToString() for half in (data[:500], data[500:])]
    messages = [header(data).SerializeToString(), halves[0], chunk(b"").SerializeToString()]
    # A field that is there twice counts as it stands last.
    messages.append(chunk(b"other").SerializeToString() + halves[1])
    upload: Any = channel.stream_unary(
        "/trainwire.v1.DatasetService/UploadDataset",
        response_deserializer=dataset_pb2.Dataset.FromString,
    )
    assert upload(iter(messages)).row_count == 400


def test_an_upload_works_after_a_broken_one_of_the_same_data(
    data: bytes, stub: dataset_pb2_grpc.DatasetServiceStub, refusal: Refusal
) -> None:
    refusal(lambda: stub.UploadDataset(iter([header(data), *chunks(data)[:-1]])))
    assert stub.UploadDataset(iter(upload_of(data))).row_count == 400


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(
    data: bytes, server: Any, stub: dataset_pb2_grpc.DatasetServiceStub
) -> None:
    uploads, left = server.data_dir / "uploads", threading.Event()

    def messages() -> Iterator[dataset_pb2.UploadDatasetRequest]:
        yield header(data)
        yield chunks(data)[0]
        left.wait(30)

    call = stub.UploadDataset.future(messages())
    wait_until(lambda: list(uploads.iterdir()) != [])
    call.cancel()
    left.set()
    wait_until(lambda: list(uploads.iterdir()) == [])


def wait_until(holds: Callable[[], bool]) -> None:
    """Look until it holds: the file system tells nobody when it does."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_datasets_are_listed_page_by_page_newest_first(
    client: TrainingClient, columns: Columns
) -> None:
    names = [client.upload(columns(rows=20, seed=seed)).name for seed in range(100, 103)]
    listed = list(client.datasets(page_size=1))
    assert [dataset.name for dataset in listed[:3]] == names[::-1]
    assert listed == list(client.datasets())
    assert listed[0] == client.dataset(names[-1])
    assert len({dataset.name for dataset in listed}) == len(listed)


def test_a_page_token_of_another_make_is_invalid(
    stub: dataset_pb2_grpc.DatasetServiceStub, refusal: Refusal
) -> None:
    refused = refusal(lambda: stub.ListDatasets(dataset_pb2.ListDatasetsRequest(page_token="x")))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"page_token"}


@pytest.mark.slow
def test_an_upload_that_takes_more_memory_than_allowed_is_refused(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    # One batch of zeros, compressed: a few kilobytes on the wire, 160 MB when it is read.
    batch = pa.record_batch({"a": pa.array(np.zeros(20_000_000))})
    file = tmp_path / "bomb.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert file.stat().st_size < 100_000
    server = start_server("--ingest-memory-mb", "64")
    with server.client() as client:
        with pytest.raises(InvalidRequestError, match="memory"):
            client.upload(file)
        assert client.upload({"a": np.arange(1000.0)}).row_count == 1000
    assert server.stop() == 0
    with start_server().client() as client:
        assert client.upload(file).row_count == 20_000_000


def test_the_same_file_may_be_uploaded_by_many_at_once(
    client: TrainingClient, columns: Callable[..., Any]
) -> None:
    for seed in (501, 502, 503):
        data = columns(20_000, seed=seed)
        with ThreadPoolExecutor(4) as pool:
            stored = list(pool.map(lambda _: client.upload(data), range(4)))  # noqa: B023
        assert len({dataset.name for dataset in stored}) == 1
        assert all(dataset == stored[0] for dataset in stored)

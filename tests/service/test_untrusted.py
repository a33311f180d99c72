"""Bytes, names and requests that mean harm: the status of each, and that nothing of it stays.

SECURITY.md has the table of all attacks; `test_security.py` has those on identity and transport.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.conftest import FAULTS, SECURE, Server, make_columns, small_request
from tests.faults.test_storage import used_bytes
from tests.service.test_security import until

from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    options_pb2,
    system_pb2,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_client import JobFailedError
from trainwire_server.service.status import CODES

pytestmark = pytest.mark.slow

Refusal = Callable[[Callable[[], Any]], Any]

MEBIBYTE = 2**20
INGEST_MEBIBYTES, JOB_MEBIBYTES, STORED_BYTES = 64, 512, 30_000_000
GROWTH_BYTES = 64 * MEBIBYTE
"""What the server may hold after any one attack, beyond what it held before."""
PLACES = 32
"""Uploads that may be under way at the same time, and downloads, if nothing else is said."""
ROOT = Path(__file__).parents[2]
ARROW = dataset_pb2.DATASET_FORMAT_ARROW
PARQUET = dataset_pb2.DATASET_FORMAT_PARQUET
CSV = dataset_pb2.DATASET_FORMAT_CSV


# ------------------------------------------------------------------------ the server attacked


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little memory to give; after all attacks it has logged no fault."""
    limits = {
        "--ingest-memory-mb": INGEST_MEBIBYTES,
        "--job-memory-mb": JOB_MEBIBYTES,
        "--max-data-bytes": STORED_BYTES,
        "--upload-idle-seconds": 600,  # test_tenants.py has what ends idle uploads
        "--grace": 2,
    }
    flags = [f"{flag}={value}" for flag, value in limits.items()]
    server = Server(tmp_path_factory.mktemp("attacked"), *flags)
    with server.client() as client:
        client.info()  # its devices are known by then
        client.upload(make_columns(seed=4_000))
    before = resident_bytes(server.process.pid)
    yield server
    assert resident_bytes(server.process.pid) - before < 2 * GROWTH_BYTES
    assert server.stop() == 0
    assert not [record for record in server.records if record["event"] in FAULTS]


@pytest.fixture
def wire(attacked: Server) -> Iterator[grpc.Channel]:
    with attacked.channel() as channel:
        yield channel


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def files_of(folder: Path) -> list[str]:
    """What is stored, but for the database, which writes by itself."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(name for name in found if not name.startswith("trainwire.db"))


@pytest.fixture
def unharmed(attacked: Server) -> Iterator[None]:
    """After the attack the server serves, holds no more memory, and no file is there or gone."""
    pid, before = attacked.process.pid, files_of(attacked.data_dir)
    resident = resident_bytes(pid)
    yield
    with attacked.client() as client:
        assert client.info().running_jobs == client.info().queued_jobs == 0
        client.delete(client.upload({"a": np.arange(50.0)}))
    assert files_of(attacked.data_dir) == before
    assert attacked.children() == []
    assert resident_bytes(pid) - resident < GROWTH_BYTES


# ------------------------------------------------------------------------ allocation bombs


def stream_of(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def patched(data: bytes, layout: str, number: int, huge: int = 2**40) -> bytes:
    """The bytes with every such number made huge."""
    assert struct.pack(layout, number) in data
    return data.replace(struct.pack(layout, number), struct.pack(layout, huge))


def zigzag(number: int) -> bytes:
    """A number as Parquet's footer has it (Thrift's compact protocol)."""
    left, found = number << 1, bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*found, left])


def arrow_of_a_huge_metadata() -> bytes:
    return b"\xff\xff\xff\xff" + struct.pack("<i", 2**31 - 1) + b"x" * 64


def arrow_of_a_huge_body() -> bytes:
    data = stream_of(pa.record_batch({"a": pa.array(range(1003))}))
    return patched(data, "<q", 1003 * 8)


def arrow_of_a_huge_number_of_rows() -> bytes:
    return patched(stream_of(pa.record_batch({"a": pa.array(range(1003))})), "<q", 1003)


def arrow_with_a_compressed_buffer_said_to_be_huge() -> bytes:
    data = stream_of(pa.record_batch({"a": pa.array(np.zeros(1003))}), "zstd")
    return patched(data, "<q", 1003 * 8)


def zeros_in_arrow(compression: str) -> bytes:
    return stream_of(pa.record_batch({"a": pa.array(np.zeros(2**25))}), compression)


def arrow_with_a_dictionary_of_one_long_text() -> bytes:
    """A megabyte, and 65,536 rows that are that."""
    codes = pa.array(np.zeros(2**16, dtype=np.int8))
    texts = pa.DictionaryArray.from_arrays(codes, ["x" * MEBIBYTE])
    return stream_of(pa.record_batch({"a": texts}))


def arrow_of_lists_in_lists() -> bytes:
    kind = pa.int64()
    for _ in range(2_000):
        kind = pa.list_(kind)
    return bytes(pa.schema([("a", kind)]).serialize())


def arrow_of_too_many_columns() -> bytes:
    """Their names alone."""
    fields = [pa.field(f"c{i}", pa.null()) for i in range(200_000)]
    return bytes(pa.schema(fields).serialize())


def zeros_in_parquet() -> bytes:
    """One page of 256 MiB, compressed to some kilobytes."""
    table = pa.table({"a": np.zeros(2**25)})
    limits = ("data_page_size", "write_batch_size", "row_group_size", "max_rows_per_page")
    whole = dict.fromkeys(limits, 2**28)
    return parquet_of(table, compression="zstd", use_dictionary=False, **whole)


def parquet_with_one_long_text_over_and_over() -> bytes:
    texts = pa.array(["x" * MEBIBYTE]).take(pa.array(np.zeros(300, dtype=np.int64)))
    return parquet_of(pa.table({"a": texts}))


def parquet_of_a_huge_number_of_values() -> bytes:
    data = parquet_of(pa.table({"a": np.arange(1003.0)}), use_dictionary=False)
    # As long, or offsets would not be right.
    return data.replace(zigzag(1003), zigzag(8_191))


def parquet_of_a_huge_footer() -> bytes:
    return b"PAR1" + b"x" * 64 + struct.pack("<I", 2**31 - 1) + b"PAR1"


def csv_of_one_line() -> bytes:
    return b"a,b\n" + b"1" * (8 * MEBIBYTE)


def csv_of_a_million_columns() -> bytes:
    names = b",".join(b"c%d" % i for i in range(1_000_000))
    return names + b"\n" + b"," * 999_999 + b"\n"


def csv_of_an_open_quote() -> bytes:
    return b'a,b\n1,"' + b"x\n" * (4 * MEBIBYTE)


def gzip_of_csv() -> bytes:
    """A gigabyte, if somebody would unpack it."""
    return gzip.compress(b"a,b\n" + b"1,2\n" * (2**22))


BOMBS: list[tuple[Any, Callable[[], bytes]]] = [
    (ARROW, arrow_of_a_huge_metadata),
    (ARROW, arrow_of_a_huge_body),
    (ARROW, arrow_of_a_huge_number_of_rows),
    (ARROW, arrow_with_a_compressed_buffer_said_to_be_huge),
    (ARROW, arrow_with_a_dictionary_of_one_long_text),
    (ARROW, arrow_of_lists_in_lists),
    (ARROW, arrow_of_too_many_columns),
    (PARQUET, parquet_with_one_long_text_over_and_over),
    (PARQUET, parquet_of_a_huge_number_of_values),
    (PARQUET, parquet_of_a_huge_footer),
    (CSV, csv_of_one_line),
    (CSV, csv_of_a_million_columns),
    (CSV, csv_of_an_open_quote),
    (CSV, gzip_of_csv),
]
LARGE_BOMBS: list[tuple[Any, Callable[[], bytes]]] = [
    (ARROW, partial(zeros_in_arrow, "zstd")),
    (ARROW, partial(zeros_in_arrow, "lz4")),
    (PARQUET, zeros_in_parquet),
]


def upload_of(data: bytes, data_format: Any, size: int = 0) -> Iterator[Any]:
    header = dataset_pb2.DatasetHeader(
        format=data_format,
        size_bytes=size or len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    yield dataset_pb2.UploadDatasetRequest(header=header)
    for start in range(0, len(data), MEBIBYTE):
        chunk = dataset_pb2.DatasetChunk(data=data[start : start + MEBIBYTE])
        yield dataset_pb2.UploadDatasetRequest(chunk=chunk)


def name_of(bomb: Any) -> str:
    function, arguments = getattr(bomb, "func", bomb), getattr(bomb, "args", ())
    return " ".join([function.__name__, *arguments]) if callable(bomb) else ""


def explode(make: Callable[[], bytes], data_format: Any, wire: Any, refusal: Refusal) -> Any:
    stub = dataset_pb2_grpc.DatasetServiceStub(wire)
    data = make()
    refused = refusal(lambda: stub.UploadDataset(upload_of(data, data_format), timeout=100))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BROKEN_UPLOAD")
    return refused


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(("data_format", "make"), BOMBS, ids=name_of)
def test_bytes_that_ask_for_memory(
    data_format: Any, make: Callable[[], bytes], wire: Any, refusal: Refusal
) -> None:
    explode(make, data_format, wire, refusal)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(("data_format", "make"), LARGE_BOMBS, ids=name_of)
def test_bytes_that_unpack_to_more_than_allowed(
    data_format: Any, make: Callable[[], bytes], wire: Any, refusal: Refusal
) -> None:
    assert "memory" in explode(make, data_format, wire, refusal).message


@pytest.mark.usefixtures("unharmed")
def test_bytes_that_unpack_to_more_than_may_be_stored(wire: Any, refusal: Refusal) -> None:
    """Page by page, so that memory is enough; what is written to the disk is gone at the end."""
    table = pa.table({f"c{i}": pa.array(np.zeros(2**20)) for i in range(5)})
    data = parquet_of(table, compression="zstd")
    assert len(data) < MEBIBYTE < STORED_BYTES < table.nbytes
    stub = dataset_pb2_grpc.DatasetServiceStub(wire)
    refused = refusal(lambda: stub.UploadDataset(upload_of(data, PARQUET), timeout=100))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "STORAGE_FULL"
    assert f"more than {STORED_BYTES - len(data)} bytes" in refused.message


# ------------------------------------------------------------------------ uploads that do not end


def endless(first: Any, sent: list[int]) -> Iterator[Any]:
    """A header, and chunks for as long as somebody takes them; counts these."""
    yield first
    chunk = dataset_pb2.DatasetChunk(data=bytes(MEBIBYTE))
    for _ in range(1_000):
        sent.append(1)
        yield dataset_pb2.UploadDatasetRequest(chunk=chunk)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("size", "reason"), [(10**12, "STORAGE_FULL"), (3 * MEBIBYTE, "BROKEN_UPLOAD")]
)
def test_an_upload_without_end_is_not_read_to_its_end(
    size: int, reason: str, wire: Any, refusal: Refusal
) -> None:
    """One says that it is larger than allowed, and one is larger than it says."""
    (header, *_) = upload_of(b"", ARROW, size)
    stub, sent = dataset_pb2_grpc.DatasetServiceStub(wire), list[int]()
    refused = refusal(lambda: stub.UploadDataset(endless(header, sent), timeout=60))
    assert refused.reason == reason
    assert len(sent) < 50


def lies(size: int) -> Iterator[tuple[str, Iterator[Any]]]:
    """Uploads that announce so much and are not what they say, and what is said to them."""
    header, *chunks = upload_of(bytes(size), ARROW)
    other = list(upload_of(b"?" * size, ARROW))[1:]
    yield "0 bytes came", iter([header])
    yield "bytes came", iter([header, *chunks[:-1]])
    yield "the bytes have SHA-256", iter([header, *other])
    # All that was announced, and no table.
    yield "upload", iter([header, *chunks])


def test_an_upload_that_is_not_what_it_announced_deletes_nothing(
    start_server: Callable[..., Server], refusal: Refusal
) -> None:
    limit = 3 * MEBIBYTE
    server = start_server("--max-data-bytes", str(limit))
    with server.client() as client, server.channel() as channel:
        stub = dataset_pb2_grpc.DatasetServiceStub(channel)
        job = client.wait(client.submit(small_request(client.upload(make_columns()).name)))
        until(lambda: not (server.data_dir / job.name / "checkpoints").exists())
        # For so much the job would have to go.
        size = limit - used_bytes(server.data_dir) + 1_000
        before = files_of(server.data_dir)
        for said, upload in lies(size):
            refused = refusal(partial(stub.UploadDataset, upload, timeout=60))
            assert (refused.reason, said in refused.message) == ("BROKEN_UPLOAD", True)
            assert client.get(job) == job
        assert files_of(server.data_dir) == before
        # Stored twice: as it came, and as a table.
        client.upload({"a": np.arange(size // 16)})
        assert server.wait_for_log("retention.deleted")["name"] == job.name


# ------------------------------------------------------------------------ names

EVIL = (
    "../../../etc/passwd", "/etc/passwd", "..", ".", "a/../../b", "a\\..\\b", "x\0y", "~root",
    "%2e%2e%2f%2e%2e%2fetc", "\u2024\u2024/\u2024\u2024/etc", "\uff0e\uff0e\uff0f", "x" * 5_000,
    "a\n", "$(id)", "file:///etc/passwd",
)  # fmt: skip
ANYTHING = r"[\s\S]+"
"""The pattern of names of columns."""
MODULES = (training_pb2, dataset_pb2, model_pb2, system_pb2)


def methods() -> list[MethodDescriptor]:
    services = [each for module in MODULES for each in module.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


def named_fields(descriptor: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a request names something that is stored: text for which there is a pattern."""
    for field in descriptor.fields:
        pattern = field.GetOptions().Extensions[options_pb2.param].pattern
        if field.message_type is not None and not field.is_repeated:
            yield from named_fields(field.message_type, (*path, field.name))
        elif field.type == FieldDescriptor.TYPE_STRING and pattern not in ("", ANYTHING):
            yield (*path, field.name)


def pattern_of(method: Any, path: tuple[str, ...]) -> str:
    descriptor = method.input_type
    for name in path[:-1]:
        descriptor = descriptor.fields_by_name[name].message_type
    pattern: str = (
        descriptor.fields_by_name[path[-1]].GetOptions().Extensions[options_pb2.param].pattern
    )
    return pattern


NAMED = [(method, path) for method in methods() for path in named_fields(method.input_type)]


def call_of(channel: grpc.Channel, method: Any) -> Callable[[bytes], Any]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    sides = ("unary", "stream")
    kind = f"{sides[method.client_streaming]}_{sides[method.server_streaming]}"
    call = getattr(channel, kind)(path)
    return lambda data: call(iter([data]) if method.client_streaming else data, timeout=30)


def test_every_call_that_names_something_is_attacked() -> None:
    unnamed = {"ListTrainings", "ListDatasets", "ListModels", "GetSystemInfo"}
    assert {method.name for method, _ in NAMED} == {method.name for method in methods()} - unnamed


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("method", "path"),
    NAMED,
    ids=lambda each: ".".join(each) if isinstance(each, tuple) else each.name,
)
def test_names_that_lead_elsewhere(
    method: Any, path: tuple[str, ...], wire: Any, refusal: Refusal
) -> None:
    call, pattern = call_of(wire, method), pattern_of(method, path)
    kinds = ("", "jobs/", "datasets/", "datasets/sha256-", "models/")
    for name in (f"{kind}{evil}" for kind in kinds for evil in EVIL):
        request: Any = message_factory.GetMessageClass(method.input_type)()
        *above, last = path
        holder = request
        for part in above:
            holder = getattr(holder, part)
        setattr(holder, last, name)
        refused = refusal(partial(call, request.SerializeToString()))
        if re.fullmatch(pattern, name):
            # Such as "jobs/..", which is the name of nothing.
            assert refused.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        else:
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert ".".join(path) in refused.fields


@pytest.mark.usefixtures("unharmed")
def test_columns_may_be_named_like_paths(attacked: Server) -> None:
    """No file is named after them: `unharmed` looks."""
    with attacked.client() as client:
        stored = client.upload({name: np.arange(9.0) for name in EVIL if "\0" not in name})
        assert stored.columns[0].name == EVIL[0]
        client.delete(stored)


# ------------------------------------------------------------------------ requests


def of_size(dataset: str, **sizes: int) -> training_pb2.TrainingRequest:
    request = small_request(dataset)
    for name, size in sizes.items():
        setattr(request.model.hybrid_cnn_lstm, name, size)
    return request


MAXIMA = {
    "conv_blocks": 16, "conv_channels": 2048, "kernel_size": 255, "lstm_hidden_size": 2048,
    "lstm_layers": 8, "attention_heads": 64, "attention_head_size": 512,
}  # fmt: skip


@pytest.fixture
def taken(attacked: Server) -> str:
    """A dataset that is there."""
    with attacked.client() as client:
        return client.upload(make_columns(seed=4_000)).name


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("call", ["SubmitTraining", "Train", "validate_only"])
def test_a_network_that_no_memory_holds(call: str, taken: str, wire: Any, refusal: Refusal) -> None:
    """Refused at once, and before anything is started or stored."""
    stub: Any = training_pb2_grpc.TrainingServiceStub(wire)
    send = getattr(stub, "SubmitTraining" if call == "validate_only" else call)

    def refused(**sizes: int) -> Any:
        request = of_size(taken, **sizes)
        if call == "validate_only":
            request.validate_only = True
        return refusal(partial(send, request, timeout=30))

    billion = refused(lstm_hidden_size=10**9)
    assert (billion.code, billion.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert list(billion.fields) == ["model.hybrid_cnn_lstm.lstm_hidden_size"]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        largest = refused(**MAXIMA)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.1
    assert largest.code is grpc.StatusCode.FAILED_PRECONDITION
    assert largest.reason == "JOB_TOO_LARGE"
    assert "model.hybrid_cnn_lstm.conv_channels" in largest.fields
    assert f"more than the {JOB_MEBIBYTES} MiB" in largest.message


def test_a_job_is_not_resumed_where_it_no_longer_fits(
    start_server: Callable[..., Server], refusal: Refusal
) -> None:
    server = start_server()
    with server.client() as client:
        request = of_size(client.upload(make_columns()).name, lstm_hidden_size=256)
        request.trainer.epochs, request.trainer.early_stopping_patience = 100_000, 0
        job = client.submit(request)
        next(event for event in client.watch(job) if event.sequence > 4)
        client.cancel(job)
        assert list(client.watch(job))
    server.stop()
    with start_server("--job-memory-mb", "10").channel() as channel:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        resume = training_pb2.ResumeTrainingRequest(name=job.name)
        resume.changes.request_id = "again"
        assert refusal(lambda: stub.ResumeTraining(resume)).reason == "JOB_TOO_LARGE"


@pytest.mark.usefixtures("unharmed")
def test_messages_beyond_the_limit(wire: Any) -> None:
    """gRPC's own refusal: the message is not read."""
    for method in methods():
        assert refusal_by_size(call_of(wire, method), bytes(5 * MEBIBYTE)), method.name
    info = wire.unary_unary("/trainwire.v1.SystemService/GetSystemInfo")
    zipped = partial(info, compression=grpc.Compression.Gzip, timeout=30)
    assert refusal_by_size(zipped, bytes(64 * MEBIBYTE))


def refusal_by_size(call: Callable[[bytes], Any], message: bytes) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        list(call(message))  # streams are refused when they are read
    refused: Any = caught.value
    return bool(refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)


# ------------------------------------------------------------------------ streams


async def idle_streams(server: Server, job: str, count: int) -> int:
    """So many watches and half as many uploads, open at once; the server's memory meanwhile."""
    watch = "/trainwire.v1.TrainingService/WatchTraining"
    upload = "/trainwire.v1.DatasetService/UploadDataset"
    request = training_pb2.WatchTrainingRequest(name=job).SerializeToString()
    async with grpc.aio.insecure_channel(server.address) as channel:
        open_watch: Any = channel.unary_stream(watch)
        open_upload: Any = channel.stream_unary(upload)
        # All at once, as after a restart: by default gRPC cancels some of so many.
        watches = [open_watch(request) for _ in range(count)]
        await asyncio.gather(*(call.read() for call in watches))
        uploads = [open_upload() for _ in range(count // 2)]
        await asyncio.gather(*(call.wait_for_connection() for call in uploads))
        calls = [*watches, *uploads]
        assert not [call for call in calls if call.done()]
        with server.client() as client:
            assert await asyncio.to_thread(client.info)
        resident = resident_bytes(server.process.pid)
        for call in calls:
            call.cancel()
    return resident


@pytest.mark.skipif(SECURE, reason="the same code behind TLS, and a channel of its own")
def test_thousands_of_idle_streams(attacked: Server) -> None:
    pid = attacked.process.pid
    with attacked.client() as client:
        dataset = client.upload(make_columns(50_000)).name
        running = client.submit(small_request(dataset, epochs=100_000, early_stopping_patience=0))
        waiting = client.submit(small_request(dataset))
        before = resident_bytes(pid)
        waves = [asyncio.run(idle_streams(attacked, waiting.name, 2_000)) for _ in range(7)]
        for job in (waiting, running):
            client.cancel(job)
            assert list(client.watch(job))
            client.delete(job)
        client.delete(dataset)
    print([f"{(wave - before) / MEBIBYTE:.0f} MiB" for wave in waves])  # noqa: T201
    assert max(waves) - before < 150 * MEBIBYTE
    # What streams took that have gone is there for those that come. The first wave is lower, and a
    # single one takes up to 20 MiB more than another, for the order in which calls come and go.
    assert min(waves[4:]) - min(waves[1:4]) < 15 * MEBIBYTE


async def ends_of(calls: Sequence[Any]) -> Counter[str]:
    """What calls come to, when they have all ended: OK, or the quota they were refused for."""
    return Counter([await end_of(call) for call in calls])


async def end_of(call: Any) -> str:
    if await call.code() is grpc.StatusCode.OK:
        return "OK"
    status: Any = await rpc_status.aio.from_call(call)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "QUOTA_EXCEEDED"
    return str(info.metadata["quota"])


async def begin_upload(channel: grpc.aio.Channel, number: int) -> Any:
    """An upload of which a header and a byte have come."""
    stub: Any = dataset_pb2_grpc.DatasetServiceStub(channel)
    call = stub.UploadDataset()
    await call.wait_for_connection()
    header = dataset_pb2.DatasetHeader(format=CSV, size_bytes=10, sha256=f"{number:064x}")
    chunk = dataset_pb2.DatasetChunk(data=b"a")
    for part in ({"header": header}, {"chunk": chunk}):
        await call.write(dataset_pb2.UploadDatasetRequest(**part))
    return call


@pytest.mark.skipif(SECURE, reason="the same code behind TLS, and a channel of its own")
def test_a_thousand_uploads_of_a_byte_take_few_handles_and_end(
    start_server: Callable[..., Server],
) -> None:
    """More than there are handles; some are under way, and the others wait for their places."""
    places = 64  # as many as let the others wait, none of which is refused at once
    server = start_server(f"--max-transfers={places}", "--upload-idle-seconds=10", "--grace=2")
    pid = server.process.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))

    async def attack(client: Any, dataset: str) -> Counter[str]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            calls = await asyncio.gather(*(begin_upload(channel, n) for n in range(1_050)))
            uploads = server.data_dir / "uploads"
            await asyncio.to_thread(until, lambda: len(list(uploads.iterdir())) == places)
            grown = [now - then for now, then in zip(handles_and_threads(pid), before, strict=True)]
            assert max(grown) < 2 * places
            assert resident_bytes(pid) - resident < 150 * MEBIBYTE
            # All else goes on, a new process and its handles included.
            job = await asyncio.to_thread(client.submit, small_request(dataset, epochs=1))
            ended = await asyncio.to_thread(client.wait, job)
            assert ended.state == training_pb2.JOB_STATE_SUCCEEDED
            return await ends_of(calls)

    with server.client() as client:
        dataset = client.upload(make_columns()).name
        before, resident = handles_and_threads(pid), resident_bytes(pid)
        ends = asyncio.run(attack(client, dataset))
        assert ends.total() == 1_050
        assert ends["upload_idle_seconds"] >= places
        assert set(ends) <= {"upload_idle_seconds", "max_transfers"}
        assert list((server.data_dir / "uploads").iterdir()) == []
        assert client.upload(make_columns(seed=1)).row_count == 400
    assert not [record for record in server.records if record["event"] in FAULTS]


def handles_and_threads(pid: int) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task")]


# ------------------------------------------------------------------------ downloads not read

HOARD_BYTES = 128 * MEBIBYTE
"""A fast connection grants its windows 16 MiB and more, which a client then takes unread."""


@pytest.fixture
def hoard(start_server: Callable[..., Server]) -> Callable[..., tuple[Server, Any]]:
    """Starts a server with a model that is more than fits between it and who does not read."""

    def start(*flags: str) -> tuple[Server, Any]:
        server = start_server(*flags, "--grace=2", secure=False)
        with server.client() as client:
            dataset = client.upload(make_columns()).name
            job = client.wait(client.submit(small_request(dataset, epochs=1)))
        os.truncate(server.data_dir / job.model / "model.safetensors", HOARD_BYTES)
        return server, model_pb2.DownloadModelRequest(name=job.model)

    return start


def read_all(server: Server, request: Any) -> int:
    """Bytes of a download."""
    with server.channel() as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        return sum(len(message.chunk.data) for message in stub.DownloadModel(request, timeout=60))


async def unread_downloads(
    server: Server, request: Any, count: int, then: Callable[[], None]
) -> Counter[str]:
    """So many, nothing of which is read until something has been done; how they end."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        calls = [stub.DownloadModel(request) for _ in range(count)]
        await asyncio.to_thread(then)
        await asyncio.gather(*(read_on(call) for call in calls))
        return await ends_of(calls)


async def read_on(call: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass


def test_downloads_that_nobody_reads(hoard: Callable[..., tuple[Server, Any]]) -> None:
    server, request = hoard("--download-idle-seconds=3")
    pid = server.process.pid
    assert read_all(server, request) > HOARD_BYTES
    before, handles = resident_bytes(pid), handles_and_threads(pid)[0]

    def look() -> None:
        until(lambda: handles_and_threads(pid)[0] - handles >= PLACES)
        # It waits for a place, like most of them, and gets one when those of others have ended.
        while refusal_to(server, request):
            grown.append(resident_bytes(pid) - before)
        grown.append(resident_bytes(pid) - before)
        assert handles_and_threads(pid)[0] - handles < 2 * PLACES

    for _ in range(2):
        grown: list[int] = []
        ends = asyncio.run(unread_downloads(server, request, 300, look))
        print([f"{each / MEBIBYTE:.0f} MiB" for each in grown])  # noqa: T201
        assert max(grown) < 2 * GROWTH_BYTES
        assert ends["download_idle_seconds"] >= PLACES
        assert ends.total() == 300
    assert not [record for record in server.records if record["event"] in FAULTS]


def refusal_to(server: Server, request: Any) -> str:
    """Why a download is refused; nothing if it is not."""
    try:
        assert read_all(server, request) > HOARD_BYTES
    except grpc.RpcError as error:
        refused: Any = error
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return str(refused.details())
    return ""


def test_downloads_that_have_ended_unread_are_not_without_number(
    hoard: Callable[..., tuple[Server, Any]], refusal: Refusal
) -> None:
    server, request = hoard("--download-idle-seconds=0.3", "--max-transfers=1")
    with server.channel() as channel:
        stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        unread = []

        def leave_one() -> None:
            unread.append(stub.DownloadModel(request))
            assert next(unread[-1]).file.name

        def are_too_many() -> bool:
            found = refusal_to(server, request)
            if not found:
                # One whose bytes the connection had all taken when it ended does not count.
                leave_one()
            return "neither read" in found

        for _ in range(8):
            until(lambda: not refusal_to(server, request))
            leave_one()
        until(are_too_many)
        refused = refusal(lambda: stub.DownloadModel(request))
        assert (refused.reason, refused.metadata["quota"]) == ("QUOTA_EXCEEDED", "max_transfers")
        # Whoever asks, it is the server that has too many, and not for long.
        assert (set(refused.quotas), refused.retry_seconds) == ({"server"}, 2)
        unread.pop().cancel()
        until(lambda: not refusal_to(server, request))


# ------------------------------------------------------------------------ links


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder elsewhere, with names that the server would use; untouched at the end."""
    folder = tmp_path / "victim"
    (folder / "bundle").mkdir(parents=True)
    for name in ("secret", "table", "source", "model.safetensors", "x.partial", "bundle/x"):
        (folder / name).write_text("TOP SECRET")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (1, 1))
    before = {path: path.stat().st_mtime for path in (folder, *folder.rglob("*"))}
    yield folder
    assert {path: path.stat().st_mtime for path in (folder, *folder.rglob("*"))} == before


def plant(path: Path, target: Path) -> None:
    """A symbolic link in the place of something that is put aside."""
    path.rename(path.with_name(f"{path.name}.aside"))
    path.symlink_to(target)


def test_links_in_the_data_directory_are_not_followed(
    start_server: Callable[..., Server], victim: Path, refusal: Refusal
) -> None:
    server = start_server()
    with server.client() as client, server.channel() as channel:
        trainings: Any = training_pb2_grpc.TrainingServiceStub(channel)
        stored = client.upload(make_columns())
        job = client.wait(client.submit(small_request(stored.name, epochs=1)))
        download: Any = channel.unary_stream("/trainwire.v1.ModelService/DownloadModel")
        request = model_pb2.DownloadModelRequest(name=job.model).SerializeToString()
        plant(server.data_dir / job.model / "model.safetensors", victim / "secret")
        assert refusal(lambda: download(request)).reason == "INTERNAL"
        plant(server.data_dir / stored.name, victim)
        plant(server.data_dir / job.name, victim)
        plant(server.data_dir / job.model, victim)

        # Nothing is read: not by a dry run, not by a training, not for a download.
        dry = small_request(stored.name)
        dry.validate_only = True
        assert refusal(lambda: trainings.SubmitTraining(dry)).reason == "INTERNAL"
        failed = client.submit(small_request(stored.name))
        with pytest.raises(JobFailedError, match="INTERNAL"):
            client.wait(failed)
        assert refusal(lambda: download(request)).reason == "INTERNAL"

        # Nothing is written: not the time of the dataset's last use, not an upload.
        assert client.upload(make_columns()) == stored
        plant(server.data_dir / "uploads", victim)
        (header, *_) = upload_of(b"x", CSV)
        datasets = dataset_pb2_grpc.DatasetServiceStub(channel)
        assert refusal(lambda: datasets.UploadDataset(iter([header]))).reason == "INTERNAL"
        (server.data_dir / "uploads").unlink()
        (server.data_dir / "uploads.aside").rename(server.data_dir / "uploads")

        # Nothing is deleted but the links.
        for name in (failed.name, job.name, job.model, stored.name):
            client.delete(name)
            assert not (server.data_dir / name).is_symlink()


def test_a_server_does_not_start_on_links(victim: Path, tmp_path: Path) -> None:
    """`tests/unit/test_catalog.py` has each of them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/uploads").symlink_to(victim)
    command = [sys.executable, "-m", "trainwire_server", "--data-dir", str(tmp_path / "data")]
    # A file, not a pipe: the fork server has it too, and ends some seconds later.
    with (tmp_path / "stderr").open("w") as stderr:
        done = subprocess.run(
            [*command, "--listen", "127.0.0.1:0"], stderr=stderr, timeout=60, check=False
        )
    assert done.returncode == 1
    assert "data/uploads is a symbolic link" in (tmp_path / "stderr").read_text()


# ------------------------------------------------------------------------ pickle

LOADERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle"}
SOURCES = [
    path
    for folder in ("server", "client", "proto")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not re.search(r"_pb2(_grpc)?\.py$", path.name)
]


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What could run what is in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.split(".")[0] in LOADERS)
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
            yield from (str(name) for name in names & (LOADERS | CALLS))
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                yield ast.unparse(node.func)
            yield from (str(each.arg) for each in node.keywords if each.arg == "allow_pickle")


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "import torch\ntorch.load('x')", "eval('1')",
        "from torch import load", "np.load('x', allow_pickle=True)", "import dill.source",
    ],
)  # fmt: skip
def test_what_would_run_a_file_is_recognised(code: str) -> None:
    assert list(forbidden(ast.parse(code)))


def test_nothing_runs_what_is_in_a_file() -> None:
    assert len(SOURCES) > 100
    found = {path.name: list(forbidden(ast.parse(path.read_text()))) for path in SOURCES}
    assert {name: what for name, what in found.items() if what} == {}


# ------------------------------------------------------------------------ the page


def test_the_page_names_tests_that_there_are() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    table = page.split("## Attacks", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    there = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[-1])
        assert named or row[-1].strip() == "none", row
        assert [name for name in named if f"def {name}(" not in there] == []
        codes = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", row[1]))
        failures = {
            name.removeprefix("FAILURE_REASON_")
            for name in training_pb2.FailureReason.DESCRIPTOR.values_by_name
        }
        reasons = failures | {kind.reason for kind in CODES}
        assert codes <= reasons | set(grpc.StatusCode.__members__), row

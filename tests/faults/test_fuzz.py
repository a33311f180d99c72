"""Whatever is sent to whichever RPC, the server answers with a status of its own and goes on.

The calls come from the descriptors of the services, so that a new RPC or field is fuzzed unasked.
By default the examples are the same every time; with FULL=1 they are many, new each time, and
hypothesis prints how to have a failing one again.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import math
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import PYTHON_TEXT
from tests.faults.conftest import IS_FULL

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
Path_ = tuple[FieldDescriptor, ...]

pytestmark = pytest.mark.timeout(1_800 if IS_FULL else 120)
EXAMPLES = 500 if IS_FULL else 40
SECONDS = 30
GROWTH_BYTES = 150 * 2**20
"""What the server may hold, after everything here, beyond what it held before."""
FORBIDDEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
MODULES = (training_pb2, dataset_pb2, model_pb2, system_pb2, health_pb2, reflection_pb2)
TRAINING = ("trainwire.v1.TrainingService.Train", "trainwire.v1.TrainingService.SubmitTraining")
"""Calls that take a training, or a dry run, each time that they are sound."""

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not IS_FULL,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


# ------------------------------------------------------------------------ what there is


NOT_SERVED = "grpc.health.v1.Health.List"
"""The standard leaves it open, and newer health-checking packages describe it."""


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC, by "package.Service.Method"."""
    services = [s for module in MODULES for s in module.DESCRIPTOR.services_by_name.values()]
    return {m.full_name: m for s in services for m in s.methods if m.full_name != NOT_SERVED}


METHODS = methods()
each_rpc = pytest.mark.parametrize("rpc", sorted(METHODS))


@dataclass(frozen=True)
class World:
    """What the server has, and a request that it would train in a moment."""

    names: tuple[str, ...]
    small: training_pb2.TrainingRequest


@pytest.fixture
def world(client: TrainingClient, columns: Callable[..., Any], small: RequestFor) -> World:
    """A dataset of this file's own, a job of each ending, a model: whatever the test before did."""
    dataset = client.upload(columns(seed=777))
    request = small(dataset.name, epochs=1)
    request.request_id = "fuzz-succeeded"
    succeeded = client.wait(client.submit(request))
    if not [model for model in client.models() if model.name == succeeded.model]:
        client.delete(succeeded)
        succeeded = client.wait(client.submit(request))
    endless = small(dataset.name, epochs=100_000, early_stopping_patience=0)
    endless.request_id = "fuzz-cancelled"
    cancelled = client.submit(endless)
    if cancelled.state == training_pb2.JOB_STATE_QUEUED:
        next(event for event in client.watch(cancelled) if event.HasField("epoch"))
    client.cancel(cancelled)
    names = (dataset.name, succeeded.name, cancelled.name, succeeded.model)
    return World((*names, "jobs/none", "datasets/none", "models/none"), small(dataset.name))


@pytest.fixture(autouse=True)
def unharmed(server: Any, client: TrainingClient) -> Iterator[None]:
    """After each test the server serves, has logged no fault and trains nothing any more."""
    logged = len(server.records)
    yield
    assert client.info().executor == "local"
    unended = (training_pb2.JOB_STATE_QUEUED, training_pb2.JOB_STATE_RUNNING)
    for job in client.list(states=unended):
        client.cancel(job)
        assert list(client.watch(job))
    assert not [r for r in server.records[logged:] if is_fault(r)]


def is_fault(record: dict[str, Any]) -> bool:
    return record.get("level") in ("error", "critical") or record["event"] == "unstructured"


# ------------------------------------------------------------------------ calls


def invoke(channel: grpc.Channel, rpc: str, data: list[bytes], **options: Any) -> list[bytes]:
    """Call an RPC with these bytes as its messages; the answers."""
    method: Any = METHODS[rpc]
    path = f"/{method.containing_service.full_name}/{method.name}"
    sides = ("unary", "stream")
    kind = f"{sides[method.client_streaming]}_{sides[method.server_streaming]}"
    request: Any = iter(data) if method.client_streaming else data[0]
    answer = getattr(channel, kind)(path)(request, timeout=SECONDS, **options)
    return read(answer, rpc) if method.server_streaming else [answer]


def read(call: Any, rpc: str) -> list[bytes]:
    # Health.Watch has no end.
    most = 1 if rpc == "grpc.health.v1.Health.Watch" else 100_000
    answers = list(itertools.islice(call, most))
    call.cancel()
    return answers


def check(
    channel: grpc.Channel, rpc: str, data: list[bytes], **options: Any
) -> grpc.StatusCode | None:
    """Call an RPC; the status it is refused with must be one that the server means."""
    try:
        invoke(channel, rpc, data, **options)
    except grpc.RpcError as error:
        refused: Any = error
        code: grpc.StatusCode = refused.code()
        assert code not in FORBIDDEN, (rpc, refused)
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, (rpc, refused)
        said = f"{refused.details()} {refused.trailing_metadata()}"
        assert not [text for text in PYTHON_TEXT if text in said], (rpc, said)
        return code
    return None


def tamed(request: Message, world: World) -> Message:
    """The request; one that would train is made one that trains in a moment."""
    training: Any = getattr(request, "changes", request)
    if not isinstance(training, training_pb2.TrainingRequest):
        return request
    if training is not request or not contract.violations(training):
        if training.HasField("model") or training is request:
            training.model.CopyFrom(world.small.model)
        training.trainer.epochs = min(training.trainer.epochs, 2) or 1
    return request


def tamed_bytes(data: bytes, rpc: str, world: World) -> bytes:
    try:
        message = message_class(rpc).FromString(data)
    except DecodeError:
        return data
    before = message.SerializeToString()
    after = tamed(message, world).SerializeToString()
    return data if after == before else after


# ------------------------------------------------------------------------ messages


def message_class(rpc: str) -> type[Message]:
    method: Any = METHODS[rpc]
    return message_factory.GetMessageClass(method.input_type)


def paths(descriptor: Any, above: Path_ = ()) -> Iterator[Path_]:
    """Every field below a message, messages themselves included."""
    for field in descriptor.fields:
        here = (*above, field)
        yield here
        inner = field.message_type
        if inner is None or is_map(field) or inner in [f.containing_type for f in here]:
            continue
        yield from paths(inner, here)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
REALS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
TEXTS = (
    "", " ", "\x00", "a\nb", "%s%n{0}", "'; DROP TABLE jobs; --", "../../etc/passwd",
    "\u202e\ufeff", "𝕏é漢", "jobs/", "models/.", "datasets/..", "x" * 129,
    "漢" * 5_000, "x" * 1_000_000,
)  # fmt: skip
LISTS = (["same"] * 3, [f"c{i}" for i in range(10_001)], ["漢" * 300] * 500)


def bounds(field: FieldDescriptor) -> list[float]:
    param = field.GetOptions().Extensions[options_pb2.param]
    return [value for option, value in param.ListFields() if option.name.endswith("imum")]


def integers(low: int, high: int, near: list[float]) -> st.SearchStrategy[int]:
    edges = {low, high, *(int(b) + by for b in near for by in (-1, 0, 1))}
    inside = sorted(value for value in edges if low <= value <= high)
    return st.sampled_from(inside) | st.integers(low, high)


def reals(near: list[float]) -> st.SearchStrategy[float]:
    edges = [math.nextafter(b, side) for b in near for side in (-math.inf, b, math.inf)]
    return st.sampled_from([*edges, math.nan, math.inf, -math.inf, -0.0, 5e-324]) | st.floats()


def texts(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    some = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    return st.sampled_from([*names, "a", "b", "y", "price"]) | some | st.sampled_from(TEXTS)


def singles(field: FieldDescriptor, names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """One value of a field that is no message: any its type can hold, most of them odd."""
    kind = field.cpp_type
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from([*known, 99, -1, 2**31 - 1])
    if kind in INTEGERS:
        return integers(*INTEGERS[kind], bounds(field))
    if kind in REALS:
        return reals(bounds(field))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=300) | st.just(bytes(2_000_000))
    pattern = field.GetOptions().Extensions[options_pb2.param].pattern
    sound = fitting(names, pattern) or [""]
    from_pattern = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
    return texts(names) | st.sampled_from(sound) | from_pattern


def values(field: FieldDescriptor, names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """What a field may be set to; None sets a message without anything in it."""
    if is_map(field):
        entry: Any = field.message_type
        key, value = entry.fields
        small = st.dictionaries(singles(key, names), singles(value, names), max_size=4)
        return small | st.just({f"k{i}": "v" for i in range(65)})
    if field.message_type is not None:
        return st.none()
    one = singles(field, names)
    if not field.is_repeated:
        return one
    some: st.SearchStrategy[Any] = st.lists(one, max_size=5)
    is_text = field.type == FieldDescriptor.TYPE_STRING
    return some | st.sampled_from(LISTS) if is_text else some | one.map(lambda v: [v] * 2_000)


def put(message: Any, path: Path_, value: Any) -> None:
    """Set the field at the end of a path."""
    *above, last = path
    for field in above:
        child = getattr(message, field.name)
        message = child.add() if field.is_repeated else child
    target = getattr(message, last.name)
    if is_map(last):
        target.update(value)
    elif last.message_type is not None:
        target.add() if last.is_repeated else target.SetInParent()
    elif last.is_repeated:
        target.extend(value)
    else:
        setattr(message, last.name, value)


@st.composite
def messages(draw: st.DrawFn, rpc: str, world: World) -> Message:
    """A request, empty or sound, some of whose fields are set to anything."""
    message = message_class(rpc)()
    if draw(st.integers(0, 3)):
        make_sound(message, lambda options: draw(st.sampled_from(options)), world)
    found = list(paths(message.DESCRIPTOR))
    if found:
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 8]))):
            path = draw(st.sampled_from(found))
            put(message, path, draw(values(path[-1], world.names)))
    if draw(st.integers(0, 19)) == 19:
        message.MergeFromString(draw(st.sampled_from(UNKNOWN)))
    return tamed(message, world)


UNKNOWN = (
    bytes([0xF8, 0xF0, 0x04, 0x01]),  # field 9999, a varint
    bytes([0xFA, 0xF0, 0x04, 0x03, 1, 2, 3]),  # field 9999, bytes
    bytes([0xFB, 0xF0, 0x04, 0xFC, 0xF0, 0x04]),  # field 9999, an empty group
)


def make_sound(message: Any, pick: Callable[[list[str]], str], world: World) -> None:
    """Set what is required, so that the call gets past the first look at its request."""
    if isinstance(message, training_pb2.TrainingRequest):
        message.CopyFrom(world.small)
        return
    for field in message.DESCRIPTOR.fields:
        param = field.GetOptions().Extensions[options_pb2.param]
        if named := fitting(world.names, param.pattern):
            setattr(message, field.name, pick(named))
        elif param.required and param.pattern:
            # SetModelAlias.alias; the other required ones are resources or in a oneof.
            setattr(message, field.name, "fuzz")


def fitting(names: tuple[str, ...], pattern: str) -> list[str]:
    """The names that a field takes which names a resource."""
    return [name for name in names if pattern.startswith(f"{name.partition('/')[0]}/")]


# ------------------------------------------------------------------------ the contract's calls


def test_every_service_of_the_server_is_fuzzed(channel: grpc.Channel) -> None:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([ask]), timeout=SECONDS)
    served = {service.name for service in answer.list_services_response.service}
    assert served == {name.rpartition(".")[0] for name in METHODS}


@each_rpc
def test_any_message(rpc: str, channel: grpc.Channel, world: World) -> None:
    streams = METHODS[rpc].client_streaming
    most = 6 if streams else 1
    sequences = st.lists(messages(rpc, world), min_size=0 if streams else 1, max_size=most)

    @settings(fuzz, max_examples=EXAMPLES // 3 if rpc in TRAINING else EXAMPLES)
    @given(sequences)
    def run(sequence: list[Message]) -> None:
        check(channel, rpc, [message.SerializeToString() for message in sequence])

    run()


@each_rpc
def test_any_bytes(rpc: str, channel: grpc.Channel, world: World) -> None:
    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(messages(rpc, world)).SerializeToString()[:10_000])
        for _ in range(draw(st.integers(0, 3)) if data else 0):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data[: draw(st.integers(0, len(data)))])

    @fuzz
    @given(st.binary(max_size=200) | damaged())
    def run(data: bytes) -> None:
        check(channel, rpc, [tamed_bytes(data, rpc, world)])

    run()


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The bytes in pieces, some of them empty."""
    places = st.lists(st.integers(0, len(data)), max_size=5).map(sorted)
    return places.map(lambda at: [data[i:j] for i, j in itertools.pairwise([0, *at, len(data)])])


@st.composite
def uploads(draw: st.DrawFn) -> list[bytes]:
    """An upload that keeps the protocol, of a table or of anything, and perhaps a step besides."""
    table = b"a,b,y\n" + b"".join(b"%d,%d.5,%d\n" % (i, i, i % 2) for i in range(30))
    data = bytearray(draw(st.sampled_from([table, b"ARROW1\x00\x00", b"PAR1", b"PAR1PAR1", b"\n"])))
    data += draw(st.binary(max_size=50))
    header = dataset_pb2.DatasetHeader(
        format=draw(st.sampled_from([1, 2, 3])),  # type: ignore[arg-type]
        size_bytes=len(data) + draw(st.sampled_from([0, 0, 0, 1, 2**60])),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    sent = [dataset_pb2.UploadDatasetRequest(header=header)]
    chunks = (dataset_pb2.DatasetChunk(data=piece) for piece in draw(cuts(bytes(data))))
    sent += [dataset_pb2.UploadDatasetRequest(chunk=chunk) for chunk in chunks]
    order = draw(st.sampled_from(["kept", "kept", "twice", "reversed", "headless", "cut"]))
    sent = {
        "kept": sent,
        "twice": sent + sent,
        "reversed": sent[::-1],
        "headless": sent[1:],
        "cut": sent[:-1],
    }[order]
    return [message.SerializeToString() for message in sent]


def test_any_upload(channel: grpc.Channel, server: Any) -> None:
    @fuzz
    @given(uploads())
    def run(sequence: list[bytes]) -> None:
        check(channel, "trainwire.v1.DatasetService.UploadDataset", sequence)

    run()
    assert list((server.data_dir / "uploads").iterdir()) == []


@each_rpc
def test_a_message_above_the_limit(rpc: str, channel: grpc.Channel) -> None:
    """gRPC itself refuses it: 4 MiB, compressed or not, before any of it is decoded."""
    data = [bytes(5 * 2**20)]
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check(channel, rpc, data) is exhausted
    assert check(channel, rpc, data, compression=grpc.Compression.Gzip) is exhausted


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/x", "/trainwire.v1.TrainingService/", "/trainwire.v1.TrainingService/Nothing",
     "/trainwire.v1.Nothing/SubmitTraining", "/grpc.health.v1.Health/Nothing",
     "/grpc.health.v1.Health/List",
     "/trainwire.v1.TrainingService/submittraining", f"/{'x' * 5_000}/y"],
)  # fmt: skip
def test_a_method_that_is_not_there(path: str, channel: grpc.Channel) -> None:
    unary: Any = channel.unary_unary(path)
    stream: Any = channel.stream_stream(path)
    for call in (lambda: unary(b"x", timeout=SECONDS), lambda: list(stream(iter([b"x"] * 3)))):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_caller_that_leaves_at_once(channel: grpc.Channel, world: World) -> None:
    """Calls that are cancelled while the server is at work on them."""
    chance = random.Random(0)
    for rpc in sorted(METHODS) * (20 if IS_FULL else 2):
        method: Any = METHODS[rpc]
        message = message_class(rpc)()
        make_sound(message, chance.choice, world)
        path = f"/{method.containing_service.full_name}/{method.name}"
        with contextlib.suppress(grpc.RpcError):
            data = tamed(message, world).SerializeToString()
            sides = ("unary", "stream")
            kind = f"{sides[method.client_streaming]}_{sides[method.server_streaming]}"
            start: Any = getattr(channel, kind)(path)
            start = start if method.server_streaming else start.future
            call = start(iter([data]) if method.client_streaming else data, timeout=SECONDS)
            call.cancel()


# ------------------------------------------------------------------------ what is no call

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, literal and not indexed (RFC 7541, section 6.2.2); both below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def grpc_call(path: str, encoding: str, body: bytes) -> bytes:
    """The bytes of a call whose body is not what gRPC says a body is."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
        "content-type": "application/grpc", "grpc-encoding": encoding,
    }  # fmt: skip
    block = b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
    return PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, body)


def send_raw(address: str, data: bytes) -> bytes:
    """Send bytes to the server's port and close our side; what comes back before it closes its."""
    host, _, port = address.rpartition(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.settimeout(0.2)
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                said += more
    return said


def frames() -> st.SearchStrategy[bytes]:
    some = st.builds(
        frame,
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**32 - 1]),
        st.binary(max_size=60),
    )
    return st.lists(some, max_size=8).map(b"".join)


def test_bytes_that_are_no_http2(server: Any) -> None:
    @fuzz
    @given(
        st.binary(max_size=200)
        | st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
        | st.integers(0, len(PREFACE)).map(lambda length: PREFACE[:length])
        | st.binary(min_size=1, max_size=40).map(lambda more: PREFACE + more)
    )
    def run(data: bytes) -> None:
        said = send_raw(server.address, data)
        assert not [text for text in PYTHON_TEXT if text.encode() in said]

    run()


def test_any_frames(server: Any) -> None:
    @fuzz
    @given(frames())
    def run(data: bytes) -> None:
        said = send_raw(server.address, PREFACE + frame(4, 0, 0, b"") + data)
        assert not [text for text in PYTHON_TEXT if text.encode() in said]

    run()


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate", "nonsense"])
def test_bodies_that_are_no_grpc(encoding: str, server: Any) -> None:
    """Lengths that lie, compression that is none, a bomb that would be 64 MiB unpacked."""
    info = "/trainwire.v1.SystemService/GetSystemInfo"
    bomb = gzip.compress(bytes(64 * 2**20))[:16_000]
    bodies = [b"", b"\x00", b"\x00\xff\xff\xff\xffabc", b"\x01\x00\x00\x00\x03abc", b"\x07" * 40]
    bodies.append(b"\x01" + struct.pack("!I", len(bomb)) + bomb)
    for body in bodies:
        said = send_raw(server.address, grpc_call(info, encoding, body))
        assert not [text for text in PYTHON_TEXT if text.encode() in said]


def test_connections_by_the_hundred(server: Any) -> None:
    """Opened, given half a preface and left open, while the fixture's call is answered."""
    host, _, port = server.address.rpartition(":")
    with contextlib.ExitStack() as opened:
        for _ in range(200):
            connection = socket.create_connection((host, int(port)), timeout=SECONDS)
            opened.enter_context(connection)
            connection.sendall(PREFACE[:10])


# ------------------------------------------------------------------------ what it costs


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def test_what_was_sent_does_not_stay_in_memory(
    server: Any, channel: grpc.Channel, world: World
) -> None:
    """The largest messages that are taken, over and over, each of them refused."""
    large = training_pb2.TrainingRequest()
    large.data.windows.feature_columns[:] = [f"{i:0250}" for i in range(15_000)]
    data = [large.SerializeToString()]
    submit = "trainwire.v1.TrainingService.SubmitTraining"
    assert check(channel, submit, data) is grpc.StatusCode.INVALID_ARGUMENT
    before = resident_bytes(server.process.pid)
    for _ in range(100 if IS_FULL else 15):
        assert check(channel, submit, data) is grpc.StatusCode.INVALID_ARGUMENT
    grown = resident_bytes(server.process.pid) - before
    print(f"grown by {grown / 2**20:.1f} MiB over {before / 2**20:.1f} MiB")  # noqa: T201
    assert grown < GROWTH_BYTES

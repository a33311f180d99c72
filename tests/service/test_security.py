"""Who gets in and who does not: tokens, roles, TLS and client certificates, over the wire."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tests.conftest import Server, make_columns, small_request

from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2, training_pb2_grpc
from trainwire_client import (
    HandshakeError,
    PermissionDeniedError,
    TrainingClient,
    UnauthenticatedError,
    UnavailableError,
)
from trainwire_client import aio as aio_client
from trainwire_server.errors import RoleTooLow
from trainwire_server.identity import Identity, Role
from trainwire_server.service.access import OPEN_TO_ALL, ROLES, check_role

Refusal = Callable[[Callable[[], Any]], Any]

WRONG_TOKEN = "trainwire_" + "x" * 43
NEEDED = {
    "TrainingService.GetTraining": "read",
    "TrainingService.ListTrainings": "read",
    "TrainingService.WatchTraining": "read",
    "DatasetService.GetDataset": "read",
    "DatasetService.ListDatasets": "read",
    "ModelService.GetModel": "read",
    "ModelService.ListModels": "read",
    "ModelService.DownloadModel": "read",
    "SystemService.GetSystemInfo": "read",
    "ServerReflection.ServerReflectionInfo": "read",
    "TrainingService.SubmitTraining": "train",
    "TrainingService.Train": "train",
    "TrainingService.CancelTraining": "train",
    "TrainingService.ResumeTraining": "train",
    "DatasetService.UploadDataset": "train",
    "TrainingService.DeleteTraining": "admin",
    "DatasetService.DeleteDataset": "admin",
    "ModelService.DeleteModel": "admin",
    "ModelService.SetModelAlias": "admin",
}
"""The least role for each call, as docs/operations.md has it."""
ROLE_NAMES = ("read", "train", "admin")


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the contract and of reflection, by "Service.Method"."""
    modules = (training_pb2, dataset_pb2, model_pb2, system_pb2, reflection_pb2)
    services = [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]
    return {f"{s.name}.{method.name}": method for s in services for method in s.methods}


def path_of(rpc: str) -> str:
    method = methods()[rpc]
    return f"/{method.containing_service.full_name}/{method.name}"


@dataclass
class Secured:
    """A server, and who may call it.

    Attributes:
        server: the process.
        folder: its certificates and tokens, which a test may change.
        tokens: a token for each role; what is in them must never be logged.
        tls: whether it has TLS.
    """

    server: Server
    folder: Path
    tokens: dict[str, str]
    tls: bool

    def channel(self, **tls: str) -> grpc.Channel:
        """A bare channel; `ca`, `cert` and `key` name files other than the right ones."""
        if not self.tls:
            return grpc.insecure_channel(self.server.address)
        files = {"ca": "ca.pem", **tls}
        read = {name: (self.folder / file).read_bytes() for name, file in files.items()}
        credentials = grpc.ssl_channel_credentials(read["ca"], read.get("key"), read.get("cert"))
        return grpc.secure_channel(self.server.address, credentials)

    def client(self, token: str | None = None, **options: Any) -> TrainingClient:
        """A client with a token file of its own."""
        return TrainingClient(self.server.address, **self.given(token), **options)

    def given(self, token: str | None) -> dict[str, Any]:
        """What a client is given besides the address."""
        files = {"ca": self.folder / "ca.pem"} if self.tls else {}
        return files | ({"token_file": self.folder / f"{token}.token"} if token else {})

    def reload(self, *changed: str) -> None:
        """SIGHUP, and the lines that say what came of it."""
        before = len(self.server.records)
        self.server.process.send_signal(signal.SIGHUP)
        for what in changed:
            event = "server.not_reloaded" if what.startswith("not ") else "server.reloaded"
            self._wait_for(event, what.removeprefix("not "), before)

    def _wait_for(self, event: str, what: str, before: int) -> None:
        log = self.server.records
        self.server.wait_for_log(event, lambda r: r["what"] == what and r in log[before:])


@contextmanager
def running(folder: Path, data: Path, *flags: str) -> Iterator[Secured]:
    """A server of these flags; nothing that it logs may have a secret in it."""
    tokens = {
        name: (folder / f"{name}.token").read_text().strip() for name in ("read", "ci", "ops")
    }
    by_role = {"read": tokens["read"], "train": tokens["ci"], "admin": tokens["ops"]}
    server = Server(data, "--grace", "2", *flags, secure=False)
    yield Secured(server, folder, by_role, any("--tls-cert" in flag for flag in flags))
    assert server.stop() == 0
    log = json.dumps(server.records)
    hashes = re.findall(r"sha256:(\w+)", (folder / "tokens").read_text())
    for secret in (*by_role.values(), WRONG_TOKEN, *hashes):
        assert secret not in log
        assert secret.removeprefix("trainwire_")[:12] not in log
    assert "PRIVATE KEY" not in log
    assert not [r for r in server.records if r["event"] in ("rpc.error", "unstructured")]


@pytest.fixture(scope="module")
def folder(secrets: Path) -> Path:
    """Certificates and tokens, those of the page and more."""
    run = [sys.executable, "-m", "trainwire_server", "token", "--role", "read", "--name", "look"]
    made = subprocess.run(
        [*run, "--token-file", str(secrets / "tokens")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (secrets / "read.token").write_text(made.stdout)
    (secrets / "wrong.token").write_text(WRONG_TOKEN)
    for script in MORE:
        subprocess.run(
            ["sh", "-eu", "-c", script], cwd=secrets, check=True, capture_output=True, timeout=60
        )
    return secrets


_EC = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
_SIGN = "openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial"
MORE = (
    # Of another CA; ended yesterday; for another name.
    f"openssl req -x509 {_EC} -subj /CN=other -keyout other.key -out other.pem",
    f"{_SIGN} -in client.csr -days -1 -out old-client.pem",
    f"{_SIGN} -in server.csr -days -1 -copy_extensions copy -out old-server.pem",
    f"openssl req {_EC} -subj /CN=x -addext subjectAltName=DNS:elsewhere -keyout server.key.2 "
    "-out elsewhere.csr",
    f"{_SIGN} -in elsewhere.csr -days 1 -copy_extensions copy -out elsewhere.pem",
)


@pytest.fixture(scope="module")
def tls_flags(folder: Path) -> tuple[str, ...]:
    return (f"--tls-cert={folder / 'server.pem'}", f"--tls-key={folder / 'server.key'}")


@pytest.fixture(scope="module")
def tls(
    folder: Path, tls_flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """A server with TLS and tokens."""
    tokens = f"--token-file={folder / 'tokens'}"
    with running(folder, tmp_path_factory.mktemp("tls"), *tls_flags, tokens) as started:
        yield started


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with tokens, in the clear on this machine."""
    tokens = f"--token-file={folder / 'tokens'}"
    with running(folder, tmp_path_factory.mktemp("plain"), tokens) as started:
        yield started


@pytest.fixture(scope="module")
def mutual(
    folder: Path, tls_flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """A server with TLS that wants certificates of its clients, and no tokens."""
    data = tmp_path_factory.mktemp("mutual")
    with running(folder, data, *tls_flags, f"--client-ca={folder / 'ca.pem'}") as started:
        yield started


@pytest.fixture(scope="module")
def tls_channel(tls: Secured) -> Iterator[grpc.Channel]:
    with tls.channel() as opened:
        yield opened


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def invoke(channel: grpc.Channel, path: str, metadata: Any = (), requests: Any = (b"",)) -> Any:
    """Call a method with these messages, whichever kind it is: on the wire they are the same."""
    call: Any = channel.stream_stream(path)
    return call(iter(requests), metadata=metadata, timeout=30)


def code_of(call: Any) -> grpc.StatusCode:
    with suppress(grpc.RpcError):
        list(call)
    code: grpc.StatusCode = call.code()
    return code


# ------------------------------------------------------------------------ tokens and roles


def test_every_call_has_a_role() -> None:
    """A new call that is on no list fails here; until it is on one, nobody may call it."""
    assert {path_of(rpc): role.text for rpc, role in named_roles().items()} == {
        path: role.text for path, role in ROLES.items()
    }
    with pytest.raises(RoleTooLow, match="nobody may call NewCall"):
        check_role(Identity("ops", Role.ADMIN), "/trainwire.v1.TrainingService/NewCall")


def named_roles() -> dict[str, Role]:
    assert set(NEEDED) == set(methods())
    return {rpc: Role[role.upper()] for rpc, role in NEEDED.items()}


def test_the_server_has_no_other_services(tls: Secured, tls_channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(
        grpc.intercept_channel(tls_channel, WithToken(tls.tokens["read"]))
    )
    services = {path.split("/")[1] for path in ROLES} | {OPEN_TO_ALL.strip("/")}
    assert set(database.get_services()) == services


class WithToken(grpc.StreamStreamClientInterceptor):
    """Adds a token to the calls of code that is not ours."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=bearer(self._token)), requests)


def test_the_page_has_the_roles_of_all_calls() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    rows = dict(re.findall(r"^\| (read|train|admin) \| (.*) \|$", page, re.MULTILINE))
    for rpc, role in NEEDED.items():
        name = rpc.rpartition(".")[2]
        words = {"Get", "List", "Watch", "Server"} if role == "read" else set()
        assert name in rows[role] or any(name.startswith(word) for word in words), rpc


@pytest.mark.parametrize("rpc", sorted(NEEDED))
def test_without_a_known_token_no_call_gets_in(
    rpc: str, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    # What would be refused if it were read: it is not.
    for metadata, reason in (((), "TOKEN_MISSING"), (bearer(WRONG_TOKEN), "TOKEN_UNKNOWN")):
        refused = refusal(partial(invoke, tls_channel, path_of(rpc), metadata, [b"\xff"]))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


@pytest.mark.parametrize("role", ROLE_NAMES)
@pytest.mark.parametrize("rpc", sorted(NEEDED))
def test_a_call_needs_its_role(
    rpc: str, role: str, tls: Secured, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    metadata = bearer(tls.tokens[role])
    if ROLE_NAMES.index(role) >= ROLE_NAMES.index(NEEDED[rpc]):
        code = code_of(invoke(tls_channel, path_of(rpc), metadata))
        # The request is empty: it is either served, or refused for that.
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        return
    refused = refusal(lambda: invoke(tls_channel, path_of(rpc), metadata, [b"\xff"]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_TOO_LOW")
    name = {"read": "look", "train": "ci"}[role]
    assert refused.message == (
        f"{rpc.rpartition('.')[2]} needs the role {NEEDED[rpc]}; "
        f"the token {name} has the role {role}"
    )


@pytest.mark.parametrize(
    "values",
    [
        ["Basic {ops}"],
        ["{ops}"],
        ["Bearer"],
        ["Bearer "],
        ["Bearer {ops}", "Bearer {ops}"],
        ["Bearer {wrong}", "Bearer {ops}"],
    ],
)
def test_what_is_no_single_bearer_token_is_none(
    values: list[str], tls: Secured, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    known = {"ops": tls.tokens["admin"], "wrong": WRONG_TOKEN}
    metadata = tuple(("authorization", value.format(**known)) for value in values)
    path = path_of("SystemService.GetSystemInfo")
    assert refusal(lambda: invoke(tls_channel, path, metadata)).reason == "TOKEN_MISSING"


def test_a_part_of_a_token_or_more_is_none(
    tls: Secured, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    token = tls.tokens["admin"]
    path = path_of("SystemService.GetSystemInfo")
    for near in (token[:-1], f"{token}x", token.upper(), f"{token},{token}"):
        refused = refusal(partial(invoke, tls_channel, path, bearer(near)))
        assert refused.reason == "TOKEN_UNKNOWN"


def test_unknown_methods_are_told_apart_by_callers_alone(
    tls: Secured, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    path = "/trainwire.v1.TrainingService/NewCall"
    refused = refusal(lambda: invoke(tls_channel, path))
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED
    call = invoke(tls_channel, path, bearer(tls.tokens["admin"]))
    assert code_of(call) is grpc.StatusCode.UNIMPLEMENTED


def test_an_upload_is_refused_before_it_is_sent(
    tls: Secured, tls_channel: grpc.Channel, refusal: Refusal
) -> None:
    path = path_of("DatasetService.UploadDataset")
    for token, reason in ((WRONG_TOKEN, "TOKEN_UNKNOWN"), (tls.tokens["read"], "ROLE_TOO_LOW")):
        answered = threading.Event()

        def messages(done: threading.Event = answered) -> Iterator[bytes]:
            # Nothing is sent until the answer is there.
            assert done.wait(30)
            yield b""

        refused = refusal(partial(invoke, tls_channel, path, bearer(token), messages()))
        answered.set()
        assert refused.reason == reason


def test_health_needs_no_token(tls_channel: grpc.Channel, plain: Secured) -> None:
    with plain.channel() as plain_channel:
        for channel in (tls_channel, plain_channel):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            serving = health_pb2.HealthCheckResponse.SERVING
            assert stub.Check(request, timeout=30).status == serving
            assert next(stub.Watch(request, timeout=30)).status == serving


def test_tokens_hold_in_the_clear_as_well(plain: Secured, refusal: Refusal) -> None:
    path = path_of("TrainingService.DeleteTraining")
    with plain.channel() as channel:
        assert refusal(lambda: invoke(channel, path)).reason == "TOKEN_MISSING"
        read = bearer(plain.tokens["read"])
        assert refusal(lambda: invoke(channel, path, read)).reason == "ROLE_TOO_LOW"
        admin = bearer(plain.tokens["admin"])
        assert refusal(lambda: invoke(channel, path, admin)).reason == "INVALID_REQUEST"


def test_the_log_has_who_was_refused(tls: Secured, tls_channel: grpc.Channel) -> None:
    path = path_of("ModelService.DeleteModel")
    code_of(invoke(tls_channel, path, bearer(tls.tokens["read"])))
    record = tls.server.wait_for_log("rpc.refused", lambda r: r["method"] == path)
    assert (record["level"], record["peer"][:5]) == ("warning", "ipv4:")
    code_of(invoke(tls_channel, path, bearer(tls.tokens["train"])))
    known = tls.server.wait_for_log("rpc.refused", lambda r: r.get("caller") == "ci")
    assert known["reason"] == "ROLE_TOO_LOW"
    code_of(invoke(tls_channel, "/what/ever"))
    assert tls.server.wait_for_log("rpc.refused", lambda r: r["method"] == "unknown")


# ------------------------------------------------------------------------ TLS


class Asked:
    """What both kinds of client answer when they are asked for models: there are none."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __call__(self, address: str, **given: Any) -> list[model_pb2.Model]:
        if self._kind == "blocking":
            with TrainingClient(address, retry_for=0, **given) as client:
                return list(client.models())
        return asyncio.run(self._ask(address, given))

    async def _ask(self, address: str, given: Any) -> list[model_pb2.Model]:
        async with aio_client.TrainingClient(address, retry_for=0, **given) as client:
            return [model async for model in client.models()]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def test_the_clients_get_in(ask: Asked, tls: Secured, plain: Secured, mutual: Secured) -> None:
    for secured in (tls, plain):
        assert ask(secured.server.address, **secured.given("read")) == []
    pair = {"cert": mutual.folder / "client.pem", "key": mutual.folder / "client.key"}
    assert ask(mutual.server.address, **mutual.given(None), **pair) == []


def test_the_clients_say_what_is_wrong_with_a_token(ask: Asked, tls: Secured) -> None:
    with pytest.raises(UnauthenticatedError, match="a token alone") as missing:
        ask(tls.server.address, **tls.given(None))
    assert missing.value.reason == "TOKEN_MISSING"
    with pytest.raises(UnauthenticatedError, match="does not know this token") as unknown:
        ask(tls.server.address, **tls.given("wrong"))
    assert unknown.value.reason == "TOKEN_UNKNOWN"
    assert WRONG_TOKEN not in str(unknown.value)
    with (
        tls.client("ci") as client,
        pytest.raises(PermissionDeniedError, match="needs the role admin; the token ci"),
    ):
        client.delete("jobs/any")


def test_tls_and_the_clear_do_not_meet(ask: Asked, tls: Secured, plain: Secured) -> None:
    with pytest.raises(UnavailableError, match=r"a server with TLS needs its CA \(ca, --ca\)"):
        ask(tls.server.address)
    ca = tls.folder / "ca.pem"
    with pytest.raises(HandshakeError, match="speaks no TLS; leave out the CA"):
        ask(plain.server.address, ca=ca)


def test_a_certificate_of_another_ca_is_not_trusted(ask: Asked, tls: Secured) -> None:
    with pytest.raises(HandshakeError, match="is of no CA in the given file"):
        ask(tls.server.address, ca=tls.folder / "other.pem")


@pytest.mark.parametrize("pair", [(), ("other.pem", "other.key"), ("old-client.pem", "client.key")])
def test_a_client_needs_a_certificate_that_the_server_trusts(
    pair: tuple[str, ...], ask: Asked, mutual: Secured
) -> None:
    files = dict(zip(("cert", "key"), (mutual.folder / name for name in pair), strict=False))
    with pytest.raises(UnavailableError, match="one of a CA it knows, not expired"):
        ask(mutual.server.address, **mutual.given(None), **files)
    # Not even the calls that need no token.
    with mutual.channel(**{name: file.name for name, file in files.items()}) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)


# ------------------------------------------------------------------------ SIGHUP


@pytest.fixture
def server_files(tls: Secured) -> Iterator[Secured]:
    """The server, whose files are afterwards as they were."""
    names = ("tokens", "server.pem", "server.key")
    before = {name: (tls.folder / name).read_bytes() for name in names}
    yield tls
    for name, data in before.items():
        (tls.folder / name).write_bytes(data)
    tls.reload("certificates", "tokens")


def without(tokens: str, name: str) -> str:
    """The file's text without the line of a name."""
    return "".join(line for line in tokens.splitlines(True) if not line.endswith(f" {name}\n"))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("old-server.pem", "its certificate has expired"),
        ("elsewhere.pem", "its certificate is for another name"),
    ],
)
def test_a_new_certificate_holds_from_the_next_connection_on(
    file: str, message: str, ask: Asked, server_files: Secured
) -> None:
    folder, given = server_files.folder, server_files.given("read")
    key = "server.key.2" if file.startswith("elsewhere") else "server.key"
    with server_files.client("read") as before:
        assert list(before.models()) == []
        (folder / "server.key").write_bytes((folder / key).read_bytes())
        (folder / "server.pem").write_bytes((folder / file).read_bytes())
        server_files.reload("certificates", "tokens")
        with pytest.raises(HandshakeError, match=message):
            ask(server_files.server.address, **given)
        assert list(before.models()) == []


def test_files_that_cannot_be_used_change_nothing(server_files: Secured) -> None:
    folder, given = server_files.folder, server_files.given("read")
    (folder / "tokens").write_text(f"{WRONG_TOKEN} admin me\n")
    (folder / "server.pem").write_text("")
    server_files.reload("not certificates", "not tokens")
    assert Asked("blocking")(server_files.server.address, **given) == []
    problems = [r["problem"] for r in server_files.server.records if "problem" in r]
    assert any("server.pem is empty" in text for text in problems)
    assert any("line 1: the first word is not sha256:" in text for text in problems)
    # One that is wrong does not keep the other from being taken.
    (folder / "tokens").write_text("")
    server_files.reload("not certificates", "not tokens")


@pytest.fixture(scope="module")
def endless(tls: Secured) -> Iterator[training_pb2.TrainingJob]:
    """A job that trains until the tests of this file are over, submitted by `ci`."""
    with tls.client("ci") as client:
        dataset = client.upload(make_columns())
        request = small_request(dataset.name, epochs=100_000, early_stopping_patience=0)
        job = client.submit(request)
        next(event for event in client.watch(job) if event.HasField("epoch"))
        yield job
        client.cancel(job)
        assert list(client.watch(job))


def test_the_log_has_who_called(tls: Secured, endless: training_pb2.TrainingJob) -> None:
    queued = tls.server.wait_for_log("job.queued", lambda r: r["job"] == endless.name)
    assert queued["caller"] == "ci"
    assert tls.server.wait_for_log("dataset.stored")["caller"] == "ci"
    # What goes on by itself is nobody's call.
    started = tls.server.wait_for_log("job.started", lambda r: r["job"] == endless.name)
    assert "caller" not in started


def test_a_removed_token_ends_its_streams_and_no_others(
    server_files: Secured, endless: training_pb2.TrainingJob, refusal: Refusal
) -> None:
    """Streams end as a new call would; those that may go on do, and so does the job."""
    with server_files.channel() as channel:
        watches = {
            role: watch(channel, endless.name, server_files.tokens[role])
            for role in ("train", "admin")
        }
        train = bearer(server_files.tokens["train"])
        upload = begun_upload(channel, server_files, train)
        reflect = begun_reflection(channel, train)
        tokens = server_files.folder / "tokens"
        lowered = without(tokens.read_text(), "ci").replace("admin ops", "read ops")
        tokens.write_text(lowered)
        server_files.reload("certificates", "tokens")
        for stream in (watches["train"], upload, reflect):
            refused = refusal(partial(list, stream))
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED
            assert refused.reason == "TOKEN_UNKNOWN"
        path = path_of("TrainingService.ListTrainings")
        assert refusal(lambda: invoke(channel, path, train)).reason == "TOKEN_UNKNOWN"
        # Its role is lower, and enough.
        last = next(watches["admin"]).sequence
        assert [next(watches["admin"]).sequence for _ in range(3)][-1] >= last
        admin = bearer(server_files.tokens["admin"])
        path = path_of("ModelService.DeleteModel")
        assert refusal(lambda: invoke(channel, path, admin)).reason == "ROLE_TOO_LOW"
        watches["admin"].cancel()


def test_a_stream_that_its_role_no_longer_allows_ends(
    server_files: Secured, refusal: Refusal
) -> None:
    train = bearer(server_files.tokens["train"])
    with server_files.channel() as channel:
        upload = begun_upload(channel, server_files, train)
        tokens = server_files.folder / "tokens"
        tokens.write_text(tokens.read_text().replace("train ci", "read ci"))
        server_files.reload("certificates", "tokens")
        refused = refusal(lambda: list(upload))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    assert refused.reason == "ROLE_TOO_LOW"
    # As if its caller had left.
    until(lambda: not list((server_files.server.data_dir / "uploads").iterdir()))


def until(holds: Callable[[], bool]) -> None:
    """Wait for what the server does without a word."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def watch(channel: grpc.Channel, job: str, token: str) -> Any:
    """A watch that has begun."""
    stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
    request = training_pb2.WatchTrainingRequest(name=job)
    stream = stub.WatchTraining(request, metadata=bearer(token), timeout=60)
    next(stream)
    return stream


def begun_upload(channel: grpc.Channel, secured: Secured, metadata: Any) -> Any:
    """An upload that the server has let in, and of which no data come."""
    header = dataset_pb2.DatasetHeader(
        format=dataset_pb2.DATASET_FORMAT_CSV, size_bytes=10, sha256="0" * 64
    )
    message = dataset_pb2.UploadDatasetRequest(header=header).SerializeToString()
    call = open_stream(channel, path_of("DatasetService.UploadDataset"), metadata, message)
    until(lambda: bool(list((secured.server.data_dir / "uploads").iterdir())))
    return call


def begun_reflection(channel: grpc.Channel, metadata: Any) -> Any:
    """A stream of reflection that has been answered once."""
    message = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    path = path_of("ServerReflection.ServerReflectionInfo")
    call = open_stream(channel, path, metadata, message)
    next(call)
    return call


def open_stream(channel: grpc.Channel, path: str, metadata: Any, message: bytes) -> Any:
    """A call with one message, after which more may come, until it ends."""
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        yield message
        ended.wait(60)

    call = invoke(channel, path, metadata, requests())
    call.add_callback(ended.set)
    return call


def test_a_client_uses_a_new_token_from_the_next_call_on(tls: Secured, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(WRONG_TOKEN)
    with TrainingClient(tls.server.address, ca=tls.folder / "ca.pem", token_file=file) as client:
        with pytest.raises(UnauthenticatedError):
            list(client.models())
        file.write_text(f"{tls.tokens['read']}\n")
        assert list(client.models()) == []


# ------------------------------------------------------------------------ commands


def trainwire(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainwire_client", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


@pytest.mark.slow
def test_the_command_line_gets_in(tls: Secured, mutual: Secured) -> None:
    folder = tls.folder
    options = ["--ca", str(folder / "ca.pem"), "--token-file", str(folder / "read.token")]
    done = trainwire("info", "--target", tls.server.address, *options)
    assert (done.returncode, done.stderr) == (0, "")
    done = trainwire(
        "jobs",
        TRAINWIRE_TARGET=mutual.server.address,
        TRAINWIRE_TARGET_CA=str(folder / "ca.pem"),
        TRAINWIRE_TARGET_CERT=str(folder / "client.pem"),
        TRAINWIRE_TARGET_KEY=str(folder / "client.key"),
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong(tls: Secured) -> None:
    ca = ["--ca", str(tls.folder / "ca.pem")]
    wanted = ["--token-file", str(tls.folder / "wrong.token")]
    done = trainwire("info", "--target", tls.server.address, *ca, *wanted)
    told = "trainwire: the server does not know this token; it may have been removed\n  call "
    assert (done.returncode, done.stderr.startswith(told)) == (1, True)
    done = trainwire("info", "--target", tls.server.address, "--ca", f"{tls.folder}/other.pem")
    assert done.returncode == 1
    where = f"the trainwire server at {tls.server.address}"
    assert f"trainwire: no TLS with {where}: its certificate is of no CA" in done.stderr
    done = trainwire("info", "--target", "192.0.2.1:1", *wanted)
    assert (done.returncode, "travel in the clear" in done.stderr) == (1, True)


def test_grpcurl_gets_in_as_the_page_says(tls: Secured) -> None:
    binary = Path(sysconfig.get_path("scripts")) / "grpcurl"
    ca = ["-cacert", str(tls.folder / "ca.pem")]
    token = ["-expand-headers", "-H", "authorization: Bearer ${TOKEN}"]
    info = "trainwire.v1.SystemService/GetSystemInfo"
    for options, verb, told in (
        ([*ca, *token], "list", "trainwire.v1.TrainingService"),
        ([*ca, *token], info, '"executor": "local"'),
        (ca, "list", "a token alone"),
    ):
        done = subprocess.run(
            [str(binary), "-connect-timeout", "2", *options, tls.server.address, verb],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TOKEN": tls.tokens["read"]},
        )
        assert told in done.stdout + done.stderr, (options, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--listen", "0.0.0.0:0"], "other machines can reach 0.0.0.0:0, and all that is sent"),
        (["--token-file", "none"], "cannot read token file none: No such file or directory"),
    ],
)
def test_a_server_that_would_be_open_does_not_start(
    flags: list[str], told: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "trainwire_server", "--data-dir", str(tmp_path / "data")]
    # A file, not a pipe: the fork server has it too, and ends some seconds later.
    with (tmp_path / "stderr").open("w") as stderr:
        done = subprocess.run([*command, *flags], stderr=stderr, timeout=60, check=False)
    assert done.returncode == 1
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert [line.startswith(f"trainwire-server: {told}") for line in lines] == [True]
    assert not (tmp_path / "data").exists()


def test_a_unix_socket_is_of_this_machine(folder: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    tokens = f"--token-file={folder / 'tokens'}"
    server = Server(tmp_path / "data", tokens, listen=address, secure=False)
    try:
        assert server.address == address
        with TrainingClient(address, token_file=folder / "read.token") as client:
            assert not list(client.list())
    finally:
        assert server.stop() == 0

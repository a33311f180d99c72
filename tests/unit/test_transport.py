"""What a server refuses to start with: addresses, certificates, keys; and what clients refuse."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from trainwire.tls import is_local
from trainwire_client import (
    CredentialsError,
    HandshakeError,
    TrainingClient,
    UnavailableError,
)
from trainwire_client import aio as aio_client
from trainwire_client.errors import from_rpc_error
from trainwire_server.service.guard import Guard
from trainwire_server.service.transport import TransportError
from trainwire_server.settings import read_settings
from trainwire_server.tokens import TokenFileError

REMOTE = ("--listen", "0.0.0.0:0")


def guard(*flags: str) -> Guard:
    async def make() -> Guard:
        return Guard(read_settings(flags, {}))

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.0.1:50051", True),
        ("[::1]:50051", True),
        ("localhost:0", True),
        ("unix:/run/trainwire/socket", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("10.0.0.7:50051", False),
        ("trainwire.example:50051", False),
        ("localhost.example:50051", False),
        ("127.0.0.1.example:50051", False),
    ],
)
def test_what_other_machines_reach_needs_tls(listen: str, local: bool, secrets: Path) -> None:
    assert is_local(listen) is local
    tls = ("--tls-cert", f"{secrets}/server.pem", "--tls-key", f"{secrets}/server.key")
    guard("--listen", listen, *tls)
    guard("--listen", listen, "--insecure")
    if local:
        guard("--listen", listen)
        return
    for tokens in ((), ("--token-file", f"{secrets}/tokens")):
        with pytest.raises(TransportError, match=r"can reach .* give --tls-cert .* --insecure"):
            guard("--listen", listen, *tokens)


@pytest.mark.parametrize("tls", [False, True])
def test_metrics_are_for_this_machine_unless_it_is_said(tls: bool, secrets: Path) -> None:
    files = ("--tls-cert", f"{secrets}/server.pem", "--tls-key", f"{secrets}/server.key")
    flags = files if tls else ()
    for local in ("127.0.0.1:0", "[::1]:9464", "localhost:9464"):
        guard("--metrics-listen", local, *flags)
    for remote in ("0.0.0.0:9464", "[::]:9464", "10.0.0.7:9464"):
        with pytest.raises(TransportError, match=r"metrics are sent in the clear .* --insecure"):
            guard("--metrics-listen", remote, *flags)
        guard("--metrics-listen", remote, "--insecure", *flags)


def spoiled(folder: Path) -> dict[str, Path]:
    """Files that are no certificate, or none to use."""
    paths = {name: folder / name for name in ("missing", "empty", "garbage", "encrypted")}
    paths["empty"].write_text("\n")
    paths["garbage"].write_text("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    return paths


@pytest.mark.parametrize(
    ("flag", "file", "problem"),
    [
        ("--tls-cert", "missing", "cannot read the certificate .*missing: No such file"),
        ("--tls-cert", "empty", "the certificate .*empty is empty"),
        ("--tls-cert", "garbage", "are no pair in PEM"),
        ("--tls-cert", "client.pem", "are no pair in PEM: KEY_VALUES_MISMATCH"),
        ("--tls-cert", "server.key", "are no pair in PEM"),
        ("--tls-key", "missing", "cannot read the key .*missing: No such file"),
        ("--tls-key", "empty", "the key .*empty is empty"),
        ("--tls-key", "garbage", "are no pair in PEM"),
        ("--tls-key", "client.key", "KEY_VALUES_MISMATCH"),
        ("--tls-key", "encrypted", "is encrypted, and there is nobody to ask for its password"),
        ("--client-ca", "missing", "cannot read the client CA .*missing"),
        ("--client-ca", "empty", "the client CA .*empty is empty"),
        ("--client-ca", "garbage", "is no certificate in PEM"),
        ("--client-ca", "server.key", "is no certificate in PEM"),
        ("--client-ca", "client.pem", "holds no certificate of a CA"),
    ],
)
def test_a_file_of_tls_that_cannot_be_used_is_named(
    flag: str, file: str, problem: str, secrets: Path, tmp_path: Path
) -> None:
    files = {"--tls-cert": "server.pem", "--tls-key": "server.key", "--client-ca": "ca.pem"}
    flags = {name: str(secrets / known) for name, known in files.items()}
    paths = spoiled(tmp_path)
    _encrypt(secrets / "server.key", paths["encrypted"])
    flags[flag] = str(paths.get(file, secrets / file))
    with pytest.raises(TransportError, match=problem):
        guard(*(word for pair in flags.items() for word in pair))


def _encrypt(key: Path, target: Path) -> None:
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(target)], check=True, timeout=60)


@pytest.mark.parametrize("flags", [("--tls-cert", "x"), ("--tls-key", "x"), ("--client-ca", "x")])
def test_a_part_of_tls_is_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(TransportError, match="TLS needs both --tls-cert and --tls-key"):
        guard(*flags)


def test_a_token_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="cannot read token file"):
        guard("--token-file", str(tmp_path / "none"))


def test_what_is_open_to_more_than_need_be_is_logged(
    secrets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = shutil.copy(secrets / "server.key", tmp_path / "open.key")
    Path(key).chmod(0o644)
    guard(*REMOTE, "--tls-cert", f"{secrets}/server.pem", "--tls-key", str(key))
    written = capsys.readouterr()
    told = written.out + written.err
    assert f"everybody on its machine may read {key}" in told
    assert "without tokens or client CA, anybody may call" in told
    guard(*REMOTE, "--insecure", "--token-file", f"{secrets}/tokens")
    written = capsys.readouterr()
    assert "without TLS, all that is sent can be read" in written.out + written.err


# ------------------------------------------------------------------------ clients


@pytest.mark.parametrize("kind", [TrainingClient, aio_client.TrainingClient])
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"ca": "missing"}, "cannot read the CA .*missing: No such file"),
        ({"ca": "empty"}, "the CA .*empty is empty"),
        ({"ca": "garbage"}, "the CA .*garbage is no certificate in PEM"),
        ({"cert": "client.pem", "key": "client.key"}, "needs TLS: give the server's CA"),
        ({"ca": "ca.pem", "cert": "client.pem"}, "go together: give both"),
        ({"ca": "ca.pem", "cert": "client.pem", "key": "server.key"}, "KEY_VALUES_MISMATCH"),
        ({"ca": "ca.pem", "cert": "client.pem", "key": "encrypted"}, "is encrypted, and there is"),
        ({"token_file": "missing"}, "cannot read the token file .*missing"),
        ({"token_file": "empty"}, "the token file .*empty is empty"),
        ({"token_file": "tokens"}, "does not hold a token and nothing else"),
        ({"token_file": "ci.token"}, "travel in the clear to 192.0.2.1:1; give the server's CA"),
    ],
)
def test_a_client_refuses_what_it_cannot_use(
    kind: Any, given: dict[str, str], problem: str, secrets: Path, tmp_path: Path
) -> None:
    paths = spoiled(tmp_path)
    _encrypt(secrets / "client.key", paths["encrypted"])
    files = {name: paths.get(file, secrets / file) for name, file in given.items()}

    async def make() -> None:
        kind("192.0.2.1:1", **files)

    with pytest.raises(CredentialsError, match=problem):
        asyncio.run(make())


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "ipv4:127.0.0.1:1", "dns:///localhost:1", "unix:/x"],
)
def test_within_a_machine_a_token_needs_no_tls(target: str, secrets: Path) -> None:
    TrainingClient(target, token_file=secrets / "ci.token").close()


@pytest.mark.parametrize(
    "target", ["localhost.example:1", "dns://127.0.0.1/far.example:1", "ipv4:192.0.2.1:1", "far"]
)
def test_a_token_leaves_the_machine_with_tls_or_if_told(target: str, secrets: Path) -> None:
    token = secrets / "ci.token"
    with pytest.raises(CredentialsError, match="in the clear"):
        TrainingClient(target, token_file=token)
    TrainingClient(target, token_file=token, ca=secrets / "ca.pem").close()
    TrainingClient(target, token_file=token, insecure=True).close()


@dataclass
class Failed(grpc.RpcError):
    """A call that failed with a text of gRPC's."""

    text: str

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self.text

    def trailing_metadata(self) -> tuple[()]:
        return ()


CONNECT = "failed to connect to all addresses; last error: "
VERIFY = f"{CONNECT}Tls handshake failed: OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        (f"{VERIFY}certificate is not yet valid", HandshakeError, "is not valid yet; compare"),
        (f"{VERIFY}certificate has expired", HandshakeError, "has expired"),
        (f"{VERIFY}self signed certificate", HandshakeError, "is of no CA in the given file"),
        (f"{CONNECT}Connection reset by peer", UnavailableError, "with TLS needs its CA"),
        (f"{CONNECT}Connection refused", UnavailableError, "Connection refused$"),
        ("Socket closed", UnavailableError, "Socket closed$"),
    ],
)
def test_what_grpc_says_of_a_connection_is_said_plainly(
    text: str, kind: type[Exception], told: str
) -> None:
    error = from_rpc_error(Failed(text), "far:1")
    assert type(error) is kind
    assert re.search(told, str(error))

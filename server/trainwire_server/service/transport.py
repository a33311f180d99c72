"""How the server is reached: in the clear from this machine, or with TLS from anywhere."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import grpc

from trainwire_server.settings import Settings

_LOCAL = "unix:"


class TransportError(Exception):
    """The server cannot be reached as it was told; the message says why and what to do."""


def check_exposure(settings: Settings) -> None:
    """Refuse to be reached from other machines without TLS, unless that is what was said.

    Raises:
        TransportError: `listen` is no address of this machine alone, and there is no TLS; or
            `metrics_listen` is none, which has no TLS and no tokens.
    """
    if settings.insecure:
        return
    _check_metrics(settings.metrics_listen)
    if settings.tls_cert or is_local(settings.listen):
        return
    raise TransportError(
        f"other machines can reach {settings.listen}, and all that is sent, tokens included, would "
        "travel in the clear; give --tls-cert and --tls-key, or listen on 127.0.0.1, or say "
        "--insecure where the network itself keeps others out"
    )


def _check_metrics(listen: str | None) -> None:
    if listen is None or is_local(listen):
        return
    raise TransportError(
        f"other machines can reach {listen}, and metrics are sent in the clear to everybody who "
        "asks; give --metrics-listen an address of this machine, 127.0.0.1, and let an agent on it "
        "collect them, or say --insecure where the network itself keeps others out"
    )


def is_local(listen: str) -> bool:
    """Whether an address is reached from this machine alone: loopback or a Unix socket."""
    if listen.startswith(_LOCAL):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Files:
    """The files that TLS is made from: PEM, the server's certificate with those between it and
    its CA, its key, and the CAs of the clients; without these, clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None


def tls_files(settings: Settings) -> Files | None:
    """What the settings say of TLS; None for none.

    Raises:
        TransportError: they say only a part of it.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        if settings.tls_cert or settings.tls_key or settings.client_ca:
            raise TransportError("TLS needs both --tls-cert and --tls-key")
        return None
    return Files(settings.tls_cert, settings.tls_key, settings.client_ca)


class Certificates:
    """The server's certificate, and whom it trusts; read again on `reload`.

    Args:
        files: where they are.

    Raises:
        TransportError: one of them cannot be used.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._current = _configuration(files)
        self._next: grpc.ServerCertificateConfiguration | None = None

    def reload(self) -> None:
        """Read the files again; connections from now on get what is in them.

        Raises:
            TransportError: one of them cannot be used; all stays as it was.
        """
        self._next = _configuration(self._files)

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        asked = self._files.client_ca is not None
        # That None changes nothing, its documentation says, and its type does not.
        take_next = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._take_next)
        return grpc.dynamic_ssl_server_credentials(self._current, take_next, asked)

    def _take_next(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, one thread at a time, before every handshake; None changes nothing."""
        taken, self._next = self._next, None
        return taken


def _configuration(files: Files) -> grpc.ServerCertificateConfiguration:
    cert, key = _read(files.cert, "certificate"), _read(files.key, "key")
    _check_pair(files)
    trusted = None
    if files.client_ca is not None:
        trusted = _read(files.client_ca, "client CA")
        _check_authorities(files.client_ca)
    return grpc.ssl_server_certificate_configuration([(key, cert)], trusted)


def _read(path: Path, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TransportError(f"cannot read the {what} {path}: {error.strerror}") from error
    if not data.strip():
        raise TransportError(f"the {what} {path} is empty")
    return data


def _check_pair(files: Files) -> None:
    """gRPC itself would only say that the port cannot be opened."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_refuse_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise TransportError(
            f"the certificate {files.cert} and the key {files.key} are no pair in PEM: {reason}"
        ) from error
    except _Encrypted:
        raise TransportError(
            f"the key {files.key} is encrypted, and there is nobody to ask for its password"
        ) from None


class _Encrypted(Exception):
    """The key wants a password."""


def _refuse_password() -> NoReturn:
    raise _Encrypted


def _check_authorities(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
        found = context.cert_store_stats()["x509_ca"]
    except (ssl.SSLError, OSError) as error:
        raise TransportError(f"the client CA {path} is no certificate in PEM") from error
    if not found:
        raise TransportError(f"the client CA {path} holds no certificate of a CA")

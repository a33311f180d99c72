"""How the server is reached: in the clear from this machine, or with TLS from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from trainwire.tls import UnusableFile, check_pair, count_authorities, is_local, read_file
from trainwire_server.settings import Settings


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
    try:
        cert, key = read_file(files.cert, "certificate"), read_file(files.key, "key")
        check_pair(files.cert, files.key)
        trusted = None if files.client_ca is None else _read_authorities(files.client_ca)
    except UnusableFile as error:
        raise TransportError(str(error)) from error
    return grpc.ssl_server_certificate_configuration([(key, cert)], trusted)


def _read_authorities(path: Path) -> bytes:
    trusted = read_file(path, "client CA")
    if not count_authorities(path, "client CA"):
        raise UnusableFile(f"the client CA {path} holds no certificate of a CA")
    return trusted

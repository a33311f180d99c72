"""The connection to a server: where it is by default, how it is secured and kept alive."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from trainwire.tls import UnusableFile, check_pair, count_authorities, is_local, read_file
from trainwire_client.errors import CredentialsError

__all__ = ["ALIVE_SECONDS", "DEFAULT_TARGET", "OPTIONS", "Security"]

DEFAULT_TARGET = "127.0.0.1:50051"

_KEEPALIVE_SECONDS = 30
_KEEPALIVE_TIMEOUT_SECONDS = 10

ALIVE_SECONDS = 1.5 * (_KEEPALIVE_SECONDS + _KEEPALIVE_TIMEOUT_SECONDS)
"""A stream that stood this long was alive, though no event came: keepalive would have ended it."""

OPTIONS = (
    ("grpc.keepalive_time_ms", 1000 * _KEEPALIVE_SECONDS),
    ("grpc.keepalive_timeout_ms", 1000 * _KEEPALIVE_TIMEOUT_SECONDS),
    # A watch may be silent for hours (a queued job): pings go on without data.
    ("grpc.http2.max_pings_without_data", 0),
    # By default a channel tries to connect ever more rarely, up to once in two minutes; `Backoff`
    # decides here when to try.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

_Path = str | os.PathLike[str] | None
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


@dataclass(frozen=True)
class Security:
    """How a client shows who it is, and knows whom it talks to.

    Attributes:
        ca: file of the CAs that the server's certificate may be of, in PEM; None for no TLS.
        cert: file of the client's certificate in PEM, where the server asks for one.
        key: file of its key.
        token_file: file that holds the token, and nothing else. It is read before every call: one
            that is replaced is used from the next call on.
        insecure: whether the token may travel in the clear to another machine.
    """

    ca: _Path = None
    cert: _Path = None
    key: _Path = None
    token_file: _Path = None
    insecure: bool = False

    def channel(self, target: str) -> Any:
        """A channel to the server.

        Raises:
            CredentialsError: a file cannot be used, or the token would travel in the clear.
        """
        return self._opened(target, grpc.insecure_channel, grpc.secure_channel)

    def aio_channel(self, target: str) -> Any:
        """A channel for asyncio, as `channel`."""
        return self._opened(target, grpc.aio.insecure_channel, grpc.aio.secure_channel)

    def _opened(self, target: str, insecure: Callable[..., Any], secure: Callable[..., Any]) -> Any:
        try:
            tls = self._tls()
        except UnusableFile as error:
            raise CredentialsError(str(error)) from error
        self._check_token(target)
        if tls is not None:
            opened = secure(target, tls, options=OPTIONS)
        elif self.token_file is None or self.insecure:
            opened = insecure(target, options=OPTIONS)
        else:
            # A proxy would carry the token off this machine.
            opened = insecure(target, options=(*OPTIONS, ("grpc.enable_http_proxy", 0)))
        return opened if self.token_file is None else _WithToken(opened, Path(self.token_file))

    def _tls(self) -> grpc.ChannelCredentials | None:
        if self.ca is None:
            if self.cert is not None or self.key is not None:
                raise CredentialsError("a client certificate needs TLS: give the server's CA too")
            return None
        if (self.cert is None) != (self.key is None):
            raise CredentialsError("a client certificate and its key go together: give both")
        ca = read_file(self.ca, "CA")
        # gRPC itself would only say that it cannot connect.
        count_authorities(self.ca, "CA")
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        cert, key = read_file(self.cert, "certificate"), read_file(self.key, "key")
        check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _check_token(self, target: str) -> None:
        if self.token_file is None:
            return
        _read_token(Path(self.token_file))
        if self.ca is None and not self.insecure and not is_local(target):
            raise CredentialsError(
                f"the token would travel in the clear to {target}; give the server's CA (ca, "
                "--ca), or say insecure where the network itself encrypts"
            )


class _WithToken:
    """A channel whose calls carry a token.

    gRPC's own call credentials do not travel without TLS, and its interceptors wrap the calls of
    asyncio in objects that end in another way: so every call is given the metadata.
    """

    def __init__(self, channel: Any, file: Path) -> None:
        self._channel = channel
        self._file = file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return found

        def open_method(*arguments: Any, **options: Any) -> Callable[..., Any]:
            method = found(*arguments, **options)
            return lambda *given, **how: method(*given, metadata=self._metadata(), **how)

        return open_method

    def _metadata(self) -> tuple[tuple[str, str]]:
        return (("authorization", f"Bearer {_read_token(self._file)}"),)


def _read_token(path: Path) -> str:
    """The token, which no message may show."""
    try:
        token = read_file(path, "token file").decode(errors="replace").strip()
    except UnusableFile as error:
        raise CredentialsError(str(error)) from error
    if not _TOKEN.fullmatch(token):
        raise CredentialsError(f"the token file {path} does not hold a token and nothing else")
    return token

"""The connection to a server: where it is by default, and how it is kept alive."""

from __future__ import annotations

__all__ = ["ALIVE_SECONDS", "DEFAULT_TARGET", "OPTIONS"]

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

"""Work that is done to its end even if the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import structlog

from trainwire_server.errors import RequestError
from trainwire_server.identity import call_fields

_T = TypeVar("_T")


async def finish(work: Awaitable[_T]) -> _T:
    """The result of work that must not be left half done, whoever asked for it."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_hear)
        raise


def _hear(future: asyncio.Future[Any]) -> None:
    """Take an error that nobody waits for: what the caller did wrong is forgotten with the call."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, RequestError):
        structlog.get_logger().error("rpc.error", exc_info=error, **call_fields())

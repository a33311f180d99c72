"""Work that is done to its end even if the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from trainwire_server.errors import RequestError
from trainwire_server.identity import call_fields

_T = TypeVar("_T")


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of work that must not be left half done, whoever asked for it."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_hear)
        raise


def _hear(task: asyncio.Task[Any]) -> None:
    """Take an error that nobody waits for: what the caller did wrong is forgotten with the call."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, RequestError):
        structlog.get_logger().error("rpc.error", exc_info=error, **call_fields())

"""How long a child process may be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf import empty_pb2
from google.protobuf.message import Message

BEATS = 5
"""Signs of life that a child sends within its lease."""
_TICKS = 10


class Silent(Exception):
    """The child has said nothing for the whole lease."""


async def within_lease(messages: AsyncIterator[Message], lease: float) -> AsyncIterator[Message]:
    """What a child sends, without its signs of life.

    Args:
        lease: seconds.

    Raises:
        Silent: nothing came for that long. The time is counted in short waits, not by the clock:
            a server that was stopped itself has not been waiting.
    """
    while True:
        arriving = asyncio.ensure_future(anext(messages))
        try:
            await _wait(arriving, lease)
            message = arriving.result()
        except StopAsyncIteration:
            return
        finally:
            arriving.cancel()
        if not isinstance(message, empty_pb2.Empty):
            yield message


async def _wait(arriving: asyncio.Future[Message], lease: float) -> None:
    for _ in range(_TICKS):
        done, _ = await asyncio.wait({arriving}, timeout=lease / _TICKS)
        if done:
            return
    raise Silent

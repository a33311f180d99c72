"""How long a child process may be silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.protobuf import empty_pb2, wrappers_pb2
from google.protobuf.message import Message

from trainwire_server.execution.lease import Silent, within_lease

LEASE = 0.5
TEXT = wrappers_pb2.StringValue(value="text")


async def said(*messages: Message | float) -> AsyncIterator[Message]:
    """Messages, and seconds of silence between them."""
    for message in messages:
        if isinstance(message, float):
            await asyncio.sleep(message)
        else:
            yield message


def heard(messages: AsyncIterator[Message]) -> list[Message]:
    async def listen() -> list[Message]:
        return [message async for message in within_lease(messages, LEASE)]

    return asyncio.run(listen())


def test_signs_of_life_are_not_passed_on() -> None:
    assert heard(said(empty_pb2.Empty(), TEXT, empty_pb2.Empty(), TEXT)) == [TEXT, TEXT]


def test_a_child_that_gives_signs_of_life_may_have_nothing_to_say() -> None:
    beats = [item for _ in range(4) for item in (0.4 * LEASE, empty_pb2.Empty())]
    assert heard(said(*beats, TEXT)) == [TEXT]


def test_a_child_that_says_nothing_is_given_up() -> None:
    with pytest.raises(Silent):
        heard(said(TEXT, 60.0, TEXT))


async def stand_still() -> None:
    time.sleep(3 * LEASE)  # noqa: ASYNC251 - the whole server is stopped


def test_a_server_that_was_stopped_itself_has_not_been_waiting() -> None:
    async def listen(stop: Callable[[], Awaitable[None]]) -> list[Message]:
        reader, writer = asyncio.Queue[Message](), asyncio.get_running_loop()

        async def arriving() -> AsyncIterator[Message]:
            while True:
                yield await reader.get()
                return

        listening = asyncio.ensure_future(
            asyncio.wait_for(anext(within_lease(arriving(), LEASE)), 30)
        )
        await asyncio.sleep(0)
        # What the child sent meanwhile is there a moment after the server goes on.
        writer.call_later(4 * LEASE, reader.put_nowait, TEXT)
        await stop()
        return [await listening]

    assert asyncio.run(listen(stand_still)) == [TEXT]

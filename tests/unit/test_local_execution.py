"""Starting processes, from within this one: nothing is left behind, and a shortage is told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from trainwire_server.execution.executor import NotStarted, Probe
from trainwire_server.execution.local import LocalExecutor, start_forkserver


def held_processes() -> int:
    """Number of processes that this one has handles of."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += "pidfd" in os.readlink(f"/proc/self/fd/{name}")
    return found


async def start_and_leave(executor: LocalExecutor) -> None:
    """Start a process, and leave as soon as there is a handle of it."""
    before = held_processes()
    starting = asyncio.create_task(executor.start(Probe()))
    while held_processes() == before and not starting.done():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)
    starting.cancel()
    with suppress(asyncio.CancelledError):
        execution = await starting
        execution.kill()
        await execution.wait()


def test_who_leaves_while_its_process_starts_leaves_no_handle() -> None:
    async def work() -> None:
        start_forkserver()
        executor = LocalExecutor()
        before = held_processes()
        for _ in range(3):
            await start_and_leave(executor)
        assert held_processes() == before

    asyncio.run(work())


@contextmanager
def no_threads() -> Iterator[None]:
    """No thread can be started: there is no memory for a stack of this size."""
    usual = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(usual)


def test_where_no_thread_can_be_started_there_is_no_process_yet() -> None:
    async def work() -> None:
        start_forkserver()
        executor = LocalExecutor()
        with no_threads(), pytest.raises(NotStarted, match="can't start new thread"):
            await executor.start(Probe())
        execution = await executor.start(Probe())
        assert [message async for message in execution.messages()]
        assert await execution.wait() == 0

    asyncio.run(work())

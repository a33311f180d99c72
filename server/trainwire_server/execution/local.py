"""Runs tasks as child processes of a fork server that has torch loaded."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
from collections.abc import AsyncIterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

from google.protobuf.message import Message

from trainwire_server.execution import frames, worker
from trainwire_server.execution.executor import Execution, Task

_context = multiprocessing.get_context("forkserver")


def start_forkserver() -> None:
    """Start the fork server and let it import torch in the background."""
    # NumPy's BLAS would start a thread pool at import, and a pool does not survive a fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _context.set_forkserver_preload(["trainwire_server.execution.preload"])
    forkserver.ensure_running()


class LocalExecution:
    """A child process, seen from the server."""

    def __init__(self, process: ForkServerProcess, server_end: socket.socket) -> None:
        self._process = process
        self._socket = server_end
        self._exit = asyncio.create_task(self._wait_for_exit())

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid or 0

    async def messages(self) -> AsyncIterator[Message]:
        """What the child sends, until it closes its end or dies."""
        reader, writer = await asyncio.open_connection(sock=self._socket.dup())
        try:
            while (message := await frames.receive(reader)) is not None:
                yield message
        finally:
            writer.close()

    def cancel(self) -> None:
        """Ask the child to stop at the next batch."""
        with contextlib.suppress(OSError):
            self._socket.send(worker.CANCEL)

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait until the child is gone; its exit status, or minus the signal that ended it."""
        return await asyncio.shield(self._exit)

    async def _wait_for_exit(self) -> int:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._socket.close()
        return self._process.exitcode or 0


class LocalExecutor:
    """Starts tasks as children of the fork server."""

    name = "local"

    async def start(self, task: Task) -> Execution:
        """Start a task in a child process; about 50 ms once torch is loaded."""
        server_end, child_end = socket.socketpair()
        process = _context.Process(target=worker.main, args=(child_end, task), daemon=True)
        try:
            # In a thread: it waits for the fork server, which may still be importing torch.
            await asyncio.to_thread(process.start)
        finally:
            child_end.close()
        return LocalExecution(process, server_end)

"""Runs tasks as child processes of a fork server that has torch loaded."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

from google.protobuf.message import Message

from trainwire_server.execution import frames, worker
from trainwire_server.execution.executor import Execution, NotStarted, Task, Train

_PAUSE_SECONDS = 0.5
"""How long after a start the next child is forked: that takes a processor for a while."""
_context = multiprocessing.get_context("forkserver")


def start_forkserver() -> None:
    """Start the fork server and let it import torch in the background."""
    # NumPy's BLAS would start a thread pool at import, and a pool does not survive a fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Arrow's own pool keeps what columns took, beside the heap that training then takes.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # Where memory has run out, safetensors would need some to name its functions, and hang.
    os.environ["RUST_BACKTRACE"] = "0"
    _context.set_forkserver_preload(["trainwire_server.execution.preload"])
    forkserver.ensure_running()


class LocalExecution:
    """A child process, seen from the server.

    It is held by a pidfd, not by multiprocessing's sentinel: that is the fork server's, and says
    that the child is gone when it is the fork server that is.
    """

    def __init__(
        self,
        process: ForkServerProcess,
        pidfd: int | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._pidfd = pidfd
        self._exit = asyncio.create_task(self._wait_for_exit())

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid or 0

    async def messages(self) -> AsyncIterator[Message]:
        """What the child sends, until it closes its end or dies."""
        try:
            while (message := await frames.receive(self._reader)) is not None:
                yield message
        finally:
            # Not when the child exits: what it said last may still be on the way.
            self.leave()

    @property
    def is_gone(self) -> bool:
        """Whether the child has been seen to have ended."""
        return self._pidfd is None

    def begin(self, task: Task) -> None:
        """Give the child, which waits for it, its task."""
        self._writer.write(frames.pack(task))

    def leave(self) -> None:
        """Close this end: the child leaves if it is there."""
        self._writer.close()

    def cancel(self) -> None:
        """Ask the child to stop at the next batch."""
        self._tell(worker.CANCEL)

    def confirm(self) -> None:
        """Tell the child that one more of its epochs is stored."""
        self._tell(worker.STORED)

    def drain(self) -> None:
        """Ask the child to stop after the epoch it is in."""
        self._tell(worker.DRAIN)

    def _tell(self, what: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(what)

    def kill(self) -> None:
        """End the child at once."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the child is gone; its exit status, or minus the signal that ended it."""
        return await asyncio.shield(self._exit)

    async def _wait_for_exit(self) -> int:
        if self._pidfd is not None:
            await _readable(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # The fork server tells the status a moment after the child is gone, if it is there to.
        await asyncio.to_thread(self._process.join)
        return self._process.exitcode or 0


def _open_pidfd(pid: int) -> int | None:
    """A handle of a process that stays this process's; None if it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


async def _readable(handle: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(handle)


class LocalExecutor:
    """Starts tasks in children of the fork server.

    One child waits ahead of time, so that a training finds a process that has started already. It
    has done nothing but that: limits, devices and memory are those of its task.
    """

    name = "local"

    def __init__(self) -> None:
        self._idle: asyncio.Task[LocalExecution] | None = None

    async def start(self, task: Task) -> Execution:
        """Start a task in a child process: at once in the one that waits, else in about 50 ms."""
        # Uploads and dry runs often come just before a training, which would then find none.
        execution = await self._take_idle() if isinstance(task, Train) else None
        if execution is None:
            execution = await _fork()
        execution.begin(task)
        # Later: now the task is to have the processor.
        asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._fork_ahead)
        return execution

    def _fork_ahead(self) -> None:
        if self._idle is None:
            self._idle = asyncio.create_task(_fork())
            # Should it fail, whoever starts the next task tries again and sees why.
            self._idle.add_done_callback(lambda fork: fork.cancelled() or fork.exception())

    async def _take_idle(self) -> LocalExecution | None:
        """The child that waits; None if there is none, or it has been killed."""
        forking, self._idle = self._idle, None
        if forking is None:
            return None
        try:
            execution = await forking
        except NotStarted:
            return None
        if execution.is_gone:
            execution.leave()
            return None
        return execution


async def _fork() -> LocalExecution:
    """A new child that waits for its task.

    Raises:
        NotStarted: the system has no process, thread, handle or memory for it, or the fork server
            has died, of such a shortage for one.
    """
    try:
        return await _fork_once()
    except (OSError, EOFError, RuntimeError) as error:
        raise NotStarted(str(error) or "the fork server ended") from error


async def _fork_once() -> LocalExecution:
    server_end, child_end = socket.socketpair()
    process = _context.Process(target=worker.main, args=(child_end,), daemon=True)
    # Connected before there is a child: once its handle is open nothing is waited for, so that a
    # caller who leaves cannot leave that behind.
    reader, writer = await asyncio.open_connection(sock=server_end)
    try:
        # In a thread: it waits for the fork server, which may still be importing torch.
        await asyncio.to_thread(_start, process, child_end)
        pidfd = _open_pidfd(process.pid or 0)
    except BaseException:
        # A child that was started all the same leaves when this is closed.
        writer.close()
        raise
    return LocalExecution(process, pidfd, reader, writer)


def _start(process: ForkServerProcess, child_end: socket.socket) -> None:
    # Closed here: a thread goes on when its caller leaves, and would pass on what gets this number.
    with child_end:
        process.start()

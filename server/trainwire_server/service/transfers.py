"""Uploads and downloads under way: how many there may be, and how slow their callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from trainwire_server.errors import QuotaExceeded

LEAST_BYTES = 64 * 1024
"""What has to come of an upload, or be taken of a download, within its idle seconds."""
_UNREAD_PER_PLACE = 8
"""Ended transfers of which gRPC may hold bytes, for each that may be under way."""
_T = TypeVar("_T")


class Transfers:
    """The uploads of a server, or its downloads.

    Args:
        kind: "upload" or "download".
        most: how many may be under way at the same time; each takes a file, a thread at times, and
            some MiB. More wait.
        idle_seconds: seconds in which LEAST_BYTES have to move; one waits as long for a place.
    """

    def __init__(self, kind: str, most: int, idle_seconds: float) -> None:
        self._kind = kind
        self._most = most
        self._idle_seconds = idle_seconds
        self._places = asyncio.Semaphore(most)
        self._ending = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those under way.

        Raises:
            QuotaExceeded: none has become free, or too many have ended that nobody reads.
        """
        self._check_ending()
        try:
            async with asyncio.timeout(self._idle_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise self._no_place() from None
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Holds while the caller is told why it has no place any more.

        gRPC ends no call before the bytes sent so far are read, and keeps these.
        """
        self._ending += 1
        try:
            yield
        finally:
            self._ending -= 1

    def pace(self) -> Pace:
        """What the caller of one has to keep."""
        return Pace(self._kind, self._idle_seconds)

    def _check_ending(self) -> None:
        if self._ending >= _UNREAD_PER_PLACE * self._most:
            raise QuotaExceeded(
                f"{self._ending} {self._kind}s have ended that their callers neither read on nor "
                f"cancel, and --max-transfers, which is {self._most}, allows no more; "
                f"{self._kind} again later",
                "max_transfers",
                self._most,
            )

    def _no_place(self) -> QuotaExceeded:
        return QuotaExceeded(
            f"{self._most} {self._kind}s are under way, --max-transfers is {self._most}, and none "
            f"has ended for {self._idle_seconds:g} seconds; {self._kind} again later",
            "max_transfers",
            self._most,
        )


class Pace:
    """How long a transfer has waited for its caller, whose bytes win it time.

    What it waits for else, a disk or a place, does not count.
    """

    def __init__(self, kind: str, idle_seconds: float) -> None:
        self._kind = kind
        self._idle_seconds = idle_seconds
        self._left = idle_seconds
        self._moved = 0

    async def keep(self, step: Awaitable[_T]) -> _T:
        """Wait for the caller.

        Raises:
            QuotaExceeded: it is too slow.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._left):
                return await step
        except TimeoutError:
            # Not raised from here: an error that comes of another one holds what that held.
            pass
        finally:
            self._left -= loop.time() - began
        raise self._too_slow()

    def moved(self, size: int) -> None:
        """Say that so many bytes have come, or gone."""
        self._moved += size
        if self._moved >= LEAST_BYTES:
            self._moved, self._left = 0, self._idle_seconds

    def _too_slow(self) -> QuotaExceeded:
        seconds = f"{self._idle_seconds:g} seconds"
        return QuotaExceeded(
            f"in {seconds}, which is all that --{self._kind}-idle-seconds allows, the caller moved "
            f"less than {LEAST_BYTES} bytes of the {self._kind}; {self._kind} again",
            f"{self._kind}_idle_seconds",
            self._idle_seconds,
        )

"""Uploads and downloads under way: how many there may be, and how slow their callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar

from trainwire_server.errors import QuotaExceeded, ServerQuotaExceeded
from trainwire_server.identity import tenant_of_caller
from trainwire_server.meters import Meters
from trainwire_server.service.places import Places

LEAST_BYTES = 64 * 1024
"""What has to come of an upload, or be taken of a download, within its idle seconds."""
_UNREAD_PER_PLACE = 8
"""Ended transfers of which gRPC may hold bytes, for each that may be under way."""
_WAITING_PER_PLACE = 16
"""Transfers that may wait for a place, for each that may be under way."""
_T = TypeVar("_T")


class Transfers:
    """The uploads of a server, or its downloads.

    Args:
        kind: "upload" or "download".
        most: how many may be under way at the same time; each takes a file, a thread at times, and
            some MiB. More wait, up to a number: of each gRPC keeps what has come.
        idle_seconds: seconds in which LEAST_BYTES have to move; one waits as long for a place.
        is_shared: whether by tenants, none of which then takes more than it leaves free.
        meters: told how many there are.
    """

    def __init__(
        self, kind: str, most: int, idle_seconds: float, is_shared: bool, meters: Meters
    ) -> None:
        self._kind = kind
        self._most = most
        self._idle_seconds = idle_seconds
        tell = partial(meters.transfers_changed, kind)
        self._places = Places(most, _WAITING_PER_PLACE * most, is_shared, tell)
        self._ending = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those under way.

        Raises:
            ServerQuotaExceeded: none has become free, too many wait for one, or too many have ended
                that nobody reads.
        """
        self._check_ending()
        tenant = tenant_of_caller()
        if not self._places.may_come(tenant):
            raise self._refusal(f"as many {self._kind}s wait for a place as may wait")
        try:
            async with asyncio.timeout(self._idle_seconds):
                await self._places.take(tenant)
        except TimeoutError:
            seconds = f"{self._idle_seconds:g} seconds"
            raise self._refusal(f"no place for the {self._kind} was free for {seconds}") from None
        try:
            yield
        finally:
            self._places.give_back(tenant)

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
            raise self._refusal(
                f"{self._ending} {self._kind}s have ended that their callers neither read on nor "
                "cancel, and no more may"
            )

    def _refusal(self, why: str) -> ServerQuotaExceeded:
        return ServerQuotaExceeded(
            f"{why}; --max-transfers is {self._most}; {self._kind} again later",
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

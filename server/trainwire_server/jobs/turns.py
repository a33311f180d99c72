"""Whose turn it is with a dry run: one at a time, and every tenant in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from trainwire_server.jobs.quotas import Quotas


class Turns:
    """The dry runs of one tenant in the line of all.

    A lock is first come, first served. As only one of each tenant waits for the shared one, the
    tenants take turns, however many each has waiting.

    Args:
        place: held by the dry run that computes, of whichever tenant: it takes memory beside the
            jobs that have a place.
        quotas: how many of the tenant may wait.
    """

    def __init__(self, place: asyncio.Lock, quotas: Quotas) -> None:
        self._place = place
        self._next = asyncio.Lock()
        self._quotas = quotas
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Raises:
            QuotaExceeded: as many wait as may wait.
        """
        self._quotas.check_dry_runs(self._waiting)
        async with AsyncExitStack() as held:
            with self._wait():
                await held.enter_async_context(self._next)
                await held.enter_async_context(self._place)
            yield

    @contextmanager
    def _wait(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

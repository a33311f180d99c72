"""Places that callers wait for, and that no tenant can take all of."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable


class Share:
    """So many of something, of which tenants have some.

    Where tenants share it, none takes more than it leaves free: alone it has a half, and the next
    one always finds something. (Dynamic thresholds with alpha = 1: Choudhury and Hahne, 1998.)
    """

    def __init__(self, most: int, is_shared: bool) -> None:
        self._most = most
        self._is_shared = is_shared
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._taken.total()

    def may_take(self, tenant: str) -> bool:
        """Whether there is one for a tenant."""
        free = self._most - len(self)
        return free > (self._taken[tenant] if self._is_shared else 0)

    def take(self, tenant: str) -> None:
        """One more is a tenant's."""
        self._taken[tenant] += 1

    def give_back(self, tenant: str) -> None:
        """One of a tenant's is nobody's again."""
        self._taken[tenant] -= 1
        self._taken = +self._taken


class Places:
    """Places, and the line of those that wait for one, first come, first served.

    Who may not have the next one, as its tenant has enough, is passed by.

    Args:
        most: how many there are.
        line: how many may wait.
        is_shared: whether by tenants, each of which has a part of both at most.
        on_change: told how many are taken and how many wait.
    """

    def __init__(
        self, most: int, line: int, is_shared: bool, on_change: Callable[[int, int], None]
    ) -> None:
        self._places = Share(most, is_shared)
        self._line = Share(line, is_shared)
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._on_change = on_change

    def may_come(self, tenant: str) -> bool:
        """Whether one more of a tenant has a place, or may wait for one."""
        return self._places.may_take(tenant) or self._line.may_take(tenant)

    async def take(self, tenant: str) -> None:
        """Have a place as soon as there is one."""
        if self._places.may_take(tenant):
            # Whoever of this tenant waits would have had it before.
            self._places.take(tenant)
            self._tell()
        else:
            await self._wait(tenant)

    async def _wait(self, tenant: str) -> None:
        entry = (tenant, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._line.take(tenant)
        self._tell()
        try:
            await entry[1]
        except BaseException:
            # It may have been given a place in the moment in which it gave up.
            if entry in self._waiting:
                self._leave(entry)
            else:
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """Leave a place to whoever waits for one."""
        self._places.give_back(tenant)
        for entry in list(self._waiting):
            # One that is done was cancelled, and leaves by itself.
            if not entry[1].done() and self._places.may_take(entry[0]):
                self._places.take(entry[0])
                self._leave(entry)
                entry[1].set_result(None)
        self._tell()

    def _leave(self, entry: tuple[str, asyncio.Future[None]]) -> None:
        self._waiting.remove(entry)
        self._line.give_back(entry[0])
        self._tell()

    def _tell(self) -> None:
        self._on_change(len(self._places), len(self._line))

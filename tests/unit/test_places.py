"""Who gets a place among the transfers, who waits for one, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from trainwire_server.errors import ServerQuotaExceeded
from trainwire_server.meters import Meters
from trainwire_server.service.places import Places
from trainwire_server.service.transfers import Transfers

A, B, C = "alpha", "beta", "gamma"


class Line:
    """Places, and those that have asked for one."""

    def __init__(self, most: int, is_shared: bool = True, line: int = 100) -> None:
        self.counts: list[tuple[int, int]] = []
        self.places = Places(most, line, is_shared, lambda *counts: self.counts.append(counts))
        self.tasks: list[tuple[str, asyncio.Task[None]]] = []

    async def ask(self, *tenants: str) -> None:
        for tenant in tenants:
            self.tasks.append((tenant, asyncio.create_task(self.places.take(tenant))))
        await settle()

    async def give_back(self, tenant: str) -> None:
        self.tasks.remove(next(pair for pair in self.tasks if pair[0] == tenant and pair[1].done()))
        self.places.give_back(tenant)
        await settle()

    @property
    def placed(self) -> Sequence[str]:
        return [tenant for tenant, task in self.tasks if task.done()]


async def settle() -> None:
    """Let everything happen that waits for nothing else."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_tenant_takes_more_than_it_leaves_free() -> None:
    async def work() -> None:
        line = Line(4)
        await line.ask(A, A, A, A)
        assert line.placed == [A, A]
        # Behind others who wait, and yet before them.
        await line.ask(B, B)
        assert line.placed == [A, A, B]
        await line.ask(C)
        assert line.placed == [A, A, B, C]
        assert line.counts[-1] == (4, 3)
        await line.give_back(C)
        await line.give_back(B)
        assert line.placed == [A, A, B]
        await line.give_back(A)
        assert line.placed == [A, A, B]
        assert line.counts[-1] == (3, 1)

    asyncio.run(work())


def test_where_nobody_shares_all_places_are_taken_in_turn() -> None:
    async def work() -> None:
        line = Line(2, is_shared=False)
        await line.ask(A, A, A, A)
        assert line.placed == [A, A]
        await line.give_back(A)
        assert line.placed == [A, A]
        assert line.counts[-1] == (2, 1)

    asyncio.run(work())


def test_who_leaves_the_line_holds_no_place() -> None:
    async def work() -> None:
        line = Line(1, is_shared=False)
        await line.ask(A, A, A)
        _, (_, second), (_, third) = line.tasks
        second.cancel()
        await settle()
        assert line.counts[-1] == (1, 1)
        # In the moment in which it gets one, too.
        line.places.give_back(A)
        third.cancel()
        await settle()
        assert third.cancelled()
        assert line.counts[-1] == (0, 0)

    asyncio.run(work())


def test_only_so_many_wait_for_a_place() -> None:
    async def work() -> None:
        transfers = Transfers("upload", 1, 60, False, Meters())

        async def transfer() -> None:
            async with transfers.place():
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(transfer()) for _ in range(17)]
        await settle()
        assert not [task for task in tasks if task.done()]
        with pytest.raises(ServerQuotaExceeded, match="--max-transfers is 1") as caught:
            await transfer()
        assert caught.value.metadata == {"quota": "max_transfers", "limit": "1"}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with transfers.place():
            pass

    asyncio.run(work())


def test_who_gives_up_as_a_place_comes_free_is_passed_by() -> None:
    async def work() -> None:
        line = Line(1, is_shared=False)
        await line.ask(A, B, C)
        line.tasks[1][1].cancel()
        # Before the task that was cancelled has run.
        await line.give_back(A)
        assert line.tasks.pop(0)[1].cancelled()
        assert line.placed == [C]
        assert line.counts[-1] == (1, 0)

    asyncio.run(work())

"""The tenants of a server: each with jobs, datasets and models that no other one can name."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from trainwire_server.data.durable import full_message
from trainwire_server.errors import StorageFull
from trainwire_server.identity import tenant_of_caller
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.houses import House, HouseError, Houses
from trainwire_server.jobs.ledger import Active, Ledger
from trainwire_server.jobs.manager import Manager, Workshop
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.retention import Retention
from trainwire_server.meters import Meters

_RECOVERY_SECONDS = 5.0
"""How long a start waits for the jobs before it to be taken up."""


@dataclass(frozen=True)
class Rules:
    """What holds for each tenant.

    Attributes:
        retain_days: days that ended jobs and unused datasets stay; 0 for ever.
        max_data_bytes: bytes that its folder may take before the oldest of them are deleted; 0 for
            as many as there are.
        quotas: what it may have; more is refused.
    """

    retain_days: float
    max_data_bytes: int
    quotas: Quotas


class Tenant:
    """One tenant: its things, and all that is done with them."""

    def __init__(self, house: House, workshop: Workshop, rules: Rules, meters: Meters) -> None:
        self.catalog, self.store = house.catalog, house.store
        self.datasets = Datasets(house.store, house.catalog)
        self.retention = Retention(
            house, self.datasets, rules.retain_days, rules.max_data_bytes, rules.quotas
        )
        self.ledger = Ledger(house.store, self.retention.poke, meters, house.tenant)
        self.manager = Manager(house, self.datasets, self.retention, self.ledger, workshop)
        self._quotas = rules.quotas
        self._open: Counter[str] = Counter()

    def watching(self) -> AbstractContextManager[None]:
        """One more open watch, for as long as it lasts.

        Raises:
            QuotaExceeded: there are as many as there may be.
        """
        return self._counted("watches", self._quotas.check_watches)

    def transferring(self) -> AbstractContextManager[None]:
        """One more upload or download; otherwise as `watching`."""
        return self._counted("transfers", self._quotas.check_transfers)

    @contextmanager
    def _counted(self, kind: str, check: Callable[[int], None]) -> Iterator[None]:
        check(self._open[kind])
        self._open[kind] += 1
        try:
            yield
        finally:
            self._open[kind] -= 1


class Tenants:
    """Those that have something here, or have called.

    Args:
        found: the houses that are open.
        houses: opens those of others.
    """

    def __init__(
        self,
        found: Sequence[House],
        houses: Houses,
        workshop: Workshop,
        rules: Rules,
        meters: Meters,
    ) -> None:
        self._houses = houses
        self._workshop = workshop
        self._rules = rules
        self._meters = meters
        self._opening = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._tenants = {house.tenant: self._tenant(house) for house in found}

    def _tenant(self, house: House) -> Tenant:
        return Tenant(house, self._workshop, self._rules, self._meters)

    def __iter__(self) -> Iterator[Tenant]:
        # A list: threads look at them too.
        return iter(list(self._tenants.values()))

    async def of_caller(self) -> Tenant:
        """That of the call that is being answered; its folder is made if it has none.

        Raises:
            StorageFull: there is no room for it.
            ServerStopping: the server is stopping, and has not opened it yet.
        """
        name = tenant_of_caller()
        tenant = self._tenants.get(name)
        if tenant is None:
            # A caller that leaves must not leave a folder that is half open.
            tenant = await finish(self._open(name))
        return tenant

    async def _open(self, name: str) -> Tenant:
        async with self._opening:
            if name not in self._tenants:
                self._workshop.scheduler.refuse_when_stopping()
                await self._take_in(name)
            return self._tenants[name]

    async def _take_in(self, name: str) -> None:
        try:
            house = await asyncio.to_thread(self._houses.open, name)
        except HouseError as error:
            if error.is_full:
                raise StorageFull(full_message("the tenant's folder")) from error
            raise
        tenant = self._tenant(house)
        # A folder may have been put there since the start, with jobs in it. Before it is called:
        # what is submitted from then on must not be taken up a second time.
        await self._take_up([tenant])
        self._tenants[name] = tenant
        self._begin(tenant.retention.run())
        if self._workshop.scheduler.is_stopping:
            self._stop()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -------------------------------------------------------------------- start and stop

    async def recover(self) -> None:
        """Take up the jobs of the server before this one, in their order.

        What was training then waits again; its process goes on from the last checkpoint. On a full
        disk that takes until there is room, and this returns before: what is there can be read.
        """
        self._begin(self._workshop.scheduler.learn_devices(self._workshop.devices))
        await self._take_up(list(self))
        for tenant in self:
            self._begin(tenant.retention.run())

    async def _take_up(self, tenants: Sequence[Tenant]) -> None:
        found = [[(t.manager, active) for active in await t.manager.activate()] for t in tenants]
        # Each list is in its order; a clock that was set back changes none of them.
        in_order = heapq.merge(*found, key=lambda pair: pair[1].job.create_time.ToNanoseconds())
        taking_up = self._begin(self._take_up_all(list(in_order)))
        await asyncio.wait({taking_up}, timeout=_RECOVERY_SECONDS)

    async def _take_up_all(self, found: Sequence[tuple[Manager, Active]]) -> None:
        for manager, active in found:
            await manager.take_up(active)
        self._workshop.scheduler.pump()

    async def drain(self, grace: float) -> None:
        """End watches, and let every training process finish the epoch it is in.

        What is not done after so many seconds is ended. All of it is found by the next `recover`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        self._workshop.scheduler.stop()
        self._stop()
        # One that is being opened is not among them yet, and stops when it is. It takes what a disk
        # takes, which is not waited for beyond the grace; the next one is refused.
        with suppress(TimeoutError):
            async with asyncio.timeout(grace), self._opening:
                pass
        await self._workshop.scheduler.drain(max(end - loop.time(), 0))

    def _stop(self) -> None:
        """End what goes on with those that are open; a second time changes nothing."""
        for task in list(self._background):
            task.cancel()
        for tenant in self:
            tenant.manager.stop()

    @property
    def running_jobs(self) -> int:
        """Number of jobs training, of all tenants."""
        return sum(tenant.manager.running_jobs for tenant in self)

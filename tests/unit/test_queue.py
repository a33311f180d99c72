"""Which job starts next, and where: with lists of devices that need not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.errors import QueueFull, QuotaExceeded
from trainwire_server.jobs.queue import JobKey, Lease, Queue, Slots
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.scheduler import Scheduler

AUTO, ON_CPU, ON_GPU = (
    training_pb2.DEVICE_AUTO,
    training_pb2.DEVICE_CPU,
    training_pb2.DEVICE_CUDA,
)
A, B = "a-team", "b-team"
NONE = Quotas()


def job(
    name: str, priority: int = 0, device: training_pb2.Device.ValueType = AUTO
) -> training_pb2.TrainingJob:
    made = training_pb2.TrainingJob(name=name)
    made.request.resources.priority = priority
    made.request.resources.device = device
    return made


def slots(*devices: str, jobs: int = 8, per_device: int = 1) -> Slots:
    made = Slots(jobs, per_device)
    made.learn_devices(["cpu", *devices])
    return made


def started(queue: Queue, places: Slots) -> list[tuple[str, str]]:
    """Names and devices of all that can start now, in order."""
    found = []
    while pair := queue.start_next(places, lambda _: True):
        found.append((pair[0].name, pair[1].device))
    return found


def queue_of(*jobs: training_pb2.TrainingJob) -> Queue:
    queue = Queue()
    for one in jobs:
        queue.add(A, one)
    return queue


def test_higher_priority_first_then_first_come() -> None:
    queue = queue_of(job("a"), job("b", 5), job("c"), job("d", 5), job("e", -1))
    assert [queue.position(JobKey(A, name)) for name in "bdace"] == [1, 2, 3, 4, 5]
    assert [name for name, _ in started(queue, slots())] == list("bdace")
    assert len(queue) == 0
    assert queue.position(JobKey(A, "a")) == 0


@pytest.mark.parametrize(("priority", "place"), [(9, 1), (5, 3), (0, 5), (-1, 6), (-9, 6)])
def test_a_new_job_is_told_the_place_it_gets(priority: int, place: int) -> None:
    queue = queue_of(job("a"), job("b", 5), job("c"), job("d", 5), job("e", -1))
    assert queue.position_of_next(priority) == place
    queue.add(A, job("new", priority))
    assert queue.position(JobKey(A, "new")) == place


def test_no_more_jobs_than_slots() -> None:
    queue, places = queue_of(job("a"), job("b"), job("c")), slots(jobs=2)
    assert [name for name, _ in started(queue, places)] == ["a", "b"]
    places.give_back(Lease("cpu"))
    assert [name for name, _ in started(queue, places)] == ["c"]


def test_a_gpu_has_one_job() -> None:
    queue, places = queue_of(*(job(name) for name in "abc")), slots("cuda:0", "cuda:1")
    assert started(queue, places) == [("a", "cuda:0"), ("b", "cuda:1")]
    places.give_back(Lease("cuda:1"))
    assert started(queue, places) == [("c", "cuda:1")]


def test_a_gpu_has_as_many_jobs_as_was_said() -> None:
    queue, places = queue_of(*(job(n) for n in "abcde")), slots("cuda:0", "cuda:1", per_device=2)
    devices = [device for _, device in started(queue, places)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_waiting_for_a_gpu_holds_nobody_up() -> None:
    waiting = (job("a", device=ON_GPU), job("b", 9, ON_GPU), job("c", -9, ON_CPU))
    queue, places = queue_of(*waiting), slots("cuda:0")
    assert started(queue, places) == [("b", "cuda:0"), ("c", "cpu")]
    assert queue.position(JobKey(A, "a")) == 1


def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert started(queue_of(job("a"), job("b", device=ON_CPU)), slots()) == [
        ("a", "cpu"),
        ("b", "cpu"),
    ]


def test_until_the_devices_are_known_only_the_cpu_is_given_away() -> None:
    queue, places = queue_of(job("a"), job("b", device=ON_CPU)), Slots(8, 1)
    assert started(queue, places) == [("b", "cpu")]
    places.learn_devices(["cpu", "cuda:0"])
    assert started(queue, places) == [("a", "cuda:0")]


def test_a_job_that_is_taken_out_does_not_start() -> None:
    queue = queue_of(job("a"), job("b"))
    queue.remove(JobKey(A, "a"))
    queue.remove(JobKey(A, "nobody"))
    assert queue.position(JobKey(A, "a")) == 0
    assert [name for name, _ in started(queue, slots())] == ["b"]


@given(
    wanted=st.lists(st.sampled_from([AUTO, ON_CPU, ON_GPU]), max_size=30),
    gpus=st.integers(1, 4),
    at_once=st.integers(1, 8),
    ends=st.lists(st.integers(0, 7), max_size=30),
)
def test_one_gpu_is_never_given_to_two_jobs(
    wanted: list[training_pb2.Device.ValueType], gpus: int, at_once: int, ends: list[int]
) -> None:
    queue = queue_of(*(job(str(i), device=device) for i, device in enumerate(wanted)))
    places = slots(*(f"cuda:{i}" for i in range(gpus)), jobs=at_once)
    running: list[str] = []
    for end in [None, *ends]:
        if end is not None and running:
            places.give_back(Lease(running.pop(end % len(running))))
        running += [device for _, device in started(queue, places)]
        used = [device for device in running if device != "cpu"]
        assert len(used) == len(set(used))
        assert len(running) <= at_once


# ------------------------------------------------------------------------ of several tenants


class Bench:
    """A scheduler whose jobs train until they are told to end."""

    def __init__(self, places: int, most_queued: int = 10, quotas: Quotas = NONE) -> None:
        self.scheduler = Scheduler(slots(jobs=places), most_queued, quotas)
        self.ends: dict[str, asyncio.Event] = {}
        self.started: list[str] = []
        self.lines = {tenant: self.scheduler.line(tenant, self._start) for tenant in (A, B)}

    def _start(self, name: str, lease: Lease) -> Coroutine[Any, Any, None]:
        self.started.append(name)
        self.ends[name] = asyncio.Event()
        return self._train(name)

    async def _train(self, name: str) -> None:
        await self.ends[name].wait()

    def add(self, tenant: str, *jobs: training_pb2.TrainingJob) -> None:
        for one in jobs:
            self.lines[tenant].add(one)
        self.scheduler.pump()

    async def end(self, name: str) -> None:
        """End a job, and let what comes of it happen."""
        running = len(self.lines[A].running) + len(self.lines[B].running)
        before = len(self.started)
        self.ends[name].set()
        while len(self.lines[A].running) + len(self.lines[B].running) == running:
            if len(self.started) > before:
                break
            await asyncio.sleep(0)


def test_a_place_goes_to_the_next_job_whosever_it_is() -> None:
    async def work() -> None:
        bench = Bench(places=1)
        bench.add(A, job("a1"), job("a2"), job("a3"))
        bench.add(B, job("b1"), job("b2", priority=5))
        assert bench.started == ["a1"]
        places = [bench.lines[A].position(name) for name in ("a2", "a3")]
        assert (places, bench.lines[B].position("b2"), bench.lines[B].position("b1")) == (
            [2, 3],
            1,
            4,
        )
        assert [len(bench.lines[tenant]) for tenant in (A, B)] == [2, 2]
        for name in ("a1", "b2", "a2", "a3"):
            await bench.end(name)
        assert bench.started == ["a1", "b2", "a2", "a3", "b1"]

    asyncio.run(work())


def test_jobs_over_the_running_quota_are_passed_by() -> None:
    async def work() -> None:
        bench = Bench(places=3, quotas=Quotas(running_jobs=1))
        bench.add(A, job("a1"), job("a2", priority=9), job("a3"))
        assert bench.started == ["a2"]
        bench.add(B, job("b1"))
        # There was a place, and it went to no other job of the tenant that has its own.
        assert bench.started == ["a2", "b1"]
        await bench.end("b1")
        assert bench.started == ["a2", "b1"]
        await bench.end("a2")
        assert bench.started == ["a2", "b1", "a1"]
        assert (bench.lines[A].running, bench.lines[B].running) == (["a1"], [])

    asyncio.run(work())


def test_two_tenants_may_have_jobs_of_one_name() -> None:
    async def work() -> None:
        bench = Bench(places=1)
        bench.add(A, job("first"))
        bench.add(A, job("same"))
        bench.add(B, job("same"))
        assert [bench.lines[tenant].position("same") for tenant in (A, B)] == [1, 2]
        bench.lines[A].remove("same")
        assert [bench.lines[tenant].position("same") for tenant in (A, B)] == [0, 1]
        await bench.end("first")
        assert (bench.lines[A].running, bench.lines[B].running) == ([], ["same"])

    asyncio.run(work())


def test_the_line_is_full_for_one_tenant_or_for_all() -> None:
    async def work() -> None:
        bench = Bench(places=1, most_queued=3, quotas=Quotas(queued_jobs=2))
        bench.add(A, job("a1"), job("a2"), job("a3"))
        with pytest.raises(QuotaExceeded, match="2 jobs of this tenant wait"):
            bench.lines[A].check_room()
        # What is being stored counts as well: two calls cannot both get the last room.
        with bench.lines[B].room(), pytest.raises(QueueFull, match="3 jobs wait"):
            bench.lines[B].check_room()
        bench.lines[B].check_room()
        bench.lines[A].remove("a3")
        with bench.lines[A].room(), pytest.raises(QuotaExceeded):
            bench.lines[A].check_room()
        bench.lines[A].check_room()

    asyncio.run(work())


class DryRuns:
    """Dry runs that take until they are told to end; in the order in which they have begun."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, tenant: str, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(tenant, name))
        await settle()

    async def _run(self, tenant: str, name: str) -> None:
        async with self._bench.lines[tenant].dry_runs.turn():
            self.begun.append(name)
            await self.ends[name].wait()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()


async def settle() -> None:
    """Let everything happen that waits for nothing else: no step here takes more turns."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_tenants_take_turns_with_dry_runs() -> None:
    async def work() -> None:
        runs = DryRuns(Bench(places=1))
        await runs.ask(A, "a1", "a2", "a3", "a4")
        await runs.ask(B, "b1", "b2")
        assert runs.begun == ["a1"]
        for name in ("a1", "b1", "a2", "b2", "a3", "a4"):
            assert runs.begun[-1] == name
            await runs.end(name)
        assert runs.begun == ["a1", "b1", "a2", "b2", "a3", "a4"]

    asyncio.run(work())


def test_a_caller_that_leaves_gives_its_turn_up() -> None:
    async def work() -> None:
        runs = DryRuns(Bench(places=1, quotas=Quotas(queued_jobs=2)))
        await runs.ask(A, "a1", "a2", "a3")
        await runs.ask(B, "b1")
        for name in ("a2", "b1", "a1"):
            runs.tasks[name].cancel()
        await settle()
        assert runs.begun == ["a1", "a3"]
        # They wait no more, and count no more.
        await runs.ask(A, "a4", "a5")
        await runs.end("a3")
        assert runs.begun == ["a1", "a3", "a4"]

    asyncio.run(work())


def test_a_tenant_has_so_many_dry_runs_waiting() -> None:
    async def work() -> None:
        runs = DryRuns(Bench(places=1, quotas=Quotas(queued_jobs=2)))
        await runs.ask(A, "a1", "a2", "a3", "a4")
        with pytest.raises(QuotaExceeded, match="2 dry runs of this tenant wait") as caught:
            await runs.tasks["a4"]
        assert caught.value.metadata == {"quota": "tenant_queued_jobs", "limit": "2"}
        # Those of one tenant are no other's.
        await runs.ask(B, "b1", "b2")
        assert not runs.tasks["b2"].done()
        for name in ("a1", "b1"):
            await runs.end(name)
        await runs.ask(A, "a5")
        assert not runs.tasks["a5"].done()

    asyncio.run(work())


def test_a_scheduler_that_stops_starts_nothing_and_waits_for_what_trains() -> None:
    async def work() -> None:
        bench = Bench(places=2)
        bench.add(A, job("a1"), job("a2"), job("a3"))
        bench.scheduler.stop()
        asyncio.get_running_loop().call_soon(bench.ends["a1"].set)
        await bench.scheduler.drain(grace=0.1)
        assert bench.started == ["a1", "a2"]
        assert bench.lines[A].running == []

    asyncio.run(work())

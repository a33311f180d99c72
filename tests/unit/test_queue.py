"""Which job starts next, and where: with lists of devices that need not exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.v1 import training_pb2
from trainwire_server.jobs.queue import Lease, Queue, Slots

AUTO, ON_CPU, ON_GPU = (
    training_pb2.DEVICE_AUTO,
    training_pb2.DEVICE_CPU,
    training_pb2.DEVICE_CUDA,
)


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
    while pair := queue.start_next(places):
        found.append((pair[0], pair[1].device))
    return found


def queue_of(*jobs: training_pb2.TrainingJob) -> Queue:
    queue = Queue()
    for one in jobs:
        queue.add(one)
    return queue


def test_higher_priority_first_then_first_come() -> None:
    queue = queue_of(job("a"), job("b", 5), job("c"), job("d", 5), job("e", -1))
    assert [queue.position(name) for name in "bdace"] == [1, 2, 3, 4, 5]
    assert [name for name, _ in started(queue, slots())] == list("bdace")
    assert len(queue) == 0
    assert queue.position("a") == 0


@pytest.mark.parametrize(("priority", "place"), [(9, 1), (5, 3), (0, 5), (-1, 6), (-9, 6)])
def test_a_new_job_is_told_the_place_it_gets(priority: int, place: int) -> None:
    queue = queue_of(job("a"), job("b", 5), job("c"), job("d", 5), job("e", -1))
    assert queue.position_of_next(priority) == place
    queue.add(job("new", priority))
    assert queue.position("new") == place


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
    assert queue.position("a") == 1


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
    queue.remove("a")
    queue.remove("nobody")
    assert queue.position("a") == 0
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

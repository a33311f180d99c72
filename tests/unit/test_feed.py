"""The newest events of a job, kept in memory for those who watch it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from trainwire.v1 import training_pb2
from trainwire_server.jobs.feed import Feed

PROGRESS = training_pb2.TrainingEvent(progress=training_pb2.EpochProgress(epoch=1))


def feed_of(first: int, last: int) -> Feed:
    feed = Feed()
    for sequence in range(first, last + 1):
        feed.publish(training_pb2.TrainingEvent(sequence=sequence))
    return feed


def sequences(feed: Feed, after: int) -> list[int] | None:
    events = feed.events_after(after)
    return None if events is None else [event.sequence for event in events]


def test_a_new_feed_knows_nothing() -> None:
    assert Feed().events_after(0) is None


@pytest.mark.parametrize(("after", "expected"), [(2, None), (3, [4, 5, 6]), (4, [5, 6]), (6, [])])
def test_events_after_a_sequence_number(after: int, expected: list[int] | None) -> None:
    assert sequences(feed_of(4, 6), after) == expected


@pytest.mark.parametrize("last", [256, 257, 300, 1000])
def test_a_long_log_is_not_kept_whole(last: int) -> None:
    feed = feed_of(1, last)
    for after in range(last):
        newest = sequences(feed, after)
        assert newest is None or newest == list(range(after + 1, last + 1))
    assert sequences(feed, last - 128) is not None
    assert (sequences(feed, 0) is None) == (last > 256)


def test_progress_is_replaced_by_what_comes_after_it() -> None:
    feed = Feed()
    feed.show(PROGRESS)
    assert feed.progress == PROGRESS
    feed.publish(training_pb2.TrainingEvent(sequence=1))
    assert feed.progress is None


def test_waiting_ends_with_a_change_or_with_the_time() -> None:
    async def work() -> tuple[bool, bool, bool]:
        feed = Feed()
        nothing = await feed.wait(feed.version, seconds=0.01)
        waiting = asyncio.ensure_future(feed.wait(feed.version, seconds=30))
        await asyncio.sleep(0)
        feed.show(PROGRESS)
        changed = await waiting
        feed.end()
        return nothing, changed, await feed.wait(feed.version, seconds=30)

    assert asyncio.run(work()) == (False, True, True)


def test_a_watcher_that_leaves_takes_none_of_the_others_along() -> None:
    async def work() -> list[bool | BaseException]:
        feed = Feed()
        waiting = [asyncio.ensure_future(feed.wait(feed.version, seconds=30)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        feed.show(PROGRESS)
        # Between the change and the turn of who waits for it.
        waiting[1].cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second, third = asyncio.run(work())
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, asyncio.CancelledError)
    assert third is True


def test_watchers_that_wait_in_vain_or_leave_are_forgotten() -> None:
    async def work() -> int:
        feed = Feed()
        for _ in range(100):
            await feed.wait(feed.version, seconds=0)
            leaving = asyncio.ensure_future(feed.wait(feed.version, seconds=30))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
        gc.collect()
        return sum(type(found) is asyncio.Future for found in gc.get_objects())

    assert asyncio.run(work()) < 20

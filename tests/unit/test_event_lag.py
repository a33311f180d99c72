"""How long events take to those who watch, and that old ones are not held against the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from trainwire.v1 import training_pb2
from trainwire_server.jobs.ledger import Ledger
from trainwire_server.jobs.store import Store
from trainwire_server.jobs.watch import Watches
from trainwire_server.meters import Meters

JOB = training_pb2.TrainingJob(name="jobs/1", state=training_pb2.JOB_STATE_RUNNING, last_sequence=1)


class Lags(Meters):
    """Keeps the lags alone."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def event_delivered(self, seconds: float) -> None:
        self.seconds.append(seconds)


def test_only_what_a_watcher_waited_for_counts(tmp_path: Path) -> None:
    asyncio.run(_watch_an_old_event_and_a_new_one(tmp_path / "trainwire.db"))


async def _watch_an_old_event_and_a_new_one(database: Path) -> None:
    store, lags = Store(database), Lags()
    ledger = Ledger(store, meters=lags)
    feed = ledger.activate(JOB).feed
    feed.publish(training_pb2.TrainingEvent(sequence=1))
    events = Watches(ledger, heartbeat=60.0).watch(JOB.name, after=0)
    assert (await anext(events)).sequence == 1
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert lags.seconds == []
    feed.publish(training_pb2.TrainingEvent(sequence=2))
    assert (await waiting).sequence == 2
    # Delivered when the next one is asked for, not before.
    assert lags.seconds == []
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert len(lags.seconds) == 1
    assert 0 <= lags.seconds[0] < 60
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await store.close()


def test_an_event_has_an_age_while_it_is_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path / "trainwire.db")
    feed = Ledger(store).activate(JOB).feed
    first, second = (training_pb2.TrainingEvent(sequence=number) for number in (1, 2))
    assert feed.age(first) is None
    feed.publish(first)
    assert feed.age(first) is not None
    feed.publish(second)
    assert feed.age(first) is None
    assert feed.age(second) is not None
    asyncio.run(store.close())

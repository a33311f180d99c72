"""Watching a job: its log from any point on, then what happens as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.errors import NotFound, SequenceOutOfRange, ServerStopping
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.feed import Feed
from trainwire_server.jobs.ledger import Active, Ledger


class Watches:
    """Reads events to those who watch; a watcher is a position in the log and nothing else.

    Args:
        heartbeat: seconds of silence after which a watcher gets a sign of life, so that nothing
            between the two takes the connection for dead.
    """

    def __init__(self, ledger: Ledger, heartbeat: float) -> None:
        self._ledger = ledger
        self._heartbeat = heartbeat

    async def watch(self, name: str, after: int) -> AsyncIterator[training_pb2.TrainingEvent]:
        """The job's events after a sequence number, as they come, to the terminal one.

        Progress is passed on when there is nothing else to say.

        Raises:
            NotFound: no such job.
            SequenceOutOfRange: the log is not that long.
            ServerStopping: the job goes on, this server does not.
        """
        job = await self._ledger.get(name)
        if after > job.last_sequence:
            raise SequenceOutOfRange(
                f"{name} has {job.last_sequence} events",
                (contract.Violation("after_sequence", f"allowed: [0, {job.last_sequence}]"),),
            )
        # Taken before the log is read: what is stored after that read is in the feed.
        active = self._ledger.find(name)
        if active is None:
            async for event in self._ledger.read(name, after):
                yield event
            return
        async for event in self._follow(active, after):
            yield event

    async def _follow(
        self, active: Active, after: int
    ) -> AsyncIterator[training_pb2.TrainingEvent]:
        # Until it waits it is sent what is old, which is no lag of the server.
        feed, has_waited = active.feed, False
        while True:
            version = feed.version
            page = feed.events_after(after)
            if page is None:
                page = await self._ledger.page(active.job.name, after)
            for event in page:
                yield event
                self._tell_lag(feed, event, has_waited)
                after = event.sequence
                if jobs.is_terminal(event):
                    return
            if page or feed.version != version:
                continue
            _expect_more(active)
            has_waited = True
            if not await feed.wait(version, self._heartbeat):
                yield feed.progress or jobs.sign_of_life(active.job)
            elif feed.progress is not None:
                yield feed.progress

    def _tell_lag(self, feed: Feed, event: training_pb2.TrainingEvent, has_waited: bool) -> None:
        age = feed.age(event) if has_waited else None
        if age is not None:
            self._ledger.meters.event_delivered(age)


def _expect_more(active: Active) -> None:
    """Raise what ends a watch that has been sent all there is, and not the job's end."""
    if active.job.state in jobs.TERMINAL:
        # Its end was stored, and is not there: the watcher was far behind.
        raise NotFound(f"{active.job.name} was deleted meanwhile")
    if active.feed.ended:
        raise ServerStopping(f"the server is stopping; watch {active.job.name} again later")

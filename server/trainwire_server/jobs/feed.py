"""The newest events of one job, for those who watch it; older ones are in the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from trainwire.v1 import training_pb2

_KEPT = 128
"""Events kept here: a watcher that is further behind reads the log."""


class Feed:
    """One job's changes. A watcher holds a version number, no queue: a slow one costs nothing.

    Attributes:
        version: grows with every change.
        progress: the newest progress, unless a stored event came after it.
        ended: whether there will be no more changes.
    """

    def __init__(self) -> None:
        self.version = 0
        self.progress: training_pb2.TrainingEvent | None = None
        self.ended = False
        self._published = 0.0
        self._newest: list[training_pb2.TrainingEvent] = []
        self._waiters: set[asyncio.Future[bool]] = set()

    def publish(self, event: training_pb2.TrainingEvent) -> None:
        """Show every watcher a stored event."""
        self._newest.append(event)
        self._published = time.monotonic()
        if len(self._newest) > 2 * _KEPT:
            del self._newest[:_KEPT]
        self.show(None)

    def show(self, progress: training_pb2.TrainingEvent | None) -> None:
        """Show every watcher a progress event, which replaces the one before it."""
        self.progress = progress
        self._wake()

    def end(self) -> None:
        """Wake every watcher for the last time."""
        self.ended = True
        self._wake()

    def events_after(self, sequence: int) -> Sequence[training_pb2.TrainingEvent] | None:
        """The stored events after a sequence number, or None if they do not reach back to it."""
        if not self._newest or self._newest[0].sequence > sequence + 1:
            return None
        return self._newest[sequence + 1 - self._newest[0].sequence :]

    def age(self, event: training_pb2.TrainingEvent) -> float | None:
        """Seconds since an event was published; None unless it is the newest."""
        if not self._newest or self._newest[-1].sequence != event.sequence:
            return None
        return time.monotonic() - self._published

    def _wake(self) -> None:
        self.version += 1
        woken, self._waiters = self._waiters, set()
        for waiter in woken:
            _answer(waiter, True)

    async def wait(self, seen: int, seconds: float) -> bool:
        """Return true as soon as the version is not `seen`, false if that takes too long."""
        if self.version != seen or self.ended:
            return True
        # Not an asyncio.Event under an asyncio.timeout: a thousand watchers wait here per event.
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _answer, waiter, False)
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)


def _answer(waiter: asyncio.Future[bool], answer: bool) -> None:
    if not waiter.done():
        waiter.set_result(answer)

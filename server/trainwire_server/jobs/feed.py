"""Tells the watchers of a job that something is new; what it is they read from the log."""

from __future__ import annotations

import asyncio

from trainwire.v1 import training_pb2


class Feed:
    """One job's changes. A watcher holds a version number, no queue: a slow one costs nothing."""

    def __init__(self) -> None:
        self.version = 0
        self.progress: training_pb2.TrainingEvent | None = None
        self.ended = False
        self._changed = asyncio.Event()

    def publish(self, progress: training_pb2.TrainingEvent | None = None) -> None:
        """Wake every watcher. Progress replaces the one before it; a stored event clears it."""
        self.version += 1
        self.progress = progress
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Wake every watcher for the last time."""
        self.ended = True
        self.publish()

    async def wait(self, seen: int) -> None:
        """Return as soon as the version is not `seen`."""
        while self.version == seen and not self.ended:
            await self._changed.wait()

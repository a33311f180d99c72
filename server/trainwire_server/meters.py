"""What the server measures of itself, as those see it who have something to tell.

They hold a `Meters` and know of no exporter; `service/metrics.py` has the one that keeps it all.
"""

from __future__ import annotations


class Meters:
    """Is told what happens, by the event loop; this one keeps nothing."""

    def call_began(self, method: str) -> None:
        """A call of a method ("/package.Service/Method", or "unknown") is being answered."""

    def call_ended(self, method: str, code: str, reason: str, seconds: float) -> None:
        """A call has ended with a code, such as "OK", and the reason it was refused for, if any."""

    def quota_refused(self, quota: str) -> None:
        """A call was refused for a quota, such as "tenant_watches"."""

    def transfers_changed(self, kind: str, under_way: int, waiting: int) -> None:
        """So many transfers of a kind, "upload" or "download", are under way, and so many wait."""

    def upload_received(self, size_bytes: int) -> None:
        """All bytes of an upload are here, and are what was announced."""

    def job_began(self, waited_seconds: float) -> None:
        """A job has got its place, after so long in the queue."""

    def epoch_ended(self, seconds: float) -> None:
        """An epoch is stored that took so long."""

    def job_ended(self, state: str) -> None:
        """A job has ended in this state, such as "succeeded"."""

    def transaction_ended(self, seconds: float) -> None:
        """What a transaction wrote is on the disk; told by the database's own thread."""

    def event_delivered(self, seconds: float) -> None:
        """A watcher that waited for an event has it, so long after it was stored."""

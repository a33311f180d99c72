"""What a tenant may have, and the refusal of more."""

from __future__ import annotations

from dataclasses import dataclass

from trainwire_server.errors import QuotaExceeded


@dataclass(frozen=True)
class Quotas:
    """What each tenant may have; 0 for as much as there is.

    Attributes:
        queued_jobs: jobs that wait, and as many dry runs.
        running_jobs: jobs that train at the same time; more wait.
        stored_bytes: bytes of its folder.
        watches: calls of WatchTraining and Train that are open.
        transfers: calls of UploadDataset and DownloadModel that are open.
    """

    queued_jobs: int = 0
    running_jobs: int = 0
    stored_bytes: int = 0
    watches: int = 0
    transfers: int = 0

    def may_run(self, running: int) -> bool:
        """Whether one more job may train beside those that do."""
        return not self.running_jobs or running < self.running_jobs

    def check_queued(self, queued: int) -> None:
        """Raise QuotaExceeded if no job may wait beside those that do."""
        limit = self.queued_jobs
        if limit and queued >= limit:
            raise QuotaExceeded(
                f"{queued} jobs of this tenant wait, and --tenant-queued-jobs is {limit}; submit "
                "again when some have started",
                "tenant_queued_jobs",
                limit,
            )

    def check_dry_runs(self, waiting: int) -> None:
        """Raise QuotaExceeded if no dry run may wait beside those that do."""
        limit = self.queued_jobs
        if limit and waiting >= limit:
            raise QuotaExceeded(
                f"{waiting} dry runs of this tenant wait, and --tenant-queued-jobs is {limit}; try "
                "again when some are done",
                "tenant_queued_jobs",
                limit,
            )

    def check_stored(self, stored: int, more: int) -> None:
        """Raise QuotaExceeded if so many bytes may not be stored beside those that are."""
        limit = self.stored_bytes
        if limit and stored + more > limit:
            raise QuotaExceeded(
                f"this tenant stores {stored} bytes, and {more} more would be more than the "
                f"{limit} of --tenant-stored-bytes; have jobs, models or datasets that are no "
                "longer needed deleted (where there are tokens, by one of role admin)",
                "tenant_stored_bytes",
                limit,
            )

    def check_watches(self, watches: int) -> None:
        """Raise QuotaExceeded if no watch may be opened beside those that are."""
        limit = self.watches
        if limit and watches >= limit:
            raise QuotaExceeded(
                f"this tenant has {watches} open watches, and --tenant-watches is {limit}; end one",
                "tenant_watches",
                limit,
            )

    def check_transfers(self, transfers: int) -> None:
        """Raise QuotaExceeded if no upload or download may be begun beside those that are open."""
        limit = self.transfers
        if limit and transfers >= limit:
            raise QuotaExceeded(
                f"this tenant has {transfers} open uploads and downloads, and --tenant-transfers "
                f"is {limit}; try again when one has ended",
                "tenant_transfers",
                limit,
            )

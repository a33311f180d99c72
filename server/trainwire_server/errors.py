"""What can go wrong, as exceptions that carry all a person needs to act on.

Two families: `JobFailure` ends a job (it becomes the job's `failure`), `RequestError` answers a
call (`service/status.py` turns it into a gRPC status).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainwire.contract import Violation
from trainwire.v1 import training_pb2


def listed(names: list[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class JobFailure(Exception):
    """Ends a job in FAILED.

    Args:
        reason: the kind of failure.
        message: what happened and what to do about it.
        fields: the request fields concerned.
    """

    def __init__(
        self,
        reason: training_pb2.FailureReason.ValueType,
        message: str,
        fields: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fields = fields

    def to_proto(self) -> training_pb2.Failure:
        """The failure as the job and its `failed` event carry it."""
        violations = [
            training_pb2.FieldViolation(field=v.field, description=v.description)
            for v in self.fields
        ]
        return training_pb2.Failure(
            reason=self.reason, message=self.message, field_violations=violations
        )


class RequestError(Exception):
    """Answers a call with an error.

    `reason` is the machine-readable UPPER_SNAKE_CASE name that travels in ErrorInfo, with
    `metadata`; `retry_seconds` is when to try again, where that is known.
    """

    reason = "INTERNAL"
    metadata: Mapping[str, str] = MappingProxyType({})
    retry_seconds = 0

    def __init__(self, message: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.violations = violations


class InvalidRequest(RequestError):
    """The request breaks the contract."""

    reason = "INVALID_REQUEST"


class TokenMissing(RequestError):
    """The server takes calls with a token alone, and there is none."""

    reason = "TOKEN_MISSING"


class TokenUnknown(RequestError):
    """The token is not, or no longer, one of the server's."""

    reason = "TOKEN_UNKNOWN"


class RoleTooLow(RequestError):
    """The caller's token does not allow this call."""

    reason = "ROLE_TOO_LOW"


class NotFound(RequestError):
    """The named resource does not exist."""

    reason = "NOT_FOUND"


class AlreadyExists(RequestError):
    """The idempotency key was used with another request."""

    reason = "REQUEST_ID_REUSED"


class DatasetUnsuitable(RequestError):
    """The dataset's profile shows that the request cannot be trained on it."""

    reason = "DATASET_UNSUITABLE"


class Untrainable(RequestError):
    """A dry run found that the job would fail; `reason` is that of the failure."""

    def __init__(self, failure: training_pb2.Failure) -> None:
        fields = (Violation(v.field, v.description) for v in failure.field_violations)
        super().__init__(failure.message, tuple(fields))
        name = training_pb2.FailureReason.Name(failure.reason)
        self.reason = name.removeprefix("FAILURE_REASON_")


class JobTooLarge(RequestError):
    """Not even the least that the job takes fits into the memory that it may have.

    Args:
        message: what it takes, what is allowed, and what to do about it.
        violations: the fields that make it so large.
        least: bytes that it takes at least.
        limit: bytes that it may have.
    """

    reason = "JOB_TOO_LARGE"

    def __init__(
        self,
        message: str,
        violations: tuple[Violation, ...] = (),
        least: int = 0,
        limit: int = 0,
    ) -> None:
        super().__init__(message, violations)
        self.metadata = {"least_bytes": str(least), "limit_bytes": str(limit)}


class JobNotFinished(RequestError):
    """The job has not ended; cancel it first."""

    reason = "JOB_NOT_FINISHED"


class JobNotResumable(RequestError):
    """The job has not been cancelled or failed, or has no checkpoint to go on from."""

    reason = "JOB_NOT_RESUMABLE"


class ModelInUse(RequestError):
    """The model has an alias; move or remove that first."""

    reason = "MODEL_IN_USE"


class QueueFull(RequestError):
    """As many jobs wait as may wait."""

    reason = "QUEUE_FULL"


class QuotaExceeded(RequestError):
    """The caller's tenant has as much of something as it may have.

    Args:
        message: what there is, what is allowed, and what to do about it.
        quota: name of the setting, as a variable has it.
        limit: what that says.
    """

    reason = "QUOTA_EXCEEDED"

    def __init__(self, message: str, quota: str = "", limit: float = 0) -> None:
        super().__init__(message)
        self.metadata = {"quota": quota, "limit": f"{limit:.15g}"}


class ServerQuotaExceeded(QuotaExceeded):
    """The server has as much of something as all may have together; try again."""

    retry_seconds = 2


class StorageFull(RequestError):
    """The disk, or what the server may take of it, is full; what is stored can still be read."""

    reason = "STORAGE_FULL"


class DatasetInUse(RequestError):
    """Jobs refer to the dataset; delete them first."""

    reason = "DATASET_IN_USE"


class DeviceUnavailable(RequestError):
    """The requested device is not on this server."""

    reason = "DEVICE_UNAVAILABLE"


class BrokenUpload(RequestError):
    """The uploaded bytes are not what the header said, or not in the format it named."""

    reason = "BROKEN_UPLOAD"


class SequenceOutOfRange(RequestError):
    """The sequence number is beyond the job's log."""

    reason = "SEQUENCE_OUT_OF_RANGE"


class ServerStopping(RequestError):
    """The server is shutting down; try again."""

    reason = "SERVER_STOPPING"
    # About what the next server takes to be ready.
    retry_seconds = 2


class SystemShortage(RequestError):
    """The server's system has no process, thread or file handle for the call now; try again."""

    reason = "SYSTEM_SHORTAGE"
    retry_seconds = 2

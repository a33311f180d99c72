"""Client of trainwire: submit trainings, watch them, fetch the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainwire_client.client import TrainingClient
from trainwire_client.errors import (
    AbortedError,
    AlreadyExistsError,
    BrokenUploadError,
    CallCancelledError,
    CredentialsError,
    DataLossError,
    DatasetUnsuitableError,
    DeadlineExceededError,
    DeviceUnavailableError,
    FailedPreconditionError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotResumableError,
    MissingExtraError,
    ModelInUseError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    QueueFullError,
    QuotaExceededError,
    ResourceExhaustedError,
    StorageFullError,
    TrainwireError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnreadableDataError,
    UnreadableModelError,
    UnreadableRequestError,
)

if TYPE_CHECKING:
    from trainwire_client.bundle import load_bundle

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "BrokenUploadError",
    "CallCancelledError",
    "CredentialsError",
    "DataLossError",
    "DatasetUnsuitableError",
    "DeadlineExceededError",
    "DeviceUnavailableError",
    "FailedPreconditionError",
    "HandshakeError",
    "InternalError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobFailedError",
    "JobNotResumableError",
    "MissingExtraError",
    "ModelInUseError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "QueueFullError",
    "QuotaExceededError",
    "ResourceExhaustedError",
    "StorageFullError",
    "TrainingClient",
    "TrainwireError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnreadableDataError",
    "UnreadableModelError",
    "UnreadableRequestError",
    "load_bundle",
]


def __getattr__(name: str) -> Any:
    """Loads `load_bundle` on first use: it needs the `torch` extra, training does not."""
    if name == "load_bundle":
        from trainwire_client.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

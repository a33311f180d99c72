"""Errors of the client: one exception class per gRPC status, in one table.

The details of a status travel as google.rpc.BadRequest (violations), google.rpc.ErrorInfo (reason)
and google.rpc.RetryInfo (when to try again), see https://google.aip.dev/193.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from trainwire import contract
from trainwire.v1 import training_pb2

__all__ = [
    "STATUS_CLASSES",
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
    "TrainwireError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnreadableDataError",
    "UnreadableModelError",
    "UnreadableRequestError",
    "from_rpc_error",
    "succeeded",
    "unavailable",
]


class TrainwireError(Exception):
    """Base of every error of this package.

    Attributes:
        message: what happened, for a person.
        code: the gRPC status code; None if no call was involved.
        reason: machine-readable name in UPPER_SNAKE_CASE, empty if the server gave none.
        violations: the fields concerned, each with what is wrong and what is allowed.
        retry_delay: seconds after which the server wants to be asked again; 0 if it did not say.
        call_id: names the call in the server's log; empty if the server gave none.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        violations: Iterable[contract.Violation] = (),
        retry_delay: float = 0.0,
        call_id: str = "",
    ) -> None:
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_delay = retry_delay
        self.call_id = call_id
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message, *(f"  {violation}" for violation in self.violations)]
        return "\n".join([*lines, f"  call {self.call_id}"] if self.call_id else lines)


class CallCancelledError(TrainwireError):
    """The call was cancelled (the call, not the job)."""


class InvalidRequestError(TrainwireError):
    """The request breaks the contract; `violations` names every field concerned."""


class BrokenUploadError(InvalidRequestError):
    """The bytes the server received are not those that were announced."""


class DeadlineExceededError(TrainwireError):
    """The server did not answer in time."""


class NotFoundError(TrainwireError):
    """The named resource does not exist."""


class AlreadyExistsError(TrainwireError):
    """The request_id was used before, with other fields."""


class PermissionDeniedError(TrainwireError):
    """The caller's token does not allow this call; the message says which role does."""


class UnauthenticatedError(TrainwireError):
    """The server wants a token and got none, or one that it does not know (any more)."""


class CredentialsError(TrainwireError):
    """A certificate, key or token file cannot be used, or not like this; no call was made."""


class HandshakeError(TrainwireError):
    """Client and server do not come to terms on TLS; trying again would not help."""


class ResourceExhaustedError(TrainwireError):
    """A quota or a size limit is reached."""


class QueueFullError(ResourceExhaustedError):
    """As many jobs wait as may wait; try again when some have ended."""


class QuotaExceededError(ResourceExhaustedError):
    """The caller's tenant has as much of something as it may have; the message says of what."""


class StorageFullError(ResourceExhaustedError):
    """The server's disk is full; what is stored can still be read."""


class FailedPreconditionError(TrainwireError):
    """The request is sound, but cannot be carried out as things are."""


class DatasetUnsuitableError(FailedPreconditionError):
    """The dataset does not have what the request asks of it: a column, rows, a type."""


class DeviceUnavailableError(FailedPreconditionError):
    """The server does not have the requested device."""


class JobNotResumableError(FailedPreconditionError):
    """The job has not been cancelled or failed, or has no checkpoint to go on from."""


class ModelInUseError(FailedPreconditionError):
    """The model has an alias; move or remove that first."""


class AbortedError(TrainwireError):
    """Another call got in the way; try again."""


class OutOfRangeError(TrainwireError):
    """A number is beyond what exists, such as a sequence number after the last event."""


class UnimplementedError(TrainwireError):
    """The server does not know this call: it is older than this client, or another service."""


class InternalError(TrainwireError):
    """A fault of the server; its log has the details."""


class UnavailableError(TrainwireError):
    """The server cannot be reached, or is shutting down."""


class DataLossError(TrainwireError):
    """What arrived is not what was sent: a gap in an event stream, a file of another digest."""


class UnreadableDataError(TrainwireError):
    """The data cannot be read as a table, or have not what is needed; no call was made."""


class UnreadableModelError(TrainwireError):
    """The folder does not hold a model that can be used."""


class UnreadableRequestError(TrainwireError):
    """The file does not hold a request; no call was made."""


class MissingExtraError(TrainwireError):
    """A package that this function needs is not installed; the message says which."""


class JobFailedError(TrainwireError):
    """The job that was waited for ended in FAILED; `reason` is the failure's reason."""

    def __init__(self, job: training_pb2.TrainingJob) -> None:
        failure = job.failure
        field = training_pb2.Failure.DESCRIPTOR.fields_by_name["reason"]
        # A newer server may know reasons that this client does not: then the number.
        reason = contract.value_text(field, failure.reason).removeprefix("FAILURE_REASON_")
        super().__init__(
            f"{job.name} failed ({reason}): {failure.message}",
            reason=reason,
            violations=(
                contract.Violation(violation.field, violation.description)
                for violation in failure.field_violations
            ),
        )
        self.job = job


class JobCancelledError(TrainwireError):
    """The job that was waited for was cancelled."""

    def __init__(self, job: training_pb2.TrainingJob) -> None:
        super().__init__(f"{job.name} was cancelled after {job.progress.epoch} epochs")
        self.job = job


def succeeded(job: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
    """The finished job itself, if it ended well; raises how it ended if not."""
    if job.state == training_pb2.JOB_STATE_FAILED:
        raise JobFailedError(job)
    if job.state == training_pb2.JOB_STATE_CANCELLED:
        raise JobCancelledError(job)
    return job


STATUS_CLASSES: dict[tuple[grpc.StatusCode, str], type[TrainwireError]] = {
    (grpc.StatusCode.CANCELLED, ""): CallCancelledError,
    (grpc.StatusCode.UNKNOWN, ""): InternalError,
    (grpc.StatusCode.INVALID_ARGUMENT, ""): InvalidRequestError,
    (grpc.StatusCode.INVALID_ARGUMENT, "BROKEN_UPLOAD"): BrokenUploadError,
    (grpc.StatusCode.DEADLINE_EXCEEDED, ""): DeadlineExceededError,
    (grpc.StatusCode.NOT_FOUND, ""): NotFoundError,
    (grpc.StatusCode.ALREADY_EXISTS, ""): AlreadyExistsError,
    (grpc.StatusCode.PERMISSION_DENIED, ""): PermissionDeniedError,
    (grpc.StatusCode.UNAUTHENTICATED, ""): UnauthenticatedError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, ""): ResourceExhaustedError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"): QueueFullError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"): QuotaExceededError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"): StorageFullError,
    (grpc.StatusCode.FAILED_PRECONDITION, ""): FailedPreconditionError,
    (grpc.StatusCode.FAILED_PRECONDITION, "DATASET_UNSUITABLE"): DatasetUnsuitableError,
    (grpc.StatusCode.FAILED_PRECONDITION, "DEVICE_UNAVAILABLE"): DeviceUnavailableError,
    (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_RESUMABLE"): JobNotResumableError,
    (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE"): ModelInUseError,
    (grpc.StatusCode.ABORTED, ""): AbortedError,
    (grpc.StatusCode.OUT_OF_RANGE, ""): OutOfRangeError,
    (grpc.StatusCode.UNIMPLEMENTED, ""): UnimplementedError,
    (grpc.StatusCode.INTERNAL, ""): InternalError,
    (grpc.StatusCode.UNAVAILABLE, ""): UnavailableError,
    (grpc.StatusCode.DATA_LOSS, ""): DataLossError,
}
"""Status code and ErrorInfo.reason -> exception; a reason without an entry takes the code's."""


def from_rpc_error(error: grpc.RpcError, target: str) -> TrainwireError:
    """The exception for a failed call to `target`, with the status's details decoded."""
    code, text = error.code(), error.details() or ""
    told = _details(error)
    if code is grpc.StatusCode.UNAVAILABLE and (problem := _handshake_problem(text)):
        return HandshakeError(f"no TLS with the trainwire server at {target}: {problem}", code)
    kind = STATUS_CLASSES.get((code, told.reason)) or STATUS_CLASSES[code, ""]
    if code is grpc.StatusCode.UNAVAILABLE:
        text = f"no answer from the trainwire server at {target}: {text}{_hint(text)}"
    return kind(
        text or code.name, code, told.reason, told.violations, told.retry_delay, told.call_id
    )


_HANDSHAKE_PROBLEMS = (
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet; compare the clocks"),
    ("Hostname Verification", "its certificate is for another name; use one that is in it"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is of no CA in the given file (ca, --ca)"),
    ("WRONG_VERSION_NUMBER", "what answers there speaks no TLS; leave out the CA (ca, --ca)"),
)
"""What gRPC's text has -> what a person is told; the first that is there."""


_CLOSED = ("Socket closed", "Connection reset by peer")


def _handshake_problem(text: str) -> str:
    return next((words for sign, words in _HANDSHAKE_PROBLEMS if sign in text), "")


def _hint(text: str) -> str:
    """What may be behind a connection that is closed before a call."""
    if "failed to connect" not in text or not any(sign in text for sign in _CLOSED):
        return ""
    return (
        ". It took the connection and closed it: a server with TLS needs its CA (ca, --ca); one "
        "that asks for client certificates needs one of a CA it knows, not expired (cert, key)"
    )


def unavailable(error: grpc.RpcError, target: str) -> TrainwireError:
    """The failure of a call that may work when it is tried again; raises any other failure.

    Such are all of a server that cannot be reached, and those for which one says when to.
    """
    failure = from_rpc_error(error, target)
    if not (isinstance(failure, UnavailableError) or failure.retry_delay):
        raise failure from error
    return failure


def invalid_request(violations: Iterable[contract.Violation]) -> InvalidRequestError:
    """What the server would answer to a request with these violations."""
    return InvalidRequestError(
        "the request breaks the contract",
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        violations,
    )


@dataclass(frozen=True)
class _Details:
    """What the details of a status say."""

    reason: str = ""
    violations: tuple[contract.Violation, ...] = ()
    retry_delay: float = 0.0
    call_id: str = ""


def _details(error: grpc.RpcError) -> _Details:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, call = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    for detail in _status(error).details:
        for known in (info, bad, retry, call):
            detail.Unpack(known)
    violations = (contract.Violation(v.field, v.description) for v in bad.field_violations)
    delay = retry.retry_delay.ToNanoseconds() / 1e9
    return _Details(info.reason, tuple(violations), delay, call.request_id)


def _status(error: grpc.RpcError) -> status_pb2.Status:
    """The rich status; an empty one if there is none, or one that contradicts the plain status."""
    try:
        # Every RpcError that a call raises is the call itself; the type stubs do not say so.
        return rpc_status.from_call(cast("grpc.Call", error)) or status_pb2.Status()
    except ValueError:
        return status_pb2.Status()

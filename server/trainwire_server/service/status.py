"""The boundary of every RPC: checks the request, turns exceptions into gRPC statuses."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from trainwire import contract
from trainwire_server import errors
from trainwire_server.identity import CALL, Call, call_fields, tenant_of_caller
from trainwire_server.service.chunks import taking_chunks

_DOMAIN = "trainwire"
_UPLOAD = "/trainwire.v1.DatasetService/UploadDataset"
_NO_MESSAGE = "the bytes of the request are no message of this call"
_DETAILS_KEY = "grpc-status-details-bin"
CALL_ID_KEY = "x-request-id"
"""Where a caller names its call, and is told how it is named."""
_STATUS_BYTES = 7 * 1024
"""What a status may take on the wire, in all: beyond 8 KiB of metadata gRPC drops the call."""
_MOST_STANDARD = 100
"""Calls of health and reflection that a connection may have open; who calls has one of each."""
_MESSAGE_BYTES = 1_500
_DESCRIPTION_BYTES = 500
_WRAPPING = 200
"""What wraps a detail, and the entry that counts what is left out."""
# The generated base classes type a streaming method as an iterator; ours write to the context.
_Method = Callable[[Any, Any, Any], Any]

CODES: dict[type[errors.RequestError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BrokenUpload: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TokenMissing: grpc.StatusCode.UNAUTHENTICATED,
    errors.TokenUnknown: grpc.StatusCode.UNAUTHENTICATED,
    errors.RoleTooLow: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.DatasetUnsuitable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Untrainable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobNotFinished: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DatasetInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobNotResumable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ServerQuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeviceUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SequenceOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ServerStopping: grpc.StatusCode.UNAVAILABLE,
    errors.SystemShortage: grpc.StatusCode.UNAVAILABLE,
}
"""Every error a call can be answered with."""


def rpc(method: _Method) -> _Method:
    """Wrap the method of an RPC, unary or streaming.

    A request message is held against the contract first. Nothing but a status made here reaches
    the caller: no exception text, no traceback.
    """

    @wraps(method)
    async def call(servicer: Any, request: Any, context: Any) -> Any:
        try:
            if isinstance(request, Message | Undecodable):
                check(request)
            return await method(servicer, request, context)
        except errors.RequestError as error:
            return await abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except grpc.aio.InternalError:
            # What gRPC says of an answer that it cannot send any more: its caller has just left.
            raise asyncio.CancelledError from None
        except Exception:
            about = {"method": method.__qualname__, **call_fields()}
            structlog.get_logger().exception("rpc.error", **about)
            return await abort(context, errors.RequestError("the server's log has the details"))

    return call


class Undecodable:
    """Stands for a request message whose bytes are none."""


class DecodeInterceptor(grpc.aio.ServerInterceptor):
    """Hands bytes that cannot be decoded to the method as `Undecodable`, and chunks as they are.

    By itself grpc.aio would answer UNKNOWN with the text of the Python exception.
    """

    def __init__(self) -> None:
        self._open_calls = OpenCalls(_MOST_STANDARD)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        if not details.method.startswith("/trainwire."):
            return _standard(handler, self._open_calls)
        decode = _guarded(handler.request_deserializer)
        if details.method == _UPLOAD:
            decode = taking_chunks(decode)
        return handler._replace(request_deserializer=decode)


def _guarded(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | Undecodable]:
    def decode_or_mark(data: bytes) -> Message | Undecodable:
        try:
            return decode(data)
        except DecodeError:
            return Undecodable()

    return decode_or_mark


class OpenCalls:
    """Calls that one connection has open, of methods whose calls are short, few, or free to all.

    Args:
        most: how many there may be; all connections to a Unix socket count as one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: Counter[str] = Counter()

    @contextmanager
    def one(self, connection: str) -> Iterator[None]:
        """One more, for as long as it lasts.

        Raises:
            QuotaExceeded: there are as many as there may be.
        """
        if self._of[connection] >= self._most:
            raise errors.QuotaExceeded(
                f"this connection has {self._most} calls of health and reflection open, and more "
                "are not allowed; read or cancel some",
                "open_calls",
                self._most,
            )
        self._of[connection] += 1
        try:
            yield
        finally:
            self._of[connection] -= 1
            if not self._of[connection]:
                del self._of[connection]


def _standard(handler: Any, open_calls: OpenCalls) -> Any:
    """A method of health or reflection, whose code is not ours, without Python's words."""
    method = handler.stream_stream

    async def call(requests: Any, context: Any) -> Any:
        try:
            with open_calls.one(context.peer()):
                async with aclosing(method(requests, context)) as answers:
                    async for answer in answers:
                        yield answer
        except DecodeError:
            await abort(context, errors.InvalidRequest(_NO_MESSAGE))
        except errors.QuotaExceeded as error:
            await abort(context, error)

    return handler._replace(stream_stream=call)


def check(request: Message | Undecodable) -> None:
    """Raise InvalidRequest with everything in which a message breaks the contract."""
    if isinstance(request, Undecodable):
        raise errors.InvalidRequest(_NO_MESSAGE)
    found = contract.violations(request)
    if found:
        raise errors.InvalidRequest(contract.listing(found), tuple(found))


def to_status(error: errors.RequestError, call_id: str = "") -> status_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo, and others of its details where they help.

    RequestInfo has the id of the call, where it has one.
    A status travels in the trailers of a call, which gRPC limits. What does not fit is left out,
    and the status says how much that is.
    """
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    status = status_pb2.Status(code=code.value[0], message=_short_message(error))
    info = {"reason": error.reason, "domain": _DOMAIN, "metadata": error.metadata}
    _add(status, error_details_pb2.ErrorInfo(**info))
    if call_id:
        _add(status, error_details_pb2.RequestInfo(request_id=call_id))
    if isinstance(error, errors.QuotaExceeded):
        _add(status, _quota_failure(error, status.message))
    if error.retry_seconds:
        delay = duration_pb2.Duration(seconds=error.retry_seconds)
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        _add(status, _bad_request(error.violations, _room(status)))
    return status


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _quota_failure(error: errors.QuotaExceeded, message: str) -> error_details_pb2.QuotaFailure:
    is_of_all = isinstance(error, errors.ServerQuotaExceeded)
    subject = "server" if is_of_all else f"tenant:{tenant_of_caller()}"
    violation = {"subject": subject, "description": message}
    return error_details_pb2.QuotaFailure(violations=[violation])


def _room(status: status_pb2.Status) -> int:
    """Bytes left for one more detail: the message travels as text too, the status in base64."""
    serialized = (_STATUS_BYTES - _escaped_bytes(status.message)) * 3 // 4
    return int(serialized - status.ByteSize() - _WRAPPING)


def _bad_request(
    violations: Sequence[contract.Violation], room: int
) -> error_details_pb2.BadRequest:
    """The first violations that fit, and how many there are besides."""
    bad = error_details_pb2.BadRequest()
    for shown, violation in enumerate(violations):
        description = _cut(violation.description, _DESCRIPTION_BYTES, _plain_bytes)
        bad.field_violations.add(field=violation.field, description=description)
        if bad.ByteSize() > room:
            del bad.field_violations[-1]
            rest = f"{len(violations) - shown} more are not listed; fix these first"
            bad.field_violations.add(field="(more)", description=rest)
            break
    return bad


def _short_message(error: errors.RequestError) -> str:
    """The message; one too long that lists the violations goes on only to the last that fits."""
    parts = [str(violation) for violation in error.violations]
    listing = contract.listing(error.violations)
    shortened = _cut(error.message, _MESSAGE_BYTES, _escaped_bytes)
    if shortened == error.message or not (parts and error.message.endswith(listing)):
        return shortened
    return _first(error.message.removesuffix(listing), parts)


def _first(message: str, parts: list[str]) -> str:
    for shown, part in enumerate(parts):
        shortened = _cut(part, _DESCRIPTION_BYTES, _escaped_bytes)
        longer = f"{message}; {shortened}" if shown else message + shortened
        if shown and _escaped_bytes(longer) > _MESSAGE_BYTES:
            return f"{message}; and {len(parts) - shown} more"
        message = longer
    return message


def _cut(text: str, limit: int, size: Callable[[str], int]) -> str:
    """The text, or as much of its beginning as takes `limit` bytes."""
    head = text[: limit + 1]  # no character takes less than a byte
    if size(head) <= limit:
        return text
    ends = list(accumulate(size(character) for character in head))
    return f"{head[: bisect_right(ends, limit)]}..."


def _plain_bytes(text: str) -> int:
    return len(text.encode())


def _escaped_bytes(text: str) -> int:
    """Size of a text as grpc-message: all but printable ASCII is percent-encoded."""
    printable = sum(1 for byte in text.encode() if 0x20 <= byte <= 0x7E and byte != 0x25)
    return 3 * len(text.encode()) - 2 * printable


async def abort(context: Any, error: errors.RequestError) -> Any:
    """End the call with the status of an error; does not return."""
    call = CALL.get() or Call("")
    call.reason = error.reason
    call.quota = error.metadata.get("quota", "")
    status = to_status(error, call.id)
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    details = ((_DETAILS_KEY, status.SerializeToString()), *trailing_metadata(call))
    await context.abort(code, status.message, details)


def trailing_metadata(call: Call) -> tuple[tuple[str, str], ...]:
    """What every answer to a call ends with; gRPC forgets it when an error brings its own."""
    return ((CALL_ID_KEY, call.id),) if call.id else ()

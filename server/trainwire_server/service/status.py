"""The boundary of every RPC: checks the request, turns exceptions into gRPC statuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from trainwire import contract
from trainwire_server import errors

_DOMAIN = "trainwire"
_DETAILS_KEY = "grpc-status-details-bin"
# The generated base classes type a streaming method as an iterator; ours write to the context.
_Method = Callable[[Any, Any, Any], Any]

CODES: dict[type[errors.RequestError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BrokenUpload: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.DatasetUnsuitable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Untrainable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.JobNotFinished: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DatasetInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeviceUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SequenceOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ServerStopping: grpc.StatusCode.UNAVAILABLE,
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
            return await _abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception:
            structlog.get_logger().exception("rpc.error", method=method.__qualname__)
            return await _abort(context, errors.RequestError("the server's log has the details"))

    return call


class Undecodable:
    """Stands for a request message whose bytes are none."""


class DecodeInterceptor(grpc.aio.ServerInterceptor):
    """Hands bytes that cannot be decoded to the method as `Undecodable`.

    By itself grpc.aio would answer UNKNOWN with the text of the Python exception.
    """

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/trainwire."):
            return handler
        return handler._replace(request_deserializer=_guarded(handler.request_deserializer))


def _guarded(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | Undecodable]:
    def decode_or_mark(data: bytes) -> Message | Undecodable:
        try:
            return decode(data)
        except DecodeError:
            return Undecodable()

    return decode_or_mark


def check(request: Message | Undecodable) -> None:
    """Raise InvalidRequest with everything in which a message breaks the contract."""
    if isinstance(request, Undecodable):
        raise errors.InvalidRequest("the bytes of the request are no message of this call")
    found = contract.violations(request)
    if found:
        listing = "; ".join(str(violation) for violation in found)
        raise errors.InvalidRequest(listing, tuple(found))


def to_status(error: errors.RequestError) -> status_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo and, where fields are to blame, BadRequest."""
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN)
    details: list[Message] = [info]
    if error.violations:
        details.append(_bad_request(error))
    status = status_pb2.Status(code=code.value[0], message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _bad_request(error: errors.RequestError) -> error_details_pb2.BadRequest:
    kind = error_details_pb2.BadRequest.FieldViolation
    violations = [kind(field=v.field, description=v.description) for v in error.violations]
    return error_details_pb2.BadRequest(field_violations=violations)


async def _abort(context: Any, error: errors.RequestError) -> Any:
    status = to_status(error)
    code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
    await context.abort(code, status.message, ((_DETAILS_KEY, status.SerializeToString()),))

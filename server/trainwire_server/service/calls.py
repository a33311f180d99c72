"""What holds for every call: it has an id, is measured, and if it fails the log has a line."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from trainwire_server.identity import CALL, Call, call_fields
from trainwire_server.meters import Meters
from trainwire_server.service.access import ROLES, method_of
from trainwire_server.service.status import CALL_ID_KEY, trailing_metadata
from trainwire_server.service.unread import Unread

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
METHODS = frozenset(ROLES) | {f"/{_HEALTH.full_name}/{method.name}" for method in _HEALTH.methods}
"""Every method that there is."""
UNKNOWN_METHOD = "unknown"
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CODES = {key: code for code in grpc.StatusCode for key in (code, code.value[0])}
"""A context of grpc.aio has a code itself or its number, as its version has it."""
_LOGGED_ELSEWHERE = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""`rpc.refused` says more of these."""

_Metadata = Sequence[tuple[str, str | bytes]]


def id_of_call(metadata: _Metadata) -> str:
    """The caller's `x-request-id`, or a new id if there is not one that can stand in a log line."""
    given = [value for key, value in metadata if key == CALL_ID_KEY]
    if len(given) == 1 and isinstance(given[0], str) and _ID.fullmatch(given[0]):
        return given[0]
    return secrets.token_hex(8)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Stands before all other interceptors, so that what they refuse is a call like any other."""

    def __init__(self, meters: Meters, unread: Unread) -> None:
        self._meters = meters
        self._unread = unread

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        begun = time.perf_counter()
        call = Call(id_of_call(details.invocation_metadata or ()))
        CALL.set(call)
        handler = await continuation(details)
        if handler is None:
            handler = grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        # A path that is no method of ours is the caller's text, which could be anything.
        method = details.method if details.method in METHODS else UNKNOWN_METHOD
        name, answer = method_of(handler)
        if handler.response_streaming:
            return handler._replace(**{name: self._measured(answer, call, method, begun)})
        answer = self._unread.counted(answer, handler.response_serializer)
        measured = self._measured(answer, call, method, begun)
        return handler._replace(response_serializer=None, **{name: measured})

    def _measured(
        self, answer: Callable[[Any, Any], Any], call: Call, method: str, begun: float
    ) -> Callable[[Any, Any], Any]:
        async def measured(request: Any, context: Any) -> Any:
            self._meters.call_began(method)
            context.set_trailing_metadata(trailing_metadata(call))
            code = grpc.StatusCode.UNKNOWN
            try:
                result = await answer(request, context)
                code = grpc.StatusCode.OK
                return result
            except grpc.aio.AbortError:
                code = _CODES[context.code()]
                raise
            except asyncio.CancelledError:
                code = _left(context)
                raise
            finally:
                seconds = time.perf_counter() - begun
                self._meters.call_ended(method, code.name, call.reason, seconds)
                if call.quota:
                    self._meters.quota_refused(call.quota)
                _log_failure(method, code, call, seconds)

        return measured


async def _refuse_unknown(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # gRPC's own words


def _left(context: Any) -> grpc.StatusCode:
    """What the caller sees of a call that ended because nobody waits for it any more."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _log_failure(method: str, code: grpc.StatusCode, call: Call, seconds: float) -> None:
    if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED) or code in _LOGGED_ELSEWHERE:
        return
    about = {"method": method, "code": code.name, "reason": call.reason, **call_fields()}
    structlog.get_logger().info("rpc.failed", **about, seconds=round(seconds, 3))

"""The standard health service, which needs no token: how many of its calls may be open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from trainwire_server.errors import QuotaExceeded

HEALTH_SERVICE = health.SERVICE_NAME
_MOST_WATCHES = 1_000
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """What it says of each service, and who watches that.

    Not grpcio's servicer: there, a watch that is not read holds up all others and the end of the
    server.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._watches = 0
        self._ended = False
        self._changed = asyncio.Event()

    def serve(self, *names: str) -> None:
        """Report services of these names as serving."""
        self._tell(dict.fromkeys(names, health_pb2.HealthCheckResponse.SERVING))

    def stop_serving(self) -> None:
        """Report all of them as not serving."""
        self._tell(dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING))

    def end_watches(self) -> None:
        """End every watch, now and from now on."""
        self._ended = True
        self._tell({})

    def handlers(self) -> grpc.GenericRpcHandler:
        """Its methods, all as streams: only those are called, and counted, before a message comes.

        On the wire a stream with one message is a unary call.
        """
        methods = {"Check": self._check, "Watch": self._watch}
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                name: grpc.stream_stream_rpc_method_handler(
                    method,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
                )
                for name, method in methods.items()
            },
        )

    async def _check(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            status = self._statuses.get(request.service)
            if status is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no service has this name")
            yield health_pb2.HealthCheckResponse(status=status)
            return

    async def _watch(self, requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            with self._watching():
                async for status in self._statuses_of(request.service):
                    yield health_pb2.HealthCheckResponse(status=status)
            return

    async def _statuses_of(self, name: str) -> AsyncIterator[int]:
        last = None
        while True:
            changed, status = self._changed, self._statuses.get(name, _UNKNOWN)
            if status != last:
                last = status
                yield status
            elif self._ended:
                return
            else:
                await changed.wait()

    def _tell(self, statuses: dict[str, int]) -> None:
        self._statuses |= statuses
        self._changed.set()
        self._changed = asyncio.Event()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        if self._watches >= _MOST_WATCHES:
            raise QuotaExceeded(
                f"{self._watches} watches of the health are open, and {_MOST_WATCHES} are allowed; "
                "call Check instead",
                "health_watches",
                _MOST_WATCHES,
            )
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1

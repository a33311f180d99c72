"""The standard health service, whose watches end when the server stops."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

HEALTH_SERVICE = health.SERVICE_NAME


class Health(health.aio.HealthServicer):
    """grpcio's servicer, but for one thing: its watches would hold up the end of the server."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped = asyncio.Event()

    async def serve(self, *names: str) -> None:
        """Report services of these names as serving."""
        for name in names:
            await self.set(name, health_pb2.HealthCheckResponse.SERVING)

    def end_watches(self) -> None:
        """End every watch, now and from now on."""
        self._stopped.set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send the status of a service, and again whenever it changes."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            stopping.cancel()

"""Traces of calls with OpenTelemetry, through the official instrumentation of gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from trainwire_server.identity import CALL
from trainwire_server.service.access import method_of
from trainwire_server.version import server_version


class Tracing:
    """Makes a span of each call and hands it on; where to, the OTEL_* variables say.

    Args:
        exporter: "otlp" or "console" (standard output), as OTEL_TRACES_EXPORTER has it.
    """

    def __init__(self, exporter: str) -> None:
        library = logging.getLogger("opentelemetry")
        library.propagate = False
        library.addHandler(_Log())
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What calls pass before all others."""
        official: Any = aio_server_interceptor(tracer_provider=self._provider)  # type: ignore[no-untyped-call]
        return [official, _SpanInterceptor()]

    def close(self) -> None:
        """Hand on what is left; takes OTEL_BSP_EXPORT_TIMEOUT at most."""
        self._provider.shutdown()


class _Log(logging.Handler):
    """Passes on what the library has to say, such as that nobody takes its spans."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().warning("tracing.problem", problem=record.getMessage())


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and what they leave out."""
    said = Resource.create({SERVICE_VERSION: server_version()})
    if not str(said.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return said
    return said.merge(Resource({SERVICE_NAME: "trainwire"}))


def _exporter(name: str) -> SpanExporter:
    return ConsoleSpanExporter() if name == "console" else OTLPSpanExporter()


class _SpanInterceptor(grpc.aio.ServerInterceptor):
    """Names the call in its span, and has streams yield, as the official interceptor needs them."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        name, method = method_of(handler)

        async def call(request: Any, context: Any) -> Any:
            _name_call()
            return await method(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            _name_call()
            await method(request, context)
            # The method has written its answers itself.
            unwritten: tuple[Any, ...] = ()
            for answer in unwritten:
                yield answer

        return handler._replace(**{name: stream if handler.response_streaming else call})


def _name_call() -> None:
    current = CALL.get()
    if current is not None:
        trace.get_current_span().set_attribute("trainwire.call_id", current.id)

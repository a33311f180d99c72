"""Traces, as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.conftest import Server, make_columns, small_request

from trainwire.v1 import training_pb2, training_pb2_grpc

SECONDS = 60
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("x-request-id", "nightly-7"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
SERVICE = "/trainwire.v1.TrainingService"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans in, as the collectors of others do."""

    def __init__(self) -> None:
        self.spans: dict[str, trace_pb2.Span] = {}
        self.services: set[str] = set()
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._changed:
            for part in request.resource_spans:
                names = (a.value for a in part.resource.attributes if a.key == "service.name")
                self.services |= {value.string_value for value in names}
                for scope in part.scope_spans:
                    known = (span for span in scope.spans if span.trace_id.hex() == TRACE)
                    self.spans |= {span.name.lstrip("/"): span for span in known}
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, method: str) -> tuple[trace_pb2.Span, dict[str, Any]]:
        """The span of a method called with METADATA, and its attributes."""
        name = f"{SERVICE}/{method}".lstrip("/")
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.spans, SECONDS), list(self.spans)
        span = self.spans[name]
        values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
        return span, values


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and where it is."""
    taken, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(taken, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield taken, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.slow
def test_a_collector_gets_a_span_of_each_call(
    collector: tuple[Collector, str], start_server: Callable[..., Server]
) -> None:
    taken, endpoint = collector
    environment = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    server = start_server(environment=environment)
    with server.client() as client, server.channel() as channel:
        request = small_request(client.upload(make_columns()).name)
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        job = stub.SubmitTraining(request, metadata=METADATA, timeout=SECONDS)
        watched = training_pb2.WatchTrainingRequest(name=job.name)
        left = stub.WatchTraining(watched, timeout=SECONDS)
        assert next(left).sequence == 1
        left.cancel()
        events = list(stub.WatchTraining(watched, metadata=METADATA, timeout=SECONDS))
        numbers = [event.sequence for event in events if event.sequence]
        assert numbers == list(range(1, len(numbers) + 1))
        assert events[-1].HasField("succeeded")
        missing = training_pb2.GetTrainingRequest(name="jobs/0000000000000000")
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetTraining(missing, metadata=METADATA, timeout=SECONDS)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    for method, code in (("SubmitTraining", 0), ("WatchTraining", 0), ("GetTraining", 5)):
        span, attributes = taken.wait_for(method)
        assert span.parent_span_id.hex() == PARENT
        assert attributes["trainwire.call_id"] == "nightly-7"
        assert attributes["rpc.grpc.status_code"] == code, method
    assert taken.services == {"trainwire"}
    assert server.stop() == 0
    problems = ("unstructured", "tracing.problem", "rpc.error")
    assert not [record for record in server.records if record["event"] in problems]


@pytest.mark.slow
def test_without_a_collector_only_the_log_is_concerned(
    start_server: Callable[..., Server],
) -> None:
    environment = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    server = start_server(environment=environment)
    with server.client() as client:
        assert client.info().version
        assert "127.0.0.1:1" in server.wait_for_log("tracing.problem")["problem"]
    assert server.stop() == 0
    assert not [record for record in server.records if record["event"] == "unstructured"]


def test_an_exporter_that_is_none_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "zipkin"}
    command = [sys.executable, "-m", "trainwire_server", "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "OTEL_TRACES_EXPORTER is 'zipkin'; allowed: otlp, console, none" in done.stderr

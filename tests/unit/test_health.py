"""`trainwire health`: what a probe goes by is its exit status."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from trainwire_client import cli

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def reported() -> Iterator[health.HealthServicer]:
    """What the server at $TRAINWIRE_TARGET says of itself."""
    servicer, server = health.HealthServicer(), grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRAINWIRE_TARGET", f"127.0.0.1:{port}")
        yield servicer
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "said", "exit_code"),
    [(SERVING, "SERVING\n", 0), (NOT_SERVING, "NOT_SERVING\n", 1)],
)
def test_what_the_server_says_is_printed_and_decides(
    reported: health.HealthServicer, status: int, said: str, exit_code: int
) -> None:
    reported.set("", status)
    result = CliRunner().invoke(cli.app, ["health"])
    assert (result.output, result.exit_code) == (said, exit_code)
    result = CliRunner().invoke(cli.app, ["health", "--json"])
    assert (result.output, result.exit_code) == (f'{{"status": "{said.strip()}"}}\n', exit_code)


def test_no_server_is_not_waited_for() -> None:
    result = CliRunner().invoke(cli.app, ["health", "--target", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no answer from the trainwire server at 127.0.0.1:1" in result.stderr

"""The standard health check of gRPC, as a probe asks it: once, without trying again."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trainwire_client.channel import Security
from trainwire_client.errors import from_rpc_error

__all__ = ["check"]


def check(target: str, security: Security, seconds: float) -> health_pb2.HealthCheckResponse:
    """What the server says of itself: SERVING, or NOT_SERVING while it stops.

    Args:
        seconds: how long it may take, connecting included.

    Raises:
        CredentialsError: a file cannot be used.
        TrainwireError: there was no answer.
    """
    channel = security.channel(target)
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer: health_pb2.HealthCheckResponse = stub.Check(
            health_pb2.HealthCheckRequest(), timeout=seconds
        )
        return answer
    except grpc.RpcError as error:
        raise from_rpc_error(error, target) from error
    finally:
        channel.close()

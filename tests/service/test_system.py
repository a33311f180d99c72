"""SystemService, health and reflection over the wire."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]

OURS = {
    service.full_name
    for module in (training_pb2, dataset_pb2, model_pb2, system_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


def test_the_server_says_what_it_is(client: TrainingClient) -> None:
    info = client.info()
    assert info.contract_version == contract.contract_version()
    assert info.contract_digest == contract.contract_digest()
    assert info.torch_version.partition("+")[0] == version("torch").partition("+")[0]
    assert info.executor == "local"
    assert info.threads_per_job == 1
    assert info.devices[0].name == "cpu"
    assert info.devices[0].memory_bytes > 2**30
    assert info.version


def test_the_server_counts_its_jobs(
    client: TrainingClient, request_for: RequestFor, endless_job: training_pb2.TrainingJob
) -> None:
    waiting = [client.submit(request_for(epochs=1)) for _ in range(2)]
    assert [job.queue_position for job in waiting] == [1, 2]
    info = client.info()
    assert (info.running_jobs, info.queued_jobs) == (1, 2)
    for job in waiting:
        client.cancel(job)
    assert client.info().queued_jobs == 0


@pytest.mark.parametrize("service", ["", *sorted(OURS)])
def test_every_service_is_healthy(service: str, channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_every_service(channel: grpc.Channel) -> None:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert listed == OURS | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_reflection_hands_out_the_contract_as_it_is_compiled(
    channel: grpc.Channel, client: TrainingClient
) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    digest = hashlib.sha256()
    for module in (dataset_pb2, model_pb2, options_pb2, system_pb2, training_pb2):
        compiled = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(compiled)
        reflected = database.FindFileByName(module.DESCRIPTOR.name)
        assert reflected.SerializeToString() == compiled.SerializeToString()
        digest.update(reflected.SerializeToString(deterministic=True))
    assert client.info().contract_digest == digest.hexdigest()

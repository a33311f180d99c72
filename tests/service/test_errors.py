"""Every RPC of every service refuses what it cannot serve, with the right status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2
from trainwire_client import TrainingClient
from trainwire_server import errors
from trainwire_server.service.status import CODES, to_status

Refusal = Callable[[Callable[[], Any]], Any]

UNKNOWN_FIELD = 9999
UNKNOWN_FIELD_BYTES = bytes([0xF8, 0xF0, 0x04, 0x01])
"""Field number 9999, a varint, value 1."""


def unknown_dataset() -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/sha256-none")
    request.data.column.name = "y"
    return request


@dataclass(frozen=True)
class Entry:
    """What an RPC refuses.

    Attributes:
        required: paths that an empty request is refused for; empty: it is served.
        unknown: a request that names a resource that is not there.
        sound: a request that would be served, if a field were not added to it.
    """

    required: tuple[str, ...] = ()
    unknown: Any = None
    sound: Any = field(default_factory=system_pb2.GetSystemInfoRequest)


GET_JOB = training_pb2.GetTrainingRequest(name="jobs/none")
WATCH_JOB = training_pb2.WatchTrainingRequest(name="jobs/none")
CANCEL_JOB = training_pb2.CancelTrainingRequest(name="jobs/none")
DELETE_JOB = training_pb2.DeleteTrainingRequest(name="jobs/none")
GET_DATASET = dataset_pb2.GetDatasetRequest(name="datasets/none")
DELETE_DATASET = dataset_pb2.DeleteDatasetRequest(name="datasets/none")
GET_MODEL = model_pb2.GetModelRequest(name="models/none")
DELETE_MODEL = model_pb2.DeleteModelRequest(name="models/none")
DOWNLOAD = model_pb2.DownloadModelRequest(name="models/none")
HEADER = dataset_pb2.DatasetHeader(
    format=dataset_pb2.DATASET_FORMAT_ARROW, size_bytes=1, sha256="0" * 64
)

ENTRIES = {
    "TrainingService.Train": Entry(("dataset", "data.target"), unknown_dataset()),
    "TrainingService.SubmitTraining": Entry(("dataset", "data.target"), unknown_dataset()),
    "TrainingService.GetTraining": Entry(("name",), GET_JOB),
    "TrainingService.ListTrainings": Entry(sound=training_pb2.ListTrainingsRequest()),
    "TrainingService.WatchTraining": Entry(("name",), WATCH_JOB),
    "TrainingService.CancelTraining": Entry(("name",), CANCEL_JOB),
    "TrainingService.DeleteTraining": Entry(("name",), DELETE_JOB),
    "DatasetService.UploadDataset": Entry(
        ("payload",), sound=dataset_pb2.UploadDatasetRequest(header=HEADER)
    ),
    "DatasetService.GetDataset": Entry(("name",), GET_DATASET),
    "DatasetService.ListDatasets": Entry(sound=dataset_pb2.ListDatasetsRequest()),
    "DatasetService.DeleteDataset": Entry(("name",), DELETE_DATASET),
    "ModelService.GetModel": Entry(("name",), GET_MODEL),
    "ModelService.ListModels": Entry(sound=model_pb2.ListModelsRequest()),
    "ModelService.DeleteModel": Entry(("name",), DELETE_MODEL),
    "ModelService.DownloadModel": Entry(("name",), DOWNLOAD),
    "SystemService.GetSystemInfo": Entry(),
}


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the contract, by "Service.Method"."""
    modules = (training_pb2, dataset_pb2, model_pb2, system_pb2)
    services = [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]
    return {f"{s.name}.{method.name}": method for s in services for method in s.methods}


def invoke(channel: grpc.Channel, rpc: str, data: bytes) -> Any:
    """Call an RPC with these bytes as its (only) message."""
    method: Any = methods()[rpc]
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        upload: Any = channel.stream_unary(path)
        return upload(iter([data]), timeout=10)
    kind: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(path)
    return call(data, timeout=10)


def test_every_rpc_has_an_entry() -> None:
    assert set(ENTRIES) == set(methods())


@pytest.mark.parametrize("rpc", sorted(name for name in ENTRIES if ENTRIES[name].required))
def test_what_is_required_and_missing_is_named(
    rpc: str, channel: grpc.Channel, refusal: Refusal
) -> None:
    refused = refusal(lambda: invoke(channel, rpc, b""))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"
    assert set(refused.fields) == set(ENTRIES[rpc].required)
    assert all("required" in description for description in refused.fields.values())


@pytest.mark.parametrize("rpc", sorted(name for name in ENTRIES if not ENTRIES[name].required))
def test_what_requires_nothing_serves_an_empty_request(rpc: str, channel: grpc.Channel) -> None:
    assert isinstance(invoke(channel, rpc, b""), bytes)


@pytest.mark.parametrize("rpc", sorted(name for name in ENTRIES if ENTRIES[name].unknown))
def test_a_resource_that_is_not_there_is_not_found(
    rpc: str, channel: grpc.Channel, refusal: Refusal
) -> None:
    unknown = ENTRIES[rpc].unknown
    refused = refusal(lambda: invoke(channel, rpc, unknown.SerializeToString()))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert refused.reason == "NOT_FOUND"
    assert (unknown.dataset if "dataset" in refused.fields else unknown.name) in refused.message


@pytest.mark.parametrize("rpc", sorted(name for name in ENTRIES if ENTRIES[name].unknown))
@pytest.mark.parametrize("name", ["none", "jobs/", "nothing/none", "jobs/../x", "jobs/a b", "/"])
def test_a_name_of_another_form_is_invalid(
    rpc: str, name: str, channel: grpc.Channel, refusal: Refusal
) -> None:
    request = ENTRIES[rpc].unknown.FromString(b"")
    path = "dataset" if isinstance(request, training_pb2.TrainingRequest) else "name"
    setattr(request, path, name)
    refused = refusal(lambda: invoke(channel, rpc, request.SerializeToString()))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert name in refused.fields[path]


@pytest.mark.parametrize("rpc", sorted(ENTRIES))
def test_an_unknown_field_is_named(rpc: str, channel: grpc.Channel, refusal: Refusal) -> None:
    sound = ENTRIES[rpc].unknown or ENTRIES[rpc].sound
    data = sound.SerializeToString() + UNKNOWN_FIELD_BYTES
    refused = refusal(lambda: invoke(channel, rpc, data))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.fields) == [str(UNKNOWN_FIELD)]
    assert "unknown field number 9999" in refused.fields["9999"]


@pytest.mark.parametrize("rpc", sorted(ENTRIES))
def test_bytes_that_are_no_message_are_invalid(
    rpc: str, channel: grpc.Channel, refusal: Refusal
) -> None:
    refused = refusal(lambda: invoke(channel, rpc, b"\xff\xff\xff"))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"


def test_a_job_that_has_not_ended_cannot_be_deleted(
    endless_job: training_pb2.TrainingJob, channel: grpc.Channel, refusal: Refusal
) -> None:
    request = training_pb2.DeleteTrainingRequest(name=endless_job.name).SerializeToString()
    refused = refusal(lambda: invoke(channel, "TrainingService.DeleteTraining", request))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "JOB_NOT_FINISHED"
    assert endless_job.name in refused.message


def test_a_dataset_that_a_job_refers_to_cannot_be_deleted(
    endless_job: training_pb2.TrainingJob, channel: grpc.Channel, refusal: Refusal
) -> None:
    name = endless_job.request.dataset
    request = dataset_pb2.DeleteDatasetRequest(name=name).SerializeToString()
    refused = refusal(lambda: invoke(channel, "DatasetService.DeleteDataset", request))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "DATASET_IN_USE"
    assert name in refused.message


def test_train_does_not_take_validate_only(
    request_for: Callable[..., training_pb2.TrainingRequest],
    channel: grpc.Channel,
    refusal: Refusal,
) -> None:
    request = request_for()
    request.validate_only = True
    data = request.SerializeToString()
    refused = refusal(lambda: invoke(channel, "TrainingService.Train", data))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"
    assert list(refused.fields) == ["validate_only"]


def test_validate_only_says_why_labels_cannot_be_trained_on(
    client: TrainingClient,
    columns: Callable[..., dict[str, Any]],
    small: Callable[..., training_pb2.TrainingRequest],
    channel: grpc.Channel,
    refusal: Refusal,
) -> None:
    """The reason is the one that a job would have failed with."""
    table = columns()
    table["y"][:] = 1
    request = small(client.upload(table).name)
    request.validate_only = True
    data = request.SerializeToString()
    refused = refusal(lambda: invoke(channel, "TrainingService.SubmitTraining", data))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "SINGLE_CLASS"


def kinds(parent: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    for kind in parent.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_request_error_has_a_status_code() -> None:
    assert set(CODES) == set(kinds(errors.RequestError))


def an_error(kind: type[errors.RequestError]) -> errors.RequestError:
    if issubclass(kind, errors.Untrainable):
        reason = training_pb2.FAILURE_REASON_SINGLE_CLASS
        return kind(training_pb2.Failure(reason=reason, message="what was wrong"))
    return kind("what was wrong")


@pytest.mark.parametrize("kind", list(CODES))
def test_every_request_error_has_a_reason_of_its_own(kind: type[errors.RequestError]) -> None:
    status = to_status(an_error(kind))
    assert status.code == CODES[kind].value[0]
    assert status.message == "what was wrong"
    assert [other for other in CODES if other.reason == kind.reason] == [kind]

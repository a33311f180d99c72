"""Every RPC of every service refuses what it cannot serve, with the right status."""

from __future__ import annotations

import base64
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient
from trainwire_client import errors as client_errors
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
RESUME_JOB = training_pb2.ResumeTrainingRequest(name="jobs/none")
DELETE_JOB = training_pb2.DeleteTrainingRequest(name="jobs/none")
GET_DATASET = dataset_pb2.GetDatasetRequest(name="datasets/none")
DELETE_DATASET = dataset_pb2.DeleteDatasetRequest(name="datasets/none")
GET_MODEL = model_pb2.GetModelRequest(name="models/none")
DELETE_MODEL = model_pb2.DeleteModelRequest(name="models/none")
SET_ALIAS = model_pb2.SetModelAliasRequest(alias="production", name="models/none")
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
    "TrainingService.ResumeTraining": Entry(("name",), RESUME_JOB),
    "TrainingService.DeleteTraining": Entry(("name",), DELETE_JOB),
    "DatasetService.UploadDataset": Entry(
        ("payload",), sound=dataset_pb2.UploadDatasetRequest(header=HEADER)
    ),
    "DatasetService.GetDataset": Entry(("name",), GET_DATASET),
    "DatasetService.ListDatasets": Entry(sound=dataset_pb2.ListDatasetsRequest()),
    "DatasetService.DeleteDataset": Entry(("name",), DELETE_DATASET),
    "ModelService.GetModel": Entry(("name",), GET_MODEL),
    "ModelService.ListModels": Entry(sound=model_pb2.ListModelsRequest()),
    "ModelService.SetModelAlias": Entry(("alias",), SET_ALIAS),
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
        return upload(iter([data]), timeout=60)
    kind: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(path)
    return call(data, timeout=60)


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
    alike = [other for other in CODES if other.reason == kind.reason]
    # One that is a special case of another is told from it by what else the status says.
    assert all(issubclass(other, alike[0]) for other in alike)


# ------------------------------------------------------------------------ more than fits

METADATA_BYTES = 7 * 1024
"""What a status may take on the wire; beyond 8 KiB gRPC drops the call with another status."""
PRINTABLE = (string.punctuation + " ").replace("%", "")


def listed(violations: list[contract.Violation]) -> tuple[int, int]:
    """How many violations a status lists, and how many it says that it leaves out."""
    *shown, rest = violations
    assert all(len(violation.description.encode()) <= 503 for violation in shown)
    assert not any(violation.field == "(more)" for violation in shown)
    assert rest.field == "(more)"
    return len(shown), int(rest.description.split()[0])


def check_refusal_of(
    request: training_pb2.TrainingRequest, count: int, client: TrainingClient, channel: grpc.Channel
) -> None:
    """Both the client and a bare stub learn what they can of `count` violations."""
    stub = training_pb2_grpc.TrainingServiceStub(channel)
    with pytest.raises(grpc.RpcError) as raw:
        stub.SubmitTraining(request, timeout=10)
    assert raw.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert 0 < int(str(raw.value.details()).rpartition("; and ")[2].split()[0]) < count
    with pytest.raises(client_errors.DatasetUnsuitableError) as refused:
        client.submit(request)
    kept, left_out = listed(list(refused.value.violations))
    assert kept >= 3
    assert kept + left_out == count


def test_missing_columns_by_the_hundred_reach_the_caller(
    request_for: Callable[..., training_pb2.TrainingRequest],
    client: TrainingClient,
    channel: grpc.Channel,
) -> None:
    request = request_for()
    names = [f"цена закрытия {'é' * 20} {i}" for i in range(400)]
    request.data.windows.feature_columns[:] = names
    check_refusal_of(request, 400, client, channel)


def test_columns_with_nan_by_the_dozen_reach_the_caller(
    columns: Callable[..., dict[str, Any]],
    small: Callable[..., training_pb2.TrainingRequest],
    client: TrainingClient,
    channel: grpc.Channel,
) -> None:
    broken = {f"column_{i}_with_a_hole": np.full(400, np.nan) for i in range(60)}
    request = small(client.upload({**columns(), **broken}).name)
    request.data.windows.feature_columns[:] = list(broken)
    check_refusal_of(request, 60, client, channel)


def test_what_breaks_the_contract_by_the_hundred_reaches_the_caller(
    channel: grpc.Channel,
) -> None:
    request = unknown_dataset()
    request.data.windows.feature_columns[:] = ["same"] * 500
    with pytest.raises(grpc.RpcError) as refused:
        training_pb2_grpc.TrainingServiceStub(channel).SubmitTraining(request, timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "data.windows.feature_columns[1]: 'same' is there twice" in str(refused.value.details())


def wire_bytes(status: status_pb2.Status) -> int:
    """What a status takes as grpc-message (percent-encoded) and in base64."""
    message = quote(status.message, safe=PRINTABLE)
    return len(message) + len(base64.b64encode(status.SerializeToString()))


def bad_request_of(status: status_pb2.Status) -> list[contract.Violation]:
    bad = error_details_pb2.BadRequest()
    assert status.details[-1].Unpack(bad)
    return [contract.Violation(v.field, v.description) for v in bad.field_violations]


@pytest.mark.parametrize("text", ["ascii ", "é", "%", "漢", "\n"])
@pytest.mark.parametrize("length", [1, 40, 3_000])
@pytest.mark.parametrize("prefix", ["", "datasets/d cannot be trained on: "])
def test_no_status_is_too_large(text: str, length: int, prefix: str) -> None:
    found = tuple(contract.Violation(f"path.of.it[{i}]", text * length) for i in range(2_000))
    status = to_status(errors.InvalidRequest(prefix + "; ".join(map(str, found)), found))
    assert wire_bytes(status) <= METADATA_BYTES
    assert status.message.startswith(f"{prefix}path.of.it[0]: {text}")
    shown = status.message.count("path.of.it")
    assert status.message.endswith(f"; and {2_000 - shown} more")
    kept, left_out = listed(bad_request_of(status))
    assert kept > 0
    assert kept + left_out == 2_000


def test_a_long_message_without_fields_is_cut() -> None:
    status = to_status(errors.BrokenUpload("漢" * 9_000))
    assert wire_bytes(status) <= METADATA_BYTES
    assert status.message.startswith("漢" * 100)
    assert status.message.endswith("...")


def test_what_fits_is_all_there() -> None:
    found = tuple(contract.Violation(f"field_{i}", "is wrong") for i in range(20))
    listing = "; ".join(map(str, found))
    status = to_status(errors.InvalidRequest(listing, found))
    assert status.message == listing
    assert bad_request_of(status) == list(found)

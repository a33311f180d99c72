"""The service with `buf curl`: reflection, JSON and gRPC."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from trainwire.v1 import training_pb2

RequestFor = Callable[..., training_pb2.TrainingRequest]
Curl = Callable[..., subprocess.CompletedProcess[str]]
AssertEvents = Callable[..., list[training_pb2.TrainingEvent]]

TRAINING = "trainwire.v1.TrainingService"


@pytest.fixture(scope="module")
def curl(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Curl:
    """Runs `buf curl` against the shared server: a path below its address, flags, and input."""
    binary = Path(sysconfig.get_path("scripts")) / "buf"
    # Away from the repository's own .proto files: all it knows comes from reflection.
    folder = tmp_path_factory.mktemp("buf")
    scheme, security = "http", ["--http2-prior-knowledge"]
    if server.secrets is not None:
        header = ["-H", server.authorization, "--reflect-header", server.authorization]
        scheme, security = "https", ["--cacert", f"{server.secrets / 'ca.pem'}", *header]

    def run(path: str, *flags: str, data: str = "") -> subprocess.CompletedProcess[str]:
        url = f"{scheme}://{server.address}/{path}".removesuffix("/")
        command = [str(binary), "curl", "--protocol", "grpc", *security, *flags]
        given = ["-d", "@-"] if data else []
        return subprocess.run(
            [*command, *given, url],
            cwd=folder,
            input=data,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def call(curl: Curl) -> Callable[[str, Any], list[dict[str, Any]]]:
    """Calls a method that must answer; the messages it answers with."""

    def run(method: str, request: Any) -> list[dict[str, Any]]:
        data = request if isinstance(request, str) else json.dumps(request)
        done = curl(method, data=data)
        assert (done.returncode, done.stderr) == (0, "")
        return json_objects(done.stdout)

    return run


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that stand one after the other in a text."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        item, at = decoder.raw_decode(text, at)
        found.append(item)
    return found


def test_services_and_methods_are_listed(curl: Curl) -> None:
    assert TRAINING in curl("", "--list-services").stdout.split()
    methods = curl("", "--list-methods").stdout.split()
    assert {
        f"{TRAINING}/{method.name}"
        for method in training_pb2.DESCRIPTOR.services_by_name["TrainingService"].methods
    } <= set(methods)


def test_a_csv_file_is_uploaded(
    call: Callable[[str, Any], list[dict[str, Any]]],
    csv_file: Path,
    upload_json: Callable[[bytes], str],
) -> None:
    # Bytes that no other test uploads: what the server has already it answers before it has read
    # all, which buf curl takes for an error.
    data = b"".join(csv_file.read_bytes().splitlines(keepends=True)[:-2])
    (uploaded,) = call("trainwire.v1.DatasetService/UploadDataset", upload_json(data))
    assert uploaded["name"] == f"datasets/sha256-{hashlib.sha256(data).hexdigest()}"
    assert int(uploaded["rowCount"]) == 598


def test_train_streams_to_the_end_and_watch_from_the_middle(
    call: Callable[[str, Any], list[dict[str, Any]]],
    request_for: RequestFor,
    assert_events: AssertEvents,
) -> None:
    request = json_format.MessageToDict(request_for())
    trained = assert_events(call(f"{TRAINING}/Train", request), 1, "succeeded")
    assert len(trained) == 6
    middle = {"name": trained[0].job, "after_sequence": 3}
    assert assert_events(call(f"{TRAINING}/WatchTraining", middle), 4, "succeeded") == trained[3:]


def test_a_job_is_cancelled(
    call: Callable[[str, Any], list[dict[str, Any]]],
    endless_job: training_pb2.TrainingJob,
    assert_events: AssertEvents,
) -> None:
    (job,) = call(f"{TRAINING}/CancelTraining", {"name": endless_job.name})
    assert job["state"] in {"JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED"}
    assert_events(call(f"{TRAINING}/WatchTraining", {"name": endless_job.name}), 1, "cancelled")


def test_violations_are_in_the_message_and_in_the_details(
    curl: Curl, bad_request: tuple[dict[str, Any], dict[str, str]]
) -> None:
    bad, fields = bad_request
    done = curl(f"{TRAINING}/SubmitTraining", data=json.dumps({**bad, "dataset": "datasets/x"}))
    # buf's exit status is the gRPC status times eight.
    assert done.returncode == 8 * 3
    status = json.loads(done.stderr)
    assert status["code"] == "invalid_argument"
    assert all(f"{field}: {text}" in status["message"] for field, text in fields.items())
    details = {detail["type"]: detail["value"] for detail in status["details"]}
    encoded = details["google.rpc.BadRequest"]
    request = error_details_pb2.BadRequest.FromString(base64.b64decode(encoded + "=="))
    assert {v.field: v.description for v in request.field_violations} == fields


def test_zeros_arrive_as_set(
    call: Callable[[str, Any], list[dict[str, Any]]],
    zeros_json: dict[str, Any],
    assert_zeros: Callable[[dict[str, Any]], None],
) -> None:
    assert_zeros(call(f"{TRAINING}/SubmitTraining", zeros_json)[0])

"""The service as another team meets it first: with grpcurl, reflection and JSON."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from trainwire.v1 import dataset_pb2, training_pb2

RequestFor = Callable[..., training_pb2.TrainingRequest]
Grpcurl = Callable[..., subprocess.CompletedProcess[str]]
Call = Callable[[str, Any], list[dict[str, Any]]]
AssertEvents = Callable[..., list[training_pb2.TrainingEvent]]

UPLOAD = "trainwire.v1.DatasetService/UploadDataset"
SUBMIT = "trainwire.v1.TrainingService/SubmitTraining"
TRAIN = "trainwire.v1.TrainingService/Train"
WATCH = "trainwire.v1.TrainingService/WatchTraining"
CANCEL = "trainwire.v1.TrainingService/CancelTraining"
RESUME = "trainwire.v1.TrainingService/ResumeTraining"
ALIAS = "trainwire.v1.ModelService/SetModelAlias"
MODEL = "trainwire.v1.ModelService/GetModel"


@pytest.fixture(scope="module")
def grpcurl(server: Any) -> Grpcurl:
    """Runs the grpcurl binary against the shared server: flags, then what to call; and input."""
    binary = Path(sysconfig.get_path("scripts")) / "grpcurl"
    security = ["-plaintext"]
    if server.secrets is not None:
        security = ["-cacert", f"{server.secrets / 'ca.pem'}", "-H", server.authorization]

    def run(*arguments: str, data: str = "") -> subprocess.CompletedProcess[str]:
        *flags, verb = arguments
        verbs = verb.split()
        command = [str(binary), *security, *flags, server.address, *verbs]
        return subprocess.run(
            command, input=data, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="module")
def call(grpcurl: Grpcurl) -> Call:
    """Calls a method that must answer; the messages it answers with.

    The request goes through standard input: one as an object, several as the text of their JSON.
    """

    def run(method: str, request: Any) -> list[dict[str, Any]]:
        data = request if isinstance(request, str) else json.dumps(request)
        done = grpcurl("-d", "@", method, data=data)
        assert (done.returncode, done.stderr) == (0, "")
        return list(json_objects(done.stdout))

    return run


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects that stand one after the other in a text."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        found, end = decoder.raw_decode(text)
        yield found
        text = text[end:]


def test_list_shows_every_service(grpcurl: Grpcurl) -> None:
    done = grpcurl("list")
    assert done.returncode == 0
    assert done.stdout.split() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "trainwire.v1.DatasetService",
        "trainwire.v1.ModelService",
        "trainwire.v1.SystemService",
        "trainwire.v1.TrainingService",
    ]


def test_describe_shows_the_calls(grpcurl: Grpcurl) -> None:
    described = grpcurl("describe trainwire.v1.TrainingService").stdout
    assert "rpc Train ( .trainwire.v1.TrainingRequest ) returns ( stream" in described


def test_describe_shows_defaults_ranges_and_units(grpcurl: Grpcurl) -> None:
    done = grpcurl("describe trainwire.v1.TrainerParams")
    assert done.returncode == 0
    lines = {
        line.split("=")[0].split()[-1]: line for line in done.stdout.splitlines() if "=" in line
    }
    assert set(lines) == {field.name for field in training_pb2.TrainerParams.DESCRIPTOR.fields}
    epochs = 'default:<number_value:150 > minimum:1 maximum:100000 unit:"epochs"'
    assert epochs in lines["epochs"]
    rate = "default:<number_value:5e-05 > exclusive_minimum:0 exclusive_maximum:1"
    assert rate in lines["learning_rate"]
    assert 'string_value:"SCHEDULER_TYPE_COSINE_WARM_RESTARTS"' in lines["scheduler_type"]
    assert "default:<bool_value:true >" in lines["use_augmentation"]
    assert (
        'active_when:<field:"trainer.use_augmentation" equals:"true">'
        in (lines["gaussian_noise_std"])
    )


def test_describe_shows_the_values_of_an_enum(grpcurl: Grpcurl) -> None:
    described = grpcurl("describe trainwire.v1.SchedulerType").stdout
    assert "SCHEDULER_TYPE_ONE_CYCLE = 5" in described


def test_health_is_serving(grpcurl: Grpcurl) -> None:
    for service in ("", "trainwire.v1.TrainingService"):
        done = grpcurl("-d", json.dumps({"service": service}), "grpc.health.v1.Health/Check")
        assert json.loads(done.stdout) == {"status": "SERVING"}


@pytest.fixture
def request_json(request_for: RequestFor) -> dict[str, Any]:
    """A request as a person would write it, zeros included."""
    request = request_for(
        weight_decay=0, early_stopping_patience=0, use_augmentation=False, label_smoothing=0
    )
    plain: dict[str, Any] = json_format.MessageToDict(request, preserving_proto_field_name=True)
    return plain


def test_a_csv_file_is_uploaded_once(
    call: Call,
    csv_file: Path,
    upload_json: Callable[[bytes], str],
    assert_uploaded: Callable[[dict[str, Any]], None],
) -> None:
    messages = upload_json(csv_file.read_bytes())
    (first,) = call(UPLOAD, messages)
    assert_uploaded(first)
    # The service answers this one before it has read the chunks.
    assert call(UPLOAD, messages) == [first]


def test_an_uploaded_csv_file_is_trained_on_and_watched_from_the_middle(
    call: Call,
    csv_file: Path,
    upload_json: Callable[[bytes], str],
    small: RequestFor,
    assert_events: AssertEvents,
) -> None:
    # Without its last row the file is new to the server, whatever other tests have uploaded.
    rows = csv_file.read_bytes().splitlines(keepends=True)[:-1]
    (uploaded,) = call(UPLOAD, upload_json(b"".join(rows)))
    assert int(uploaded["row_count"]) == 599
    request = json_format.MessageToDict(small(uploaded["name"]), preserving_proto_field_name=True)
    trained = assert_events(call(TRAIN, request), 1, "succeeded")
    assert len(trained) == 6
    assert trained[1].started.request.dataset == uploaded["name"]
    middle = {"name": trained[0].job, "after_sequence": 3}
    assert assert_events(call(WATCH, middle), 4, "succeeded") == trained[3:]


def test_a_running_job_is_cancelled(
    call: Call, endless_job: training_pb2.TrainingJob, assert_events: AssertEvents
) -> None:
    (job,) = call(CANCEL, {"name": endless_job.name})
    assert job["state"] in {"JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED"}
    events = assert_events(call(WATCH, {"name": endless_job.name}), 1, "cancelled")
    assert any(event.HasField("epoch") for event in events)


def test_a_cancelled_job_is_resumed_with_more_epochs(
    call: Call, cancelled_job: training_pb2.TrainingJob, assert_events: AssertEvents
) -> None:
    changes = {"request_id": "grpcurl-resumes", "trainer": {"epochs": 60_000}}
    (job,) = call(RESUME, {"name": cancelled_job.name, "changes": changes})
    assert job["resumed_from"] == cancelled_job.name
    assert job["request"]["trainer"]["epochs"] == 60_000
    assert call(RESUME, {"name": cancelled_job.name, "changes": changes})[0]["name"] == job["name"]
    call(CANCEL, {"name": job["name"]})
    assert_events(call(WATCH, {"name": job["name"]}), 1, "cancelled")


def test_what_may_not_change_in_a_resumed_job_is_named(
    grpcurl: Grpcurl, cancelled_job: training_pb2.TrainingJob
) -> None:
    changes = {"trainer": {"learning_rate": 0.5, "epochs": 0}}
    data = json.dumps({"name": cancelled_job.name, "changes": changes})
    done = grpcurl("-format-error", "-d", data, RESUME)
    status = json.loads(done.stderr)
    assert status["code"] == 3
    # What breaks the contract is told first, as everywhere.
    assert "changes.trainer.epochs: 0 is not allowed" in status["message"]
    done = grpcurl("-format-error", "-d", data.replace('"epochs": 0', '"epochs": 60000'), RESUME)
    (bad,) = [d for d in json.loads(done.stderr)["details"] if "field_violations" in d]
    assert [v["field"] for v in bad["field_violations"]] == ["changes.trainer.learning_rate"]


def test_a_model_is_known_by_its_alias(call: Call, request_json: dict[str, Any]) -> None:
    model = call(TRAIN, request_json)[-1]["succeeded"]["model"]
    (named,) = call(ALIAS, {"alias": "grpcurl", "name": model})
    assert (named["name"], named["aliases"]) == (model, ["grpcurl"])
    assert call(MODEL, {"name": "models/grpcurl"}) == [named]
    (nameless,) = call(ALIAS, {"alias": "grpcurl"})
    assert nameless["name"] == model
    assert "aliases" not in nameless


def test_train_streams_events_to_the_end(call: Call, request_json: dict[str, Any]) -> None:
    events = [event for event in call(TRAIN, request_json) if "progress" not in event]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5, 6]
    kinds = ("queued", "started", "epoch", "succeeded")
    assert [kind for event in events for kind in kinds if kind in event] == [
        "queued",
        "started",
        "epoch",
        "epoch",
        "epoch",
        "succeeded",
    ]
    parsed = [json_format.ParseDict(event, training_pb2.TrainingEvent()) for event in events]
    assert parsed[-1].succeeded.test.accuracy > 0
    assert events[-1]["succeeded"]["model"].startswith("models/")


def test_zeros_that_were_set_stay_and_are_told_apart_from_defaults(
    call: Call, request_json: dict[str, Any]
) -> None:
    events = call(TRAIN, request_json)
    effective = next(event["started"]["request"] for event in events if "started" in event)
    trainer = effective["trainer"]
    zeros = ("weight_decay", "early_stopping_patience", "use_augmentation", "label_smoothing")
    assert [trainer[name] for name in zeros] == [0, 0, False, 0]
    assert effective["data"]["column"]["horizon"] == 0
    # What the request left out has its default written out.
    assert trainer["gaussian_noise_std"] == 0.01
    assert trainer["scheduler_type"] == "SCHEDULER_TYPE_COSINE_WARM_RESTARTS"
    (job,) = call("trainwire.v1.TrainingService/GetTraining", {"name": events[0]["job"]})
    assert {f"trainer.{name}" for name in zeros} <= set(job["set_fields"])


def test_false_zero_and_zero_point_zero_arrive_as_set(
    call: Call,
    zeros_json: dict[str, Any],
    assert_zeros: Callable[[dict[str, Any]], None],
) -> None:
    (job,) = call(SUBMIT, zeros_json)
    assert_zeros(job)
    # They are in the printed text too, without -emit-defaults.
    assert job["request"]["balancing"]["use_focal_loss"] is False
    assert job["request"]["trainer"]["early_stopping_patience"] == 0
    assert job["request"]["model"]["dropout"] == 0


def test_every_field_of_an_event_is_there_when_asked_for(
    grpcurl: Grpcurl, request_json: dict[str, Any]
) -> None:
    done = grpcurl("-emit-defaults", "-d", json.dumps(request_json), TRAIN)
    epochs = [event["epoch"] for event in json_objects(done.stdout) if "epoch" in event]
    fields = {field.name for field in training_pb2.EpochCompleted.DESCRIPTOR.fields}
    assert all(set(epoch) == fields for epoch in epochs)
    assert all(isinstance(epoch["is_best"], bool) for epoch in epochs)
    shares = [metrics["predicted_share"] for metrics in epochs[0]["validation"]["classes"]]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("call", [SUBMIT, TRAIN])
def test_a_bad_request_prints_the_decoded_violations(
    call: str, grpcurl: Grpcurl, dataset: dataset_pb2.Dataset
) -> None:
    bad = {
        "dataset": dataset.name,
        "trainer": {"epochs": 0, "learning_rate": 7, "label_smoothing": "NaN"},
        "model": {"dropout": 0.95},
    }
    done = grpcurl("-H", "x-request-id: grpcurl-1", "-d", json.dumps(bad), call)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Code: InvalidArgument" in done.stderr
    details = [json.loads(line.split("\t")[1]) for line in done.stderr.splitlines() if "\t" in line]
    info, call_info, violations = details
    assert call_info == {
        "@type": "type.googleapis.com/google.rpc.RequestInfo",
        "request_id": "grpcurl-1",
    }
    assert info == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "domain": "trainwire",
        "reason": "INVALID_REQUEST",
    }
    assert {v["field"]: v["description"] for v in violations["field_violations"]} == {
        "data.target": "required: set one of column, threshold, quantile, triple_barrier",
        "model.dropout": "0.95 is not allowed; allowed: [0, 0.9]",
        "trainer.epochs": "0 is not allowed; allowed: [1, 100000]",
        "trainer.label_smoothing": "nan is not allowed; allowed: [0, 0.5]",
        "trainer.learning_rate": "7 is not allowed; allowed: (0, 1)",
    }


def test_a_job_that_is_not_there_is_not_found(grpcurl: Grpcurl) -> None:
    name = json.dumps({"name": "jobs/none"})
    done = grpcurl("-format-error", "-d", name, "trainwire.v1.TrainingService/GetTraining")
    assert done.returncode != 0
    status = json.loads(done.stderr)
    assert status["code"] == 5
    assert status["message"] == "jobs/none does not exist"
    assert status["details"][0]["reason"] == "NOT_FOUND"

"""The command line against a scripted server: output, exit status, errors without traceback."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, json_format
from typer.testing import CliRunner, Result

from trainwire import contract, reference
from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_client import __main__ as entry
from trainwire_client import cli

JOB = "jobs/one"
BUNDLE = b"weights"


class ScriptedServer(
    training_pb2_grpc.TrainingServiceServicer,
    dataset_pb2_grpc.DatasetServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    system_pb2_grpc.SystemServiceServicer,
):
    """One job, dataset and model; remembers what it was asked."""

    def __init__(self) -> None:
        self.target = ""
        self.submitted: list[training_pb2.TrainingRequest] = []
        self.after: list[int] = []
        self.end = "succeeded"
        self.never_ends = False
        self.two_were_seen = threading.Event()
        self.uploads = 0
        self.listed: list[training_pb2.ListTrainingsRequest] = []
        self.deleted: list[str] = []
        self.resumed: list[training_pb2.ResumeTrainingRequest] = []
        self.aliases: list[model_pb2.SetModelAliasRequest] = []

    def _job(self) -> training_pb2.TrainingJob:
        states = {
            "succeeded": training_pb2.JOB_STATE_SUCCEEDED,
            "failed": training_pb2.JOB_STATE_FAILED,
            "cancelled": training_pb2.JOB_STATE_CANCELLED,
        }
        given = self.submitted[-1] if self.submitted else training_pb2.TrainingRequest()
        return training_pb2.TrainingJob(
            name=JOB,
            state=states[self.end],
            request=contract.resolve(given),
            set_fields=contract.set_fields(given),
            last_sequence=3,
        )

    def SubmitTraining(self, request: Any, context: Any) -> training_pb2.TrainingJob:  # noqa: N802
        self.submitted.append(request)
        return self._validated() if request.validate_only else self._job()

    def _validated(self) -> training_pb2.TrainingJob:
        answer = self._job()
        answer.ClearField("name")
        answer.plan.memory_estimate_bytes = 12_300_000
        answer.plan.started.device = "cpu"
        return answer

    def GetTraining(self, request: Any, context: Any) -> training_pb2.TrainingJob:  # noqa: N802
        if request.name != JOB:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {request.name}")
        return self._job()

    CancelTraining = GetTraining

    def ResumeTraining(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.resumed.append(request)
        if request.name != JOB:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{request.name} still runs")
        job = self._job()
        job.resumed_from = "jobs/old"
        return job

    def Train(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        raise NotImplementedError

    def ListTrainings(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.listed.append(request)
        return training_pb2.ListTrainingsResponse(jobs=[self._job()])

    def DeleteTraining(self, request: Any, context: Any) -> empty_pb2.Empty:  # noqa: N802
        if request.name.endswith("/gone"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {request.name}")
        self.deleted.append(request.name)
        return empty_pb2.Empty()

    DeleteDataset = DeleteModel = DeleteTraining

    def GetSystemInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return system_pb2.SystemInfo(version="1.2.3", contract_version="9.9.9")

    def WatchTraining(  # noqa: N802
        self, request: Any, context: Any
    ) -> Iterator[training_pb2.TrainingEvent]:
        self.after.append(request.after_sequence)
        if request.after_sequence == 2:
            self.two_were_seen.set()
        events = [training_pb2.TrainingEvent(job=JOB, sequence=i + 1) for i in range(3)]
        events[0].queued.queue_position = 1
        events[1].epoch.epoch = 1
        getattr(events[2], self.end).SetInParent()
        for event in events[request.after_sequence :]:
            if self.never_ends and event.sequence == 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            yield event

    def UploadDataset(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> dataset_pb2.Dataset:
        self.uploads += 1
        header = next(request_iterator).header
        name = f"datasets/sha256-{header.sha256}"
        return dataset_pb2.Dataset(name=name, row_count=3, size_bytes=header.size_bytes)

    def GetDataset(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    def ListDatasets(self, request: Any, context: Any) -> Any:  # noqa: N802
        return dataset_pb2.ListDatasetsResponse(datasets=[dataset_pb2.Dataset(name="datasets/d")])

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:  # noqa: N802
        digest = hashlib.sha256(BUNDLE).hexdigest()
        file = model_pb2.ModelFile(name="weights.bin", size_bytes=len(BUNDLE), sha256=digest)
        return model_pb2.Model(name="models/m", job=JOB, files=[file], aliases=["latest"])

    def SetModelAlias(self, request: Any, context: Any) -> model_pb2.Model:  # noqa: N802
        self.aliases.append(request)
        if request.name == "models/gone":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no models/gone")
        return self.GetModel(request, context)

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name="models/m")])

    def DownloadModel(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield model_pb2.DownloadModelResponse(file=self.GetModel(request, context).files[0])
        yield model_pb2.DownloadModelResponse(chunk=model_pb2.ModelChunk(data=BUNDLE))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    servicer, server = ScriptedServer(), grpc.server(futures.ThreadPoolExecutor(4))
    training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    system_pb2_grpc.add_SystemServiceServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("TRAINWIRE_TARGET", servicer.target)
    yield servicer
    server.stop(None).wait()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text("close,label\n1,0\n2,1\n3,0\n")
    return path


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, arguments)
    assert "Traceback" not in result.output
    return result


def test_train_uploads_submits_and_reports(scripted: ScriptedServer, data: Path) -> None:
    options = ["--label", "label", "--group", "symbol", "--time", "t", "--name", "Mine"]
    settings = ["--set", "trainer.scheduler_type=CONSTANT", "--set", "labels.a.b=c=d"]
    result = _run("train", "--data", str(data), *options, *settings)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == [
        "queued jobs/one position=1",
        "epoch 1/0 loss=0.0000 val=0.0000 acc=0.000 bal=0.000 f1=0.000 lr=0",
    ]
    (sent,) = scripted.submitted
    assert sent.dataset.startswith("datasets/sha256-")
    assert sent.data.column.name == "label"
    assert sent.data.windows.group_column == "symbol"
    assert sent.data.windows.time_column == "t"
    assert sent.display_name == "Mine"
    assert sent.trainer.scheduler_type == training_pb2.SCHEDULER_TYPE_CONSTANT
    assert sent.labels["a.b"] == "c=d"


@pytest.fixture
def series(tmp_path: Path) -> list[str]:
    """A training and a test file of labelled series."""
    paths = [tmp_path / "A_TRAIN.tsv", tmp_path / "A_TEST.tsv"]
    for path in paths:
        path.write_text("1\t0.5\t0.7\n2\t0.1\t0.3\n")
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], ["data.samples", "data.column.name", "data.split_column.name"]),
        (["--label", "split"], ["data.samples", "data.column.name", "data.split_column.name"]),
        (
            ["--set", "data.samples.feature_columns=channel_0", "--set", "data.stratified="],
            ["data.samples.feature_columns", "data.column.name", "data.stratified"],
        ),
        (
            ["--set", "data.split_column.validation_fraction=0.3"],
            [
                "data.samples",
                "data.column.name",
                "data.split_column.name",
                "data.split_column.validation_fraction",
            ],
        ),
        (
            ["--set", "data.chronological="],
            ["data.samples", "data.column.name", "data.chronological"],
        ),
        (
            ["--set", "data.windows.sequence_length=5", "--label", "label"],
            ["data.windows.sequence_length", "data.column.name"],
        ),
    ],
)
def test_files_of_series_choose_what_nobody_else_chose(
    scripted: ScriptedServer, series: list[str], options: list[str], chosen: list[str]
) -> None:
    train, test = series
    assert _run("train", "--data", train, "--data", test, *options).exit_code == 0
    (sent,) = scripted.submitted
    assert [path for path in contract.set_fields(sent) if path.startswith("data.")] == chosen
    assert sent.data.column.name == ("split" if "split" in options else "label")
    assert sent.data.split_column.name in ("split", "")
    assert scripted.uploads == 1


def test_one_file_of_series_is_split_by_chance(scripted: ScriptedServer, series: list[str]) -> None:
    assert _run("train", "--data", series[0]).exit_code == 0
    (sent,) = scripted.submitted
    assert sent.data.WhichOneof("split") == "stratified"
    assert "rows=" in _run("upload", *series).stdout


def test_files_of_series_do_not_hide_what_is_wrong(
    scripted: ScriptedServer, series: list[str]
) -> None:
    result = _run("train", "--data", series[0], "--threshold", "close,5,-0.01,0.02")
    assert result.exit_code == 2
    assert "data.threshold: not allowed while data.layout is samples" in result.stderr
    # The label column that such files have by themselves takes no target's place.
    result = _run("train", "--data", series[0], "--set", "data.quantile.price_column=close")
    assert "data.quantile: not allowed while data.layout is samples" in result.stderr
    two = _run("train", "--data", series[0], "--data", series[0])
    assert two.exit_code == 1
    assert "cannot tell which file trains" in two.stderr
    mixed = _run("train", "--data", series[0], "--data", "b.csv", "--label", "y")
    assert "b.csv with others" in mixed.stderr
    assert scripted.uploads == 0


def test_a_threshold_and_a_stored_dataset(scripted: ScriptedServer) -> None:
    result = _run("train", "--dataset", "d", "--threshold", "adj,close,5,-0.01,0.02")
    assert result.exit_code == 0
    (sent,) = scripted.submitted
    assert sent.dataset == "datasets/d"
    assert sent.data.threshold == training_pb2.ThresholdTarget(
        price_column="adj,close", horizon=5, lower=-0.01, upper=0.02
    )
    assert scripted.uploads == 0


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_job_that_does_not_succeed_exits_with_1(scripted: ScriptedServer, end: str) -> None:
    scripted.end = end
    assert _run("train", "--dataset", "d", "--label", "y").exit_code == 1
    assert _run("watch", "one").exit_code == 1
    assert _run("watch", "one", "--after", "3").exit_code == 1


def test_watch_begins_where_it_is_told(scripted: ScriptedServer) -> None:
    result = _run("watch", "one", "--after", "2")
    assert result.exit_code == 0
    assert result.stdout.startswith("succeeded")
    assert _run("watch", JOB, "--after", "3").exit_code == 0
    assert scripted.after == [2, 3]


def test_json_is_one_message_a_line_with_proto_names(scripted: ScriptedServer) -> None:
    result = _run("train", "--dataset", "d", "--label", "y", "--json")
    events = [
        json_format.Parse(line, training_pb2.TrainingEvent()) for line in result.stdout.splitlines()
    ]
    assert [event.sequence for event in events] == [1, 2, 3]
    second = json.loads(result.stdout.splitlines()[1])
    assert second["epoch"]["is_best"] is False
    assert "windows_per_second" in second["epoch"]


def test_detach_prints_the_name(scripted: ScriptedServer) -> None:
    request = ["train", "--dataset", "d", "--label", "y", "--detach"]
    assert _run(*request).stdout == f"{JOB}\n"
    assert json.loads(_run(*request, "--json").stdout)["name"] == JOB
    assert scripted.after == []


def test_resume_sends_the_changes_and_watches(scripted: ScriptedServer) -> None:
    result = _run("resume", "one", "--set", "trainer.epochs=300", "--set", "labels.team=a")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "queued jobs/one position=1"
    (sent,) = scripted.resumed
    assert sent.name == JOB
    assert sent.changes.request_id
    sent.changes.ClearField("request_id")
    expected = training_pb2.TrainingRequest(labels={"team": "a"})
    expected.trainer.epochs = 300
    assert sent.changes == expected
    assert scripted.after == [0]


def test_resume_watches_as_train_does(scripted: ScriptedServer) -> None:
    assert _run("resume", JOB, "--detach").stdout == f"{JOB}\n"
    told = json.loads(_run("resume", JOB, "--detach", "--json").stdout)
    assert (told["name"], told["resumed_from"]) == (JOB, "jobs/old")
    assert scripted.after == []
    lines = _run("resume", JOB, "--json").stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 3]
    scripted.end = "failed"
    assert _run("resume", JOB).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trainer.epochs=0"], ["changes.trainer.epochs: 0 is not allowed; allowed: [1, 100000]"]),
        (["epochs=9"], ["changes.epochs: no such field", "changes.trainer.epochs"]),
        (
            ["trainer.precision=FP8", "model.dropout=2"],
            ["changes.trainer.precision: 'FP8' is not", "changes.model.dropout: 2 is not allowed"],
        ),
        (["trainer.epochs=5", "trainer.epochs=6"], ["changes.trainer.epochs: given twice"]),
        (["trainer.epochs"], ["has no ="]),
    ],
)
def test_changes_are_checked_before_they_are_sent(
    scripted: ScriptedServer, arguments: list[str], told: list[str]
) -> None:
    result = _run("resume", JOB, *(part for text in arguments for part in ("--set", text)))
    assert result.exit_code == 2
    assert not [words for words in told if words not in result.stderr]
    assert "required" not in result.stderr
    assert scripted.resumed == []


def test_a_job_that_cannot_be_resumed_is_an_error(scripted: ScriptedServer) -> None:
    result = _run("resume", "two")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "trainwire: jobs/two still runs\n"


def test_an_alias_is_given_and_removed(scripted: ScriptedServer) -> None:
    assert _run("alias", "latest", "m").stdout == "models/m aliases=latest\n"
    assert json.loads(_run("alias", "latest", "models/m", "--json").stdout)["aliases"] == ["latest"]
    assert _run("alias", "latest", "--remove").stdout == "removed latest\n"
    assert json.loads(_run("alias", "latest", "--remove", "--json").stdout)["alias"] == "latest"
    assert [(sent.alias, sent.name) for sent in scripted.aliases] == [
        ("latest", "models/m"),
        ("latest", "models/m"),
        ("latest", ""),
        ("latest", ""),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["latest"], 2, "either MODEL or --remove"),
        (["latest", "m", "--remove"], 2, "either MODEL or --remove"),
        (["Latest", "m"], 2, "alias: 'Latest' is not allowed; allowed: [a-z]"),
        (["latest", "jobs/m"], 2, "name: 'jobs/m' is not allowed; allowed: models/ID"),
        (["latest", "gone"], 1, "trainwire: there is no models/gone"),
    ],
)
def test_wrong_aliases_are_told(
    scripted: ScriptedServer, arguments: list[str], status: int, words: str
) -> None:
    result = _run("alias", *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr


def test_violations_are_all_told_before_anything_is_uploaded(
    scripted: ScriptedServer, data: Path
) -> None:
    wrong = ["trainer.epochs=0", "scheduler_t_0=4", "trainer.precision=FP8", "model.dropout=2"]
    settings = [part for setting in wrong for part in ("--set", setting)]
    result = _run("train", "--data", str(data), *settings)
    assert result.exit_code == 2
    for part in (
        "trainer.epochs: 0 is not allowed; allowed: [1, 100000]",
        "did you mean trainer.scheduler_t_0?",
        "trainer.precision: 'FP8' is not allowed; allowed: PRECISION_AUTO",
        "model.dropout: 2 is not allowed",
        "data.target: required: set one of column, threshold, quantile, triple_barrier",
    ):
        assert part in result.stderr
    assert result.stdout == ""
    assert scripted.uploads == 0


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--label", "y"], "dataset: required"),
        (["--data", "x.csv", "--dataset", "d", "--label", "y"], "exclude each other"),
        (["--dataset", "d", "--label", "y", "--set", "trainer.epochs"], "has no ="),
        (["--dataset", "d", "--threshold", "close,5"], "2 of 4 parts"),
        (["--dataset", "d", "--threshold", "close,x,0,1"], "data.threshold.horizon: 'x'"),
        (
            ["--dataset", "d", "--label", "y", "--threshold", "p,5,0,1"],
            "data.column.name: excluded",
        ),
        (["--dataset", "d", "--label", "y", "--set", "data.column.name=z"], "given twice"),
        (["--request", "no.json"], "cannot read no.json: No such file"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(
    scripted: ScriptedServer, command: str, arguments: list[str], words: str
) -> None:
    result = _run(command, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert scripted.submitted == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "two"], "trainwire: there is no jobs/two"),
        (["upload", "no.csv"], "trainwire: cannot read no.csv: No such file"),
        (["train", "--data", "no.csv", "--label", "y"], "trainwire: cannot read no.csv"),
    ],
)
def test_errors_are_one_clear_block(
    scripted: ScriptedServer, arguments: list[str], words: str
) -> None:
    result = _run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(words)
    assert result.stdout == ""


def test_show_cancel_jobs_models_upload(scripted: ScriptedServer, data: Path) -> None:
    _run("train", "--dataset", "d", "--label", "y", "--set", "trainer.epochs=7")
    shown = [line.split() for line in _run("show", "one").stdout.splitlines()]
    assert ["set", "trainer.epochs", "7"] in shown
    assert ["default", "trainer.batch_size", "256"] in shown
    assert _run("cancel", JOB).stdout == f"{JOB} SUCCEEDED\n"
    assert _run("jobs").stdout.splitlines()[1].split()[:2] == [JOB, "SUCCEEDED"]
    assert _run("models").stdout.splitlines()[1].startswith("models/m")
    assert " rows=3 " in _run("upload", str(data)).stdout
    for arguments in (["show", "one"], ["cancel", "one"], ["jobs"], ["models"]):
        (line,) = _run(*arguments, "--json").stdout.splitlines()
        assert json.loads(line)["name"] in (JOB, "models/m")
    assert json.loads(_run("upload", str(data), "--json").stdout)["row_count"] == 3


def test_validate_shows_the_plan_and_makes_no_job(scripted: ScriptedServer, data: Path) -> None:
    arguments = ["validate", "--data", str(data), "--label", "y", "--set", "trainer.epochs=7"]
    result = _run(*arguments)
    assert result.exit_code == 0
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["plan", "memory=12.3", "MB", "(estimate)"] in shown
    assert ["set", "trainer.epochs", "7"] in shown
    assert ["default", "trainer.batch_size", "256"] in shown
    assert [request.validate_only for request in scripted.submitted] == [True]
    assert scripted.after == []
    (line,) = _run(*arguments, "--json").stdout.splitlines()
    assert json.loads(line)["plan"]["memory_estimate_bytes"] == "12300000"


def test_train_does_not_take_validate_only(scripted: ScriptedServer, data: Path) -> None:
    result = _run("train", "--data", str(data), "--label", "y", "--set", "validate_only=true")
    assert result.exit_code == 2
    assert "validate_only: true makes no job" in result.stderr
    assert scripted.submitted == []
    assert scripted.uploads == 0


def test_options_override_a_request_file(
    scripted: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text(
        json.dumps(
            {
                "dataset": "datasets/old",
                "labels": {"team": "quants", "run": "1"},
                "data": {
                    "threshold": {"price_column": "close", "lower": -0.1},
                    "windows": {"sequence_length": 8},
                },
                "trainer": {"epochs": 3, "use_augmentation": False},
            }
        )
    )
    options = ["--data", str(data), "--label", "y"]
    settings = ["--set", "trainer.epochs=4", "--set", "labels.run=2"]
    assert _run("train", "--request", str(file), *options, *settings).exit_code == 0
    assert _run("train", "--request", str(file), "--dataset", "new").exit_code == 0
    first, second = scripted.submitted
    assert first.dataset.startswith("datasets/sha256-")
    assert second.dataset == "datasets/new"
    assert first.data.WhichOneof("target") == "column"
    assert second.data.threshold.lower == -0.1
    assert (first.trainer.epochs, second.trainer.epochs) == (4, 3)
    assert first.trainer.HasField("use_augmentation")
    assert first.data.windows.sequence_length == 8
    assert dict(first.labels) == {"team": "quants", "run": "2"}


def test_what_is_wrong_in_a_request_file_is_told_with_its_path(
    scripted: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"trainer": {"epoch": 3}, "dropout": 0.5}')
    result = _run("train", "--data", str(data), "--label", "y", "--request", str(file))
    assert result.exit_code == 2
    assert "trainer.epoch: no such field; allowed here: epochs," in result.stderr
    assert "dropout: no such field" in result.stderr
    file.write_text('{"trainer": {"epochs": 0}}')
    result = _run("validate", "--data", str(data), "--label", "y", "--request", str(file))
    assert result.exit_code == 2
    assert "trainer.epochs: 0 is not allowed" in result.stderr
    assert scripted.uploads == 0


def test_jobs_are_filtered_by_state_and_label(scripted: ScriptedServer) -> None:
    filters = ["--state", "running", "--state", "QUEUED", "--label", "team=a=b", "--label", "x.y="]
    assert _run("jobs", *filters).exit_code == 0
    (asked,) = scripted.listed
    assert list(asked.states) == [training_pb2.JOB_STATE_RUNNING, training_pb2.JOB_STATE_QUEUED]
    assert dict(asked.labels) == {"team": "a=b", "x.y": ""}


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (["--state", "DONE"], "states: 'DONE' is not allowed; allowed: JOB_STATE_QUEUED"),
        (["--label", "team"], "'team' has no =; allowed: KEY=VALUE"),
        (["--label", "a=1", "--label", "a=2"], "labels.a: given twice"),
    ],
)
def test_wrong_filters_exit_with_2(
    scripted: ScriptedServer, filters: list[str], words: str
) -> None:
    result = _run("jobs", *filters)
    assert result.exit_code == 2
    assert words in result.stderr
    assert scripted.listed == []


def test_datasets_and_info(scripted: ScriptedServer) -> None:
    assert _run("datasets").stdout.splitlines()[1].startswith("datasets/d ")
    assert json.loads(_run("datasets", "--json").stdout)["name"] == "datasets/d"
    assert _run("info").stdout.startswith("server 1.2.3\ncontract 9.9.9 (not the same as")
    assert json.loads(_run("info", "--json").stdout)["version"] == "1.2.3"


def test_delete_takes_full_names_in_their_order(scripted: ScriptedServer) -> None:
    names = [JOB, "models/m", "datasets/d"]
    assert _run("delete", *names, "--yes").stdout.splitlines() == [f"deleted {n}" for n in names]
    assert scripted.deleted == names
    (line,) = _run("delete", JOB, "-y", "--json").stdout.splitlines()
    assert json.loads(line) == {"name": JOB}


def test_delete_stops_where_it_is_refused(scripted: ScriptedServer) -> None:
    result = _run("delete", JOB, "jobs/gone", "models/m", "--yes")
    assert result.exit_code == 1
    assert result.stdout == f"deleted {JOB}\n"
    assert result.stderr == "trainwire: there is no jobs/gone\n"
    assert scripted.deleted == [JOB]


def test_delete_refuses_what_is_no_full_name_before_it_deletes(scripted: ScriptedServer) -> None:
    result = _run("delete", JOB, "one", "files/x", "--yes")
    assert result.exit_code == 2
    assert "name: 'one' is not allowed; allowed: jobs/ID, datasets/ID, models/ID" in result.stderr
    assert "name: 'files/x' is not allowed" in result.stderr
    assert scripted.deleted == []


def test_delete_does_nothing_unasked_without_a_terminal(scripted: ScriptedServer) -> None:
    result = _run("delete", JOB)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert scripted.deleted == []


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"n\n", 1)])
def test_delete_asks_on_a_terminal(scripted: ScriptedServer, answer: bytes, status: int) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, answer)
    done = subprocess.run(
        [sys.executable, "-m", "trainwire_client", "delete", JOB, "models/m"],
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(keyboard)
    os.close(terminal)
    assert f"Delete {JOB}, models/m?" in done.stderr
    assert done.returncode == status
    assert scripted.deleted == ([JOB, "models/m"] if status == 0 else [])


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["train", "--set", "trainer.scheduler_t_"], "trainer.scheduler_t_0= "),
        (["train", "--set", "trainer.scheduler_ty"], "trainer.scheduler_type=ONE_CYCLE "),
        (["validate", "--set", "balancing.use_focal"], "balancing.use_focal_loss=false "),
        (["train", "--set", "lab"], "labels. "),
        (["jobs", "--state", "R"], "RUNNING "),
        (["val"], "validate "),
    ],
)
def test_a_shell_completes_commands_paths_and_values(words: list[str], offered: str) -> None:
    done = CliRunner().invoke(
        cli.app,
        prog_name="trainwire",
        env={
            "_TRAINWIRE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["trainwire", *words]),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert offered in f"{' '.join(done.stdout.split())} "


def test_values_are_completed_after_the_equals_sign() -> None:
    found = [text for text, _ in cli.complete_setting("trainer.scheduler_type=CO")]
    prefix = "trainer.scheduler_type="
    assert found == [prefix + name for name in ("CONSTANT", "COSINE", "COSINE_WARM_RESTARTS")]
    assert [text for text, _ in cli.complete_setting("trainer.epochs=")] == ["trainer.epochs="]
    assert cli.complete_setting("trainer.nothing") == []
    paths = {text.rstrip("=.") for text, _ in cli.complete_setting("")}
    assert paths == {parameter.path for parameter in contract.describe()}


def test_download_writes_and_does_not_overwrite(scripted: ScriptedServer, tmp_path: Path) -> None:
    assert _run("download", "m", str(tmp_path)).stdout == f"{tmp_path / 'weights.bin'}\n"
    again = _run("download", "m", str(tmp_path))
    assert again.exit_code == 1
    assert "already in" in again.stderr
    done = _run("download", "m", str(tmp_path), "--overwrite", "--json")
    assert json.loads(done.stdout)["name"] == "models/m"
    assert (tmp_path / "weights.bin").read_bytes() == BUNDLE


def test_contract_prints_the_reference() -> None:
    assert _run("contract").stdout == reference.markdown()
    assert _run("contract", "--format", "json-schema").stdout == reference.json_text()
    (line,) = _run("contract", "--json").stdout.splitlines()
    assert json.loads(line) == reference.json_schema()


def test_control_characters_in_errors_are_not_printed(scripted: ScriptedServer) -> None:
    result = _run("show", "jobs/\x1b[2J")
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_an_interrupt_says_how_to_go_on(scripted: ScriptedServer, extra: list[str]) -> None:
    scripted.never_ends = True
    process = subprocess.Popen(
        [sys.executable, "-m", "trainwire_client", "watch", "one", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert "queued" in process.stdout.readline()
    assert "epoch" in process.stdout.readline()
    assert scripted.two_were_seen.wait(30)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.splitlines() == [
        "stopped watching; jobs/one goes on",
        f"  watch again: trainwire watch jobs/one --after 2 --target {scripted.target}",
        f"  cancel:      trainwire cancel jobs/one --target {scripted.target}",
    ]


@pytest.mark.parametrize("package", ["typer", "rich", "grpc_health"])
def test_without_the_extra_it_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cli", "health", "live"):
        monkeypatch.delitem(sys.modules, f"trainwire_client.{name}", raising=False)
    for name in ("cli", "health"):
        monkeypatch.delattr(f"trainwire_client.{name}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert package in told
    assert "install with: pip install 'trainwire[cli]'" in told


def test_help_names_every_command() -> None:
    text = _run("--help").output
    calls = ["train", "validate", "watch", "jobs", "show", "cancel", "upload", "datasets"]
    calls += ["models", "download", "delete", "info", "resume", "alias", "health"]
    for command in [*calls, "contract"]:
        assert f"  {command} " in text
    for command in calls:
        options = _run(command, "--help").output
        assert "--target" in options
        assert "--json" in options

"""The `trainwire` command as a person and a script meet it: a process of its own, a real server."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2

M = TypeVar("M", bound=Message)
Columns = dict[str, Any]
Trainwire = Callable[..., subprocess.CompletedProcess[str]]

SETTINGS = {
    "trainer.epochs": "2",
    "trainer.batch_size": "32",
    "trainer.learning_rate": "0.01",
    "trainer.use_augmentation": "false",
    "data.windows.sequence_length": "8",
    "data.windows.feature_columns": "a,b",
    "model.hybrid_cnn_lstm.conv_blocks": "1",
    "model.hybrid_cnn_lstm.conv_channels": "8",
    "model.hybrid_cnn_lstm.kernel_size": "3",
    "model.hybrid_cnn_lstm.lstm_hidden_size": "8",
    "model.hybrid_cnn_lstm.attention_heads": "2",
    "model.hybrid_cnn_lstm.attention_head_size": "4",
}
SMALL = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={value}")]


@dataclass(frozen=True)
class Trained:
    """A CSV file, what was trained on it, and the files of the model."""

    file: Path
    events: list[training_pb2.TrainingEvent]
    job: training_pb2.TrainingJob
    bundle: Path


@pytest.fixture(scope="module")
def trainwire(server: Any) -> Trainwire:
    """Runs the command; its exit status must be as expected."""

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "trainwire_client", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                **server.client_environment,
            },
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def write_csv(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return path


@pytest.fixture(scope="module")
def trained(
    trainwire: Trainwire, columns: Callable[..., Columns], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """A finished training on a CSV file of this module's own."""
    folder = tmp_path_factory.mktemp("cli")
    file = write_csv(folder / "bars.csv", columns(seed=31))
    labels = ["--set", "labels.suite=cli"]
    done = trainwire("train", "--data", str(file), "--label", "y", *labels, *SMALL, "--json")
    events = parsed(done, training_pb2.TrainingEvent)
    (job,) = parsed(trainwire("show", events[-1].job, "--json"), training_pb2.TrainingJob)
    trainwire("download", job.model, str(folder / "bundle"))
    return Trained(file, events, job, folder / "bundle")


def parsed(done: subprocess.CompletedProcess[str], kind: type[M]) -> list[M]:
    """The messages that --json printed, one a line, in proto field names."""
    messages = [json_format.Parse(line, kind()) for line in done.stdout.splitlines()]
    for line, message in zip(done.stdout.splitlines(), messages, strict=True):
        names = {field.name for field in message.DESCRIPTOR.fields}
        assert set(json.loads(line)) <= names
    return messages


def test_a_csv_file_is_trained_on_to_the_end(trained: Trained) -> None:
    kept = [event for event in trained.events if event.WhichOneof("event") != "progress"]
    assert [event.sequence for event in kept] == list(range(1, len(kept) + 1))
    assert [event.WhichOneof("event") for event in (kept[0], kept[-1])] == ["queued", "succeeded"]
    assert [event.epoch.epoch for event in kept if event.HasField("epoch")] == [1, 2]
    assert trained.job.state == training_pb2.JOB_STATE_SUCCEEDED
    assert trained.job.request.trainer.epochs == 2
    assert set(SETTINGS) <= set(trained.job.set_fields)
    # Sent as false, and seen as set: not the default, not left out.
    assert trained.job.request.trainer.use_augmentation is False


def test_a_file_is_stored_as_it_is(trainwire: Trainwire, trained: Trained) -> None:
    stored = parsed(trainwire("datasets", "--json"), dataset_pb2.Dataset)
    (mine,) = [dataset for dataset in stored if dataset.name == trained.job.request.dataset]
    assert mine.format == dataset_pb2.DATASET_FORMAT_CSV
    assert mine.size_bytes == trained.file.stat().st_size
    assert mine.row_count == 400
    assert [column.name for column in mine.columns] == ["a", "b", "y", "price", "time", "group"]
    (again,) = parsed(trainwire("upload", str(trained.file), "--json"), dataset_pb2.Dataset)
    assert again == mine
    heading, *rows = trainwire("datasets").stdout.splitlines()
    assert heading.split()[:3] == ["DATASET", "FORMAT", "ROWS"]
    assert [mine.name, "CSV", "400"] in [row.split()[:3] for row in rows]


def write_ucr(path: Path, rows: int) -> str:
    """Flat and rising series by turns, as the UCR archive writes them."""
    series = ([label, *(label * step for step in range(12))] for label in [0, 1] * (rows // 2))
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in series))
    return str(path)


def test_a_published_split_is_trained_on_with_one_command(
    trainwire: Trainwire, tmp_path: Path
) -> None:
    test, training = (
        write_ucr(tmp_path / f"Lines_{part}.tsv", rows)
        for part, rows in (("TEST", 10), ("TRAIN", 40))
    )
    small = [part for part in SMALL if "windows" not in part and part != "--set"]
    settings = [option for part in small for option in ("--set", part)]
    done = trainwire("train", "--data", test, "--data", training, *settings, "--json")
    events = parsed(done, training_pb2.TrainingEvent)
    started = next(event.started for event in events if event.HasField("started"))
    splits = (started.train, started.validation, started.test)
    assert [split.windows for split in splits] == [32, 8, 10]
    assert list(started.feature_columns) == ["channel_0"]
    assert list(started.class_names) == ["0", "1"]
    assert events[-1].HasField("succeeded")
    shown = trainwire("show", events[-1].job).stdout
    assert [line.split() for line in shown.splitlines() if " data.samples" in line] == [
        ["set", "data.samples"]
    ]


def test_the_request_of_a_bundle_trains_the_same_model(
    trainwire: Trainwire, trained: Trained, tmp_path: Path
) -> None:
    done = trainwire("train", "--request", str(trained.bundle / "request.json"), "--name", "again")
    end = next(line for line in done.stdout.splitlines() if line.startswith("succeeded models/"))
    model = end.split()[1]
    assert model != trained.job.model
    trainwire("download", model, str(tmp_path))
    for name in ("model.safetensors", "request.json", "preprocessing.json"):
        assert (tmp_path / name).read_bytes() == (trained.bundle / name).read_bytes(), name


def test_validate_shows_what_would_be_trained_and_makes_no_job(
    trainwire: Trainwire, trained: Trained
) -> None:
    request = ["--dataset", trained.job.request.dataset, "--label", "y", *SMALL]
    before = parsed(trainwire("jobs", "--json"), training_pb2.TrainingJob)
    (answer,) = parsed(trainwire("validate", *request, "--json"), training_pb2.TrainingJob)
    plain = trainwire("validate", *request, "--set", "balancing.focal_gamma=1").stdout
    assert parsed(trainwire("jobs", "--json"), training_pb2.TrainingJob) == before
    started = next(event.started for event in trained.events if event.HasField("started"))
    assert not answer.name
    assert answer.request_digest == trained.job.request_digest
    for same in ("train", "validation", "test", "class_counts", "parameter_count", "device"):
        assert getattr(answer.plan.started, same) == getattr(started, same), same
    assert answer.plan.memory_estimate_bytes > 0
    shown = [line.split() for line in plain.splitlines()]
    assert ["set", "balancing.focal_gamma", "1"] in shown
    assert ["set", "trainer.use_augmentation", "false"] in shown
    assert ["default", "trainer.seed", "42"] in shown
    assert [f"parameters={started.parameter_count}"] == [
        words[1] for words in shown if words[0] == "plan" and words[1].startswith("parameters")
    ]


def test_validate_refuses_what_train_would_refuse(
    trainwire: Trainwire, columns: Callable[..., Columns], trained: Trained, tmp_path: Path
) -> None:
    stored = ["validate", "--dataset", trained.job.request.dataset]
    wrong = trainwire(*stored, "--label", "y", "--set", "trainer.epochs=0", status=2)
    assert "trainer.epochs: 0 is not allowed; allowed: [1, 100000]" in wrong.stderr
    missing = trainwire(*stored, "--label", "z", *SMALL, status=1)
    assert "data.column.name" in missing.stderr
    table = columns(seed=32)
    table["y"][:] = 1
    file = write_csv(tmp_path / "one_class.csv", table)
    # No profile tells that: it is found out by the dry run itself.
    alike = trainwire("validate", "--data", str(file), "--label", "y", *SMALL, status=1)
    assert "data.column.name" in alike.stderr
    assert wrong.stdout == missing.stdout == alike.stdout == ""


def test_a_job_that_fails_exits_with_1(
    trainwire: Trainwire, columns: Callable[..., Columns], tmp_path: Path
) -> None:
    table = columns(seed=33)
    table["y"][:] = 1
    file = write_csv(tmp_path / "one_class.csv", table)
    done = trainwire("train", "--data", str(file), "--label", "y", *SMALL, status=1)
    assert "failed SINGLE_CLASS" in done.stdout


def test_a_broken_file_is_refused_with_its_row(trainwire: Trainwire, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    done = trainwire("upload", str(tmp_path / "t.csv"), status=2)
    assert "line 3: 1 fields where the header has 2" in done.stderr
    assert done.stdout == ""


def test_a_cancelled_job_exits_with_1(trainwire: Trainwire, endless_job: Any) -> None:
    done = trainwire("cancel", endless_job.name)
    assert done.stdout.startswith(f"{endless_job.name} CANCEL")
    watched = trainwire("watch", endless_job.name, "--after", "2", status=1)
    assert watched.stdout.splitlines()[-1].startswith(f"cancelled {endless_job.name}")
    listed = trainwire("jobs", "--state", "CANCELLED", "--json")
    assert endless_job.name in [job.name for job in parsed(listed, training_pb2.TrainingJob)]


def test_jobs_are_filtered(trainwire: Trainwire, trained: Trained) -> None:
    def names(*filters: str) -> list[str]:
        return [
            job.name
            for job in parsed(trainwire("jobs", *filters, "--json"), training_pb2.TrainingJob)
        ]

    assert names("--state", "SUCCEEDED", "--label", "suite=cli") == [trained.job.name]
    assert names("--state", "QUEUED", "--label", "suite=cli") == []
    assert names("--label", "suite=other") == []


def test_info_tells_what_the_server_is(trainwire: Trainwire) -> None:
    (info,) = parsed(trainwire("info", "--json"), system_pb2.SystemInfo)
    assert info.contract_digest == contract.contract_digest()
    assert info.max_concurrent_jobs >= 1
    plain = trainwire("info").stdout.splitlines()
    assert plain[1] == f"contract {contract.contract_version()}"
    assert any(line.startswith("device cpu ") for line in plain)


def test_every_list_and_message_is_json_lines(trainwire: Trainwire, trained: Trained) -> None:
    commands: list[tuple[list[str], type[Message]]] = [
        (["jobs"], training_pb2.TrainingJob),
        (["show", trained.job.name], training_pb2.TrainingJob),
        (["cancel", trained.job.name], training_pb2.TrainingJob),
        (["watch", trained.job.name], training_pb2.TrainingEvent),
        (["models"], model_pb2.Model),
        (
            ["download", trained.job.model, str(trained.bundle), "--overwrite"],
            model_pb2.Model,
        ),
    ]
    for arguments, kind in commands:
        assert parsed(trainwire(*arguments, "--json"), kind)
    assert json.loads(trainwire("contract", "--json").stdout)


def test_a_cancelled_job_is_resumed(
    trainwire: Trainwire, cancelled_job: training_pb2.TrainingJob
) -> None:
    settings = ["--set", "trainer.epochs=60000", "--set", "display_name=longer"]
    done = trainwire("resume", cancelled_job.name, *settings, "--detach", "--json")
    (new,) = parsed(done, training_pb2.TrainingJob)
    try:
        assert (new.resumed_from, new.display_name) == (cancelled_job.name, "longer")
        assert new.request.trainer.epochs == 60_000
        shown = trainwire("show", new.name).stdout.splitlines()
        assert f"resumed from {cancelled_job.name}" in shown
    finally:
        trainwire("cancel", new.name)
    watched = trainwire("watch", new.name, status=1).stdout
    assert watched.splitlines()[-1].startswith(f"cancelled {new.name}")


def test_what_cannot_be_resumed_is_told(
    trainwire: Trainwire, trained: Trained, cancelled_job: training_pb2.TrainingJob
) -> None:
    told = trainwire("resume", trained.job.name, status=1).stderr
    assert told.startswith(f"trainwire: {trained.job.name} is")
    wrong = ["--set", "trainer.learning_rate=0.5", "--set", "data.column.name=a"]
    told = trainwire("resume", cancelled_job.name, *wrong, status=2).stderr
    assert "changes.trainer.learning_rate: " in told
    assert "changes.data.column.name: " in told
    told = trainwire("resume", cancelled_job.name, "--set", "trainer.epochs=0", status=2).stderr
    assert "changes.trainer.epochs: 0 is not allowed; allowed: [1, 100000]" in told


def test_a_model_gets_an_alias_and_loses_it(
    trainwire: Trainwire, trained: Trained, tmp_path: Path
) -> None:
    model = trained.job.model
    assert trainwire("alias", "best", model).stdout == f"{model} aliases=best\n"
    row = next(line for line in trainwire("models").stdout.splitlines() if model in line)
    assert row.split()[-1] == "best"
    (found,) = parsed(trainwire("download", "best", str(tmp_path), "--json"), model_pb2.Model)
    assert (found.name, list(found.aliases)) == (model, ["best"])
    assert (tmp_path / "model.safetensors").read_bytes() == (
        trained.bundle / "model.safetensors"
    ).read_bytes()
    assert "best" in trainwire("delete", model, "--yes", status=1).stderr
    assert trainwire("alias", "best", "--remove").stdout == "removed best\n"
    assert "models/best" in trainwire("download", "best", str(tmp_path), status=1).stderr


def test_job_model_and_dataset_are_deleted_in_this_order(
    trainwire: Trainwire, columns: Callable[..., Columns], tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "bars.csv", columns(seed=34))
    name = trainwire(
        "train", "--data", str(file), "--label", "y", *SMALL, "--detach"
    ).stdout.strip()
    trainwire("watch", name)
    (job,) = parsed(trainwire("show", name, "--json"), training_pb2.TrainingJob)
    refused = trainwire("delete", job.request.dataset, "--yes", status=1)
    assert job.name in refused.stderr
    names = [job.name, job.model, job.request.dataset]
    assert trainwire("delete", *names[:2], "--yes").stdout.splitlines() == [
        f"deleted {name}" for name in names[:2]
    ]
    assert json.loads(trainwire("delete", names[2], "--yes", "--json").stdout) == {"name": names[2]}
    for command in (["show", job.name], ["download", job.model, str(tmp_path / "bundle")]):
        assert "does not exist" in trainwire(*command, status=1).stderr
    assert job.request.dataset not in trainwire("datasets").stdout
    assert trainwire("delete", job.name, "--yes", status=1).stdout == ""

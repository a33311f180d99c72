"""Back up and restore, by the commands that docs/operations.md gives an operator."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
StartServer = Callable[..., Any]
Columns = Callable[..., dict[str, Any]]

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
COMMANDS = dict(re.findall(r"<!-- tested: (\w+) -->\n```sh\n(.*?)```", PAGE, re.DOTALL))


def run(name: str, data: Path, backup: Path) -> None:
    """Runs the commands of the page for these folders, in the place of those they name."""
    script = COMMANDS[name]
    for variable, folder in (("data", data), ("backup", backup)):
        script, given = re.subn(rf"^{variable}=\S+", f"{variable}={folder}", script, flags=re.M)
        assert given == 1, script
    done = subprocess.run(
        ["sh", "-eu", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def stored(events: Any) -> list[training_pb2.TrainingEvent]:
    """All events but progress, which is not stored."""
    return [event for event in events if event.WhichOneof("event") != "progress"]


def log_until_epoch(client: TrainingClient, job: str, number: int) -> list[Any]:
    """The events of a job up to that of an epoch."""
    log = []
    for event in client.watch(job):
        log += stored([event])
        if event.HasField("epoch") and event.epoch.epoch == number:
            return log
    raise AssertionError(f"the log has no epoch {number}: {log}")


def bundle_of(client: TrainingClient, model: str, folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in client.download(model, folder).iterdir()}


def test_a_backup_of_a_working_server_has_all_that_was_acknowledged(
    start_server: StartServer, columns: Columns, small: RequestFor, tmp_path: Path
) -> None:
    server, backup = start_server(), tmp_path / "backup"
    with server.client() as client:
        dataset = client.upload(columns())
        done = client.wait(client.submit(small(dataset.name)))
        model = client.set_alias("production", done.model)
        files = bundle_of(client, model.name, tmp_path / "before")
        endless = small(dataset.name, epochs=100_000, early_stopping_patience=0)
        running = client.submit(endless)
        waiting = client.submit(small(dataset.name))
        log = log_until_epoch(client, running.name, 5)
        run("backup", server.data_dir, backup)
        # It goes on meanwhile, and ends after the backup.
        log_until_epoch(client, running.name, 6)
        client.cancel(waiting)
        client.cancel(running)
    assert server.stop() == 0

    restored = start_server(data_dir=backup)
    with restored.client() as client:
        assert client.get(done) == done
        assert client.dataset(dataset) == dataset
        assert client.model("production") == model
        assert bundle_of(client, "production", tmp_path / "after") == files
        # What was training goes on from a checkpoint, with its log as it was.
        goes_on = log_until_epoch(client, running.name, 20)
        assert goes_on[: len(log)] == log
        assert [event.sequence for event in goes_on] == list(range(1, len(goes_on) + 1))
        epochs = [event.epoch.epoch for event in goes_on if event.HasField("epoch")]
        assert epochs == list(range(1, 21))
        (resumed,) = [event for event in goes_on if event.HasField("resumed")]
        assert (resumed.attempt, resumed.resumed.epoch > 0) == (2, True)
        # What waited still waits, behind it.
        client.cancel(running)
        assert client.wait(waiting).state == training_pb2.JOB_STATE_SUCCEEDED


def test_a_restored_directory_takes_the_place_of_the_damaged_one(
    start_server: StartServer, columns: Columns, small: RequestFor, tmp_path: Path
) -> None:
    server, backup = start_server(), tmp_path / "backup"
    with server.client() as client:
        done = client.wait(client.submit(small(client.upload(columns()).name)))
        run("backup", server.data_dir, backup)
    assert server.stop() == 0
    (server.data_dir / "trainwire.db").write_bytes(b"no database" * 1000)
    run("restore", server.data_dir, backup)
    assert (server.data_dir.with_name("data.damaged") / "trainwire.db").exists()
    with start_server().client() as client:
        assert client.get(done) == done
        assert client.model(done.model).job == done.name
    # The backup is still one: restoring copies it.
    assert (backup / "trainwire.db").exists()


def test_a_backup_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    with pytest.raises(AssertionError, match="File exists"):
        run("backup", tmp_path / "data", tmp_path / "backup")


def test_a_backup_of_nothing_is_none(tmp_path: Path) -> None:
    """A wrong path must not make an empty database that looks like a backup."""
    (tmp_path / "data").mkdir()
    with pytest.raises(AssertionError, match="unable to open database file"):
        run("backup", tmp_path / "data", tmp_path / "backup")
    assert not list((tmp_path / "data").iterdir())

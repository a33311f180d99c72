"""A service in TypeScript: examples/typescript, generated from the contract, on Node.js."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import dataset_pb2, training_pb2

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "typescript"
CHECKS = ROOT / "tests" / "clients" / "typescript"
MODULES = PACKAGE / "node_modules"
OLDEST_NODE = 20
NO_NETWORK = ("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ENOTFOUND", "ETIMEDOUT")

pytestmark = pytest.mark.slow

Check = Callable[..., list[dict[str, Any]]]
AssertEvents = Callable[..., list[training_pb2.TrainingEvent]]


def _unavailable(why: str) -> None:
    """Skips on a machine without Node.js or network; where all must run, fails."""
    if os.environ.get("CI"):
        pytest.fail(f"the TypeScript client must be tested here, but {why}")
    pytest.skip(f"TypeScript client not tested: {why}")


def _node(*command: str, cwd: Path = PACKAGE, seconds: float = 60) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def _require_node() -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        _unavailable("there is no node and npm")
    version = _node("node", "--version").strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        _unavailable(f"node is {version}, older than {OLDEST_NODE}")


def _install() -> None:
    """`npm ci`, unless node_modules is already what the lock file says."""
    stamp = MODULES / ".installed"
    digest = hashlib.sha256((PACKAGE / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    command = ["npm", "ci", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        _unavailable("the npm registry cannot be reached")
    assert done.returncode == 0, done.stderr
    stamp.write_text(digest)


@pytest.fixture(scope="session")
def built() -> Path:
    """The checks, compiled: the contract generated and every file type-checked."""
    _require_node()
    _install()
    _node("npm", "run", "build")
    link = CHECKS / "node_modules"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(MODULES, CHECKS), target_is_directory=True)
    _node(str(MODULES / ".bin" / "tsc"), "-p", ".", cwd=CHECKS)
    return PACKAGE / "build" / "checks" / "tests" / "clients" / "typescript" / "checks.mjs"


@pytest.fixture(scope="session")
def check(built: Path, server: Any) -> Check:
    """Runs one verb of checks.mts against the shared server; the messages it received."""

    def run(*arguments: str, target: str = server.address) -> list[dict[str, Any]]:
        printed = _node("node", str(built), target, *arguments)
        return [json.loads(line) for line in printed.splitlines()]

    return run


def test_the_lock_file_names_no_registry() -> None:
    assert "://" not in (PACKAGE / "package-lock.json").read_text()


def test_a_csv_file_is_uploaded_once(
    check: Check, csv_file: Path, assert_uploaded: Callable[[dict[str, Any]], None]
) -> None:
    first, again = check("upload", str(csv_file)), check("upload", str(csv_file))
    assert_uploaded(first[0])
    assert again == first


def test_train_streams_to_the_end(
    check: Check, dataset: dataset_pb2.Dataset, assert_events: AssertEvents
) -> None:
    events = assert_events(check("train", dataset.name), 1, "succeeded")
    assert [event.epoch.epoch for event in events if event.HasField("epoch")] == [1, 2, 3]
    assert events[-1].succeeded.model.startswith("models/")


def test_a_stream_goes_on_from_the_middle(
    check: Check, dataset: dataset_pb2.Dataset, assert_events: AssertEvents
) -> None:
    events = assert_events(check("resume", dataset.name), 1, "succeeded")
    assert len(events) == 6


def test_a_job_is_cancelled(
    check: Check, dataset: dataset_pb2.Dataset, assert_events: AssertEvents
) -> None:
    received = check("cancel", dataset.name)
    first = next(event["sequence"] for event in received if "sequence" in event)
    events = assert_events(received, first, "cancelled")
    assert events[-1].cancelled.epochs_run >= 1


def test_violations_are_read(
    check: Check, bad_request: tuple[dict[str, Any], dict[str, str]], dataset: dataset_pb2.Dataset
) -> None:
    (refused,) = check("refusal", dataset.name)
    dropout = {"model.dropout": "0.95 is not allowed; allowed: [0, 0.9]"}
    assert refused == {
        "code": 3,
        "reason": "INVALID_REQUEST",
        "fields": {**bad_request[1], **dropout},
    }


def test_zeros_arrive_as_set(
    check: Check, dataset: dataset_pb2.Dataset, assert_zeros: Callable[[dict[str, Any]], None]
) -> None:
    assert_zeros(check("zeros", dataset.name)[0])


def test_a_watch_outlives_the_server(
    check: Check,
    start_server: Callable[..., Any],
    columns: Callable[..., Any],
    small: Callable[..., training_pb2.TrainingRequest],
    assert_events: AssertEvents,
) -> None:
    first = start_server()
    with first.client() as client:
        endless = small(client.upload(columns()).name, epochs=100_000, early_stopping_patience=0)
        job = client.submit(endless)
        next(event for event in client.watch(job) if event.HasField("epoch"))
    received: list[dict[str, Any]] = []
    watching = threading.Thread(
        target=lambda: received.extend(check("watch", job.name, "1", target=first.address))
    )
    watching.start()
    first.wait_for_log("server.ready")
    first.kill()
    with start_server(listen=first.address).client() as client:
        next(event for event in client.watch(job) if event.HasField("resumed"))
        client.cancel(job)
        watching.join(60)
    assert len(assert_events(received, 2, "cancelled")) > 1


def test_the_example_goes_from_a_csv_file_to_a_finished_training(
    built: Path, server: Any, csv_file: Path
) -> None:
    example = built.parents[4] / "train.js"
    printed = _node("node", str(example), str(csv_file), "y", server.address).splitlines()
    assert printed[0].endswith(": 600 rows")
    assert [line.split(":")[0] for line in printed[1:11]] == [f"epoch {n}/10" for n in range(1, 11)]
    assert printed[11].startswith("models/")


def test_the_example_names_what_is_wrong(built: Path, server: Any, csv_file: Path) -> None:
    command = ["node", str(built.parents[4] / "train.js"), str(csv_file), "nope", server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "data.column.name: the dataset has no column 'nope'" in done.stderr

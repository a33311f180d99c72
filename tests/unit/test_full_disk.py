"""A disk without room: a warning where training can go on, a clear end where it cannot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import training_pb2
from trainwire_server.data.checkpoints import FOLDER, find_files, verify
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import bundle, checkpoint, fit
from trainwire_server.training.setup import set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Request = training_pb2.TrainingRequest
Events = list[training_pb2.TrainingEvent]
Run = Callable[..., Events]

NOT_WRITTEN = training_pb2.WARNING_REASON_CHECKPOINT_NOT_WRITTEN
BYTES = 1 << 20


class Disk:
    """A file system of 1 MiB that can be filled up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job = root / "job"
        self.job.mkdir()

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.root / "filler").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Make room again."""
        (self.root / "filler").unlink()

    def epochs(self) -> list[int]:
        """Of the whole checkpoints, newest first."""
        return [file.epoch for file in find_files(self.job) if verify(file.path)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "none", str(root)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", str(root)], check=True)


Train = Callable[..., Iterator[training_pb2.TrainingEvent]]


@pytest.fixture
def train(disk: Disk, make_request: MakeRequest, make_prepared: MakePrepared) -> Train:
    """Events of a run on the small disk."""

    def _train(epochs: int = 5, **options: Any) -> Iterator[training_pb2.TrainingEvent]:
        request = make_request(trainer__epochs=str(epochs))
        return fit.train(request, make_prepared(), disk.job, 1, lambda: False, **options)

    return _train


def kinds(events: Events) -> list[str]:
    """All but the heartbeats of a slow machine."""
    return [str(event.WhichOneof("event")) for event in events if not event.HasField("progress")]


def bundle_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / bundle.FOLDER).iterdir()}


# ------------------------------------------------------------------------ checkpoints


def test_training_goes_on_and_the_last_good_checkpoints_stay(
    disk: Disk, train: Train, run: Run, make_request: MakeRequest, tmp_path: Path
) -> None:
    undisturbed = run(make_request(trainer__epochs="7"), folder="undisturbed")
    first = train(7)
    next(event for event in first if event.epoch.epoch == 3)
    first.close()  # type: ignore[attr-defined] # a generator
    before = {file.path: file.path.read_bytes() for file in find_files(disk.job)}
    assert disk.epochs() == [2, 1]

    disk.fill()
    seen: Events = []
    for event in train(7, is_started=True):
        seen.append(event)
        if event.epoch.epoch == 6:
            assert {file.path: file.path.read_bytes() for file in find_files(disk.job)} == before
            assert not list((disk.job / FOLDER).glob("*.partial"))
            disk.free()
    assert kinds(seen) == ["resumed", *["epoch"] * 2, "warning", *["epoch"] * 3, "succeeded"]
    warning = next(event.warning for event in seen if event.HasField("warning"))
    assert warning.reason == NOT_WRITTEN
    assert warning.message == (
        "the checkpoint of epoch 3 could not be written (No space left on device); training goes "
        "on and the next epoch tries again; a lost process would begin again after epoch 2"
    )
    assert seen[-1] == undisturbed[-1]
    assert bundle_in(disk.job) == bundle_in(tmp_path / "undisturbed")


def test_each_outage_is_told_once(
    disk: Disk, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request()
    setup, progress = set_up(request, make_prepared(), 1), checkpoint.Progress(32)
    progress.best_weights, progress.best_epoch = checkpoint.copy_weights(setup.model), 1
    told: list[tuple[int, bool]] = []
    with checkpoint.Checkpoints(disk.job, "x") as checkpoints:

        def save(epoch: int) -> None:
            progress.epoch = epoch
            assert not list(checkpoints.save(setup, progress))
            safe = "after epoch 3" if epoch > 3 else "from its start"
            told.extend((epoch, e.warning.message.endswith(safe)) for e in checkpoints.settle())

        disk.fill()
        save(1)
        save(2)
        disk.free()
        save(3)
        disk.fill()
        save(4)
        save(5)
        disk.free()
        save(6)
    assert told == [(1, True), (4, True)]
    assert disk.epochs() == [6, 3]


def test_a_run_that_is_drained_with_a_full_disk_says_so(disk: Disk, train: Train) -> None:
    disk.fill()
    seen: Events = []

    def collect() -> None:
        for event in train(5, draining=lambda: "epoch" in kinds(seen)):
            seen.append(event)

    with pytest.raises(fit.Drained):
        collect()
    assert kinds(seen) == ["started", "epoch", "warning"]
    assert seen[-1].warning.reason == NOT_WRITTEN


# ------------------------------------------------------------------------ the bundle


def test_no_room_for_the_model_is_a_clear_failure_that_can_be_gone_on_from(
    disk: Disk, train: Train, run: Run, make_request: MakeRequest, tmp_path: Path
) -> None:
    undisturbed = run(make_request(), folder="undisturbed")
    events = train(3)
    next(event for event in events if event.epoch.epoch == 3)
    next(event for event in events if event.HasField("succeeded"))
    events.close()  # type: ignore[attr-defined] # a generator
    old = bundle_in(disk.job)
    assert disk.epochs() == [3, 2]

    disk.fill()
    with pytest.raises(JobFailure) as caught:
        list(train(3, is_started=True))
    assert caught.value.reason == training_pb2.FAILURE_REASON_STORAGE_FULL
    assert "free space there, then resume the job (ResumeTraining)" in caught.value.message
    assert disk.epochs() == [3, 2]
    assert bundle_in(disk.job) == old
    assert not (disk.job / "bundle.partial").exists()

    disk.free()
    again = list(train(3, is_started=True))
    assert kinds(again) == ["resumed", "succeeded"]
    assert again[-1] == undisturbed[-1]
    assert bundle_in(disk.job) == bundle_in(tmp_path / "undisturbed")


def test_other_errors_of_a_disk_are_not_taken_for_a_full_one(
    run: Run, make_request: MakeRequest, tmp_path: Path
) -> None:
    (tmp_path / "job").mkdir()
    # A file that no folder can be put in the place of.
    (tmp_path / "job" / bundle.FOLDER).write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        run(make_request())
    assert not (tmp_path / "job" / "bundle.partial").exists()

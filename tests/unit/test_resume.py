"""Going on from a checkpoint: as if nothing had happened, whatever happened."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from trainwire.v1 import training_pb2
from trainwire_server.data.checkpoints import BEST, FOLDER, KEPT, copy_checkpoints
from trainwire_server.data.prepare import Prepared
from trainwire_server.errors import JobFailure
from trainwire_server.training import checkpoint, fit, schedules
from trainwire_server.training.setup import set_up

pytestmark = pytest.mark.usefixtures("without_onnx")

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Request = training_pb2.TrainingRequest
Events = list[training_pb2.TrainingEvent]
Run = Callable[..., Events]

SCHEDULERS = ["CONSTANT", "COSINE", "COSINE_WARM_RESTARTS", "REDUCE_ON_PLATEAU", "ONE_CYCLE"]
NAME = re.compile(r"\d{6}-[0-9a-f]{64}\.safetensors")


def comparable(events: Events) -> list[bytes]:
    """What equal runs have in common: all but `resumed`, `started`, times and memory."""
    kept = []
    for event in events:
        if event.WhichOneof("event") in ("resumed", "started", "progress"):
            continue
        copy = training_pb2.TrainingEvent()
        copy.CopyFrom(event)
        if copy.HasField("epoch"):
            for name in ("seconds", "windows_per_second", "peak_memory_bytes"):
                copy.epoch.ClearField(name)
        kept.append(copy.SerializeToString(deterministic=True))
    return kept


def kinds(events: Events) -> list[str]:
    """All but the heartbeats of a slow machine."""
    return [str(event.WhichOneof("event")) for event in events if not event.HasField("progress")]


def collect(events: Iterator[training_pb2.TrainingEvent], seen: Events) -> None:
    """Keeps what came before an exception."""
    for event in events:
        seen.append(event)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoints_in(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((folder / FOLDER).glob("*"))


def is_whole(path: Path) -> bool:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.name.endswith(f"-{digest}.safetensors")


@pytest.fixture
def interrupt(tmp_path: Path, make_prepared: MakePrepared) -> Callable[..., Path]:
    """Trains until an epoch is told and goes no further; returns the folder."""

    def _interrupt(request: Request, epoch: int, folder: str = "job") -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        events = fit.train(request, make_prepared(), tmp_path / folder, 1, lambda: False)
        next(event for event in events if event.epoch.epoch == epoch)
        events.close()
        return tmp_path / folder

    return _interrupt


Interrupt = Callable[..., Path]


# ------------------------------------------------------------------------ bit for bit


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_is_the_undisturbed_run(
    scheduler: str,
    done: int,
    run: Run,
    interrupt: Interrupt,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    request = make_request(
        trainer__epochs="5", trainer__scheduler_type=scheduler, trainer__scheduler_t_0="2"
    )
    undisturbed = run(request, folder="undisturbed")
    interrupt(request, done + 1)
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == done
    assert kinds(resumed).count("started") == 0
    assert [e.epoch.epoch for e in resumed if e.HasField("epoch")] == list(range(done + 1, 6))
    first = next(i for i, e in enumerate(undisturbed) if e.epoch.epoch == done)
    assert comparable(resumed) == comparable(undisturbed[first + 1 :])
    assert files_in(tmp_path / "job/bundle") == files_in(tmp_path / "undisturbed/bundle")
    best = [(tmp_path / f / BEST).read_bytes() for f in ("job", "undisturbed")]
    assert best[0] == best[1]


def test_a_run_can_be_disturbed_again_and_again(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="5", trainer__learning_rate="0.1")
    undisturbed = run(request, folder="undisturbed")
    for epoch in (1, 2, 3, 4, 5):
        interrupt(request, epoch)
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == 4
    assert comparable(resumed) == comparable(undisturbed)[-2:]
    assert files_in(tmp_path / "job/bundle") == files_in(tmp_path / "undisturbed/bundle")


def test_a_cancelled_run_can_go_on(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    request = make_request()
    undisturbed = run(request, folder="undisturbed")
    (tmp_path / "job").mkdir()
    seen: Events = []
    folder = tmp_path / "job"
    events = fit.train(request, make_prepared(), folder, 1, lambda: "epoch" in kinds(seen))
    with pytest.raises(fit.Cancelled):
        collect(events, seen)
    assert len(checkpoints_in(tmp_path / "job")) == 1
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == 1
    assert comparable(seen)[:1] + comparable(resumed) == comparable(undisturbed)


def test_early_stopping_counts_on(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(
        trainer__epochs="30",
        trainer__learning_rate="0.1",
        trainer__early_stopping_patience="2",
    )
    undisturbed = run(request, folder="undisturbed")
    result = undisturbed[-1].succeeded
    assert result.stopped_early
    # In the midst of the epochs that are no better than the best one.
    interrupt(request, result.epochs_run)
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == result.epochs_run - 1 > result.best_epoch
    assert kinds(resumed)[-2:] == ["epoch", "succeeded"]
    assert resumed[-1].succeeded == result
    assert files_in(tmp_path / "job/bundle") == files_in(tmp_path / "undisturbed/bundle")


@pytest.mark.parametrize("patience", ["0", "1"])
def test_a_run_lost_after_its_last_epoch_is_only_tested_and_bundled(
    patience: str,
    run: Run,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    request = make_request(
        trainer__epochs="30" if patience != "0" else "3",
        trainer__learning_rate="0.3",
        trainer__early_stopping_patience=patience,
    )
    undisturbed = run(request, folder="undisturbed")
    assert undisturbed[-1].succeeded.stopped_early == (patience != "0")
    folder = tmp_path / "job"
    folder.mkdir()
    events = fit.train(request, make_prepared(), folder, 1, lambda: False)
    assert next(event for event in events if event.HasField("succeeded"))
    events.close()
    # What a process that is gone may have left half done.
    (folder / "bundle" / "model.safetensors").write_bytes(b"half")
    (folder / "bundle" / "more").write_bytes(b"")
    shutil.copytree(folder / "bundle", folder / "bundle.partial")
    resumed = run(request, is_started=True)
    assert kinds(resumed) == ["resumed", "succeeded"]
    assert resumed[-1] == undisturbed[-1]
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")
    assert {path.name for path in folder.iterdir()} == {"bundle", BEST, FOLDER}


def test_collapse_is_not_told_again(
    run: Run, interrupt: Interrupt, make_request: MakeRequest
) -> None:
    request = make_request(trainer__learning_rate="1e-9", trainer__seed="1")
    assert kinds(run(request, folder="undisturbed")).count("warning") == 1
    interrupt(request, 2)
    resumed = run(request, is_started=True)
    assert kinds(resumed) == ["resumed", "epoch", "epoch", "succeeded"]


def test_the_thread_count_of_the_first_process_is_kept(
    interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request()
    folder = interrupt(request, 2)
    events = fit.train(request, make_prepared(), folder, 2, lambda: False, is_started=True)
    assert next(events).resumed.epoch == 1
    assert torch.get_num_threads() == 1
    next(event for event in events if event.epoch.epoch == 3)
    events.close()
    snapshot = checkpoint.Checkpoints(folder, checkpoint.identity(request)).find_newest(9)
    assert snapshot
    assert (snapshot.epoch, snapshot.threads) == (2, 1)


# ------------------------------------------------------------------------ how it begins


def test_a_new_job_that_goes_on_from_a_checkpoint_tells_its_start_first(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request()
    notes = [training_pb2.JobWarning(message=text) for text in ("one", "two")]
    prepared = replace(make_prepared(), warnings=notes)
    undisturbed = run(request, prepared, folder="undisturbed")
    interrupt(request, 2)
    events = run(request, prepared)
    assert kinds(events)[:4] == ["warning", "warning", "started", "resumed"]
    assert events[:3] == undisturbed[:3]
    assert events[3].resumed.epoch == 1
    assert comparable(events[3:]) == comparable(undisturbed[4:])


def test_what_a_job_has_told_it_does_not_tell_again(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    notes = [training_pb2.JobWarning(message="one")]
    events = run(make_request(), replace(make_prepared(), warnings=notes), is_started=True)
    assert kinds(events) == ["resumed", "epoch", "epoch", "epoch", "succeeded"]
    assert events[0].resumed.epoch == 0


# ------------------------------------------------------------------------ draining


def test_a_drained_run_stops_after_an_epoch_and_goes_on_as_if_nothing_was(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    request, prepared = make_request(trainer__epochs="4"), make_prepared()
    undisturbed = run(request, folder="undisturbed")
    folder = tmp_path / "job"
    folder.mkdir()
    seen: Events = []

    def train(is_started: bool) -> None:
        before = kinds(seen).count("epoch")
        draining = lambda: kinds(seen).count("epoch") > before  # noqa: E731
        events = fit.train(
            request, prepared, folder, 1, lambda: False, draining, is_started=is_started
        )
        collect(events, seen)

    for done in (1, 2, 3):
        with pytest.raises(fit.Drained) as caught:
            train(is_started=done > 1)
        assert caught.value.epochs_run == done
        newest = checkpoints_in(folder)[-1]
        assert newest.name.startswith(f"00000{done}-")
        assert is_whole(newest)
    # The last epoch was done: what is left is finished, whoever waits.
    train(is_started=True)
    assert comparable(seen) == comparable(undisturbed)
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")


def test_a_run_that_is_drained_before_its_first_epoch_stops_at_once(
    make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    seen: Events = []
    run = fit.train(make_request(), make_prepared(), tmp_path, 1, lambda: False, lambda: True)
    with pytest.raises(fit.Drained):
        collect(run, seen)
    assert kinds(seen) == ["started"]


def test_a_drained_run_has_its_checkpoint_on_disk_however_slow_that_is(
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked = threading.Event()
    fsync = os.fsync

    def sync_after_the_question(handle: int) -> None:
        assert asked.wait(30)
        fsync(handle)

    seen: Events = []

    def draining() -> bool:
        if "epoch" not in kinds(seen):
            return False
        assert not checkpoints_in(tmp_path)
        asked.set()
        return True

    monkeypatch.setattr(os, "fsync", sync_after_the_question)
    events = fit.train(make_request(), make_prepared(), tmp_path, 1, lambda: False, draining)
    with pytest.raises(fit.Drained):
        collect(events, seen)
    assert [is_whole(path) for path in checkpoints_in(tmp_path)] == [True]


def test_a_run_that_has_stopped_early_is_not_drained(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    request = make_request(
        trainer__epochs="30", trainer__learning_rate="0.3", trainer__early_stopping_patience="1"
    )
    last = run(request, folder="undisturbed")[-1].succeeded.epochs_run
    assert last < 30
    seen: Events = []
    folder = tmp_path / "job"
    folder.mkdir()

    def draining() -> bool:
        return seen[-1].epoch.epoch == last

    # What is left then is the test and the bundle.
    collect(fit.train(request, make_prepared(), folder, 1, lambda: False, draining), seen)
    assert kinds(seen)[-2:] == ["epoch", "succeeded"]


# ------------------------------------------------------------------------ other epochs


@pytest.fixture
def finish_but_keep(tmp_path: Path, make_prepared: MakePrepared) -> Callable[[Request], Path]:
    """Trains to the end, but so that the checkpoints stay; returns the folder."""

    def _finish(request: Request) -> Path:
        folder = tmp_path / "short"
        folder.mkdir()
        events = fit.train(request, make_prepared(), folder, 1, lambda: False)
        assert next(event for event in events if event.HasField("succeeded"))
        events.close()
        return folder

    return _finish


Finish = Callable[[Request], Path]


@pytest.mark.parametrize("scheduler", ["CONSTANT", "COSINE_WARM_RESTARTS", "REDUCE_ON_PLATEAU"])
def test_more_epochs_are_those_of_a_run_that_had_them_from_its_start(
    scheduler: str,
    run: Run,
    finish_but_keep: Finish,
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # So that it does lower the rate, before and after the epochs that are added.
    monkeypatch.setattr(schedules, "PLATEAU_EPOCHS", 2)
    changes = {
        "trainer__scheduler_type": scheduler,
        "trainer__scheduler_t_0": "2",
        "trainer__learning_rate": "0.1",
    }
    longer = make_request(trainer__epochs="8", **changes)
    undisturbed = run(longer, folder="undisturbed")
    source = finish_but_keep(make_request(trainer__epochs="5", **changes))
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    (tmp_path / "job").mkdir()
    assert copy_checkpoints(source, tmp_path / "job", 5) == 5
    resumed = run(longer)
    assert kinds(resumed)[:2] == ["started", "resumed"]
    assert resumed[1].resumed.epoch == 5
    fifth = next(i for i, event in enumerate(undisturbed) if event.epoch.epoch == 5)
    assert comparable(resumed) == comparable(undisturbed[fifth + 1 :])
    assert files_in(tmp_path / "job/bundle") == files_in(tmp_path / "undisturbed/bundle")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("scheduler", ["COSINE", "ONE_CYCLE"])
def test_a_schedule_over_all_epochs_becomes_that_of_the_new_number(
    scheduler: str,
    run: Run,
    finish_but_keep: Finish,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    changes = {"trainer__scheduler_type": scheduler}
    longer = make_request(trainer__epochs="8", **changes)
    rates = [e.epoch.learning_rate for e in run(longer, folder="other") if e.HasField("epoch")]
    source = finish_but_keep(make_request(trainer__epochs="5", **changes))
    (tmp_path / "job").mkdir()
    copy_checkpoints(source, tmp_path / "job", 5)
    resumed = [event.epoch for event in run(longer) if event.HasField("epoch")]
    assert [epoch.learning_rate for epoch in resumed] == rates[5:]


def test_no_more_epochs_are_only_tested_and_bundled(
    run: Run, finish_but_keep: Finish, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="4", trainer__scheduler_type="ONE_CYCLE")
    source = finish_but_keep(make_request(trainer__epochs="5", trainer__scheduler_type="ONE_CYCLE"))
    (tmp_path / "job").mkdir()
    # Of the two checkpoints the one that is not beyond the end.
    assert copy_checkpoints(source, tmp_path / "job", 5) == 5
    resumed = run(request)
    assert kinds(resumed) == ["started", "resumed", "succeeded"]
    assert resumed[1].resumed.epoch == resumed[2].succeeded.epochs_run == 4
    assert not resumed[2].succeeded.stopped_early


def test_the_identity_is_the_request_without_its_epochs_and_names(
    make_request: MakeRequest,
) -> None:
    plain = checkpoint.identity(make_request())
    assert plain == checkpoint.identity(
        make_request(trainer__epochs="150", request_id="a", display_name="b", labels__c="d")
    )
    for change in ("trainer__batch_size=31", "trainer__seed=1", "model__dropout=0.2"):
        path, _, value = change.partition("=")
        assert checkpoint.identity(make_request(**{path: value})) != plain


# ------------------------------------------------------------------------ which checkpoint


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, empty])
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], None],
    run: Run,
    interrupt: Interrupt,
    make_request: MakeRequest,
    tmp_path: Path,
) -> None:
    request = make_request(trainer__epochs="5")
    undisturbed = run(request, folder="undisturbed")
    folder = interrupt(request, 4)
    damage(checkpoints_in(folder)[-1])
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == 2
    assert comparable(resumed) == comparable(undisturbed)[2:]
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")


def test_without_a_whole_checkpoint_it_begins_again(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="4")
    undisturbed = run(request, folder="undisturbed")
    folder = interrupt(request, 3)
    for path in checkpoints_in(folder):
        flip_a_bit(path)
    again = run(request, is_started=True)
    assert again[0].resumed.epoch == 0
    assert kinds(again) == ["resumed", *kinds(undisturbed)[1:]]
    assert comparable(again) == comparable(undisturbed)
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")


def test_a_checkpoint_of_another_request_is_passed_over_and_goes(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="5")
    undisturbed = run(request, folder="undisturbed")
    other = interrupt(make_request(trainer__epochs="5", trainer__seed="7"), 5, "other")
    folder = interrupt(request, 3)
    foreign = shutil.copy(checkpoints_in(other)[-1], folder / FOLDER)
    assert checkpoints_in(folder)[-1] == Path(foreign)
    interrupt(request, 4)
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000002", "000003"]
    shutil.copy(checkpoints_in(other)[-1], folder / FOLDER)
    resumed = run(request, is_started=True)
    assert resumed[0].resumed.epoch == 3
    assert comparable(resumed) == comparable(undisturbed)[3:]


def test_it_goes_on_from_no_later_epoch_than_the_caller_knows(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__epochs="5")
    undisturbed = run(request, folder="undisturbed")
    folder = interrupt(request, 4)

    def resume(last_epoch: int) -> Events:
        copy = shutil.copytree(folder, folder.with_name(f"known-{last_epoch}"))
        events = fit.train(
            request, make_prepared(), copy, 1, lambda: False, last_epoch=last_epoch, is_started=True
        )
        return list(events)

    for known, done in ((5, 3), (3, 3), (2, 2)):
        resumed = resume(known)
        assert resumed[0].resumed.epoch == done
        assert comparable(resumed) == comparable(undisturbed)[done:]
    again = resume(1)
    assert again[0].resumed.epoch == 0
    assert kinds(again)[1:] == kinds(undisturbed)[1:]


# ------------------------------------------------------------------------ what is on disk


def test_two_checkpoints_stay(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__epochs="5")
    folder = interrupt(request, 5)
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000003", "000004"]
    assert all(is_whole(path) for path in checkpoints_in(folder))
    (folder / FOLDER / "000004-0.safetensors.partial").write_bytes(b"half")
    # After success too: until that is recorded, the run may have to be had again.
    for _ in range(2):
        assert run(request)[-1].HasField("succeeded")
        assert [path.name[:6] for path in checkpoints_in(folder)] == ["000004", "000005"]
        assert {path.name for path in folder.iterdir()} == {"bundle", BEST, FOLDER}


def test_a_reader_sees_whole_files_at_any_moment(
    interrupt: Interrupt, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # At each call to the disk, what a crash right there would leave.
    moments: list[tuple[int, int, list[bool]]] = []
    in_training_thread: list[bool] = []
    fsync = os.fsync

    def look_and_sync(handle: int) -> None:
        paths = checkpoints_in(tmp_path / "job")
        named = [path for path in paths if NAME.fullmatch(path.name)]
        moments.append((len(paths), len(named), [is_whole(path) for path in named]))
        in_training_thread.append(threading.current_thread() is threading.main_thread())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look_and_sync)
    interrupt(make_request(trainer__epochs="5"), 5)
    assert all(all(whole) for _, _, whole in moments)
    assert max(named for _, named, _ in moments) == KEPT + 1
    # From the first checkpoint on, there is always one to go on from.
    counts = [named for _, named, _ in moments]
    assert all(count > 0 for count in counts[counts.index(1) :])
    assert any(paths > named for paths, named, _ in moments)
    assert not any(in_training_thread)


def test_a_snapshot_does_not_follow_the_training(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__scheduler_type="ONE_CYCLE")
    setup, progress = set_up(request, make_prepared(), 1), checkpoint.Progress(8, epoch=1)

    def train_one_batch() -> None:
        torch.autograd.backward(setup.model(setup.windows[setup.train.starts[:8]]).square().sum())
        setup.optimizer.step()
        setup.schedule.after_batch()

    train_one_batch()
    taken = checkpoint.take(setup, progress, "digest")
    tensors = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    state = repr(taken.state)
    train_one_batch()
    assert repr(taken.state) == state
    assert all(torch.equal(taken.tensors[name], tensors[name]) for name in tensors)
    later = checkpoint.take(setup, progress, "digest")
    assert repr(later.state) != state
    assert not any(torch.equal(later.tensors[n], tensors[n]) for n in tensors if "exp_avg" in n)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(
    make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    request, prepared = make_request(), make_prepared()
    seen: Events = []

    def spoil() -> bool:
        if kinds(seen)[-2:] == ["epoch", "epoch"]:
            # The run's matrix is a view of it.
            prepared.features[::7] = np.inf
        return False

    with pytest.raises(JobFailure) as caught:
        collect(fit.train(request, prepared, tmp_path, 1, spoil), seen)
    assert caught.value.reason == training_pb2.FAILURE_REASON_NON_FINITE_LOSS
    assert "epoch 3" in caught.value.message
    assert kinds(seen) == ["started", "epoch", "epoch"]
    assert [path.name[:6] for path in checkpoints_in(tmp_path)] == ["000001", "000002"]
    assert all(is_whole(path) for path in checkpoints_in(tmp_path))
    best = safetensors.torch.load_file(tmp_path / BEST)
    assert all(torch.isfinite(tensor).all() for tensor in best.values())
    found = checkpoint.Checkpoints(tmp_path, checkpoint.identity(request)).find_newest(9)
    assert found
    assert found.epoch == 2
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())

"""Going on from a checkpoint: as if nothing had happened, whatever happened."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training import checkpoint, fit
from trainwire_server.training.setup import set_up

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
    return [str(event.WhichOneof("event")) for event in events]


def collect(events: Iterator[training_pb2.TrainingEvent], seen: Events) -> None:
    """Keeps what came before an exception."""
    for event in events:
        seen.append(event)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoints_in(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((folder / checkpoint.FOLDER).glob("*"))


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
    resumed = run(request)
    assert resumed[0].resumed.epoch == done
    assert kinds(resumed).count("started") == 0
    assert [e.epoch.epoch for e in resumed if e.HasField("epoch")] == list(range(done + 1, 6))
    first = next(i for i, e in enumerate(undisturbed) if e.epoch.epoch == done)
    assert comparable(resumed) == comparable(undisturbed[first + 1 :])
    assert files_in(tmp_path / "job/bundle") == files_in(tmp_path / "undisturbed/bundle")
    best = [(tmp_path / f / checkpoint.BEST).read_bytes() for f in ("job", "undisturbed")]
    assert best[0] == best[1]


def test_a_run_can_be_disturbed_again_and_again(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="5", trainer__learning_rate="0.1")
    undisturbed = run(request, folder="undisturbed")
    for epoch in (1, 2, 3, 4, 5):
        interrupt(request, epoch)
    resumed = run(request)
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
    resumed = run(request)
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
    resumed = run(request)
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
    resumed = run(request)
    assert kinds(resumed) == ["resumed", "succeeded"]
    assert resumed[-1] == undisturbed[-1]
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")
    assert {path.name for path in folder.iterdir()} == {"bundle", checkpoint.BEST}


def test_collapse_is_not_told_again(
    run: Run, interrupt: Interrupt, make_request: MakeRequest
) -> None:
    request = make_request(trainer__learning_rate="1e-9", trainer__seed="1")
    assert kinds(run(request, folder="undisturbed")).count("warning") == 1
    interrupt(request, 2)
    assert kinds(run(request)) == ["resumed", "epoch", "epoch", "succeeded"]


def test_the_thread_count_of_the_first_process_is_kept(
    interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request()
    folder = interrupt(request, 2)
    events = fit.train(request, make_prepared(), folder, 2, lambda: False)
    assert next(events).resumed.epoch == 1
    assert torch.get_num_threads() == 1
    next(event for event in events if event.epoch.epoch == 3)
    events.close()
    snapshot = checkpoint.Checkpoints(folder, contract.request_digest(request)).find_newest()
    assert snapshot
    assert (snapshot.epoch, snapshot.threads) == (2, 1)


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
    resumed = run(request)
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
    again = run(request)
    assert kinds(again) == kinds(undisturbed)
    assert comparable(again) == comparable(undisturbed)
    assert files_in(folder / "bundle") == files_in(tmp_path / "undisturbed/bundle")


def test_a_checkpoint_of_another_request_is_passed_over_and_goes(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(trainer__epochs="5")
    undisturbed = run(request, folder="undisturbed")
    other = interrupt(make_request(trainer__epochs="5", trainer__seed="7"), 5, "other")
    folder = interrupt(request, 3)
    foreign = shutil.copy(checkpoints_in(other)[-1], folder / checkpoint.FOLDER)
    assert checkpoints_in(folder)[-1] == Path(foreign)
    interrupt(request, 4)
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000002", "000003"]
    shutil.copy(checkpoints_in(other)[-1], folder / checkpoint.FOLDER)
    resumed = run(request)
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
        return list(fit.train(request, make_prepared(), copy, 1, lambda: False, last_epoch))

    for known, done in ((5, 3), (3, 3), (2, 2)):
        resumed = resume(known)
        assert resumed[0].resumed.epoch == done
        assert comparable(resumed) == comparable(undisturbed)[done:]
    assert kinds(resume(1)) == kinds(undisturbed)


# ------------------------------------------------------------------------ what is on disk


def test_two_checkpoints_stay_while_it_trains_and_none_after_it(
    run: Run, interrupt: Interrupt, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__epochs="5")
    folder = interrupt(request, 5)
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000003", "000004"]
    assert all(is_whole(path) for path in checkpoints_in(folder))
    (folder / checkpoint.FOLDER / "000004-0.safetensors.partial").write_bytes(b"half")
    events = fit.train(request, make_prepared(), folder, 1, lambda: False)
    next(event for event in events if event.HasField("succeeded"))
    events.close()
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000004", "000005"]
    run(request)
    assert {path.name for path in folder.iterdir()} == {"bundle", checkpoint.BEST}


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
    assert max(named for _, named, _ in moments) == checkpoint.KEPT + 1
    # From the first checkpoint on, there is always one to go on from.
    counts = [named for _, named, _ in moments]
    assert all(count > 0 for count in counts[counts.index(1) :])
    assert any(paths > named for paths, named, _ in moments)
    assert not any(in_training_thread)


def test_a_disk_that_refuses_to_write_does_not_end_the_training(
    interrupt: Interrupt,
    run: Run,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
    tmp_path: Path,
) -> None:
    request = make_request(trainer__epochs="5")
    undisturbed = run(request, folder="undisturbed")
    folder = tmp_path / "job"
    folder.mkdir()
    # A file where the folder should go.
    (folder / checkpoint.FOLDER).write_bytes(b"")
    seen: Events = []
    events = fit.train(request, make_prepared(), folder, 1, lambda: False)
    for event in events:
        seen.append(event)
        if event.epoch.epoch == 3:
            (folder / checkpoint.FOLDER).unlink()
        if event.epoch.epoch == 5:
            break
    events.close()
    assert [path.name[:6] for path in checkpoints_in(folder)] == ["000003", "000004"]
    assert comparable(seen) == comparable(undisturbed)[:-1]


def test_a_snapshot_does_not_follow_the_training(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    request = make_request(trainer__scheduler_type="ONE_CYCLE")
    setup, progress = set_up(request, make_prepared(), 1), checkpoint.Progress(epoch=1)

    def train_one_batch() -> None:
        torch.autograd.backward(setup.model(setup.windows[setup.train.starts[:8]]).square().sum())
        setup.optimizer.step()
        setup.schedule.after_batch()

    train_one_batch()
    taken = checkpoint.take(setup, progress, "digest", 1)
    tensors = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    state = repr(taken.state)
    train_one_batch()
    assert repr(taken.state) == state
    assert all(torch.equal(taken.tensors[name], tensors[name]) for name in tensors)
    later = checkpoint.take(setup, progress, "digest", 1)
    assert repr(later.state) != state
    assert not any(torch.equal(later.tensors[n], tensors[n]) for n in tensors if "exp_avg" in n)

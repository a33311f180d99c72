"""Checkpoint files: which ones there are, whether they are whole, links to them in another job."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainwire_server.data import checkpoints
from trainwire_server.data.checkpoints import BEST, FOLDER, copy_checkpoints, find_files, verify

Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """A job's folder with whole checkpoints of these epochs and the best weights."""

    def _keep(*epochs: int) -> Path:
        source = tmp_path / "source"
        (source / FOLDER).mkdir(parents=True)
        for epoch in epochs:
            data = f"epoch {epoch}".encode()
            name = checkpoints.name_file(epoch, hashlib.sha256(data).hexdigest())
            (source / FOLDER / name).write_bytes(data)
        (source / BEST).write_bytes(b"best")
        return source

    return _keep


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and inode of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_ino) for p in files}


def epochs_in(folder: Path) -> list[int]:
    return [file.epoch for file in find_files(folder)]


def damage(folder: Path, epoch: int) -> None:
    path = next(file.path for file in find_files(folder) if file.epoch == epoch)
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_the_newest_comes_first_and_what_is_no_checkpoint_is_left_out(keep: Keep) -> None:
    folder = keep(9, 11, 10)
    for name in ("000012-0.safetensors", "000012.partial", "x", f"000012-{'0' * 64}.safetensors.p"):
        (folder / FOLDER / name).touch()
    assert epochs_in(folder) == [11, 10, 9]
    assert all(verify(file.path) for file in find_files(folder))


def test_a_job_without_checkpoints_has_none(tmp_path: Path, target: Path) -> None:
    assert find_files(tmp_path / "nowhere") == []
    assert copy_checkpoints(tmp_path / "nowhere", target, 9) == 0
    assert tree(target) == {}


def test_a_damaged_a_missing_and_a_nameless_file_are_not_whole(keep: Keep) -> None:
    folder = keep(1, 2)
    damage(folder, 2)
    assert [verify(file.path) for file in find_files(folder)] == [False, True]
    assert not verify(folder / FOLDER / "gone")
    assert not verify(folder / BEST)


def test_the_newest_two_and_the_best_weights_are_shared_not_copied(
    keep: Keep, target: Path
) -> None:
    source = keep(1, 2, 3)
    before = tree(source)
    assert copy_checkpoints(source, target, 3) == 3
    assert epochs_in(target) == [3, 2]
    assert tree(source) == before
    assert set(tree(target).items()) <= set(before.items())
    assert BEST in tree(target)


@pytest.mark.parametrize(
    ("last_epoch", "damaged", "linked"),
    [(9, [], [4, 3]), (3, [], [3, 2]), (4, [4], [3, 2]), (4, [3], [4, 2]), (3, [3, 2], [1])],
)
def test_damaged_and_later_ones_are_passed_over(
    last_epoch: int, damaged: list[int], linked: list[int], keep: Keep, target: Path
) -> None:
    source = keep(1, 2, 3, 4)
    for epoch in damaged:
        damage(source, epoch)
    assert copy_checkpoints(source, target, last_epoch) == linked[0]
    assert epochs_in(target) == linked


def test_without_a_whole_one_nothing_is_linked(keep: Keep, target: Path) -> None:
    source = keep(2, 3)
    damage(source, 2)
    assert copy_checkpoints(source, target, 2) == 0
    assert copy_checkpoints(source, target, 1) == 0
    assert tree(target) == {}


def test_what_a_lost_process_left_is_replaced(keep: Keep, target: Path) -> None:
    source = keep(1, 2)
    (target / FOLDER).mkdir()
    (target / FOLDER / find_files(source)[0].path.name).write_bytes(b"half")
    (target / BEST).write_bytes(b"half")
    for _ in range(2):
        assert copy_checkpoints(source, target, 2) == 2
        assert tree(target) == tree(source)


def test_a_job_without_best_weights_yet_gives_none(keep: Keep, target: Path) -> None:
    source = keep(1)
    (source / BEST).unlink()
    assert copy_checkpoints(source, target, 1) == 1
    assert not (target / BEST).exists()


def test_files_and_folders_are_synced_before_it_returns(
    keep: Keep, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def note_and_sync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((path.name, sorted(each.name for each in path.iterdir())))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    copy_checkpoints(keep(1), target, 1)
    names = [file.path.name for file in find_files(target)]
    assert synced[:2] == [(FOLDER, names), ("target", [BEST, FOLDER])]
    # And the job's folder itself, which is as new.
    assert synced[2:] == [(tmp_path.name, ["source", "target"])]


def test_on_another_file_system_they_are_copied(keep: Keep, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.exists() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    target = other / f"trainwire-{os.getpid()}"
    target.mkdir()
    try:
        source = keep(1, 2)
        assert copy_checkpoints(source, target, 2) == 2
        contents = {name: data for name, (data, _) in tree(source).items()}
        assert {name: data for name, (data, _) in tree(target).items()} == contents
    finally:
        subprocess.run(["rm", "-r", str(target)], check=True)


def test_other_errors_are_not_taken_for_a_disk_without_links(
    keep: Keep, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        copy_checkpoints(keep(1), target, 1)


def test_it_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, trainwire_server.data.checkpoints;"
        "sys.exit(bool({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SAVE = """
import sys
from pathlib import Path
import torch
from trainwire_server.execution.worker import _limit_memory
from trainwire_server.training.checkpoint import save_weights

weights = {"a": torch.ones(2**25)}  # 128 MiB
for mebibytes in (320, 224, 160, 96, 8):
    _limit_memory(mebibytes * 2**20)
    path = Path(sys.argv[1], str(mebibytes))
    try:
        save_weights(weights, path)
    except MemoryError:
        pass
    print(path.exists())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA")
def test_weights_without_memory_to_write_them_are_an_error_that_can_be_told(tmp_path: Path) -> None:
    """Not a panic and not the end of the process, both of which safetensors knows."""
    command = [sys.executable, "-c", SAVE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split("\n") == ["True", *["False"] * 4, ""], done.stderr

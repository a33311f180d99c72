"""The power goes: of the database there is what was synced, and everything acknowledged is in it.

A library preloaded into the server keeps a copy of the database's files as they were at their last
sync. What was written after that is lost, or only some of it reaches the disk.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Server
from tests.faults.conftest import IS_FULL, Work
from tests.faults.failing_server import PROGRAM, environment
from tests.faults.recorder import Recorder, problems

from trainwire.v1 import training_pb2

COMPILER = shutil.which("cc")
SHIM = Path(__file__).with_name("synced.c")
DATABASE = ("trainwire.db", "trainwire.db-wal")
SECTOR = 512
LOSSES = 10 if IS_FULL else 2

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, to see what is synced"),
]


@dataclass
class Disk:
    """A data directory, and what of it would be there after a power loss.

    Attributes:
        data_dir: as the server sees it.
        copies: the database as of its last sync.
        trace: what was synced, renamed and made, in order.
    """

    library: Path
    data_dir: Path
    copies: Path
    trace: Path

    @classmethod
    def make(cls, library: Path, data_dir: Path) -> Disk:
        """A disk on which all that is there is there to stay."""
        copies = data_dir.with_name(f"{data_dir.name}-synced")
        copies.mkdir()
        for name in DATABASE:
            if (data_dir / name).exists():
                shutil.copy(data_dir / name, copies)
        return cls(library, data_dir, copies, data_dir.with_name(f"{data_dir.name}-trace"))

    @property
    def variables(self) -> dict[str, str]:
        """What a server needs to keep the copies."""
        return {
            "LD_PRELOAD": str(self.library),
            "SYNCED_ROOT": str(self.data_dir),
            "SYNCED_TRACE": str(self.trace),
            "SYNCED_COPIES": str(self.copies),
        }

    def after_power_loss(self, data_dir: Path, chance: random.Random | None = None) -> Disk:
        """What is left, as another disk; with `chance`, some of what was not synced is left too."""
        shutil.copytree(self.data_dir, data_dir, ignore=shutil.ignore_patterns("trainwire.db*"))
        for name in DATABASE:
            synced, written = self.copies / name, self.data_dir / name
            if synced.exists():
                old, new = synced.read_bytes(), written.read_bytes() if written.exists() else b""
                left = mixed(old, new, chance) if chance and new else old
                (data_dir / name).write_bytes(left)
        return Disk.make(self.library, data_dir)

    def steps(self) -> list[tuple[str, Path, Path]]:
        """The trace."""
        lines = (line.split("\t") for line in self.trace.read_text().splitlines())
        return [(what, Path(first), Path(second)) for what, first, second in lines]


def mixed(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """A file of which each sector that was written since the sync is there or is not."""
    length = max(len(old), len(new))
    before, after = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    sectors = [
        (chance.choice([before, after]))[start : start + SECTOR]
        for start in range(0, length, SECTOR)
    ]
    return b"".join(sectors)[: chance.choice([len(old), len(new)])]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    target = tmp_path_factory.mktemp("shim") / "synced.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(target), str(SHIM), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return target


@pytest.fixture
def disk(library: Path, work: Work, tmp_path: Path) -> Disk:
    return Disk.make(library, work.copy_to(tmp_path / "disk"))


Start = Callable[..., Server]


@pytest.mark.parametrize("leaves", ["nothing", "some"])
def test_a_power_loss_loses_nothing_that_a_client_was_told(
    leaves: str,
    start_server: Start,
    disk: Disk,
    work: Work,
    chance: random.Random,
    tmp_path: Path,
) -> None:
    requests = [work.named(1), work.named(2)]
    expected = sum(len(epochs) for epochs in work.epochs) * len(requests)
    server = start_server(data_dir=disk.data_dir, environment=disk.variables)
    with Recorder(server.address) as recorder:
        recorder.submit_all(*requests)
        for loss, epochs in enumerate(sorted(chance.sample(range(1, expected), LOSSES))):
            assert recorder.wait_for_epochs(epochs)
            server.kill()
            torn = chance if leaves == "some" else None
            disk = disk.after_power_loss(tmp_path / f"disk-{loss}", torn)
            server = start_server(
                data_dir=disk.data_dir, environment=disk.variables, listen=server.address
            )
        history = recorder.finish()
        assert problems(history) == []
        assert {job.state for job in history.found.values()} == {training_pb2.JOB_STATE_SUCCEEDED}
        for job in history.found.values():
            assert work.differences(recorder.client, job, tmp_path) == []


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_server_that_does_not_sync_each_commit_loses_jobs(
    synchronous: str, start_server: Start, disk: Disk, work: Work, tmp_path: Path
) -> None:
    """What the test above would see, were it so."""
    variables = environment(synchronous=synchronous) | disk.variables
    server = start_server(data_dir=disk.data_dir, program=PROGRAM, environment=variables)
    with server.client() as client:
        jobs = [client.submit(request).name for request in work.named(1)]
        assert sorted(job.name for job in client.list()) == sorted(jobs)
    server.kill()
    left = disk.after_power_loss(tmp_path / "left")
    with start_server(data_dir=left.data_dir).client() as client:
        assert list(client.list()) == []


# ------------------------------------------------------------------------ files


def unsynced(steps: list[tuple[str, Path, Path]], path: Path, root: Path) -> list[str]:
    """What could be missing of a file after these steps: its bytes, or the way to it."""
    last_sync: dict[Path, int] = {}
    changed: dict[Path, int] = {}
    for number, (what, first, second) in enumerate(steps):
        if what == "sync":
            last_sync[first] = number
        elif what == "mkdir":
            changed[first] = number
        else:
            moved = {p: n for p, n in last_sync.items() if p == first or first in p.parents}
            last_sync |= {second / p.relative_to(first): n for p, n in moved.items()}
            changed[second] = number
    found = [] if path in last_sync else [f"the bytes of {path.name}"]
    for entry in (path, *path.parents):
        if entry == root:
            break
        # A file is made before it is synced; a folder of which no step speaks was always there.
        since = changed.get(entry, last_sync.get(path, -1) if entry == path else -1)
        if last_sync.get(entry.parent, -1) < since:
            found.append(f"{entry.name} in {entry.parent}")
    return found


def test_files_are_on_the_disk_before_the_database_speaks_of_them(
    start_server: Start, disk: Disk, work: Work, columns: Callable[..., Any], tmp_path: Path
) -> None:
    server = start_server(data_dir=disk.data_dir, environment=disk.variables)
    with server.client() as client:
        dataset = client.upload(columns(seed=1))
        request = work.named(1)[0]
        request.dataset = dataset.name
        job = client.wait(client.submit(request))
    server.kill()
    steps = disk.steps()
    for name in (dataset.name, job.model):
        folder = disk.data_dir / name
        moved = next(i for i, step in enumerate(steps) if step[0] == "rename" and step[2] == folder)
        committed = next_commit(steps, moved)
        files = sorted(folder.iterdir())
        assert len(files) > 1
        assert [
            problem
            for file in files
            for problem in unsynced(steps[:committed], file, disk.data_dir)
        ] == []


def next_commit(steps: list[tuple[str, Path, Path]], after: int) -> int:
    """Where the first commit after a step becomes certain."""
    log = (i for i, step in enumerate(steps) if step[0] == "sync" and step[1].name == DATABASE[1])
    return next(i for i in log if i > after)


def test_a_checkpoint_is_on_the_disk_before_it_replaces_another(
    start_server: Start, disk: Disk, work: Work
) -> None:
    server = start_server(data_dir=disk.data_dir, environment=disk.variables)
    with server.client() as client:
        job = client.wait(client.submit(work.named(1)[0]))
    server.kill()
    steps = disk.steps()
    folder = disk.data_dir / job.name / "checkpoints"
    written = [
        i for i, (what, _, to) in enumerate(steps) if what == "rename" and to.parent == folder
    ]
    assert len(written) == job.progress.epoch
    for place, following in zip(written, [*written[1:], len(steps)], strict=True):
        assert unsynced(steps[:following], steps[place][2], disk.data_dir) == []


def test_the_check_of_files_finds_what_is_missing(tmp_path: Path) -> None:
    folder, file = tmp_path / "f", tmp_path / "f" / "x"
    nowhere = Path()
    made = ("mkdir", folder, nowhere)
    steps = [made, ("sync", tmp_path, nowhere), ("sync", file, nowhere), ("sync", folder, nowhere)]
    assert unsynced(steps, file, tmp_path) == []
    assert unsynced(steps[:2], file, tmp_path) == ["the bytes of x"]
    assert unsynced(steps[:3], file, tmp_path) == [f"x in {folder}"]
    assert unsynced([made, *steps[2:]], file, tmp_path) == [f"f in {tmp_path}"]
    moved = [*steps, ("rename", folder, tmp_path / "g")]
    assert unsynced(moved, tmp_path / "g" / "x", tmp_path) == [f"g in {tmp_path}"]

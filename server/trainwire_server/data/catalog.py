"""Where datasets, jobs and models lie on disk. Light: no Arrow, no NumPy.

```
datasets/<id>/source   the bytes as received
datasets/<id>/table    one contiguous Arrow file made from them
jobs/<id>/             what a training process leaves behind
models/<id>/           bundles
uploads/               uploads under way; emptied at start
```
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainwire_server.data.checkpoints import FOLDER
from trainwire_server.data.durable import (
    begin_sync,
    not_through_links,
    refuse_links,
    refusing_when_full,
    sync_folder,
)
from trainwire_server.data.folder_sizes import FolderSizes, files_below
from trainwire_server.errors import BrokenUpload


class DataDirectoryInUse(Exception):
    """Another server works on the data directory."""


_KINDS = ("datasets", "jobs", "models")
_BEGUN_AT_ONCE = 8 * 2**20
"""Bytes of an upload after which the disk gets to work on them."""


class Catalog:
    """The data directory of one server; only one process can have it open.

    What stores something raises StorageFull when there is no room, and may be called again.
    The server makes no symbolic links here. What has become one is not followed: it is removed as a
    link, and whatever would read or write through it raises SymbolicLink.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        refuse_links(*(root / name for name in (*_KINDS, "uploads")))
        for name in _KINDS:
            (root / name).mkdir(parents=True, exist_ok=True)
        self._lock = open(root / "lock", "w", opener=not_through_links)  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataDirectoryInUse(f"another server uses {root}") from None
        self._refuse_lost_database()
        shutil.rmtree(root / "uploads", ignore_errors=True)
        (root / "uploads").mkdir()
        self._sizes = FolderSizes(root)
        self.measure()

    def _refuse_lost_database(self) -> None:
        """An empty database would be a fresh start, after which all that lies here is nobody's."""
        if self.database.exists() and self.database.stat().st_size:
            return
        found = next((f"{kind}/{path.name}" for kind, path in self._folders()), None)
        if found:
            self._lock.close()
            raise FileNotFoundError(
                f"{self.database.name} is missing or empty, but there is {found}; restore the "
                "database from a backup, or move the data directory away to begin with an empty one"
            )

    def close(self) -> None:
        """Let another server have the data directory."""
        self._lock.close()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "trainwire.db"

    def table(self, dataset: str) -> Path:
        """The Arrow file of a dataset, by resource name."""
        table = self._folder(dataset) / "table"
        refuse_links(table)
        return table

    def job_folder(self, job: str) -> Path:
        """The folder of a job, by resource name; made if it is not there."""
        folder = self._folder(job)
        with refusing_when_full("the job's folder"):
            folder.mkdir(exist_ok=True)
        return folder

    def model_folder(self, model: str) -> Path:
        """The folder of a model, by resource name."""
        return self._folder(model)

    def _folder(self, name: str) -> Path:
        """Where to read and write what belongs to a resource."""
        folder = self._entry(name)
        refuse_links(folder.parent, folder)
        return folder

    def _entry(self, name: str) -> Path:
        """The same, for what does neither."""
        kind, _, identity = name.partition("/")
        # Of what a caller names, the database has been asked before; this is for whoever forgets.
        if kind not in _KINDS or "/" in identity or identity in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name of a resource")
        return self.root / kind / identity

    # -------------------------------------------------------------------- uploads and bundles

    def begin_upload(self, size_bytes: int, sha256: str) -> Upload:
        """A place for the bytes of a dataset on their way in."""
        refuse_links(self.root / "uploads")
        with refusing_when_full("the dataset"):
            folder = Path(tempfile.mkdtemp(dir=self.root / "uploads"))
            try:
                return Upload(folder, size_bytes, sha256)
            except OSError:
                folder.rmdir()
                raise

    def keep_upload(self, upload: Upload, dataset: str) -> None:
        """Move a finished upload to its place; a folder that no record speaks of is replaced."""
        with refusing_when_full("the dataset"):
            self._move(upload.folder, dataset)

    def keep_bundle(self, job: str, model: str) -> None:
        """Move the bundle a training process left to its place among the models."""
        with refusing_when_full("the model"):
            self._move(self._folder(job) / "bundle", model)
        self._sizes.measure(job)

    def tidy(self, job: str) -> None:
        """Remove what a training process that did not end by itself was writing."""
        folder = self._folder(job)
        for path in (*folder.glob("bundle*"), *folder.rglob("*.partial")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._sizes.measure(job)

    def drop_checkpoints(self, job: str) -> None:
        """Remove the checkpoints of a job that has succeeded."""
        shutil.rmtree(self._folder(job) / FOLDER, ignore_errors=True)
        self._sizes.measure(job)

    def _move(self, source: Path, name: str) -> None:
        target = self._entry(name)
        # Not there: moved by a call before, that failed after it.
        if source.exists():
            # Left by a server that was stopped between a move and the record of it.
            self.remove(name)
            source.rename(target)
        refuse_links(target)
        sync_folder(target)
        sync_folder(target.parent)
        self._sizes.measure(name)

    # -------------------------------------------------------------------- room and age

    def remove(self, name: str) -> None:
        """Remove the folder of a resource, if it has one: at once for everybody else."""
        # Renamed to a name, not into a new folder: for that a full disk may have no room.
        rubbish = self.root / "uploads" / f"removed-{secrets.token_hex(8)}"
        refuse_links(rubbish.parent, self._entry(name).parent)
        with contextlib.suppress(FileNotFoundError):
            self._entry(name).rename(rubbish)
        self._sizes.measure(name)
        if rubbish.is_symlink():
            rubbish.unlink()
        shutil.rmtree(rubbish, ignore_errors=True)

    def stored_bytes(self) -> int:
        """Bytes of datasets, jobs and models, as they are known; see `measure`."""
        return self._sizes.total

    def measure(self) -> None:
        """Look how many bytes there are: processes write, and people put things here.

        What the server itself stores and removes is known without it.
        """
        self._sizes.measure_all(f"{kind}/{path.name}" for kind, path in self._folders())

    def removable_bytes(self, name: str) -> int:
        """Bytes that go when the folder of a resource goes: files linked elsewhere stay."""
        files = files_below(self._entry(name))
        return sum(file.st_size for file in files if file.st_nlink == 1)

    def measure_folder(self, name: str) -> None:
        """The same for the folder of one resource."""
        self._sizes.measure(name)

    def mark_used(self, dataset: str, time: float) -> None:
        """Note that a dataset was used at a time, in seconds since 1970, or later."""
        with contextlib.suppress(FileNotFoundError):
            if self._entry(dataset).lstat().st_mtime < time:
                os.utime(self._entry(dataset), (time, time), follow_symlinks=False)

    def last_used(self, dataset: str) -> float:
        """When a dataset was used last, in seconds since 1970; 0 if it has no folder."""
        try:
            return self._entry(dataset).lstat().st_mtime
        except FileNotFoundError:
            return 0.0

    def folders_before(self, time: float) -> list[str]:
        """Names of all resources that have a folder not changed since a time."""
        return [f"{kind}/{path.name}" for kind, path in self._folders() if _changed(path) < time]

    def _folders(self) -> Iterator[tuple[str, Path]]:
        for kind in _KINDS:
            for path in (self.root / kind).iterdir():
                yield kind, path


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


class Upload:
    """The bytes of a dataset on their way in: spooled to disk, counted and hashed."""

    def __init__(self, folder: Path, size_bytes: int, sha256: str) -> None:
        self.folder = folder
        self._expected = (size_bytes, sha256)
        self._size = 0
        self._digest = hashlib.sha256()
        self._begun = 0
        self._file: IO[bytes] = self.source.open("wb")

    @property
    def source(self) -> Path:
        """The bytes as received."""
        return self.folder / "source"

    @property
    def table(self) -> Path:
        """Where the Arrow file made from them goes."""
        return self.folder / "table"

    @property
    def kept_bytes(self) -> int:
        """What it takes when it is kept: its bytes and the table."""
        return sum(file.stat().st_size for file in (self.source, self.table))

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._size += len(data)
        if self._size > self._expected[0]:
            raise BrokenUpload(
                f"more bytes than the {self._expected[0]} that header.size_bytes says"
            )
        self._digest.update(data)
        with refusing_when_full("the dataset"):
            self._file.write(data)
        if self._size - self._begun >= _BEGUN_AT_ONCE:
            begin_sync(self._file, self._begun)
            self._begun = self._size

    def finish(self) -> None:
        """Bring the bytes to the disk and compare them with what was announced."""
        size, sha256 = self._expected
        if self._size != size:
            raise BrokenUpload(f"{self._size} bytes came, header.size_bytes says {size}")
        if self._digest.hexdigest() != sha256:
            raise BrokenUpload(
                f"the bytes have SHA-256 {self._digest.hexdigest()}, header.sha256 says {sha256}"
            )
        with refusing_when_full("the dataset"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove what is left of the upload; harmless after it was kept."""
        # It closes all the same when it cannot write what it holds back.
        with contextlib.suppress(OSError):
            self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

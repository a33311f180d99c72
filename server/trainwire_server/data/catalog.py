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
import shutil
import tempfile
from pathlib import Path
from typing import IO

from trainwire_server.data.durable import sync_folder
from trainwire_server.errors import BrokenUpload


class DataDirectoryInUse(Exception):
    """Another server works on the data directory."""


class Catalog:
    """The data directory of one server; only one process can have it open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("datasets", "jobs", "models"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._lock = (root / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataDirectoryInUse(f"another server uses {root}") from None
        shutil.rmtree(root / "uploads", ignore_errors=True)
        (root / "uploads").mkdir()

    def close(self) -> None:
        """Let another server have the data directory."""
        self._lock.close()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "trainwire.db"

    def table(self, dataset: str) -> Path:
        """The Arrow file of a dataset, by resource name."""
        return self._folder(dataset) / "table"

    def job_folder(self, job: str) -> Path:
        """The folder of a job, by resource name; made if it is not there."""
        folder = self._folder(job)
        folder.mkdir(exist_ok=True)
        return folder

    def model_folder(self, model: str) -> Path:
        """The folder of a model, by resource name."""
        return self._folder(model)

    def _folder(self, name: str) -> Path:
        kind, _, identity = name.partition("/")
        return self.root / kind / identity

    def begin_upload(self, size_bytes: int, sha256: str) -> Upload:
        """A place for the bytes of a dataset on their way in."""
        return Upload(Path(tempfile.mkdtemp(dir=self.root / "uploads")), size_bytes, sha256)

    def keep_upload(self, upload: Upload, dataset: str) -> None:
        """Move a finished upload to its place; a folder that no record speaks of is replaced."""
        target = self._folder(dataset)
        self.remove(dataset)
        sync_folder(upload.folder)
        upload.folder.rename(target)
        sync_folder(target.parent)

    def remove(self, name: str) -> None:
        """Remove the folder of a resource, if it has one: at once for everybody else."""
        rubbish = Path(tempfile.mkdtemp(dir=self.root / "uploads"))
        with contextlib.suppress(FileNotFoundError):
            self._folder(name).rename(rubbish / "removed")
        shutil.rmtree(rubbish, ignore_errors=True)

    def keep_bundle(self, job: str, model: str) -> None:
        """Move the bundle a training process left to its place among the models."""
        source = self._folder(job) / "bundle"
        sync_folder(source)
        # Left by a server that was stopped between this and the record of the model.
        self.remove(model)
        source.rename(self._folder(model))
        sync_folder(self._folder(model).parent)


class Upload:
    """The bytes of a dataset on their way in: spooled to disk, counted and hashed."""

    def __init__(self, folder: Path, size_bytes: int, sha256: str) -> None:
        self.folder = folder
        self._expected = (size_bytes, sha256)
        self._size = 0
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = self.source.open("wb")

    @property
    def source(self) -> Path:
        """The bytes as received."""
        return self.folder / "source"

    @property
    def table(self) -> Path:
        """Where the Arrow file made from them goes."""
        return self.folder / "table"

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += len(data)
        if self._size > self._expected[0]:
            raise BrokenUpload(
                f"more bytes than the {self._expected[0]} that header.size_bytes says"
            )
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Bring the bytes to the disk and compare them with what was announced."""
        size, sha256 = self._expected
        if self._size != size:
            raise BrokenUpload(f"{self._size} bytes came, header.size_bytes says {size}")
        if self._digest.hexdigest() != sha256:
            raise BrokenUpload(
                f"the bytes have SHA-256 {self._digest.hexdigest()}, header.sha256 says {sha256}"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove what is left of the upload; harmless after it was kept."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

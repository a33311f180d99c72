"""The checkpoint files in a job's folder, told by their names. Light: no torch, no NumPy.

A checkpoint is `checkpoints/<epoch>-<SHA-256>.safetensors`: the name says what the bytes must hash
to, so that a damaged one shows. Files are replaced by a rename or unlinked, never written in place:
a job that continues another one begins with hard links to its checkpoints.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path
from shutil import copyfileobj
from typing import NamedTuple

from trainwire_server.data.durable import replacing, sync_folder

BEST = "best.safetensors"
FOLDER = "checkpoints"
KEPT = 2
"""The newest two stay: should one turn out damaged, there is another."""

_NAME = re.compile(r"(?P<epoch>\d{6})-(?P<sha256>[0-9a-f]{64})\.safetensors")
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


class CheckpointFile(NamedTuple):
    """A file whose name is that of a checkpoint; `verify` tells whether it is whole."""

    epoch: int
    path: Path


def name_file(epoch: int, digest: str) -> str:
    """Name of the checkpoint of an epoch, whose bytes have this SHA-256."""
    return f"{epoch:06}-{digest}.safetensors"


def find_files(job_folder: Path) -> list[CheckpointFile]:
    """The checkpoints of a job, newest epoch first; whatever else lies there is left out."""
    named = ((_NAME.fullmatch(path.name), path) for path in (job_folder / FOLDER).glob("*"))
    return sorted((CheckpointFile(int(n["epoch"]), path) for n, path in named if n), reverse=True)


def verify(path: Path) -> bool:
    """Whether the bytes of a checkpoint are those it was written with, as far as can be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # gone, or on a disk that cannot read it back
        return False
    return is_digest_of(path, digest)


def is_digest_of(path: Path, digest: str) -> bool:
    """Whether a checkpoint's name says that its bytes have this SHA-256."""
    name = _NAME.fullmatch(path.name)
    return name is not None and name["sha256"] == digest


def copy_checkpoints(source: Path, target: Path, last_epoch: int) -> int:
    """Give a job the checkpoints of another one, which stays as it is.

    The newest `KEPT` whole ones and the best weights, as hard links, which take no room; as copies
    where the file system has no links. Safe against power loss when it returns.

    Args:
        source: folder of a job that has ended.
        target: existing folder of a job that has not begun; what a call before left is replaced.
        last_epoch: passes over later checkpoints.

    Returns:
        The newest epoch among them; 0 if there is none, and then `target` is as it was.

    Raises:
        OSError: the disk refused, by being full for one.
    """
    early = (file for file in find_files(source) if file.epoch <= last_epoch)
    whole = [file for file in early if verify(file.path)][:KEPT]
    if not whole:
        return 0
    (target / FOLDER).mkdir(exist_ok=True)
    for file in whole:
        _link(file.path, target / FOLDER / file.path.name)
    if (source / BEST).exists():
        _link(source / BEST, target / BEST)
    for folder in (target / FOLDER, target, target.parent):
        sync_folder(folder)
    return whole[0].epoch


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with source.open("rb") as original, replacing(target) as copy:
            copyfileobj(original, copy)

"""Files that after a crash or power loss are the old ones or the whole new ones; full disks."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trainwire_server.errors import StorageFull

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says when a disk, or what a user may take of it, is full."""
_SYNC_FILE_RANGE_WRITE = 2  # of Linux' fcntl.h


class SymbolicLink(OSError):
    """Something in the data directory is a symbolic link, and what it names is not the server's."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is a symbolic link; the server makes none and follows none there")


def refuse_links(*paths: Path) -> None:
    """Raise SymbolicLink for the first path that is one."""
    for path in paths:
        if path.is_symlink():
            raise SymbolicLink(path)


def not_through_links(path: str, flags: int) -> int:
    """An opener for `open` that does not follow a symbolic link at the end of the path."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all of it is on disk, or leaves no trace."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb", opener=not_through_links) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        # Not only for order: a full disk needs the room.
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as file:
        file.write(data)


def begin_sync(file: IO[bytes], start: int) -> None:
    """Let the disk begin with what was written from `start` on; a later fsync waits for less.

    It promises nothing and takes no time. Systems without such a call do all of it at the fsync.
    """
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin is not None:
        offset, all_there_is = ctypes.c_int64(start), ctypes.c_int64(0)
        begin(file.fileno(), offset, all_there_is, _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename within it survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def refusing_when_full(what: str) -> Iterator[None]:
    """Tells a full disk apart from all else that can be wrong with it.

    Args:
        what: what was to be stored.

    Raises:
        StorageFull: the disk, or what the server may take of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StorageFull(full_message(what)) from error


def full_message(what: str) -> str:
    """What a caller is told whose call needs more room than there is."""
    return f"the server's disk is full and {what} was not stored; try again when there is room"

"""How the server's own process treats memory it has freed, garbage, and open files."""

from __future__ import annotations

import ctypes
import gc
import resource

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MESSAGE_BYTES = 4 * 2**20
"""The largest message that gRPC takes."""
_GARBAGE_THRESHOLDS = (20_000, 20, 20)


def keep_freed_memory() -> None:
    """Let the chunks of an upload be copied into memory that the process has already.

    By default glibc may give each block back when it is freed, and each new one then costs a page
    fault per 4 KiB: that takes longer than all else that an upload costs. At most four messages'
    worth stays with each of its arenas.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have no such options
        libc.mallopt(_M_MMAP_THRESHOLD, _MESSAGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * _MESSAGE_BYTES)


def collect_seldom() -> None:
    """Look for garbage less often, and never in what was there at the start.

    A thousand watchers that wake up make thousands of objects at once, all of which go by
    themselves; Python's own thresholds have it search them, and all modules, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def open_many_files() -> None:
    """Use as many file handles as the system allows: each connection and upload takes one.

    The usual limit of 1,024, which a process may raise by itself, is there for programs that
    cannot count further.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

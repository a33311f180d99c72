"""How many bytes the folders of resources take, without a look at all of them each time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


class FolderSizes:
    """Bytes of each folder below a data directory, as it was measured last.

    What the server stores and removes is measured there and then. What a training process writes
    is, when its job ends, or when all are measured again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bytes: dict[str, float] = {}
        self._measuring = threading.Lock()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Bytes of all folders."""
        with self._lock:
            return round(sum(self._bytes.values()))

    def measure(self, name: str) -> None:
        """Measure a folder, by the name of its resource; one that is gone takes nothing."""
        folder = self._root / name
        # Held while it looks: what it finds must not replace what a later one has found. The other
        # one is not: the event loop takes it for the total, and a disk may be slow.
        with self._measuring:
            # Of a file that is in two folders each has a half.
            sizes = [file.st_size / file.st_nlink for file in files_below(folder)]
            with self._lock:
                if sizes:
                    self._bytes[name] = sum(sizes)
                else:
                    self._bytes.pop(name, None)

    def measure_all(self, names: Iterable[str]) -> None:
        """Measure these, which are all there are, and forget those that are gone."""
        with self._lock:
            known = set(self._bytes)
        for name in known.union(names):
            self.measure(name)


def files_below(folder: Path) -> Iterator[os.stat_result]:
    """All files below a folder that is no link; what vanishes meanwhile is left out."""
    if folder.is_symlink():
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(os.path.join(parent, name))

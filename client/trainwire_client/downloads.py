"""Writes the files of a model bundle as they arrive."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import grpc

from trainwire.v1 import model_pb2
from trainwire_client.errors import DataLossError

__all__ = ["Receiver", "prepare", "receiver"]


def prepare(
    files: Iterable[model_pb2.ModelFile], directory: str | os.PathLike[str], *, overwrite: bool
) -> Path:
    """Make a directory for these files and return its path.

    Raises:
        DataLossError: a name is not a plain file name: it could lead out of `directory`.
        FileExistsError: a file of this name is there already and `overwrite` is false.
    """
    folder = Path(directory)
    names = [_plain_name(file) for file in files]
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"already in {folder}: {', '.join(there)}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def receiver(expected: Iterable[model_pb2.ModelFile], folder: Path) -> Iterator[Receiver]:
    """Takes the messages of a download; its files are in `folder` after the block, all or none.

    Everything is written below a temporary name and checked first; files are renamed at the end.

    Raises:
        DataLossError: sizes, digests or names are not those that were announced.
    """
    with tempfile.TemporaryDirectory(prefix=".trainwire-", dir=folder) as temporary:
        with closing(Receiver(Path(temporary))) as opened:
            yield opened
            opened.finish(expected)
        for name in opened.names:
            (Path(temporary) / name).replace(folder / name)


class Receiver:
    """Writes the files of a download into `folder` as they arrive, and checks them.

    Attributes:
        names: names of the files, in the order they came.
    """

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._file: _File | None = None

    def take(self, message: model_pb2.DownloadModelResponse) -> None:
        """Write what one message brings."""
        if message.WhichOneof("payload") == "file":
            self._finish_file()
            self._file = _File(message.file, self._folder)
            self.names.append(message.file.name)
        elif self._file is None:
            raise _lost("the download began with bytes of no file")
        else:
            self._file.write(message.chunk.data)

    def finish(self, expected: Iterable[model_pb2.ModelFile]) -> None:
        """Check that all that was expected has come."""
        self._finish_file()
        missing = sorted({file.name for file in expected} - set(self.names))
        if missing:
            raise _lost(f"the download ended without {', '.join(missing)}")

    def _finish_file(self) -> None:
        if self._file is not None:
            self._file.finish()

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file is not None:
            self._file.close()


class _File:
    """One file on its way."""

    def __init__(self, announced: model_pb2.ModelFile, folder: Path) -> None:
        self._announced = announced
        self._digest = hashlib.sha256()
        self._size = 0
        self._sink: BinaryIO = (folder / _plain_name(announced)).open("xb")

    def write(self, data: bytes) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self._size += len(data)

    def finish(self) -> None:
        self.close()
        name, size = self._announced.name, self._announced.size_bytes
        if self._size != size:
            raise _lost(f"{name} has {self._size} bytes; announced: {size}")
        if self._digest.hexdigest() != self._announced.sha256:
            raise _lost(f"{name} has another SHA-256 than announced: it is damaged")

    def close(self) -> None:
        self._sink.close()


def _plain_name(file: model_pb2.ModelFile) -> str:
    name = file.name
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise _lost(f"the server named a file {name!r}; allowed: a plain name, without folders")
    return name


def _lost(message: str) -> DataLossError:
    return DataLossError(message, grpc.StatusCode.DATA_LOSS)

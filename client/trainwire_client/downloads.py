"""Writes the files of a model bundle as they arrive."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import grpc

from trainwire.v1 import model_pb2
from trainwire_client.errors import DataLossError

__all__ = ["check_names", "receive"]


def check_names(files: Iterable[model_pb2.ModelFile], folder: Path, *, overwrite: bool) -> None:
    """Refuse names that could lead out of `folder` and, unless `overwrite`, files that exist.

    Raises:
        DataLossError: a name is not a plain file name.
        FileExistsError: a file of this name is there already.
    """
    names = [_plain_name(file) for file in files]
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"already in {folder}: {', '.join(there)}")


def receive(
    messages: Iterable[model_pb2.DownloadModelResponse],
    expected: Iterable[model_pb2.ModelFile],
    folder: Path,
) -> None:
    """Write the files of a download into `folder`: all of them, or none.

    Everything is written below a temporary name and checked first; files are renamed at the end.

    Raises:
        DataLossError: sizes, digests or names are not those that were announced.
    """
    with tempfile.TemporaryDirectory(prefix=".trainwire-", dir=folder) as temporary:
        written = _write(messages, Path(temporary))
        missing = sorted({file.name for file in expected} - set(written))
        if missing:
            raise _lost(f"the download ended without {', '.join(missing)}")
        for name in written:
            (Path(temporary) / name).replace(folder / name)


def _write(messages: Iterable[model_pb2.DownloadModelResponse], folder: Path) -> list[str]:
    """Names of the files written, in the order they came."""
    names: list[str] = []
    file: _File | None = None
    try:
        for message in messages:
            if message.WhichOneof("payload") == "file":
                if file is not None:
                    file.finish()
                file = _File(message.file, folder)
                names.append(message.file.name)
            elif file is None:
                raise _lost("the download began with bytes of no file")
            else:
                file.write(message.chunk.data)
        if file is not None:
            file.finish()
    finally:
        if file is not None:
            file.close()
    return names


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

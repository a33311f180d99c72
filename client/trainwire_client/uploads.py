"""The messages of an upload: what is about to be sent, then its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainwire.v1 import dataset_pb2
from trainwire_client import tables

__all__ = ["Progress", "messages"]

Progress = Callable[[int, int], None]
"""Called with the bytes sent and the bytes in all."""


def messages(
    spool: tables.Spool, on_progress: Progress | None
) -> Iterator[dataset_pb2.UploadDatasetRequest]:
    """The header, then the chunks of a spooled table, reporting each that was taken."""
    header = dataset_pb2.DatasetHeader(
        format=spool.format, size_bytes=spool.size_bytes, sha256=spool.sha256
    )
    # Opened here, not when the first chunk is asked for: see `Spool.chunks`.
    return _messages(header, spool.chunks(), on_progress)


def _messages(
    header: dataset_pb2.DatasetHeader, chunks: Iterator[bytes], on_progress: Progress | None
) -> Iterator[dataset_pb2.UploadDatasetRequest]:
    yield dataset_pb2.UploadDatasetRequest(header=header)
    sent = 0
    for chunk in chunks:
        request = dataset_pb2.UploadDatasetRequest()
        # Set in place: a message given to a constructor is copied with its bytes.
        request.chunk.data = chunk
        yield request
        sent += len(chunk)
        if on_progress is not None:
            on_progress(sent, header.size_bytes)

"""The chunks of an upload, as they lie in the bytes of their messages.

Decoding a message copies its chunk, taking the chunk out of the message copies it again. Of the
bytes of a dataset nearly all come in messages that are a chunk and nothing else; those are not
decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainwire.v1 import dataset_pb2

_OF_BYTES = 2
"""How protobuf's encoding marks a field whose size stands before it."""
_CHUNK = dataset_pb2.UploadDatasetRequest.CHUNK_FIELD_NUMBER << 3 | _OF_BYTES
_DATA = dataset_pb2.DatasetChunk.DATA_FIELD_NUMBER << 3 | _OF_BYTES
_SIZE_BYTES = 4
"""What the size of a field may take; it is enough for the largest message that gRPC takes."""


def taking_chunks(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A decoder of the messages of an upload: chunks come out as memoryviews.

    Args:
        decode: for messages that are anything else, or more.
    """

    def decode_or_take(message: bytes) -> Any:
        chunk = chunk_of(message)
        return decode(message) if chunk is None else chunk

    return decode_or_take


def chunk_of(message: bytes) -> memoryview | None:
    """The bytes of the chunk, not copied, if the message is a chunk with bytes and nothing else.

    Args:
        message: an UploadDatasetRequest as it is on the wire, or whatever was sent as one.
    """
    chunk = _sole_field(memoryview(message), _CHUNK)
    return None if chunk is None else _sole_field(chunk, _DATA)


def _sole_field(message: memoryview, tag: int) -> memoryview | None:
    """The content of a field, if it is this one and reaches to the end of the message."""
    if message[:1] != bytes([tag]):
        return None
    size = 0
    for index, byte in enumerate(message[1 : 1 + _SIZE_BYTES]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            content = message[index + 2 :]
            return content if len(content) == size else None
    return None

"""What a child process and the server send each other.

The child is sent its task, a length and JSON, then orders of one byte. The server is sent messages:
a length, a kind, a serialized protobuf message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from google.protobuf import empty_pb2, wrappers_pb2
from google.protobuf.message import Message

from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2
from trainwire_server.execution.executor import Ingest, Plan, Probe, Task, Train

_LENGTH = struct.Struct("!I")
_HEADER = struct.Struct("!IB")
_KINDS: tuple[type[Message], ...] = (
    training_pb2.TrainingEvent,
    training_pb2.Failure,
    training_pb2.TrainingPlan,
    training_pb2.JobWarning,
    model_pb2.Model,
    dataset_pb2.Dataset,
    system_pb2.SystemInfo,
    # Text for the server's log: what happened in the child, traceback included.
    wrappers_pb2.StringValue,
    # A sign of life.
    empty_pb2.Empty,
)
_TASKS: dict[str, type[Task]] = {kind.__name__: kind for kind in (Train, Plan, Ingest, Probe)}
_READERS: MappingProxyType[str, Callable[[str], Any]] = MappingProxyType(
    {"bytes": bytes.fromhex, "Path": Path}
)
"""How a field of a task is read that JSON has no type for, by its annotation."""


class Connection:
    """The child's end: several threads may send, one listens."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message, waiting until the server has room for it."""
        body = message.SerializeToString()
        with self._sending:
            self._end.sendall(_HEADER.pack(len(body), _KINDS.index(type(message))) + body)

    def hear_task(self) -> Task | None:
        """Wait for the task, the first that the server sends; None when it is gone."""
        header = self._hear_exactly(_LENGTH.size)
        body = self._hear_exactly(*_LENGTH.unpack(header)) if header else b""
        return _unpack(body) if body else None

    def _hear_exactly(self, size: int) -> bytes:
        """So many bytes; none when the server is gone before they are all there."""
        heard = bytearray()
        while len(heard) < size:
            part = self._end.recv(size - len(heard))
            if not part:
                return b""
            heard += part
        return bytes(heard)

    def hear(self) -> bytes:
        """The next byte from the server; none when it is gone."""
        try:
            return self._end.recv(1)
        except OSError:
            return b""


def pack(task: Task) -> bytes:
    """A task as a child process hears it."""
    fields = {"task": type(task).__name__, **dataclasses.asdict(task)}
    body = json.dumps(fields, default=_as_text).encode()
    return _LENGTH.pack(len(body)) + body


def _as_text(value: bytes | Path) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _unpack(body: bytes) -> Task:
    fields = json.loads(body)
    kind = _TASKS[fields.pop("task")]
    readers = {each.name: _READERS.get(str(each.type)) for each in dataclasses.fields(kind)}
    values = {name: read(fields[name]) if read else fields[name] for name, read in readers.items()}
    return kind(**values)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message, or None when the child has closed its end or died in mid-message."""
    try:
        length, kind = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        return cast("Message", _KINDS[kind].FromString(await reader.readexactly(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None

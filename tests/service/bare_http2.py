"""A client that does what gRPC's own never would: it sends calls and takes no byte of an answer."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_ACK = END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW = 4
LARGEST_WINDOW = 2**31 - 1


class BareConnection:
    """A connection in the clear to a server.

    Args:
        address: HOST:PORT.
        window: bytes of each answer that the server may send.
        headers: go with each call.

    Attributes:
        begun: numbers of the calls that the server has answered, or begun to.
        refused: numbers of those that ended without a byte of an answer.
    """

    def __init__(
        self, address: str, window: int = 0, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._headers = (
            (":method", "POST"), (":scheme", "http"), (":authority", host), ("te", "trailers"),
            ("content-type", "application/grpc"), *headers,
        )  # fmt: skip
        self._next = 1
        self._unparsed = b""
        self.begun: set[int] = set()
        self.refused: set[int] = set()
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, window))
        # That of the whole connection is 65,535 bytes by itself.
        more = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - 65_535))
        self._socket.sendall(_PREFACE + settings + more)

    def call(self, path: str, message: bytes | None = b"") -> None:
        """Begin a call; without a message it waits for one."""
        number, self._next = self._next, self._next + 2
        block = b"".join(map(_literal, ((":path", path), *self._headers)))
        sent = _frame(_HEADERS, _END_HEADERS, number, block)
        if message is not None:
            data = b"\0" + struct.pack(">I", len(message)) + message
            sent += _frame(_DATA, END_STREAM, number, data)
        self._socket.sendall(sent)

    def calls(self, count: int, path: str, message: bytes = b"") -> None:
        """Begin so many calls, and wait until each is refused, or would be read."""
        wanted = len(self.begun | self.refused) + count
        for index in range(count):
            self.call(path, message)
            # The server would wait, too: neither buffer holds so many frames.
            if index % 100 == 99:
                self.wait_for_answers(wanted - count + index - 98)
        self.wait_for_answers(wanted)

    def wait_for_answers(self, count: int) -> None:
        """Take frames until so many calls have begun to be answered, or were refused."""
        while len(self.begun | self.refused) < count:
            self.take()

    def take(self) -> None:
        """Wait for frames, and take those that are there."""
        received = self._socket.recv(2**16)
        if not received:
            raise ConnectionError("the server has closed the connection")
        self._unparsed += received
        while len(self._unparsed) >= 9:
            size = int.from_bytes(self._unparsed[:3], "big")
            if len(self._unparsed) < 9 + size:
                return
            head, payload = self._unparsed[:9], self._unparsed[9 : 9 + size]
            self._unparsed = self._unparsed[9 + size :]
            self._heed(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    def _heed(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _RESET or (kind == _HEADERS and flags & END_STREAM):
            self.refused.add(number)
        elif kind == _HEADERS:
            self.begun.add(number)

    def close(self) -> None:
        """Leave, with all calls."""
        self._socket.close()


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, number) + payload


def _literal(header: tuple[str, str]) -> bytes:
    """A header in HPACK's plainest form, which neither side remembers."""
    parts = [text.encode() for text in header]
    assert all(len(part) < 127 for part in parts), header
    return b"\0" + b"".join(bytes([len(part)]) + part for part in parts)

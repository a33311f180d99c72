"""Servers to measure, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any


class Server:
    """A trainwire server.

    Attributes:
        address: where it listens.
        seconds: what it took to be ready.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        given = ["--listen", "127.0.0.1:0", "--data-dir", str(folder), *flags]
        command = [sys.executable, "-m", "trainwire_server", "--log-format", "json", *given]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._records: SimpleQueue[tuple[float, dict[str, Any]]] = SimpleQueue()
        # In a thread: a server waits for whoever reads its log.
        threading.Thread(target=self._read, daemon=True).start()
        at, record = self.wait_for("server.ready")
        self.address: str = record["address"]
        self.seconds = at - began

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            at = time.perf_counter()
            self._records.put((at, json.loads(line)))

    def wait_for(self, event: str) -> tuple[float, dict[str, Any]]:
        """The next log record of this event, and when it was read (`time.perf_counter`)."""
        while True:
            at, record = self._records.get(timeout=120)
            if record["event"] == event:
                return at, record

    def stop(self) -> None:
        """Stop the server and wait until it has."""
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def start(folder: Path, *flags: str) -> Iterator[Server]:
    """A server that stops with the block.

    Args:
        folder: its data directory.
        flags: more flags of `trainwire-server`.
    """
    server = Server(folder, *flags)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serve(folder: Path, *flags: str) -> Iterator[tuple[str, float]]:
    """The address of a trainwire server, and the seconds it took to be ready; see `start`."""
    with start(folder, *flags) as server:
        yield server.address, server.seconds


@contextmanager
def bare() -> Iterator[str]:
    """The address of a bare grpc.aio server (`bench.bare`)."""
    command = [sys.executable, "-m", "bench.bare"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()

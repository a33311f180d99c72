"""How a task gets into a child process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trainwire_server.execution import frames
from trainwire_server.execution.executor import Ingest, Plan, Probe, Task, Train

TASK = Plan(request=b"r" * 1_000, table=Path("table"), threads=2, memory_bytes=2**40)
TASKS = [
    TASK,
    # Names that are no UTF-8, as a disk may have them.
    Ingest(Path("a\udcff"), Path("ü"), data_format=3, memory_bytes=1, table_bytes=2**33),
    Train(
        request=bytes(range(256)),
        table=Path("/a/table"),
        folder=Path("/b"),
        threads=4,
        visible_devices="",
        last_epoch=7,
        is_started=True,
        memory_bytes=0,
        beat_seconds=0.2,
    ),
    Probe(),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    server, child = socket.socketpair()
    with server, child:
        server.sendall(frames.pack(task))
        assert frames.Connection(child).hear_task() == task


def test_orders_that_follow_a_task_at_once_are_heard_after_it() -> None:
    server, child = socket.socketpair()
    with server, child:
        server.sendall(frames.pack(TASK) + b"CD")
        connection = frames.Connection(child)
        assert connection.hear_task() == TASK
        assert [connection.hear(), connection.hear()] == [b"C", b"D"]


@pytest.mark.parametrize("length", [0, 1, 4, 5, len(frames.pack(TASK)) - 1])
def test_of_a_server_that_is_gone_before_the_whole_task_is_there_none_is_heard(
    length: int,
) -> None:
    server, child = socket.socketpair()
    with child:
        with server:
            server.sendall(frames.pack(TASK)[:length])
        assert frames.Connection(child).hear_task() is None

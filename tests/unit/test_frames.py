"""How a task gets into a child process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trainwire_server.execution import frames
from trainwire_server.execution.executor import Plan

TASK = Plan(request=b"r" * 1_000, table=Path("table"), threads=2)


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

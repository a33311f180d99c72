"""A short task in a child process: start it, take all it says, see it gone."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from trainwire_server.errors import SystemShortage
from trainwire_server.execution.executor import Execution, Executor, Task
from trainwire_server.execution.patience import start_patiently

_PATIENCE_SECONDS = 5.0
"""How long a caller waits for a process, where the system has none to give."""


@dataclass(frozen=True)
class Answers:
    """What a child process said, and how it ended.

    Attributes:
        messages: what it sent, but for the text that it had for the log.
        status: its exit status, or minus the signal that ended it.
    """

    messages: list[Message]
    status: int


async def ask(executor: Executor, task: Task, log_event: str) -> Answers:
    """Run a task to its end.

    Args:
        log_event: event under which the child's text for the log is logged, as an error.

    Raises:
        SystemShortage: for some seconds there was no process for it.
    """
    messages = []
    execution = await _start(executor, task)
    try:
        async for message in execution.messages():
            if isinstance(message, wrappers_pb2.StringValue):
                structlog.get_logger().error(log_event, details=message.value)
            else:
                messages.append(message)
        status = await execution.wait()
    finally:
        # A caller may leave: whatever follows, the process is gone by then.
        execution.kill()
        await execution.wait()
    return Answers(messages, status)


async def _start(executor: Executor, task: Task) -> Execution:
    end = time.monotonic() + _PATIENCE_SECONDS
    log = structlog.get_logger()
    execution = await start_patiently(
        executor, task, lambda: time.monotonic() < end, log, "task.not_started"
    )
    if execution is None:
        raise SystemShortage(
            f"the server's system had no process for {_PATIENCE_SECONDS:g} seconds (the server's "
            "log says what it is short of); try again"
        )
    return execution

"""A short task in a child process: start it, take all it says, see it gone."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from trainwire_server.execution.executor import Executor, Task


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
    """
    messages = []
    execution = await executor.start(task)
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

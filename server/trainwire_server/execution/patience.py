"""How long a task waits for its process, where the system has none to give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from trainwire_server.execution.executor import Execution, Executor, NotStarted, Task

_PAUSE_SECONDS = 1.0
"""Between two tries: as long as a fork server that has died of a shortage takes to be gone."""


async def start_patiently(
    executor: Executor,
    task: Task,
    is_wanted: Callable[[], bool],
    log: structlog.stdlib.BoundLogger,
    log_event: str,
) -> Execution | None:
    """Start a task as soon as there is a process for it; None if it is no longer wanted.

    Args:
        is_wanted: asked before every try.
        log_event: event under which each try in vain is logged, as a warning.
    """
    while is_wanted():
        try:
            return await executor.start(task)
        except NotStarted as error:
            log.warning(log_event, problem=str(error), again_in=_PAUSE_SECONDS)
        await asyncio.sleep(_PAUSE_SECONDS)
    return None

"""What the server's training processes run on, asked of one of them once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

import structlog

from trainwire.v1 import system_pb2
from trainwire_server.errors import SystemShortage
from trainwire_server.execution.answers import Answers, ask
from trainwire_server.execution.executor import Executor, Probe

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PROBE_SECONDS = 120.0


class Devices:
    """The devices a child process sees; the server itself never loads torch to look."""

    def __init__(self, executor: Executor) -> None:
        self._probe = asyncio.create_task(_probe(executor))

    async def found(self) -> system_pb2.SystemInfo:
        """torch's version and the devices; waits for the probe that began with the server."""
        return await asyncio.shield(self._probe)

    @property
    def known(self) -> Sequence[system_pb2.DeviceInfo]:
        """The devices, as far as they are known by now."""
        return self._probe.result().devices if self._probe.done() else ()

    async def names(self) -> list[str]:
        """torch's names of the devices, the CPU first."""
        return [device.name for device in (await self.found()).devices]


def visible_devices(name: str) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a child process to see this device alone.

    The names are positions among what the server sees, which may itself be a choice.
    """
    if not name.startswith("cuda:"):
        return ""
    index = name.removeprefix("cuda:")
    chosen = os.environ.get(_VISIBLE)
    return chosen.split(",")[int(index)].strip() if chosen else index


async def _probe(executor: Executor) -> system_pb2.SystemInfo:
    """What a child process finds; without an answer there is no GPU to give away."""
    log = structlog.get_logger()
    found = system_pb2.SystemInfo()
    try:
        answers = await _ask(executor)
        for message in answers.messages:
            if isinstance(message, system_pb2.SystemInfo):
                found = message
            else:
                log.error("probe.error", details=str(message))
    except Exception:
        log.exception("probe.error")
    names = [device.name for device in found.devices]
    log.info("server.devices", devices=names, torch=found.torch_version)
    return found


async def _ask(executor: Executor) -> Answers:
    """What the probe says, however long there is no process for it: it is not asked again."""
    while True:
        with suppress(SystemShortage):
            return await asyncio.wait_for(ask(executor, Probe(), "probe.error"), _PROBE_SECONDS)

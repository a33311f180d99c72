"""What the server's training processes run on, asked of one of them once."""

from __future__ import annotations

import asyncio

import structlog

from trainwire.v1 import system_pb2
from trainwire_server.execution.executor import Executor, Probe


class Devices:
    """The devices a child process sees; the server itself never loads torch to look."""

    def __init__(self, executor: Executor) -> None:
        self._probe = asyncio.create_task(_probe(executor))

    async def found(self) -> system_pb2.SystemInfo:
        """torch's version and the devices; waits for the probe that began with the server."""
        return await asyncio.shield(self._probe)

    async def has_gpu(self) -> bool:
        """Whether there is a CUDA device."""
        return any(device.name.startswith("cuda") for device in (await self.found()).devices)


async def _probe(executor: Executor) -> system_pb2.SystemInfo:
    execution = await executor.start(Probe())
    found = system_pb2.SystemInfo()
    async for message in execution.messages():
        if isinstance(message, system_pb2.SystemInfo):
            found = message
        else:
            structlog.get_logger().error("probe.error", details=str(message))
    await execution.wait()
    names = [device.name for device in found.devices]
    structlog.get_logger().info("server.devices", devices=names, torch=found.torch_version)
    return found

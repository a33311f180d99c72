"""SystemService."""

from __future__ import annotations

from typing import Any

from trainwire import contract
from trainwire.v1 import system_pb2, system_pb2_grpc
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.tenants import Tenants
from trainwire_server.service.status import rpc
from trainwire_server.settings import Settings
from trainwire_server.version import server_version


class SystemService(system_pb2_grpc.SystemServiceServicer):
    """Says what this server is and what it runs on."""

    def __init__(
        self, tenants: Tenants, devices: Devices, executor: str, settings: Settings
    ) -> None:
        self._tenants = tenants
        self._devices = devices
        self._executor = executor
        self._settings = settings

    @rpc
    async def GetSystemInfo(  # noqa: N802
        self, request: system_pb2.GetSystemInfoRequest, context: Any
    ) -> system_pb2.SystemInfo:
        manager = (await self._tenants.of_caller()).manager
        found = await self._devices.found()
        return system_pb2.SystemInfo(
            version=server_version(),
            contract_version=contract.contract_version(),
            contract_digest=contract.contract_digest(),
            torch_version=found.torch_version,
            devices=found.devices,
            executor=self._executor,
            queued_jobs=manager.queued_jobs,
            running_jobs=manager.running_jobs,
            threads_per_job=self._settings.threads,
            max_concurrent_jobs=self._settings.max_concurrent_jobs,
            max_queued_jobs=self._settings.max_queued_jobs,
        )

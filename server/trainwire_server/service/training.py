"""TrainingService."""

from __future__ import annotations

from typing import Any

import structlog
from google.protobuf import empty_pb2

from trainwire import contract
from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_server.errors import InvalidRequest
from trainwire_server.identity import call_fields
from trainwire_server.jobs.tenants import Tenants
from trainwire_server.service.pages import page_bounds, page_token
from trainwire_server.service.status import rpc


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Submits, reports on and cancels jobs."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    @rpc
    async def SubmitTraining(  # noqa: N802
        self, request: training_pb2.TrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        tenant = await self._tenants.of_caller()
        if request.validate_only:
            return await tenant.manager.validate(request)
        return await tenant.manager.submit(request)

    @rpc
    async def Train(  # noqa: N802
        self, request: training_pb2.TrainingRequest, context: Any
    ) -> None:
        if request.validate_only:
            violation = contract.Violation("validate_only", "SubmitTraining alone takes it")
            raise InvalidRequest(str(violation), (violation,))
        tenant = await self._tenants.of_caller()
        # Before the job is there: a call that is refused must not leave one.
        with tenant.watching():
            job = await tenant.manager.submit(request)
            async for event in tenant.manager.watch(job.name, after=0):
                await context.write(event)

    @rpc
    async def WatchTraining(  # noqa: N802
        self, request: training_pb2.WatchTrainingRequest, context: Any
    ) -> None:
        tenant = await self._tenants.of_caller()
        with tenant.watching():
            async for event in tenant.manager.watch(request.name, request.after_sequence):
                await context.write(event)

    @rpc
    async def GetTraining(  # noqa: N802
        self, request: training_pb2.GetTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        tenant = await self._tenants.of_caller()
        return await tenant.manager.get(request.name)

    @rpc
    async def ListTrainings(  # noqa: N802
        self, request: training_pb2.ListTrainingsRequest, context: Any
    ) -> training_pb2.ListTrainingsResponse:
        bounds = page_bounds(contract.resolve(request))
        tenant = await self._tenants.of_caller()
        page, following = await tenant.manager.list(*bounds, request.states, request.labels)
        return training_pb2.ListTrainingsResponse(jobs=page, next_page_token=page_token(following))

    @rpc
    async def CancelTraining(  # noqa: N802
        self, request: training_pb2.CancelTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        tenant = await self._tenants.of_caller()
        job = await tenant.manager.cancel(request.name)
        structlog.get_logger().info("job.cancel_asked", job=job.name, **call_fields())
        return job

    @rpc
    async def ResumeTraining(  # noqa: N802
        self, request: training_pb2.ResumeTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        tenant = await self._tenants.of_caller()
        return await tenant.manager.resume(request.name, request.changes)

    @rpc
    async def DeleteTraining(  # noqa: N802
        self, request: training_pb2.DeleteTrainingRequest, context: Any
    ) -> empty_pb2.Empty:
        tenant = await self._tenants.of_caller()
        await tenant.manager.delete(request.name)
        structlog.get_logger().info("job.deleted", job=request.name, **call_fields())
        return empty_pb2.Empty()

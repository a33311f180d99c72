"""TrainingService."""

from __future__ import annotations

from typing import Any

import structlog
from google.protobuf import empty_pb2

from trainwire import contract
from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_server.errors import InvalidRequest
from trainwire_server.identity import call_fields
from trainwire_server.jobs.manager import Manager
from trainwire_server.service.pages import page_bounds, page_token
from trainwire_server.service.status import rpc


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Submits, reports on and cancels jobs."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    @rpc
    async def SubmitTraining(  # noqa: N802
        self, request: training_pb2.TrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        if request.validate_only:
            return await self._manager.validate(request)
        return await self._manager.submit(request)

    @rpc
    async def Train(  # noqa: N802
        self, request: training_pb2.TrainingRequest, context: Any
    ) -> None:
        if request.validate_only:
            violation = contract.Violation("validate_only", "SubmitTraining alone takes it")
            raise InvalidRequest(str(violation), (violation,))
        job = await self._manager.submit(request)
        async for event in self._manager.watch(job.name, after=0):
            await context.write(event)

    @rpc
    async def WatchTraining(  # noqa: N802
        self, request: training_pb2.WatchTrainingRequest, context: Any
    ) -> None:
        async for event in self._manager.watch(request.name, request.after_sequence):
            await context.write(event)

    @rpc
    async def GetTraining(  # noqa: N802
        self, request: training_pb2.GetTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        return await self._manager.get(request.name)

    @rpc
    async def ListTrainings(  # noqa: N802
        self, request: training_pb2.ListTrainingsRequest, context: Any
    ) -> training_pb2.ListTrainingsResponse:
        bounds = page_bounds(contract.resolve(request))
        page, following = await self._manager.list(*bounds, request.states, request.labels)
        return training_pb2.ListTrainingsResponse(jobs=page, next_page_token=page_token(following))

    @rpc
    async def CancelTraining(  # noqa: N802
        self, request: training_pb2.CancelTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        job = await self._manager.cancel(request.name)
        structlog.get_logger().info("job.cancel_asked", job=job.name, **call_fields())
        return job

    @rpc
    async def ResumeTraining(  # noqa: N802
        self, request: training_pb2.ResumeTrainingRequest, context: Any
    ) -> training_pb2.TrainingJob:
        return await self._manager.resume(request.name, request.changes)

    @rpc
    async def DeleteTraining(  # noqa: N802
        self, request: training_pb2.DeleteTrainingRequest, context: Any
    ) -> empty_pb2.Empty:
        await self._manager.delete(request.name)
        structlog.get_logger().info("job.deleted", job=request.name, **call_fields())
        return empty_pb2.Empty()

"""ModelService."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO, Any

import structlog
from google.protobuf import empty_pb2

from trainwire import contract
from trainwire.v1 import model_pb2, model_pb2_grpc
from trainwire_server.data.durable import not_through_links
from trainwire_server.errors import NotFound, QuotaExceeded
from trainwire_server.identity import call_fields
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.removal import remove_model
from trainwire_server.jobs.tenants import Tenant, Tenants
from trainwire_server.service.pages import page_bounds, page_token
from trainwire_server.service.shortage import refusing_when_short
from trainwire_server.service.status import abort, rpc
from trainwire_server.service.transfers import Pace, Transfers

_CHUNK_BYTES = 256 * 1024
"""gRPC and Python hold some copies of one for as long as nobody reads it."""


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Describes models and hands out their files."""

    def __init__(self, tenants: Tenants, transfers: Transfers) -> None:
        self._tenants = tenants
        self._transfers = transfers

    @rpc
    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Any
    ) -> model_pb2.Model:
        return await _model(await self._tenants.of_caller(), request.name)

    @rpc
    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        tenant = await self._tenants.of_caller()
        page, following = await tenant.store.models(*page_bounds(contract.resolve(request)))
        return model_pb2.ListModelsResponse(models=page, next_page_token=page_token(following))

    @rpc
    async def DownloadModel(  # noqa: N802
        self, request: model_pb2.DownloadModelRequest, context: Any
    ) -> None:
        tenant = await self._tenants.of_caller()
        model = await _model(tenant, request.name)
        with tenant.transferring():
            try:
                async with self._transfers.place():
                    await _send(tenant, model, context, self._transfers.pace())
            except QuotaExceeded as error:
                # Still counted. Without the traceback, whose frames hold a chunk.
                with self._transfers.ending():
                    await abort(context, error.with_traceback(None))

    @rpc
    async def SetModelAlias(  # noqa: N802
        self, request: model_pb2.SetModelAliasRequest, context: Any
    ) -> model_pb2.Model:
        name = request.name if request.HasField("name") else None
        tenant = await self._tenants.of_caller()
        model = await tenant.store.set_alias(request.alias, name)
        about = {"model": name and model.name, **call_fields()}
        structlog.get_logger().info("model.alias_set", alias=request.alias, **about)
        return model

    @rpc
    async def DeleteModel(  # noqa: N802
        self, request: model_pb2.DeleteModelRequest, context: Any
    ) -> empty_pb2.Empty:
        tenant = await self._tenants.of_caller()
        model = await _model(tenant, request.name)
        # A caller that leaves half way must not leave files that nobody knows.
        await finish(remove_model(tenant.store, tenant.catalog, model.name))
        structlog.get_logger().info("model.deleted", model=model.name, **call_fields())
        return empty_pb2.Empty()


async def _model(tenant: Tenant, name: str) -> model_pb2.Model:
    model = await tenant.store.model(name)
    if model is None:
        raise NotFound(f"{name} does not exist")
    return model


async def _send(tenant: Tenant, model: model_pb2.Model, context: Any, pace: Pace) -> None:
    folder = tenant.catalog.model_folder(model.name)
    for file in model.files:
        await pace.keep(context.write(model_pb2.DownloadModelResponse(file=file)))
        try:
            await _send_file(folder / file.name, context, pace)
        except FileNotFoundError:
            raise NotFound(f"{model.name} was deleted meanwhile") from None


async def _send_file(path: Path, context: Any, pace: Pace) -> None:
    with refusing_when_short():
        opened = await asyncio.to_thread(open, path, "rb", opener=not_through_links)
    with opened as file:
        while chunk := await asyncio.to_thread(_next_chunk, file):
            await pace.keep(context.write(chunk))
            pace.moved(_CHUNK_BYTES)


def _next_chunk(file: IO[bytes]) -> model_pb2.DownloadModelResponse | None:
    """The next bytes, which nothing but the message holds; None at the end."""
    response = model_pb2.DownloadModelResponse()
    response.chunk.data = file.read(_CHUNK_BYTES)
    return response if response.chunk.data else None

"""ModelService."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import empty_pb2

from trainwire import contract
from trainwire.v1 import model_pb2, model_pb2_grpc
from trainwire_server.data.durable import not_through_links
from trainwire_server.errors import NotFound
from trainwire_server.identity import call_fields
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.removal import remove_model
from trainwire_server.jobs.tenants import Tenant, Tenants
from trainwire_server.service.pages import page_bounds, page_token
from trainwire_server.service.status import rpc

_CHUNK_BYTES = 1 << 20


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Describes models and hands out their files."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

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
        folder = tenant.catalog.model_folder(model.name)
        for file in model.files:
            await context.write(model_pb2.DownloadModelResponse(file=file))
            try:
                await _send_file(folder / file.name, context)
            except FileNotFoundError:
                raise NotFound(f"{model.name} was deleted meanwhile") from None

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


async def _send_file(path: Path, context: Any) -> None:
    with await asyncio.to_thread(open, path, "rb", opener=not_through_links) as file:
        while data := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            chunk = model_pb2.ModelChunk(data=data)
            await context.write(model_pb2.DownloadModelResponse(chunk=chunk))

"""DatasetService."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import structlog
from google.protobuf import empty_pb2

from trainwire import contract
from trainwire.v1 import dataset_pb2, dataset_pb2_grpc, training_pb2
from trainwire_server.data.catalog import Upload
from trainwire_server.errors import (
    BrokenUpload,
    NotFound,
    RequestError,
    StorageFull,
)
from trainwire_server.execution.answers import ask
from trainwire_server.execution.executor import Executor, Ingest
from trainwire_server.identity import call_fields
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.tenants import Tenant, Tenants
from trainwire_server.meters import Meters
from trainwire_server.service.pages import page_bounds, page_token
from trainwire_server.service.shortage import refusing_when_short
from trainwire_server.service.status import check, rpc
from trainwire_server.service.transfers import Pace, Transfers

_WAITING_CHUNKS = 4
"""Chunks of an upload that are held in memory, at most."""
_Message = dataset_pb2.UploadDatasetRequest | memoryview
"""One of an upload; of one that is a chunk and nothing else, the chunk's bytes (`chunks`)."""


class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    """Takes datasets in and describes them."""

    def __init__(
        self,
        tenants: Tenants,
        executor: Executor,
        ingest_memory_bytes: int,
        transfers: Transfers,
        meters: Meters,
    ) -> None:
        self._tenants = tenants
        self._executor = executor
        self._transfers = transfers
        self._ingest_memory_bytes = ingest_memory_bytes
        self._meters = meters
        self._parsing = asyncio.Lock()

    @rpc
    async def UploadDataset(  # noqa: N802
        self, requests: AsyncIterator[_Message], context: Any
    ) -> dataset_pb2.Dataset:
        tenant = await self._tenants.of_caller()
        with tenant.transferring():
            arriving = _Arriving(requests, self._transfers.pace())
            header = await _read_header(arriving)
            name = f"datasets/sha256-{header.sha256}"
            stored = await tenant.datasets.find(name)
            if stored is not None:
                return stored
            async with AsyncExitStack() as announced:
                await announced.enter_async_context(tenant.retention.room(name, header.size_bytes))
                upload = await self._receive(tenant, header, arriving)
                try:
                    return await self._take(tenant, name, header, upload, announced)
                finally:
                    await _discard(upload)

    async def _take(
        self,
        tenant: Tenant,
        name: str,
        header: dataset_pb2.DatasetHeader,
        upload: Upload,
        announced: AsyncExitStack,
    ) -> dataset_pb2.Dataset:
        self._meters.upload_received(header.size_bytes)
        about = {"bytes": header.size_bytes, **call_fields()}
        structlog.get_logger().info("dataset.received", dataset=name, **about)
        # One of a tenant at a time, until it is kept and no longer announced beside that: each may
        # take all the room that is left.
        async with tenant.datasets.making, announced:
            # The same bytes may have been kept meanwhile, and need no room a second time.
            stored = await tenant.datasets.find(name)
            return stored or await self._make(tenant, name, header, upload)

    async def _make(
        self, tenant: Tenant, name: str, header: dataset_pb2.DatasetHeader, upload: Upload
    ) -> dataset_pb2.Dataset:
        dataset = await self._ingest(tenant, upload, name, header)
        _complete(dataset, name, header)
        stored = await _keep(tenant, upload, dataset)
        about = {"rows": dataset.row_count, **call_fields()}
        structlog.get_logger().info("dataset.stored", dataset=name, **about)
        return stored

    async def _receive(
        self, tenant: Tenant, header: dataset_pb2.DatasetHeader, arriving: _Arriving
    ) -> Upload:
        """All the bytes of an upload, for which it has a place no longer than it needs one."""
        async with self._transfers.place():
            # Made without waiting, so that a caller who leaves cannot leave it behind.
            with refusing_when_short():
                upload = tenant.catalog.begin_upload(header.size_bytes, header.sha256)
            try:
                await _spool(arriving, upload)
            except BaseException:
                await _discard(upload)
                raise
        return upload

    async def _ingest(
        self, tenant: Tenant, upload: Upload, name: str, header: dataset_pb2.DatasetHeader
    ) -> dataset_pb2.Dataset:
        # One of all tenants at a time: each may take all the memory that parsing is allowed.
        async with self._parsing:
            room = await tenant.retention.largest_table(name, header.size_bytes)
            try:
                return await self._parse(upload, header.format, room.size_bytes)
            except StorageFull:
                tenant.retention.explain_full(room)
                raise

    async def _parse(self, upload: Upload, data_format: int, most: int) -> dataset_pb2.Dataset:
        """Have a child process parse the bytes: whatever they do to it, the server goes on."""
        task = Ingest(upload.source, upload.table, data_format, self._ingest_memory_bytes, most)
        answers = await ask(self._executor, task, "dataset.worker_error")
        for message in answers.messages:
            if isinstance(message, dataset_pb2.Dataset):
                return message
            if isinstance(message, training_pb2.Failure):
                raise _ingest_error(message)
        raise BrokenUpload(
            f"the process that parsed the upload died (exit status {answers.status})"
        )

    @rpc
    async def GetDataset(  # noqa: N802
        self, request: dataset_pb2.GetDatasetRequest, context: Any
    ) -> dataset_pb2.Dataset:
        tenant = await self._tenants.of_caller()
        dataset = await tenant.store.dataset(request.name)
        if dataset is None:
            raise NotFound(f"{request.name} does not exist")
        return dataset

    @rpc
    async def ListDatasets(  # noqa: N802
        self, request: dataset_pb2.ListDatasetsRequest, context: Any
    ) -> dataset_pb2.ListDatasetsResponse:
        tenant = await self._tenants.of_caller()
        page, following = await tenant.store.datasets(*page_bounds(contract.resolve(request)))
        return dataset_pb2.ListDatasetsResponse(
            datasets=page, next_page_token=page_token(following)
        )

    @rpc
    async def DeleteDataset(  # noqa: N802
        self, request: dataset_pb2.DeleteDatasetRequest, context: Any
    ) -> empty_pb2.Empty:
        tenant = await self._tenants.of_caller()
        await tenant.datasets.delete(request.name)
        structlog.get_logger().info("dataset.deleted", dataset=request.name, **call_fields())
        return empty_pb2.Empty()


async def _keep(
    tenant: Tenant, upload: Upload, dataset: dataset_pb2.Dataset
) -> dataset_pb2.Dataset:
    """Take the upload in; done before it is discarded, even if the caller leaves."""
    keeping = asyncio.create_task(_make_room_and_keep(tenant, upload, dataset))
    try:
        return await finish(keeping)
    except asyncio.CancelledError:
        await asyncio.wait([keeping])
        raise


async def _make_room_and_keep(
    tenant: Tenant, upload: Upload, dataset: dataset_pb2.Dataset
) -> dataset_pb2.Dataset:
    await tenant.retention.make_room(upload.kept_bytes)
    return await tenant.datasets.keep(upload, dataset)


async def _discard(upload: Upload) -> None:
    await finish(asyncio.to_thread(upload.discard))


class _Arriving:
    """The messages of an upload.

    Raises:
        QuotaExceeded: they come too slowly.
    """

    def __init__(self, requests: AsyncIterator[_Message], pace: Pace) -> None:
        self._requests = aiter(requests)
        self._pace = pace

    def __aiter__(self) -> _Arriving:
        return self

    async def __anext__(self) -> _Message:
        request = await self._pace.keep(anext(self._requests))
        if isinstance(request, memoryview):
            self._pace.moved(request.nbytes)
        elif isinstance(request, dataset_pb2.UploadDatasetRequest):
            self._pace.moved(request.ByteSize())
        return request


async def _read_header(requests: _Arriving) -> dataset_pb2.DatasetHeader:
    async for request in requests:
        if not isinstance(request, memoryview):
            check(request)
            if request.HasField("header"):
                return request.header
        raise BrokenUpload("the first message must be the header")
    raise BrokenUpload("the upload has no header")


async def _spool(requests: _Arriving, upload: Upload) -> None:
    """Write what comes, in a thread; a few chunks may wait for it, while the next one comes in."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
    loop = asyncio.get_running_loop()
    writing: deque[asyncio.Future[None]] = deque()
    try:
        async for request in requests:
            data = _data(request)
            with refusing_when_short():
                writing.append(loop.run_in_executor(thread, upload.write, data))
            if len(writing) > _WAITING_CHUNKS:
                await writing.popleft()
        await asyncio.gather(*writing)
        await loop.run_in_executor(thread, upload.finish)
    finally:
        # A thread cannot be stopped, and what it writes to is closed next.
        await asyncio.gather(*writing, return_exceptions=True)
        thread.shutdown(wait=False)


def _data(request: _Message) -> bytes | memoryview:
    if isinstance(request, memoryview):
        return request
    check(request)
    if not request.HasField("chunk"):
        raise BrokenUpload("after the header only chunks may come")
    return request.chunk.data


def _complete(dataset: dataset_pb2.Dataset, name: str, header: dataset_pb2.DatasetHeader) -> None:
    dataset.name = name
    dataset.format = header.format
    dataset.size_bytes = header.size_bytes
    dataset.sha256 = header.sha256
    dataset.create_time.CopyFrom(jobs.now())


def _ingest_error(failure: training_pb2.Failure) -> RequestError:
    if failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA:
        return BrokenUpload(failure.message)
    if failure.reason == training_pb2.FAILURE_REASON_STORAGE_FULL:
        return StorageFull(failure.message)
    return RequestError(failure.message)

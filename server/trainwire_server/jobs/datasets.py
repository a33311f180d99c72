"""Takes datasets in and lets them go, so that no job is left without its data."""

from __future__ import annotations

import asyncio
import time

from trainwire.v1 import dataset_pb2
from trainwire_server.data.catalog import Catalog, Upload
from trainwire_server.errors import DatasetInUse, NotFound
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.store import Store

_NAMED_USERS = 5


class Datasets:
    """The datasets of one server.

    Attributes:
        making: held while a table is made of an upload, until that is taken in.
        lock: held while a dataset is taken in, deleted, or comes to be referred to by a job.
    """

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.making = asyncio.Lock()
        self.lock = asyncio.Lock()
        self._store = store
        self._catalog = catalog

    async def find(self, name: str) -> dataset_pb2.Dataset | None:
        """The dataset of an upload that need not be sent, which counts as a use of it."""
        async with self.lock:
            dataset = await self._store.dataset(name)
            if dataset is not None:
                await asyncio.to_thread(self._catalog.mark_used, name, time.time())
        return dataset

    async def keep(self, upload: Upload, dataset: dataset_pb2.Dataset) -> dataset_pb2.Dataset:
        """Take a finished upload in, unless the same bytes are there already; what is there then.

        Raises:
            StorageFull: there is no room; nothing of it is left.
        """
        async with self.lock:
            stored = await self._store.dataset(dataset.name)
            if stored is None:
                await self._keep(upload, dataset)
            await asyncio.to_thread(self._catalog.mark_used, dataset.name, time.time())
        return stored or dataset

    async def _keep(self, upload: Upload, dataset: dataset_pb2.Dataset) -> None:
        try:
            await asyncio.to_thread(self._catalog.keep_upload, upload, dataset.name)
            await self._store.add_dataset(dataset)
        except Exception:
            await asyncio.to_thread(self._catalog.remove, dataset.name)
            raise

    async def delete(self, name: str) -> None:
        """Delete a dataset no job refers to.

        Raises:
            NotFound: no such dataset.
            DatasetInUse: jobs refer to it.
        """
        # A caller that leaves half way must not leave files that nobody knows.
        await finish(self._delete(name))

    async def _delete(self, name: str) -> None:
        async with self.lock:
            if await self._store.dataset(name) is None:
                raise NotFound(f"{name} does not exist")
            users = await self._store.jobs_of_dataset(name, limit=_NAMED_USERS + 1)
            if users:
                more = " and others" if len(users) > _NAMED_USERS else ""
                listing = ", ".join(users[:_NAMED_USERS])
                raise DatasetInUse(f"{name} is used by {listing}{more}; delete these jobs first")
            await self._remove(name)

    async def delete_unused(self, name: str, since: float) -> bool:
        """Delete a dataset no job refers to and nobody has used since a time; whether it did.

        Args:
            since: seconds since 1970.
        """
        async with self.lock:
            # A file system may round times.
            if self._catalog.last_used(name) > since + 1.0:
                return False
            if await self._store.jobs_of_dataset(name, limit=1):
                return False
            await self._remove(name)
        return True

    async def _remove(self, name: str) -> None:
        await self._store.delete_dataset(name)
        await asyncio.to_thread(self._catalog.remove, name)

"""Takes datasets in and lets them go, so that no job is left without its data."""

from __future__ import annotations

import asyncio

from trainwire.v1 import dataset_pb2
from trainwire_server.data.catalog import Catalog, Upload
from trainwire_server.errors import DatasetInUse, NotFound
from trainwire_server.jobs.store import Store

_NAMED_USERS = 5


class Datasets:
    """The datasets of one server.

    Attributes:
        lock: held while a dataset is taken in, deleted, or comes to be referred to by a job.
    """

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.lock = asyncio.Lock()
        self._store = store
        self._catalog = catalog

    async def keep(self, upload: Upload, dataset: dataset_pb2.Dataset) -> None:
        """Take a finished upload in, unless the same bytes are there already."""
        async with self.lock:
            if await self._store.dataset(dataset.name) is None:
                await asyncio.to_thread(self._catalog.keep_upload, upload, dataset.name)
                await self._store.add_dataset(dataset)

    async def delete(self, name: str) -> None:
        """Delete a dataset no job refers to.

        Raises:
            NotFound: no such dataset.
            DatasetInUse: jobs refer to it.
        """
        # Shielded: a caller that leaves half way must not leave files that nobody knows.
        await asyncio.shield(self._delete(name))

    async def _delete(self, name: str) -> None:
        async with self.lock:
            if await self._store.dataset(name) is None:
                raise NotFound(f"{name} does not exist")
            users = await self._store.jobs_of_dataset(name, limit=_NAMED_USERS + 1)
            if users:
                more = " and others" if len(users) > _NAMED_USERS else ""
                listing = ", ".join(users[:_NAMED_USERS])
                raise DatasetInUse(f"{name} is used by {listing}{more}; delete these jobs first")
            await self._store.delete_dataset(name)
            await asyncio.to_thread(self._catalog.remove, name)

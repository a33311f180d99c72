"""Removes jobs, models and datasets: the row first, then the files.

A server that ends between the two leaves files without a row, which `retention` removes later.
"""

from __future__ import annotations

import asyncio

from trainwire.v1 import training_pb2
from trainwire_server.data.catalog import Catalog
from trainwire_server.jobs.store import Store


async def remove_job(store: Store, catalog: Catalog, job: training_pb2.TrainingJob) -> None:
    """Remove a job that has ended, with its events and its folder; the model it made stays.

    To be called with the lock of the datasets held: another job may be taking over its checkpoints.
    """
    await _mark_dataset(catalog, job)
    await store.delete_job(job.name)
    await asyncio.to_thread(catalog.remove, job.name)


async def remove_job_and_model(
    store: Store, catalog: Catalog, job: training_pb2.TrainingJob
) -> bool:
    """Remove a job that has ended and the model it made, unless that has an alias.

    To be called as `remove_job` is.

    Returns:
        Whether they were removed.
    """
    await _mark_dataset(catalog, job)
    if not await store.delete_job_and_model(job):
        return False
    await asyncio.to_thread(catalog.remove, job.name)
    if job.model:
        await asyncio.to_thread(catalog.remove, job.model)
    return True


async def remove_model(store: Store, catalog: Catalog, name: str) -> None:
    """Remove a model with its files.

    Raises:
        ModelInUse: it has an alias.
    """
    await store.delete_model(name)
    await asyncio.to_thread(catalog.remove, name)


async def _mark_dataset(catalog: Catalog, job: training_pb2.TrainingJob) -> None:
    """A dataset was in use until the last of its jobs ended."""
    end = job.end_time.ToNanoseconds() / 1e9
    await asyncio.to_thread(catalog.mark_used, job.request.dataset, end)

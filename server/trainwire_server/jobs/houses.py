"""Where each tenant's things lie: a folder and a database of its own.

The default tenant has the data directory itself; any other one has `tenants/NAME` within it. So no
query can forget whose rows it is after, and no file of one tenant has a name for another.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from trainwire_server.data.catalog import Catalog, DataDirectoryInUse
from trainwire_server.data.durable import NO_ROOM, refuse_links, sync_folder
from trainwire_server.identity import DEFAULT_TENANT, TENANT_WORDS, is_tenant
from trainwire_server.jobs import database
from trainwire_server.jobs.store import Store
from trainwire_server.meters import Meters

_TENANTS = "tenants"


class HouseError(Exception):
    """A tenant's folder or database cannot be used; the message says why.

    Args:
        is_full: whether that is for want of room.
    """

    def __init__(self, message: str, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


@dataclass(frozen=True)
class House:
    """The folder and the database of a tenant, open."""

    tenant: str
    catalog: Catalog
    store: Store


class Houses:
    """The houses of one data directory."""

    def __init__(self, data_dir: Path, meters: Meters) -> None:
        self._data_dir = data_dir
        self._meters = meters
        self._open: dict[str, House] = {}

    def open_all(self) -> list[House]:
        """Open that of the default tenant, made if need be, and all others that are there.

        Takes a while: for the start of a server, before it serves.

        Raises:
            HouseError: one of them cannot be used.
        """
        return [self.open(tenant) for tenant in (DEFAULT_TENANT, *self._found())]

    def open(self, tenant: str) -> House:
        """Open the house of a tenant, made if need be, or give the one that is open.

        Raises:
            HouseError: it cannot be used.
        """
        if tenant not in self._open:
            catalog = self._open_catalog(tenant)
            self._open[tenant] = House(tenant, catalog, self._open_store(catalog))
        return self._open[tenant]

    def _open_catalog(self, tenant: str) -> Catalog:
        folder = self._data_dir
        try:
            if tenant != DEFAULT_TENANT:
                folder = self._make(tenant)
            return Catalog(folder)
        except DataDirectoryInUse as error:
            raise HouseError(str(error)) from error
        except OSError as error:
            problem = f"cannot use data directory {folder}: {error}"
            raise HouseError(problem, error.errno in NO_ROOM) from error

    def _open_store(self, catalog: Catalog) -> Store:
        try:
            return Store(catalog.database, self._meters)
        except sqlite3.Error as error:
            catalog.close()
            problem = f"cannot use database {catalog.database}: {error}"
            raise HouseError(problem, database.is_full(catalog.root, error)) from error

    def _make(self, tenant: str) -> Path:
        parent = self._data_dir / _TENANTS
        for folder in (parent, parent / tenant):
            refuse_links(folder)
            if not folder.is_dir():
                folder.mkdir()
                # What is acknowledged within it must not be gone with it after a power loss.
                sync_folder(folder.parent)
        return parent / tenant

    def _found(self) -> list[str]:
        parent = self._data_dir / _TENANTS
        try:
            refuse_links(parent)
            folders = sorted(parent.iterdir()) if parent.exists() else []
            refuse_links(*folders)
        except OSError as error:
            raise HouseError(f"cannot use data directory {self._data_dir}: {error}") from error
        for folder in folders:
            if folder.name == DEFAULT_TENANT:
                raise HouseError(
                    f"{folder} is not where the tenant {DEFAULT_TENANT} has its things: that is "
                    f"{self._data_dir} itself; move this folder away"
                )
            if not folder.is_dir() or not is_tenant(folder.name):
                raise HouseError(
                    f"{folder} is no folder of a tenant (allowed: {TENANT_WORDS}); move it away"
                )
        return [folder.name for folder in folders]

    async def close(self) -> None:
        """Close all of them."""
        for house in self._open.values():
            await house.store.close()
            house.catalog.close()

"""The folders of tenants: each its own, none reached through another or a link."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.test_backup import run as run_commands

from trainwire.v1 import dataset_pb2
from trainwire_server.data.catalog import Catalog
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.houses import House, HouseError, Houses
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.retention import Retention
from trainwire_server.meters import Meters


def run(data_dir: Path, work: Callable[[Houses], Awaitable[None]]) -> None:
    async def session() -> None:
        houses = Houses(data_dir, Meters())
        try:
            await work(houses)
        finally:
            await houses.close()

    asyncio.run(session())


def test_the_default_tenant_has_the_data_directory_and_others_a_folder_in_it(
    tmp_path: Path,
) -> None:
    async def first(houses: Houses) -> None:
        (default,) = houses.open_all()
        assert default.catalog.root == tmp_path
        assert not (tmp_path / "tenants").exists()
        for name in ("beta", "alpha"):
            house = houses.open(name)
            assert house.catalog.root == tmp_path / "tenants" / name
            assert houses.open(name) is house

    async def second(houses: Houses) -> None:
        assert [house.tenant for house in houses.open_all()] == ["default", "alpha", "beta"]

    run(tmp_path, first)
    run(tmp_path, second)


def make_link(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    elsewhere.mkdir()
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("name", "make", "problem"),
    [
        ("tenants/acme", make_link, "tenants/acme is a symbolic link"),
        ("tenants/acme", lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
        ("tenants/default", Path.mkdir, "that is .* itself; move this folder away"),
        ("tenants/Acme", Path.mkdir, "Acme is no folder of a tenant .allowed: 1 to 64 lower"),
        ("tenants/a.b", Path.mkdir, "is no folder of a tenant"),
        ("tenants/acme", Path.touch, "is no folder of a tenant"),
    ],
)
def test_what_is_no_tenants_folder_is_refused_at_the_start(
    name: str, make: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    make(path)

    async def work(houses: Houses) -> None:
        with pytest.raises(HouseError, match=problem):
            houses.open_all()

    run(tmp_path / "data", work)


def test_links_are_not_followed_while_the_server_runs_either(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()

    async def work(houses: Houses) -> None:
        houses.open_all()
        (data / "tenants").symlink_to(elsewhere)
        with pytest.raises(HouseError, match="tenants is a symbolic link"):
            houses.open("acme")
        (data / "tenants").unlink()
        (data / "tenants").mkdir()
        (data / "tenants/acme").symlink_to(elsewhere)
        with pytest.raises(HouseError, match="acme is a symbolic link"):
            houses.open("acme")
        assert not list(elsewhere.iterdir())
        # What was in the way is gone: it opens, and that of the failed attempts is not held.
        (data / "tenants/acme").unlink()
        assert houses.open("acme").tenant == "acme"

    run(data, work)


def test_a_damaged_database_of_one_tenant_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tenants/acme"
    folder.mkdir(parents=True)
    (folder / "trainwire.db").write_bytes(b"no database" * 1000)

    async def work(houses: Houses) -> None:
        with pytest.raises(HouseError, match=rf"cannot use database {folder}.*it is damaged"):
            houses.open_all()
        # Nor is its folder held: it can be restored while the server runs.
        Catalog(folder).close()

    run(tmp_path, work)


def test_the_backup_of_the_page_has_every_tenant(tmp_path: Path) -> None:
    """Taken while the houses are open; with what `restore` does it is a data directory again."""
    data, backup = tmp_path / "data", tmp_path / "backup"

    async def fill(houses: Houses) -> None:
        houses.open_all()
        await add_dataset(houses.open("acme"), 1_000)
        run_commands("backup", data, backup)

    async def look(houses: Houses) -> None:
        default, acme = houses.open_all()
        assert (await default.store.names(), acme.tenant) == (set(), "acme")
        assert await acme.store.names() == {"datasets/d"}
        assert acme.catalog.stored_bytes() == 1_000

    run(data, fill)
    run(backup, look)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory without room for anything more."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(root)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("left", [0, 8192])
def test_a_new_tenant_on_a_full_disk_is_told_that_it_is_full(left: int, full_disk: Path) -> None:
    async def work(houses: Houses) -> None:
        houses.open_all()
        filler = full_disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        os.truncate(filler, filler.stat().st_size - left)
        with pytest.raises(HouseError) as caught:
            houses.open("acme")
        assert caught.value.is_full
        filler.unlink()
        assert houses.open("acme").tenant == "acme"

    run(full_disk, work)


# ------------------------------------------------------------------------ retention


async def add_dataset(house: House, size: int) -> str:
    upload = house.catalog.begin_upload(size, "")
    upload.write(b"x" * size)
    name = "datasets/d"
    await Datasets(house.store, house.catalog).keep(upload, dataset_pb2.Dataset(name=name))
    upload.discard()
    os.utime(house.catalog.model_folder(name), (0, 0))
    return name


def test_retention_deletes_from_the_one_folder_alone(tmp_path: Path) -> None:
    async def work(houses: Houses) -> None:
        (default,) = houses.open_all()
        acme = houses.open("acme")
        for house in (default, acme):
            await add_dataset(house, 300_000)
        # What nobody has a row for, and is old, is removed: not so another tenant's folder.
        for path in (tmp_path / "tenants", tmp_path / "tenants/acme"):
            os.utime(path, (0, 0))
        assert default.catalog.stored_bytes() == 300_000
        datasets = Datasets(default.store, default.catalog)
        retention = Retention(default, datasets, 1.0, 100_000, Quotas())
        await retention.sweep(now=10_000_000.0)
        assert await default.store.names() == set()
        assert await acme.store.names() == {"datasets/d"}
        assert (acme.catalog.model_folder("datasets/d") / "source").stat().st_size == 300_000

    run(tmp_path, work)

"""The data directory: one owner, uploads that arrive whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from trainwire_server.data.catalog import Catalog, DataDirectoryInUse
from trainwire_server.data.checkpoints import FOLDER
from trainwire_server.data.durable import SymbolicLink
from trainwire_server.errors import BrokenUpload

DATA = b"some bytes of a dataset"
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    with pytest.raises(DataDirectoryInUse, match=str(tmp_path)):
        Catalog(tmp_path)
    catalog.close()
    Catalog(tmp_path).close()


def test_an_upload_is_kept_with_its_bytes(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    upload = catalog.begin_upload(len(DATA), SHA256)
    for byte in DATA:
        upload.write(bytes([byte]))
    upload.finish()
    upload.table.write_bytes(b"table")
    catalog.keep_upload(upload, "datasets/one")
    upload.discard()
    assert catalog.table("datasets/one").read_bytes() == b"table"
    assert catalog.table("datasets/one").with_name("source").read_bytes() == DATA
    assert not list((tmp_path / "uploads").iterdir())
    catalog.close()


@pytest.mark.parametrize(
    ("size", "sha256", "message"),
    [
        (len(DATA) - 1, SHA256, "more bytes than the 22"),
        (len(DATA) + 1, SHA256, "23 bytes came, header.size_bytes says 24"),
        (len(DATA), "0" * 64, f"the bytes have SHA-256 {SHA256}"),
    ],
)
def test_bytes_that_are_not_what_was_announced_are_refused(
    tmp_path: Path, size: int, sha256: str, message: str
) -> None:
    catalog = Catalog(tmp_path)
    upload = catalog.begin_upload(size, sha256)

    def send() -> None:
        upload.write(DATA)
        upload.finish()

    with pytest.raises(BrokenUpload, match=message):
        send()
    upload.discard()
    assert not list((tmp_path / "uploads").iterdir())
    catalog.close()


def test_what_was_left_of_uploads_is_removed_at_start(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.begin_upload(1, SHA256).write(b"x")
    catalog.close()
    Catalog(tmp_path).close()
    assert not list((tmp_path / "uploads").iterdir())


def test_a_data_directory_whose_database_is_gone_is_refused(tmp_path: Path) -> None:
    Catalog(tmp_path).close()
    (tmp_path / "models" / "m").mkdir()
    for is_there in (False, True):
        with pytest.raises(FileNotFoundError, match="missing or empty, but there is models/m"):
            Catalog(tmp_path)
        assert (tmp_path / "models" / "m").is_dir()
        if not is_there:
            (tmp_path / "trainwire.db").touch()
    (tmp_path / "trainwire.db").write_bytes(b"some")
    Catalog(tmp_path).close()


def test_a_bundle_is_kept_by_a_call_after_one_that_failed(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    bundle = catalog.job_folder("jobs/j") / "bundle"
    bundle.mkdir()
    (bundle / "weights").write_bytes(b"w")
    # The first call was refused by the disk after it had moved the folder.
    for _ in range(2):
        catalog.keep_bundle("jobs/j", "models/m")
    assert (catalog.model_folder("models/m") / "weights").read_bytes() == b"w"
    assert not bundle.exists()
    with pytest.raises(FileNotFoundError):
        catalog.keep_bundle("jobs/j", "models/other")
    catalog.close()


def test_what_a_folder_takes_is_what_goes_with_it(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    (catalog.job_folder("jobs/a") / "own").write_bytes(b"x" * 10)
    (catalog.job_folder("jobs/a") / "shared").write_bytes(b"x" * 100)
    os.link(catalog.job_folder("jobs/a") / "shared", catalog.job_folder("jobs/resumed") / "shared")
    assert measured(catalog) == 110
    assert catalog.removable_bytes("jobs/a") == 10
    catalog.remove("jobs/a")
    assert measured(catalog) == catalog.removable_bytes("jobs/resumed") == 100
    assert catalog.removable_bytes("jobs/a") == 0
    # Uploads are counted by what was announced.
    upload = catalog.begin_upload(len(DATA), SHA256)
    upload.write(DATA)
    upload.finish()
    assert catalog.stored_bytes() == 100
    upload.discard()
    catalog.close()


def measured(catalog: Catalog) -> int:
    """Bytes that are stored, by a look at all of them; what a catalog knew must not differ."""
    catalog.measure()
    return catalog.stored_bytes()


def test_what_the_server_stores_and_removes_is_known_without_a_look(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    upload = catalog.begin_upload(len(DATA), SHA256)
    upload.write(DATA)
    upload.finish()
    upload.table.write_bytes(b"x" * 50)
    catalog.keep_upload(upload, "datasets/d")
    assert catalog.stored_bytes() == len(DATA) + 50 == measured(catalog)
    # What a training process has written is known when its job ends.
    bundle, checkpoints = (catalog.job_folder("jobs/j") / name for name in ("bundle", FOLDER))
    for folder, size in ((bundle, 100), (checkpoints, 1_000)):
        folder.mkdir()
        (folder / "file").write_bytes(b"x" * size)
    assert catalog.stored_bytes() == len(DATA) + 50
    catalog.keep_bundle("jobs/j", "models/j")
    assert catalog.stored_bytes() == len(DATA) + 1_150 == measured(catalog)
    catalog.drop_checkpoints("jobs/j")
    assert catalog.stored_bytes() == len(DATA) + 150 == measured(catalog)
    (catalog.job_folder("jobs/lost") / "best").write_bytes(b"x" * 7)
    catalog.tidy("jobs/lost")
    assert catalog.stored_bytes() == len(DATA) + 157 == measured(catalog)
    for name in ("jobs/j", "jobs/lost", "models/j", "datasets/d"):
        catalog.remove(name)
    assert catalog.stored_bytes() == 0 == measured(catalog)
    catalog.close()


def test_what_lay_there_before_is_known(tmp_path: Path) -> None:
    (tmp_path / "trainwire.db").write_bytes(b"rows")
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "weights").write_bytes(b"x" * 100)
    catalog = Catalog(tmp_path)
    assert catalog.stored_bytes() == 100
    # What somebody removes by hand is found by the next look.
    shutil.rmtree(tmp_path / "models" / "m")
    assert (catalog.stored_bytes(), measured(catalog)) == (100, 0)
    catalog.close()


def test_a_use_is_never_moved_back(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.model_folder("datasets/d").mkdir()
    os.utime(catalog.model_folder("datasets/d"), (1000, 1000))
    for time, expected in ((900, 1000), (1100, 1100), (1050, 1100)):
        catalog.mark_used("datasets/d", time)
        assert catalog.last_used("datasets/d") == expected
    catalog.mark_used("datasets/none", 1)
    assert catalog.last_used("datasets/none") == 0
    catalog.close()


@pytest.mark.parametrize("name", ["datasets", "jobs", "models", "uploads", "lock"])
def test_a_data_directory_with_links_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "data").mkdir()
    target = tmp_path / ("file" if name == "lock" else "elsewhere")
    (tmp_path / "data" / name).symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic link"):
        Catalog(tmp_path / "data")
    assert (tmp_path / "file").read_text() == "kept"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_job_whose_folder_is_a_link_loses_the_link_alone(place: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere/checkpoints/x.partial").write_text("kept")
    catalog = Catalog(tmp_path / "data")
    (tmp_path / "data/jobs/one").mkdir()
    planted = tmp_path / "data/jobs/one" / place
    if not place:
        planted.rmdir()
    planted.symlink_to(tmp_path / "elsewhere" / place)
    if place:
        catalog.drop_checkpoints("jobs/one")
        catalog.tidy("jobs/one")
    else:
        for use in (catalog.drop_checkpoints, catalog.tidy, catalog.job_folder):
            with pytest.raises(SymbolicLink):
                use("jobs/one")
    catalog.remove("jobs/one")
    assert not (tmp_path / "data/jobs/one").exists()
    assert not list((tmp_path / "data/uploads").iterdir())
    assert (tmp_path / "elsewhere/checkpoints/x.partial").read_text() == "kept"
    catalog.close()


@pytest.mark.parametrize("name", ["jobs/..", "jobs/.", "jobs/", "jobs/a/b", "../jobs", "uploads/a"])
def test_what_names_no_resource_has_no_folder(name: str, tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    with pytest.raises(ValueError, match="is no name of a resource"):
        catalog.remove(name)
    catalog.close()

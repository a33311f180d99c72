"""The data directory: one owner, uploads that arrive whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trainwire_server.data.catalog import Catalog, DataDirectoryInUse
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

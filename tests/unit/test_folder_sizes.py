"""What folders take is told while one of them is being looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainwire_server.data import folder_sizes
from trainwire_server.data.folder_sizes import FolderSizes


def test_a_slow_disk_holds_up_no_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(1_000))
    sizes = FolderSizes(tmp_path)
    sizes.measure("a")
    looking, may_look = threading.Event(), threading.Event()
    look = folder_sizes.files_below

    def look_slowly(folder: Path) -> Iterator[Any]:
        looking.set()
        assert may_look.wait(60)
        yield from look(folder)

    monkeypatch.setattr(folder_sizes, "files_below", look_slowly)
    measuring = threading.Thread(target=sizes.measure, args=("b",))
    measuring.start()
    assert looking.wait(60)
    totals: list[int] = []
    asking = threading.Thread(target=lambda: totals.append(sizes.total))
    asking.start()
    asking.join(20)
    assert totals == [1_000]
    may_look.set()
    measuring.join(60)
    assert sizes.total == 2_000

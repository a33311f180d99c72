"""How many cores a server counts on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainwire_server.cores import count_cores

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", ALLOWED),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("100001 100000\n", min(ALLOWED, 2)),
        ("99900000 100000\n", ALLOWED),
        ("nonsense", ALLOWED),
        (None, ALLOWED),
    ],
)
def test_a_limit_of_the_container_counts(quota: str | None, cores: int, tmp_path: Path) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert count_cores(tmp_path / "cpu.max") == cores


def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores(Path("/nonexistent")) == 1
    finally:
        os.sched_setaffinity(0, before)

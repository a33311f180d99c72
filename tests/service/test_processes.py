"""What each process has loaded: the client nothing heavy, the server no torch, a worker no grpc."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]

HEAVY = ("torch", "numpy", "pyarrow", "pandas", "safetensors", "sqlite3", "rich", "typer")
LIBRARIES = {
    "torch": "libtorch",
    "numpy": "_multiarray_umath",
    "pyarrow": "libarrow",
    "grpc": "cygrpc",
    # Nothing but clients uses it, but pyarrow imports it where it is installed, as it is here.
    "pandas": "pandas/_libs",
}
"""A shared object that each package maps into a process when it is imported."""


def loaded(pid: int) -> set[str]:
    """Which of the packages in `LIBRARIES` a process has loaded."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {package for package, library in LIBRARIES.items() if library in maps}


@pytest.mark.parametrize(
    "module",
    [
        "trainwire_client",
        "trainwire_client.bundle",
        "trainwire_client.tables",
        "trainwire.contract",
    ],
)
def test_importing_the_client_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*set({HEAVY!r}) & sys.modules.keys())"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_the_server_loads_neither_torch_nor_numpy_nor_arrow(
    server: Any, client: TrainingClient, request_for: RequestFor, tmp_path: Path
) -> None:
    job = client.wait(client.submit(request_for(epochs=1)))
    client.download(job.model, tmp_path)
    assert client.info().torch_version
    assert loaded(server.process.pid) == {"grpc"}


def test_workers_and_the_fork_server_load_torch_and_never_grpc(
    server: Any, endless_job: training_pb2.TrainingJob
) -> None:
    (worker,) = server.children()
    assert loaded(worker) == {"torch", "numpy", "pyarrow"}
    forkserver = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert forkserver != server.process.pid
    assert loaded(forkserver) == {"torch", "numpy", "pyarrow"}

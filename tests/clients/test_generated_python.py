"""proto/ is all that another team needs: generated afresh, away from this repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from trainwire import contract

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / ".venv-proto" / "bin" / "python"
CALL = """
import sys
import grpc
from trainwire.v1 import system_pb2, system_pb2_grpc, training_pb2
assert "trainwire.contract" not in sys.modules
with grpc.insecure_channel(sys.argv[1]) as channel:
    system = system_pb2_grpc.SystemServiceStub(channel)
    info = system.GetSystemInfo(system_pb2.GetSystemInfoRequest())
print(training_pb2.__file__)
print(info.contract_version)
"""


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Code generated from nothing but the .proto files."""
    if not GENERATOR.exists():
        pytest.skip("there is no .venv-proto: run `make proto`")
    protos, out = tmp_path / "proto", tmp_path / "out"
    for path in (ROOT / "proto").rglob("*.proto"):
        copy = protos / path.relative_to(ROOT / "proto")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    out.mkdir()
    files = [str(path.relative_to(protos)) for path in protos.rglob("*.proto")]
    command = [str(GENERATOR), "-m", "grpc_tools.protoc", "-I", str(protos)]
    outputs = [f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run([*command, *outputs, *files], check=True, cwd=tmp_path, timeout=60)
    return out


def test_code_generated_from_proto_alone_calls_the_server(
    generated: Path, server: Any, tmp_path: Path
) -> None:
    # Of what is installed here, only these: the runtime that generated code asks for.
    installed, only = Path(sysconfig.get_path("purelib")), tmp_path / "only"
    only.mkdir()
    for name in ("grpc", "google", "typing_extensions.py"):
        if (installed / name).exists():
            (only / name).symlink_to(installed / name)
    done = subprocess.run(
        [sys.executable, "-S", "-c", CALL, server.address],
        env={"PYTHONPATH": f"{generated}:{only}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, version = done.stdout.split()
    assert Path(where).is_relative_to(generated)
    assert version == contract.contract_version()

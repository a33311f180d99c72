"""What deploy/ and the Dockerfile say of settings, files and times is what the server has.

Their syntax is for `make check-deploy`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from trainwire_client.server_options import Server
from trainwire_server.settings import Settings, read_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFEST = (ROOT / "deploy/kubernetes/base/statefulset.yaml").read_text()
MESH = (ROOT / "deploy/kubernetes/mesh/kustomization.yaml").read_text()
UNIT = (ROOT / "deploy/trainwire.service").read_text()
LOCK = (ROOT / "deploy/requirements.txt").read_text()

SERVERS = {f"TRAINWIRE_{name.upper()}" for name in Settings.__dataclass_fields__}
CLIENTS = {
    f"TRAINWIRE_TARGET_{name.upper()}".removesuffix("_TARGET")
    for name in Server.__dataclass_fields__
}


def _environment(manifest: str) -> dict[str, str]:
    """The variables of a manifest that have a value."""
    found = re.findall(r"- name: (TRAINWIRE_\w+)\n\s+value: (.*)", manifest)
    return {name: value.strip('"') for name, value in found}


def _number(pattern: str, text: str) -> int:
    (found,) = re.findall(pattern, text)
    return int(found)


@pytest.mark.parametrize("text", [DOCKERFILE, MANIFEST, MESH], ids=["image", "base", "mesh"])
def test_variables_are_those_of_server_and_command_line(text: str) -> None:
    # A comment may end with the prefix alone.
    named = set(re.findall(r"\bTRAINWIRE_[A-Z]\w*", text))
    assert named
    assert named <= SERVERS | CLIENTS


def test_the_manifest_is_what_a_server_takes() -> None:
    settings = read_settings([], _environment(MANIFEST))
    assert settings.listen == "0.0.0.0:50051"
    assert settings.tls_cert
    assert settings.tls_key
    assert settings.token_file
    assert not settings.insecure
    assert settings.grace < _number(r"terminationGracePeriodSeconds: (\d+)", MANIFEST)
    gibibytes = {int(memory) for memory in re.findall(r"memory: (\d+)Gi", MANIFEST)}
    assert settings.job_memory_mb < 1024 * min(gibibytes)


def test_in_a_mesh_only_encryption_is_missing() -> None:
    removed = re.findall(r"- name: (TRAINWIRE_\w+)\n\s+\$patch: delete", MESH)
    kept = {key: value for key, value in _environment(MANIFEST).items() if key not in removed}
    settings = read_settings([], kept | _environment(MESH))
    assert settings.insecure
    assert not settings.tls_cert
    assert settings.token_file
    ports = {int(port) for port in re.findall(r"grpc:\n\s+port: (\d+)", MESH)}
    assert ports == {int(settings.listen.rpartition(":")[2])}


def test_the_unit_is_what_a_server_takes() -> None:
    (command,) = re.findall(r"^ExecStart=(.*?[^\\])$", UNIT, re.MULTILINE | re.DOTALL)
    program, *flags = shlex.split(command.replace("\\\n", ""))
    assert Path(program).name == "trainwire-server"
    settings = read_settings(flags, {})
    assert settings.tls_cert
    assert settings.tls_key
    assert settings.token_file
    assert settings.grace < _number(r"(?m)^TimeoutStopSec=(\d+)", UNIT)
    (state,) = re.findall(r"(?m)^StateDirectory=(.*)$", UNIT)
    assert settings.data_dir == Path("/var/lib") / state


def test_the_image_runs_as_the_user_of_the_manifest() -> None:
    user = _number(r"(?m)^USER (\d+):\d+$", DOCKERFILE)
    assert user == _number(r"--uid (\d+)", DOCKERFILE) == _number(r"runAsUser: (\d+)", MANIFEST)
    (directory,) = re.findall(r"TRAINWIRE_DATA_DIR=(\S+)", DOCKERFILE)
    assert f"mountPath: {directory}\n" in MANIFEST


def test_the_manifest_names_the_image_of_this_version() -> None:
    assert re.findall(r"image: \S+:(\S+)", MANIFEST) == [version("trainwire")]


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    """deploy/lock.py."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / "deploy/lock.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_image_pins_what_the_extras_ask_for(lock: ModuleType) -> None:
    heading, *lines = LOCK.splitlines()
    assert heading == lock.HEADING
    assert f"/source[{','.join(lock.EXTRAS)}]" in DOCKERFILE
    pinned = dict(line.split("==") for line in lines)
    # What those need in turn may be another list tomorrow, for no fault of this one.
    for requirement in lock.requirements("trainwire", lock.EXTRAS):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_list_follows_what_is_needed_in_turn(lock: ModuleType) -> None:
    direct = {requirement.name for requirement in lock.requirements("trainwire", ())}
    assert direct == {"grpcio", "grpcio-status", "protobuf"}
    assert direct | {"googleapis-common-protos"} <= set(lock.closure(()))
    assert not {"torch", "typer"} & set(lock.closure(()))
    assert lock.closure(())["protobuf"] == version("protobuf")

"""The wheel and the source archive, built as for a release and installed where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PACKAGES = {"trainwire": "proto", "trainwire_client": "client", "trainwire_server": "server"}
CLIENT_MEGABYTES = 40
SDIST_MEGABYTES = 2
NOT_THE_CLIENTS = ("numpy", "onnx", "onnxruntime", "pandas", "pyarrow", "rich", "torch", "typer")


def _run(*command: str | Path, status: int = 0, cwd: Path | None = None) -> str:
    # What the environment of the tests says of Python must not reach another one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == status, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is built from the source archive, which has all it needs."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("trainwire-*-py3-none-any.whl")
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    return folder


def _site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def test_the_source_archive_has_what_git_has_of_the_packages(built: Path) -> None:
    (path,) = built.glob("trainwire-*.tar.gz")
    assert path.stat().st_size < SDIST_MEGABYTES * 1e6
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = [f"{place}/{package}" for package, place in PACKAGES.items()]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    held = {name for name in names if name.startswith(tuple(f"{f}/" for f in folders))}
    assert held == {name for name in listed if (ROOT / name).exists()}
    assert names - held == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"
    }  # fmt: skip


def test_the_wheel_has_types_contract_and_statements(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    for folder, pattern in (("proto", "**/*.proto"), ("proto", "**/*.pyi"), ("server", "**/*.sql")):
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).glob(pattern)]
        assert files
        assert {str(path) for path in files} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_client_by_itself_is_small(wheel: Path, environment: Path, tmp_path: Path) -> None:
    binaries = environment / "bin"
    _run(binaries / "pip", "install", "--quiet", wheel)
    _run(binaries / "pip", "check")
    program = (
        "import sys, trainwire_client.aio, trainwire.contract;"
        f"print({{*{NOT_THE_CLIENTS}}} & set(sys.modules), trainwire_client.__file__)"
    )
    loaded = _run(binaries / "python", "-c", program, cwd=tmp_path)
    assert loaded.startswith(f"set() {environment}")
    told = _run(binaries / "trainwire", "--help", status=2, cwd=tmp_path)
    assert "install with: pip install 'trainwire[cli]'" in told
    _run(binaries / "pip", "uninstall", "--quiet", "--yes", "setuptools", "pip")
    files = [path for path in _site_packages(environment).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < CLIENT_MEGABYTES * 1e6


@pytest.fixture
def beside(environment: Path, wheel: Path) -> Path:
    """The wheel in an environment that borrows what it needs from the one of the tests."""
    (lender,) = Path(sys.prefix).glob("lib/python3*/site-packages")
    site = _site_packages(environment)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "lender.pth").write_text(f"{lender}\n")
    return environment


@contextmanager
def _served(environment: Path, folder: Path) -> Iterator[str]:
    """The address of a server of this environment."""
    socket = f"unix:{folder}/socket"
    program = "from trainwire_server.__main__ import main; main()"
    command = [str(environment / "bin/python"), "-c", program, "--listen", socket]
    home = folder / "home"
    home.mkdir()
    # Text from the server, such as a traceback, is for whoever reads why a test failed.
    server = subprocess.Popen(
        [*command, "--threads", "1", "--data-dir", str(folder / "data")],
        cwd=folder, env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        yield socket
    finally:
        server.terminate()
        assert server.wait(60) == 0
    # Neither the server nor its libraries keep anything anywhere else.
    assert not list(home.rglob("*"))


def test_the_server_trains_from_the_wheel(
    beside: Path,
    tmp_path: Path,
    columns: Callable[..., object],
    small: Callable[..., training_pb2.TrainingRequest],
) -> None:
    with _served(beside, tmp_path) as target, TrainingClient(target, retry_for=60) as client:
        dataset = client.upload(columns())
        job = client.wait(client.submit(small(dataset.name, epochs=1)))
        assert job.state == training_pb2.JOB_STATE_SUCCEEDED
        assert "model.onnx" in {file.name for file in client.model(job.model).files}
        binaries = (beside / "bin/python", "-m", "trainwire_client")
        assert _run(*binaries, "health", "--target", target, cwd=tmp_path) == "SERVING\n"
        assert _run(*binaries, "--version", cwd=tmp_path).startswith("trainwire 0.")

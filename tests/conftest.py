"""Real servers for tests: a process of its own, port 0, a temporary data directory.

The wire is imported where it is used: tests/gpu run where only torch and the like are installed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trainwire.v1 import dataset_pb2, training_pb2

if TYPE_CHECKING:
    import grpc

    from trainwire_client import TrainingClient

START_SECONDS = 60
FAULTS = (
    "rpc.error",
    "job.error",
    "job.worker_error",
    "dataset.worker_error",
    "probe.error",
    "unstructured",
)
"""Log records that no request, however wrong, may cause."""
PYTHON_TEXT = ("Traceback", 'File "', "Error:", "Error(", "Exception", "<class")
"""What an exception leaves behind where its text gets into a message."""


SECURE = os.environ.get("TRAINWIRE_TEST_SECURE") == "1"
"""Whether every server has TLS and tokens (`make test-secure`)."""
_OPERATIONS = Path(__file__).parents[1] / "docs/operations.md"


@cache
def documented_secrets() -> Path:
    """A folder in which the commands of docs/operations.md have made certificates and tokens."""
    folder = Path(tempfile.mkdtemp(prefix="trainwire-secrets-"))
    atexit.register(shutil.rmtree, folder)
    pattern = r"<!-- tested: (certificates|tokens) -->\n```sh\n(.*?)```"
    commands = dict(re.findall(pattern, _OPERATIONS.read_text(), re.DOTALL))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    for name in ("certificates", "tokens"):
        command = ["sh", "-eu", "-c", commands[name]]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    return folder


def pytest_sessionstart() -> None:
    """What is collected is kept, so that looking for garbage meanwhile is half of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nothing collected is looked at again: a test that frees memory would go through all of it."""
    gc.enable()
    gc.freeze()


class Server:
    """A `trainwire-server` process and what it has logged.

    Args:
        program: what Python runs; by default the server as it is.
        environment: variables on top of the test's own.
        secure: whether it has TLS and tokens.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        listen: str = "127.0.0.1:0",
        program: Sequence[str] = ("-m", "trainwire_server"),
        environment: Mapping[str, str] = MappingProxyType({}),
        secure: bool = SECURE,
    ) -> None:
        self.data_dir = data_dir
        self.secrets = documented_secrets() if secure else None
        self.records: list[dict[str, Any]] = []
        self._logged = threading.Condition()
        command = [sys.executable, *program, "--log-format", "json", *self._secure_flags()]
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), "--listen", listen, "--threads", "1", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.address: str = self.wait_for_log("server.ready")["address"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"event": "unstructured", "text": line}
            with self._logged:
                self.records.append(record)
                self._logged.notify_all()

    def wait_for_log(
        self, event: str, matches: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The first record of this event that matches, waiting for it."""

        def find() -> dict[str, Any] | None:
            found = (r for r in self.records if r.get("event") == event and matches(r))
            return next(found, None)

        with self._logged:
            record = self._logged.wait_for(find, START_SECONDS)
        if record is None:
            raise AssertionError(f"no {event} within {START_SECONDS} s; the log: {self.records}")
        return record

    def _secure_flags(self) -> list[str]:
        if self.secrets is None:
            return []
        names = (("tls-cert", "server.pem"), ("tls-key", "server.key"), ("token-file", "tokens"))
        return [f"--{flag}={self.secrets / name}" for flag, name in names]

    @property
    def credentials(self) -> dict[str, Any]:
        """What a client of either kind is to be given besides the address."""
        if self.secrets is None:
            return {}
        return {"ca": self.secrets / "ca.pem", "token_file": self.secrets / "ops.token"}

    @property
    def client_environment(self) -> dict[str, str]:
        """What tells the command line of this server."""
        given = {f"TRAINWIRE_TARGET_{key.upper()}": str(p) for key, p in self.credentials.items()}
        return {"TRAINWIRE_TARGET": self.address, **given}

    @property
    def authorization(self) -> str:
        """The header of a call to a server with tokens."""
        return f"authorization: Bearer {self.credentials['token_file'].read_text().strip()}"

    def client(self) -> TrainingClient:
        """A client of this server."""
        from trainwire_client import TrainingClient

        return TrainingClient(self.address, **self.credentials)

    def channel(self) -> grpc.Channel:
        """A bare channel, for calls that the client would not send."""
        import grpc

        if self.secrets is None:
            return grpc.insecure_channel(self.address)
        tls = grpc.ssl_channel_credentials((self.secrets / "ca.pem").read_bytes())
        token = self.credentials["token_file"].read_text().strip()
        with_token = grpc.access_token_call_credentials(token)
        return grpc.secure_channel(
            self.address, grpc.composite_channel_credentials(tls, with_token)
        )

    def children(self) -> list[int]:
        """Process ids of the children of the fork server that have a task."""
        return [child for child, task in self.workers().items() if task != "idle"]

    def workers(self) -> dict[int, str]:
        """What each child of the fork server does: `idle`, or the kind of its task."""
        found = (child for parent in self.helpers() for child in _children_of(parent))
        names = {child: _name_of(child) for child in found}
        # One that has just been forked has no name of its own yet, and no task.
        return {
            child: name.removeprefix("worker:")
            for child, name in names.items()
            if name.startswith("worker:")
        }

    def helpers(self) -> list[int]:
        """Process ids of the server's own children: the fork server and what goes with it."""
        return _children_of(self.process.pid)

    def stop(self) -> int:
        """Ask the server to stop; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End the server as a power cut would."""
        self.process.kill()
        self.process.wait(30)


def _children_of(pid: int) -> list[int]:
    """Those of all its threads: each may have started some."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, children.read_text().split())
    return found


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server shared by all tests that do it no harm."""
    # The grace is what a test waits for when a worker does not heed a cancel.
    running = Server(tmp_path_factory.mktemp("server"), "--grace", "2")
    yield running
    assert running.stop() == 0
    assert not [record for record in running.records if record["event"] in FAULTS]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own, which it may kill; by default on one data directory."""
    started: list[Server] = []

    def start(*flags: str, data_dir: Path = tmp_path / "data", **options: Any) -> Server:
        started.append(Server(data_dir, *flags, **options))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `documented_secrets`, for tests that change them."""
    folder = tmp_path_factory.mktemp("secrets") / "secrets"
    return Path(shutil.copytree(documented_secrets(), folder))


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[TrainingClient]:
    """A client of the shared server."""
    with server.client() as opened:
        yield opened


@pytest.fixture(scope="session")
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A bare channel to the shared server."""
    with server.channel() as opened:
        yield opened


@dataclass(frozen=True)
class Refusal:
    """The status that a call was refused with, decoded."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: dict[str, str]
    metadata: dict[str, str]
    quotas: dict[str, str]
    retry_seconds: int


def _read(answer: Any) -> None:
    if isinstance(answer, Iterator):
        list(answer)


def refusal_of(call: Callable[[], Any]) -> Refusal:
    """The status `call` is refused with; a stream is read to its end."""
    import grpc
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    with pytest.raises(grpc.RpcError) as caught:
        _read(call())
    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status is not None, f"a plain status, without details: {error}"
    assert not [trace for trace in PYTHON_TEXT if trace in str(status)], status
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    which, quota = error_details_pb2.RequestInfo(), error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        assert any(detail.Unpack(known) for known in (info, bad, which, quota, retry))
    assert which.request_id
    assert info.domain == "trainwire"
    return Refusal(
        code=error.code(),
        message=status.message,
        reason=info.reason,
        fields={violation.field: violation.description for violation in bad.field_violations},
        metadata=dict(info.metadata),
        quotas={violation.subject: violation.description for violation in quota.violations},
        retry_seconds=retry.retry_delay.seconds,
    )


@pytest.fixture(scope="session")
def refusal() -> Callable[[Callable[[], Any]], Refusal]:
    """`refusal_of`."""
    return refusal_of


def make_columns(rows: int = 400, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """A small table with something to learn: features a, b; label y; price; time; group."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, rows)).astype(np.float32)
    return {
        "a": a,
        "b": b,
        "y": (np.convolve(a, np.ones(3), "same") > 0.4).astype(np.int64),
        "price": 100 * np.exp(np.cumsum(random.normal(0, 0.002, rows))),
        "time": np.arange(rows),
        "group": np.where(np.arange(rows) % 2, "odd", "even"),
    }


@pytest.fixture(scope="session")
def dataset(client: TrainingClient) -> dataset_pb2.Dataset:
    """`make_columns` on the shared server."""
    return client.upload(make_columns())


def small_request(dataset: str, **trainer: Any) -> training_pb2.TrainingRequest:
    """A request that trains in a moment: three epochs of a tiny network."""
    settings = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, **trainer}
    request = training_pb2.TrainingRequest(
        dataset=dataset, trainer=training_pb2.TrainerParams(**settings)
    )
    request.data.windows.sequence_length = 8
    request.data.windows.feature_columns[:] = ["a", "b"]
    request.data.column.name = "y"
    sizes = {"conv_blocks": 1, "conv_channels": 8, "kernel_size": 3, "lstm_hidden_size": 8}
    for name, value in (*sizes.items(), ("attention_heads", 2), ("attention_head_size", 4)):
        setattr(request.model.hybrid_cnn_lstm, name, value)
    return request


@pytest.fixture
def request_for(dataset: dataset_pb2.Dataset) -> Callable[..., training_pb2.TrainingRequest]:
    """Makes small requests for the shared dataset; keyword arguments are trainer fields."""
    return lambda **trainer: small_request(dataset.name, **trainer)


@pytest.fixture
def endless_job(
    client: TrainingClient, request_for: Callable[..., training_pb2.TrainingRequest]
) -> Iterator[training_pb2.TrainingJob]:
    """A job that trains until the test is over or has ended it; later ones wait in the queue."""
    job = client.submit(request_for(epochs=100_000, early_stopping_patience=0))
    next(event for event in client.watch(job) if event.HasField("epoch"))
    yield job
    client.cancel(job)
    assert list(client.watch(job))


@pytest.fixture(scope="session")
def columns() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """`make_columns`, for tests that upload data of their own."""
    return make_columns


@pytest.fixture(scope="session")
def small() -> Callable[..., training_pb2.TrainingRequest]:
    """`small_request`, for tests with a dataset of their own."""
    return small_request


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process write an empty `model.onnx`: of a tiny one it is half the time."""
    from trainwire_server.training import onnx_model

    monkeypatch.setattr(onnx_model, "export", lambda *_: b"")

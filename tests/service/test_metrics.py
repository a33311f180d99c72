"""Metrics as Prometheus reads them, and ids by which a call is found again."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Server, make_columns, small_request
from tests.service.test_security import until

from trainwire.v1 import dataset_pb2, dataset_pb2_grpc, training_pb2, training_pb2_grpc
from trainwire_client import NotFoundError, QuotaExceededError
from trainwire_server.service.calls import METHODS, UNKNOWN_METHOD
from trainwire_server.service.metrics import QUOTAS
from trainwire_server.service.status import CODES

ROOT = Path(__file__).parents[2]
TRAINING = "/trainwire.v1.TrainingService"
DATASET = "/trainwire.v1.DatasetService"
SECONDS = 30
NO_JOB = "jobs/0000000000000000"


@dataclass(frozen=True)
class Scrape:
    """What the server said of itself at one time."""

    families: Mapping[str, Metric]

    @property
    def samples(self) -> set[str]:
        """The names that an expression may ask for."""
        return {sample.name for family in self.families.values() for sample in family.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name with these labels; 0 if there are none."""
        found = (sample for family in self.families.values() for sample in family.samples)
        return sum(s.value for s in found if s.name == name and labels.items() <= s.labels.items())


@dataclass(frozen=True)
class Measured:
    """A server that serves metrics."""

    server: Server
    address: str

    def scrape(self) -> Scrape:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=SECONDS) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return Scrape({family.name: family for family in families})

    def scrape_until(self, holds: Callable[[Scrape], bool]) -> Scrape:
        """The first scrape for which it holds: the server hears of the end of a call by itself."""
        end = time.monotonic() + SECONDS
        while not holds(scrape := self.scrape()):
            assert time.monotonic() < end, "it does not come to hold"
        return scrape


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    flags = ("--metrics-listen=127.0.0.1:0", "--grace=2", "--tenant-transfers=1")
    server = Server(tmp_path_factory.mktemp("measured"), *flags)
    yield Measured(server, server.wait_for_log("server.metrics")["address"])
    assert server.stop() == 0


@pytest.fixture(scope="module")
def scrapes(measured: Measured) -> tuple[Scrape, Scrape, Scrape]:
    """Before there is anything, while a job trains and another one waits, and after both."""
    before = measured.scrape()
    with measured.server.client() as client:
        dataset = client.upload(make_columns())
        request = small_request(dataset.name, epochs=100_000, early_stopping_patience=0)
        job, waiting = client.submit(request), client.submit(request)
        events = client.watch(job)
        epochs = (event for event in events if event.HasField("epoch"))
        # The second: by then, the first has been delivered to a watcher that waited.
        assert [next(epochs).epoch.epoch for _ in range(2)] == [1, 2]
        with pytest.raises(NotFoundError):
            client.get(NO_JOB)
        with begun_upload(measured):
            with pytest.raises(QuotaExceededError):
                client.upload(make_columns(seed=1))
            during = measured.scrape_until(
                lambda now: bool(now.value("trainwire_quota_refused_total"))
            )
        client.cancel(waiting)
        client.cancel(job)
        assert list(events)[-1].HasField("cancelled")
    return (
        before,
        during,
        measured.scrape_until(lambda now: not now.value("trainwire_open_watches")),
    )


@contextmanager
def begun_upload(measured: Measured) -> Iterator[None]:
    """An upload that has a place, and goes on until the end."""
    header = dataset_pb2.DatasetHeader(
        format=dataset_pb2.DATASET_FORMAT_CSV, size_bytes=10, sha256="0" * 64
    )
    ended = threading.Event()

    def messages() -> Iterator[dataset_pb2.UploadDatasetRequest]:
        yield dataset_pb2.UploadDatasetRequest(header=header)
        ended.wait(SECONDS)

    with measured.server.channel() as channel:
        call = dataset_pb2_grpc.DatasetServiceStub(channel).UploadDataset.future(messages())
        measured.scrape_until(lambda now: bool(now.value("trainwire_transfers")))
        yield
        call.cancel()
        ended.set()
        measured.scrape_until(lambda now: not now.value("trainwire_transfers"))


def exactly(*expected: float) -> Callable[..., bool]:
    return lambda *values: values == expected


def rises(*values: float) -> bool:
    before, during, after = values
    return 0 <= before < during <= after


def is_more_than_at_first(*values: float) -> bool:
    """Not rising: a checkpoint goes when a later one has come, and they differ in size."""
    before, during, after = values
    return before < min(during, after)


def is_there_while_it_trains(*values: float) -> bool:
    before, during, after = values
    return before == after == 0 < during


def is_there(*values: float) -> bool:
    return all(value > 0 for value in values)


MOVES: list[tuple[str, dict[str, str], Callable[..., bool]]] = [
    ("trainwire_jobs", {"state": "queued"}, exactly(0, 1, 0)),
    ("trainwire_jobs", {"state": "running"}, exactly(0, 1, 0)),
    ("trainwire_jobs", {"state": "cancelling"}, exactly(0, 0, 0)),
    ("trainwire_jobs_ended_total", {"state": "cancelled"}, exactly(0, 0, 2)),
    ("trainwire_jobs_ended_total", {"state": "failed"}, exactly(0, 0, 0)),
    ("trainwire_job_queue_seconds_count", {}, exactly(0, 1, 1)),
    ("trainwire_epoch_seconds_count", {}, rises),
    ("trainwire_epoch_seconds_sum", {}, rises),
    ("trainwire_training_windows_per_second", {"device": "cpu"}, is_there_while_it_trains),
    ("trainwire_training_peak_memory_bytes", {"device": "cpu"}, is_there_while_it_trains),
    ("trainwire_device_memory_bytes", {"device": "cpu"}, lambda *values: values[1] > 2**30),
    ("trainwire_open_watches", {}, exactly(0, 1, 0)),
    ("trainwire_event_lag_seconds_count", {}, rises),
    ("trainwire_database_commit_seconds_count", {}, rises),
    ("trainwire_database_commit_seconds_sum", {}, rises),
    ("trainwire_upload_bytes_total", {}, rises),
    ("trainwire_transfers", {"kind": "upload", "state": "under_way"}, exactly(0, 1, 0)),
    ("trainwire_transfers", {"kind": "upload", "state": "waiting"}, exactly(0, 0, 0)),
    ("trainwire_transfers", {"kind": "download"}, exactly(0, 0, 0)),
    ("trainwire_quota_refused_total", {"quota": "tenant_transfers"}, exactly(0, 1, 1)),
    ("trainwire_stored_bytes", {"kind": "files"}, is_more_than_at_first),
    ("trainwire_stored_bytes", {"kind": "database"}, rises),
    ("trainwire_disk_free_bytes", {}, is_there),
    ("trainwire_build_info", {}, exactly(1, 1, 1)),
    (
        "trainwire_rpc_duration_seconds_count",
        {"method": f"{DATASET}/UploadDataset", "code": "OK"},
        exactly(0, 1, 1),
    ),
    (
        "trainwire_rpc_duration_seconds_count",
        {"method": f"{TRAINING}/SubmitTraining", "code": "OK"},
        exactly(0, 2, 2),
    ),
    (
        "trainwire_rpc_duration_seconds_count",
        {"method": f"{TRAINING}/GetTraining", "code": "NOT_FOUND"},
        exactly(0, 1, 1),
    ),
    # A watch is counted when it has ended. Our clients hang up on a terminal event: OK, or not.
    (
        "trainwire_rpc_duration_seconds_count",
        {"method": f"{TRAINING}/WatchTraining"},
        exactly(0, 0, 1),
    ),
    ("trainwire_rpc_refused_total", {"reason": "NOT_FOUND"}, exactly(0, 1, 1)),
    ("trainwire_rpc_refused_total", {"reason": "QUEUE_FULL"}, exactly(0, 0, 0)),
    ("process_resident_memory_bytes", {}, is_there),
    ("process_cpu_seconds_total", {}, rises),
]


@pytest.mark.parametrize(("name", "labels", "moves"), MOVES)
def test_a_metric_moves_with_what_it_measures(
    name: str,
    labels: dict[str, str],
    moves: Callable[..., bool],
    scrapes: tuple[Scrape, Scrape, Scrape],
) -> None:
    values = [scrape.value(name, **labels) for scrape in scrapes]
    assert moves(*values), values


def test_every_metric_of_ours_is_in_the_table(scrapes: tuple[Scrape, Scrape, Scrape]) -> None:
    tested = {re.sub("_(total|count|sum)$", "", name) for name, *_ in MOVES}
    ours = {name for name in scrapes[2].families if name.startswith("trainwire_")}
    assert ours <= tested


@pytest.mark.parametrize(
    "what", ["rpc_duration", "job_queue", "epoch", "event_lag", "database_commit"]
)
def test_durations_are_seconds(what: str, scrapes: tuple[Scrape, Scrape, Scrape]) -> None:
    mean = scrapes[2].value(f"trainwire_{what}_seconds_sum") / scrapes[2].value(
        f"trainwire_{what}_seconds_count"
    )
    assert 0 < mean < SECONDS


def test_labels_are_never_of_the_callers_making(
    measured: Measured, scrapes: tuple[Scrape, Scrape, Scrape]
) -> None:
    with measured.server.channel() as channel:
        call: Any = channel.unary_unary("/made.Up/Method")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=SECONDS)
    error: Any = caught.value
    name = "trainwire_rpc_duration_seconds_count"
    own = {"method": UNKNOWN_METHOD, "code": error.code().name}
    # A call is counted when it is over, which its caller may hear a moment before.
    until(lambda: measured.scrape().value(name, **own) == 1)
    scrape = measured.scrape()
    allowed = {
        "method": METHODS | {UNKNOWN_METHOD},
        "code": set(grpc.StatusCode.__members__),
        "reason": {kind.reason for kind in CODES} | {"INTERNAL"},
        "state": {name[10:].lower() for name in training_pb2.JobState.keys()[1:]}  # JOB_STATE_
        | {"under_way", "waiting"},
        "quota": set(QUOTAS),
        "device": {"cpu"} | {f"cuda:{index}" for index in range(16)},
        "kind": {"files", "database", "upload", "download"},
    }
    for family in scrape.families.values():
        for sample in family.samples:
            for label in set(sample.labels) & set(allowed):
                assert sample.labels[label] in allowed[label]
            if family.name != "trainwire_build_info":
                assert set(sample.labels) <= {*allowed, "le"}


def test_who_connects_and_says_nothing_holds_up_nobody(measured: Measured) -> None:
    host, _, port = measured.address.rpartition(":")
    with socket.create_connection((host, int(port))):
        assert measured.scrape().samples


# ------------------------------------------------------------------------ ids of calls


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ((), False),
        (("9f3c-ci.42_a:/+=",), True),
        (("a" * 128,), True),
        (("a" * 129,), False),
        (("two words",), False),
        (("",), False),
        (("one", "two"), False),
    ],
)
def test_a_failed_call_is_found_by_its_id(
    given: tuple[str, ...], is_taken: bool, measured: Measured
) -> None:
    metadata = tuple(("x-request-id", value) for value in given)
    request = training_pb2.GetTrainingRequest(name=NO_JOB)
    with measured.server.channel() as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetTraining(request, metadata=metadata, timeout=SECONDS)
    error: Any = caught.value
    found = dict(error.trailing_metadata())["x-request-id"]
    assert (found in given) is is_taken
    assert re.fullmatch(r"[0-9a-f]{16}", found) or is_taken
    info = error_details_pb2.RequestInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.request_id == found
    record = measured.server.wait_for_log("rpc.failed", lambda r: r["call_id"] == found)
    assert (record["method"], record["code"], record["reason"]) == (
        f"{TRAINING}/GetTraining",
        "NOT_FOUND",
        "NOT_FOUND",
    )


def test_an_exception_of_the_client_says_which_call_it_was(measured: Measured) -> None:
    with measured.server.client() as client, pytest.raises(NotFoundError) as caught:
        client.get(NO_JOB)
    call_id = caught.value.call_id
    assert f"call {call_id}" in str(caught.value)
    assert measured.server.wait_for_log("rpc.failed", lambda r: r["call_id"] == call_id)


def test_what_a_call_does_has_its_id_in_the_log(measured: Measured) -> None:
    metadata = (("x-request-id", "nightly-7"),)
    with measured.server.client() as client, measured.server.channel() as channel:
        request = small_request(client.upload(make_columns()).name)
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        job, call = stub.SubmitTraining.with_call(request, metadata=metadata, timeout=SECONDS)
        watch = stub.WatchTraining(
            training_pb2.WatchTrainingRequest(name=job.name), metadata=metadata, timeout=SECONDS
        )
        assert list(watch)[-1].HasField("succeeded")
    for ended in (call, watch):
        assert ("x-request-id", "nightly-7") in ended.trailing_metadata()
    queued = measured.server.wait_for_log("job.queued", lambda r: r["job"] == job.name)
    assert queued["call_id"] == "nightly-7"
    # The job outlives the call, and is not part of it.
    assert "call_id" not in measured.server.wait_for_log(
        "job.ended", lambda r: r["job"] == job.name
    )


# ------------------------------------------------------------------------ documents


def test_the_documentation_has_every_metric(measured: Measured) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    section = page.split("\n### Metrics\n", 1)[1].split("\n#", 1)[0]
    said = dict(re.findall(r"^\| `(\w+)[^`]*` \| (\w+) \|", section, re.MULTILINE))
    families = measured.scrape().families.values()
    ours = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in families
        if family.name.startswith("trainwire_")
    }
    assert said == ours


def test_the_dashboard_asks_for_what_there_is(
    measured: Measured, scrapes: tuple[Scrape, Scrape, Scrape]
) -> None:
    board = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked = {name for expr in targets for name in re.findall(r"(?:trainwire|process)_\w+", expr)}
    assert asked <= scrapes[2].samples
    unseen = {f for f in scrapes[2].families if f.startswith("trainwire_")} - {
        re.sub("_(total|count|sum|bucket)$", "", name) for name in asked
    }
    assert unseen == {"trainwire_build_info"}

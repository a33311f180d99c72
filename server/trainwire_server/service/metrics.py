"""The server's metrics for Prometheus: kept in a registry of their own, served over HTTP.

Names and units follow https://prometheus.io/docs/practices/naming/. No label has a value that a
caller can make up, and none names a job: what does is in the log and in the events of the job.
"""

from __future__ import annotations

import shutil
import socket
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.errors import RequestError
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.job import TERMINAL, state_text
from trainwire_server.jobs.ledger import Active
from trainwire_server.jobs.tenants import Tenant
from trainwire_server.meters import Meters
from trainwire_server.service.status import CODES
from trainwire_server.version import server_version

WATCHES = frozenset(f"/trainwire.v1.TrainingService/{name}" for name in ("WatchTraining", "Train"))
_RPC_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600, 3600)
"""Seconds: a Get takes milliseconds, a watch as long as its job."""
_QUEUE_BUCKETS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_EPOCH_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
QUOTAS = (
    "tenant_queued_jobs",
    "tenant_stored_bytes",
    "tenant_watches",
    "tenant_transfers",
    "max_transfers",
    "upload_idle_seconds",
    "download_idle_seconds",
)
"""What a call may be refused for with QUOTA_EXCEEDED."""
_IDLE_SECONDS = 10.0
"""What a scrape that says nothing may take."""
_UNFINISHED = ("queued", "running", "cancelling")


class PrometheusMeters(Meters):
    """Keeps all that it is told, in a registry of its own.

    Args:
        listen: "HOST:PORT" to serve it on; port 0 takes a free one.
    """

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._rpcs = Histogram(
            "trainwire_rpc_duration_seconds",
            "Time that ended calls took",
            ("method", "code"),
            buckets=_RPC_BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "trainwire_rpc_refused", "Refused calls", ("reason",), registry=registry
        )
        self._watches = Gauge(
            "trainwire_open_watches", "Open calls of WatchTraining and Train", registry=registry
        )
        self._quotas = Counter(
            "trainwire_quota_refused", "Calls refused for a quota", ("quota",), registry=registry
        )
        self._transfers = Gauge(
            "trainwire_transfers", "Uploads and downloads", ("kind", "state"), registry=registry
        )
        self._uploaded = Counter(
            "trainwire_upload_bytes", "Bytes of complete uploads", registry=registry
        )
        self._ended = Counter(
            "trainwire_jobs_ended", "Jobs that have ended", ("state",), registry=registry
        )
        self._waits = self._seconds("job_queue", "Time that jobs waited", _QUEUE_BUCKETS)
        self._epochs = self._seconds("epoch", "Time that epochs took", _EPOCH_BUCKETS)
        self._commits = self._seconds(
            "database_commit", "Time of writing transactions, to the disk", _COMMIT_BUCKETS
        )
        self._lags = self._seconds(
            "event_lag", "Time from an event's commit to its delivery", _LAG_BUCKETS
        )
        self._begin_at_zero()

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full_name = f"trainwire_{name}_seconds"
        return Histogram(full_name, text, buckets=buckets, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """Have all label values from the start: the first of anything must be seen as a rise."""
        for reason in {kind.reason for kind in CODES} | {RequestError.reason}:
            self._refused.labels(reason)
        for quota in QUOTAS:
            self._quotas.labels(quota)
        for kind in ("upload", "download"):
            self.transfers_changed(kind, 0, 0)
        for state in TERMINAL:
            self._ended.labels(state_text(training_pb2.TrainingJob(state=state)))

    def serve(self, tenants: Iterable[Tenant], devices: Devices, data_dir: Path) -> str:
        """Serve it all, with what is so at the time of a scrape; the address that was taken.

        Raises:
            OSError: it cannot be listened on.
        """
        self.registry.register(State(tenants, devices, Stored(tenants, data_dir)))
        return serve_metrics(self.registry, self.listen)

    def call_began(self, method: str) -> None:
        if method in WATCHES:
            self._watches.inc()

    def call_ended(self, method: str, code: str, reason: str, seconds: float) -> None:
        self._rpcs.labels(method, code).observe(seconds)
        if reason:
            self._refused.labels(reason).inc()
        if method in WATCHES:
            self._watches.dec()

    def quota_refused(self, quota: str) -> None:
        self._quotas.labels(quota).inc()

    def transfers_changed(self, kind: str, under_way: int, waiting: int) -> None:
        self._transfers.labels(kind, "under_way").set(under_way)
        self._transfers.labels(kind, "waiting").set(waiting)

    def upload_received(self, size_bytes: int) -> None:
        self._uploaded.inc(size_bytes)

    def job_began(self, waited_seconds: float) -> None:
        self._waits.observe(waited_seconds)

    def epoch_ended(self, seconds: float) -> None:
        self._epochs.observe(seconds)

    def job_ended(self, state: str) -> None:
        self._ended.labels(state).inc()

    def transaction_ended(self, seconds: float) -> None:
        self._commits.observe(seconds)

    def event_delivered(self, seconds: float) -> None:
        self._lags.observe(seconds)


@dataclass(frozen=True)
class State(Collector):
    """What is so at the time of a scrape, which is answered by a thread of its own.

    All of it is of all tenants together: whoever may scrape need not know whom there is.
    Jobs are replaced when they change, never changed, so that it sees each of them whole.
    """

    tenants: Iterable[Tenant]
    devices: Devices
    stored: Stored

    def collect(self) -> Iterator[Metric]:
        """The gauges, read now."""
        active = [each for tenant in self.tenants for each in tenant.ledger.all_active()]
        yield _gauge(
            "trainwire_jobs",
            "Jobs that have not ended",
            "state",
            dict.fromkeys(_UNFINISHED, 0) | Tally(state_text(each.job) for each in active),
        )
        yield from self._training(active)
        memory = {device.name: device.memory_bytes for device in self.devices.known}
        yield _gauge("trainwire_device_memory_bytes", "Memory of a device", "device", memory)
        yield from self.stored.collect()
        versions = {"version": server_version(), "contract_version": contract.contract_version()}
        about = GaugeMetricFamily("trainwire_build_info", "Always 1", labels=list(versions))
        about.add_metric(list(versions.values()), 1)
        yield about

    def _training(self, active: list[Active]) -> Iterator[Metric]:
        rates = defaultdict(float, {device.name: 0.0 for device in self.devices.known})
        peaks = rates.copy()
        for each in active:
            if each.started and each.epoch and state_text(each.job) != "queued":
                rates[each.started.device] += each.epoch.windows_per_second
                peaks[each.started.device] += each.epoch.peak_memory_bytes
        yield _gauge(
            "trainwire_training_windows_per_second",
            "Training windows per second, by the last epoch of each running job",
            "device",
            rates,
        )
        yield _gauge(
            "trainwire_training_peak_memory_bytes",
            "Most memory that the running jobs had in use, by their last epochs",
            "device",
            peaks,
        )


def _gauge(name: str, text: str, label: str, values: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class Stored:
    """The bytes on disk."""

    def __init__(self, tenants: Iterable[Tenant], data_dir: Path) -> None:
        self._tenants = tenants
        self._data_dir = data_dir

    def collect(self) -> Iterator[Metric]:
        """What is stored, and what room there is."""
        rows = sum(_database_bytes(tenant.catalog.database) for tenant in self._tenants)
        files = sum(tenant.catalog.stored_bytes() for tenant in self._tenants)
        stored = {"files": files, "database": rows}
        yield _gauge("trainwire_stored_bytes", "Bytes in the data directory", "kind", stored)
        free = shutil.disk_usage(self._data_dir).free
        yield GaugeMetricFamily("trainwire_disk_free_bytes", "Free bytes of its disk", free)


def _database_bytes(path: Path) -> int:
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


# ------------------------------------------------------------------------ HTTP


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A line for every scrape would drown all others."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _HttpServer6(_HttpServer):
    address_family = socket.AF_INET6


def serve_metrics(registry: CollectorRegistry, listen: str) -> str:
    """Answer scrapes from threads of their own, as long as the process lives.

    Args:
        listen: "HOST:PORT"; port 0 takes a free one.

    Returns:
        The address with the port that was taken.

    Raises:
        OSError: it cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    kind = _HttpServer6 if ":" in host else _HttpServer
    server = kind((host.strip("[]"), int(port)), _Handler)
    # Times at which a counter was made, for each one of them, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    server.set_app(make_wsgi_app(registry))
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return f"{host}:{server.server_port}"

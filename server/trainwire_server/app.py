"""Puts the server together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_reflection.v1alpha import reflection

from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_server.execution.local import LocalExecutor
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.houses import House, HouseError, Houses
from trainwire_server.jobs.manager import Workshop
from trainwire_server.jobs.queue import Slots
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.run import Limits
from trainwire_server.jobs.scheduler import Scheduler
from trainwire_server.jobs.tenants import Rules, Tenants
from trainwire_server.logs import configure_logs
from trainwire_server.memory import collect_seldom, keep_freed_memory, open_many_files
from trainwire_server.meters import Meters
from trainwire_server.service.calls import CallInterceptor
from trainwire_server.service.dataset import DatasetService
from trainwire_server.service.guard import Guard
from trainwire_server.service.health import HEALTH_SERVICE, Health
from trainwire_server.service.model import ModelService
from trainwire_server.service.system import SystemService
from trainwire_server.service.training import TrainingService
from trainwire_server.service.transfers import Transfers
from trainwire_server.service.transport import Certificates, TransportError
from trainwire_server.service.unread import Unread
from trainwire_server.settings import Settings
from trainwire_server.tokens import TokenFileError

if TYPE_CHECKING:
    from trainwire_server.service.metrics import PrometheusMeters
    from trainwire_server.service.tracing import Tracing

_SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (training_pb2, "TrainingService"),
        (dataset_pb2, "DatasetService"),
        (model_pb2, "ModelService"),
        (system_pb2, "SystemService"),
    )
)
_MIB = 2**20
_OPTIONS = (
    # Without this a second server on the same port would take half of the calls in silence.
    ("grpc.so_reuseport", 0),
    # Clients ping every 30 s; a server that allows less often than that would cut them off.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Of calls that wait to be taken gRPC cancels some from 1,000 on and all from 3,000 on: fewer
    # than may watch, and come back together after a restart.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # Each takes about 25 KiB, also one of which nothing but its headers has come. Without it a
    # connection may open as many as it likes.
    ("grpc.max_concurrent_streams", 4_000),
)


class StartError(Exception):
    """The server cannot start; the message says why."""


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        StartError: address, certificate, tokens, data directory or database cannot be used.
    """
    configure_logs(settings.log_format, settings.log_level)
    keep_freed_memory()
    open_many_files()
    guard = _guard(settings)
    metrics = _metrics(settings)
    houses = Houses(settings.data_dir, metrics or Meters())
    try:
        await _serve(settings, guard, houses, metrics)
    finally:
        await houses.close()


def _guard(settings: Settings) -> Guard:
    """TLS and tokens as the settings say, read again on SIGHUP."""
    try:
        guard = Guard(settings)
    except (TransportError, TokenFileError) as error:
        raise StartError(str(error)) from error
    if guard.certificates or guard.access:
        # Without either, the signal does what it does to every program.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, guard.reload)
    return guard


def _open_all(houses: Houses) -> list[House]:
    try:
        return houses.open_all()
    except HouseError as error:
        raise StartError(str(error)) from error


def _metrics(settings: Settings) -> PrometheusMeters | None:
    if settings.metrics_listen is None:
        return None
    # Not at the top: it takes a fifth of a second, of every start.
    from trainwire_server.service.metrics import PrometheusMeters

    return PrometheusMeters(settings.metrics_listen)


def _tracing() -> Tracing | None:
    """Traces, if the standard variable says where they go; unlike elsewhere, unset is "none"."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "none"
    if exporter == "none":
        return None
    if exporter not in ("otlp", "console"):
        raise StartError(f"OTEL_TRACES_EXPORTER is {exporter!r}; allowed: otlp, console, none")
    try:
        from trainwire_server.service.tracing import Tracing
    except ImportError as error:
        raise StartError(
            f"OTEL_TRACES_EXPORTER is {exporter!r}, and {error.name} is not installed; "
            "install trainwire[otel]"
        ) from error
    return Tracing(exporter)


def _serve_metrics(
    metrics: PrometheusMeters, tenants: Tenants, devices: Devices, data_dir: Path
) -> None:
    try:
        address = metrics.serve(tenants, devices, data_dir)
    except OSError as error:
        raise StartError(f"cannot listen on {metrics.listen}: {error}") from error
    structlog.get_logger().info("server.metrics", address=address)


async def _serve(
    settings: Settings, guard: Guard, houses: Houses, metrics: PrometheusMeters | None
) -> None:
    found = _open_all(houses)
    stop, meters = _stop_signal(), metrics or Meters()
    tracing = _tracing()
    unread = Unread(settings.max_unread_mb)
    interceptors = [CallInterceptor(meters, unread), *guard.interceptors()]
    if tracing is not None:
        interceptors = [*tracing.interceptors(), *interceptors]
    server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
    address = _bind(server, settings.listen, guard.certificates)
    executor = LocalExecutor()
    devices = Devices(executor)
    quotas = _quotas(settings)
    workshop = _workshop(settings, executor, devices, quotas)
    rules = Rules(settings.retain_days, settings.max_data_bytes, quotas)
    tenants = Tenants(found, houses, workshop, rules, meters)
    if metrics is not None:
        _serve_metrics(metrics, tenants, devices, settings.data_dir)
    memory = settings.ingest_memory_mb * _MIB
    most, shared = settings.max_transfers, bool(settings.token_file)
    uploads = Transfers("upload", most, settings.upload_idle_seconds, shared, meters)
    downloads = Transfers("download", most, settings.download_idle_seconds, shared, meters)
    health_servicer = Health()
    health_servicer.serve("", *_SERVICES)
    _add_services(
        server,
        TrainingService(tenants),
        DatasetService(tenants, executor, memory, uploads, meters),
        ModelService(tenants, downloads),
        SystemService(tenants, devices, executor.name, settings),
        health_servicer,
    )
    await tenants.recover()
    collect_seldom()
    await server.start()
    log = structlog.get_logger()
    log.info("server.ready", address=address, data_dir=str(settings.data_dir))
    await stop.wait()
    log.info("server.stopping", running_jobs=tenants.running_jobs, grace=settings.grace)
    await _drain(server, tenants, health_servicer, settings.grace)
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    log.info("server.stopped")


def _add_services(
    server: grpc.aio.Server,
    training: TrainingService,
    datasets: DatasetService,
    models: ModelService,
    system: SystemService,
    health: Health,
) -> None:
    training_pb2_grpc.add_TrainingServiceServicer_to_server(training, server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    system_pb2_grpc.add_SystemServiceServicer_to_server(system, server)
    server.add_generic_rpc_handlers((health.handlers(),))
    names = (*_SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _workshop(
    settings: Settings, executor: LocalExecutor, devices: Devices, quotas: Quotas
) -> Workshop:
    limits = Limits(
        threads=settings.threads,
        memory_bytes=settings.job_memory_mb * _MIB,
        lease=settings.lease,
        grace=settings.grace,
        attempts=settings.max_attempts,
    )
    slots = Slots(settings.max_concurrent_jobs, settings.jobs_per_device)
    scheduler = Scheduler(slots, settings.max_queued_jobs, quotas)
    return Workshop(executor, devices, scheduler, limits, settings.heartbeat)


def _quotas(settings: Settings) -> Quotas:
    return Quotas(
        queued_jobs=settings.tenant_queued_jobs,
        running_jobs=settings.tenant_running_jobs,
        stored_bytes=settings.tenant_stored_bytes,
        watches=settings.tenant_watches,
        transfers=settings.tenant_transfers,
    )


async def _drain(
    server: grpc.aio.Server, tenants: Tenants, health_servicer: Health, grace: float
) -> None:
    """Take no more work, finish what fits into the grace, end all calls."""
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    health_servicer.stop_serving()
    # Calls are answered meanwhile: whoever submits hears when to try again.
    await tenants.drain(grace)
    # Last of all: who watches the health should see all of it, but would hold the server up.
    health_servicer.end_watches()
    await server.stop(max(end - loop.time(), 0.5))


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process there and then."""
    stop = asyncio.Event()

    def take(number: signal.Signals) -> None:
        if stop.is_set():
            # What is acknowledged is on the disk, and the children end with this process.
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, take, number)
    return stop


def _bind(server: grpc.aio.Server, listen: str, certificates: Certificates | None) -> str:
    """Bind to the address; the address with the port that was taken."""
    try:
        if certificates is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, certificates.credentials())
    except RuntimeError as error:
        raise StartError(f"cannot listen on {listen}: {error}") from error
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

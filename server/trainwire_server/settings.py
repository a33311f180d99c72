"""The server's settings: command line flags, each also an environment variable."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwire_server.cores import count_cores
from trainwire_server.version import server_version

_FORMATS = ("auto", "console", "json")
_LEVELS = ("debug", "info", "warning")


@dataclass(frozen=True)
class Settings:
    """What the server was told at its start; read once and passed on.

    Attributes:
        listen: address to serve on, "HOST:PORT" (port 0 takes a free one) or "unix:/PATH".
        tls_cert: the server's certificate in PEM; None serves without TLS.
        tls_key: its key.
        client_ca: CAs of which every client has to have a certificate; None asks for none.
        token_file: who may call, in which role, for which tenant; None takes calls from everybody.
        insecure: whether other machines may reach a server, or its metrics, without TLS.
        metrics_listen: address to serve metrics on over HTTP, "HOST:PORT"; None serves none.
        data_dir: folder that holds the database, datasets and models.
        max_concurrent_jobs: jobs that may train at the same time.
        jobs_per_device: jobs that may train at the same time on one GPU.
        threads: threads a training process computes with; the cores divided by
            `max_concurrent_jobs` if it was not said.
        max_queued_jobs: jobs that may wait; one more is refused.
        tenant_queued_jobs: jobs of one tenant that may wait; 0 for as many as there may be.
        tenant_running_jobs: jobs of one tenant that may train at the same time; 0 likewise.
        tenant_stored_bytes: bytes that one tenant may store before it is refused more; 0 for as
            many as there are.
        tenant_watches: watches that one tenant may have open; 0 for any number.
        tenant_transfers: uploads and downloads that one tenant may have open; 0 likewise.
        max_transfers: uploads that may be under way at the same time, and as many downloads; more
            wait.
        max_unread_mb: MiB of answers that may wait for their callers to read them; more is refused.
        upload_idle_seconds: seconds after which an upload ends of which next to nothing comes.
        download_idle_seconds: seconds after which a download ends that its caller hardly reads.
        job_memory_mb: MiB that a training process may allocate; 0 for as much as there is.
        lease: seconds that a training process may be silent before it is replaced.
        heartbeat: seconds of silence after which a watch is sent a sign of life.
        retain_days: days after which finished jobs and unused datasets are deleted; 0 for never.
        max_data_bytes: bytes each tenant's folder may take before the oldest of them are deleted; 0
            for as many as there are.
        max_attempts: training processes a job may lose in a row without finishing an epoch.
        ingest_memory_mb: MiB that parsing an upload may allocate.
        grace: seconds that running calls and a cancelled training get to end by themselves.
        log_format: "console", "json", or "auto" (console on a terminal).
        log_level: least severe level that is logged.
    """

    listen: str
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None
    token_file: Path | None
    insecure: bool
    metrics_listen: str | None
    data_dir: Path
    max_concurrent_jobs: int
    jobs_per_device: int
    threads: int
    max_queued_jobs: int
    tenant_queued_jobs: int
    tenant_running_jobs: int
    tenant_stored_bytes: int
    tenant_watches: int
    tenant_transfers: int
    max_transfers: int
    max_unread_mb: int
    upload_idle_seconds: float
    download_idle_seconds: float
    max_attempts: int
    job_memory_mb: int
    lease: float
    heartbeat: float
    retain_days: float
    max_data_bytes: int
    ingest_memory_mb: int
    grace: float
    log_format: str
    log_level: str


def read_settings(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Read flags, then environment variables, then defaults. Exits with usage on a bad value."""
    parser = _parser()
    flags = [action for action in parser._actions if action.dest not in ("help", "version")]
    for action in flags:
        action.default = environment.get(f"TRAINWIRE_{action.dest.upper()}", action.default)
    values = vars(parser.parse_args(arguments))
    per_job = count_cores() // values["max_concurrent_jobs"]
    values["threads"] = values["threads"] or max(per_job, 1)
    return Settings(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainwire-server",
        description="Trains time-series classifiers for other services, over gRPC.",
        epilog="Every flag is also an environment variable: --data-dir is TRAINWIRE_DATA_DIR. "
        "`trainwire-server token` makes a token; `trainwire-server token --help` says how.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"trainwire {server_version()}")
    add("--listen", type=_address, default="127.0.0.1:50051", help="HOST:PORT; port 0: a free one")
    add("--tls-cert", type=Path, help="certificate in PEM; without it there is no TLS")
    add("--tls-key", type=Path, help="the certificate's key in PEM")
    add("--client-ca", type=Path, help="CAs in PEM; every client needs a certificate of one")
    add("--token-file", type=Path, help="who may call (trainwire-server token makes a line)")
    add("--insecure", **_SWITCH, help="let other machines reach it though there is no TLS")
    add("--metrics-listen", type=_host_and_port, help="HOST:PORT for Prometheus metrics over HTTP")
    add("--data-dir", type=Path, default="trainwire-data", help="folder for everything stored")
    add("--max-concurrent-jobs", type=_count, default=1, help="jobs that train at the same time")
    add("--jobs-per-device", type=_count, default=1, help="jobs at the same time on one GPU")
    add("--threads", type=_count, help="threads of a job; cores / max-concurrent-jobs if not said")
    add("--max-queued-jobs", type=_count, default=1000, help="jobs that may wait")
    add("--tenant-queued-jobs", type=_limit, default=0, help="of one tenant; 0: no limit")
    add("--tenant-running-jobs", type=_limit, default=0, help="of one tenant; 0: no limit")
    add("--tenant-stored-bytes", type=_limit, default=0, help="of one tenant; 0: no limit")
    add("--tenant-watches", type=_limit, default=0, help="open, of one tenant; 0: no limit")
    add("--tenant-transfers", type=_limit, default=0, help="uploads, downloads; 0: no limit")
    add("--max-transfers", type=_count, default=32, help="uploads at a time, and as many downloads")
    add("--max-unread-mb", type=_count, default=64, help="MiB of answers that nobody reads yet")
    add("--upload-idle-seconds", type=_positive, default=60.0, help="an upload may be silent")
    add("--download-idle-seconds", type=_positive, default=60.0, help="a download may be unread")
    add("--max-attempts", type=_count, default=3, help="processes lost in a row before a job fails")
    add("--job-memory-mb", type=_limit, default=0, help="MiB a job may allocate; 0: no limit")
    add("--lease", type=_positive, default=30.0, help="seconds a job's process may be silent")
    add("--heartbeat", type=_positive, default=15.0, help="seconds a watch may be silent")
    add("--retain-days", type=_days, default=0.0, help="days finished jobs stay; 0: for ever")
    add("--max-data-bytes", type=_limit, default=0, help="bytes of each tenant; 0: no limit")
    add("--ingest-memory-mb", type=_count, default=4096, help="MiB that parsing an upload may take")
    add("--grace", type=_seconds, default=10.0, help="seconds calls and cancelled jobs get to end")
    add("--log-format", type=_one_of(*_FORMATS), default="auto", help=", ".join(_FORMATS))
    add("--log-level", type=_one_of(*_LEVELS), default="info", help=", ".join(_LEVELS))
    return parser


def _one_of(*allowed: str) -> Callable[[str], str]:
    """A type, not argparse's `choices`, which does not look at values from the environment."""

    def check(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return check


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


# Not argparse's `store_true`, for which every value from the environment would be a yes.
_SWITCH: dict[str, Any] = {"type": _yes_or_no, "nargs": "?", "const": True, "default": False}


def _address(text: str) -> str:
    if text.startswith("unix:/") or _is_host_and_port(text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT or unix:/PATH")


def _host_and_port(text: str) -> str:
    if _is_host_and_port(text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")


def _is_host_and_port(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isdigit() and int(port) < 65536)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _limit(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; 0 is no limit")
    return int(text)


def _seconds(text: str) -> float:
    return _number(text, "a number of seconds from 0 to 86400", lambda value: 0 <= value < 86400)


def _positive(text: str) -> float:
    return _number(text, "a number of seconds from 0.1 to 86400", lambda v: 0.1 <= v < 86400)


def _days(text: str) -> float:
    return _number(text, "a number of days from 0 to 36500", lambda value: 0 <= value <= 36500)


def _number(text: str, words: str, is_allowed: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not is_allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
    return value

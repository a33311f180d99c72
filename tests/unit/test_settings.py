"""Flags, environment variables and defaults of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire_server.settings import Settings, read_settings


def test_defaults_bind_to_loopback() -> None:
    settings = read_settings([], {})
    assert settings.listen == "127.0.0.1:50051"
    assert settings.data_dir == Path("trainwire-data")


def test_nothing_is_deleted_or_limited_unless_it_was_said() -> None:
    settings = read_settings([], {})
    assert (settings.retain_days, settings.max_data_bytes, settings.job_memory_mb) == (0, 0, 0)


def test_every_flag_is_an_environment_variable() -> None:
    environment = {
        "TRAINWIRE_LISTEN": "[::1]:0",
        "TRAINWIRE_TLS_CERT": "/etc/trainwire/server.pem",
        "TRAINWIRE_TLS_KEY": "/etc/trainwire/server.key",
        "TRAINWIRE_CLIENT_CA": "/etc/trainwire/clients.pem",
        "TRAINWIRE_TOKEN_FILE": "/etc/trainwire/tokens",
        "TRAINWIRE_INSECURE": "true",
        "TRAINWIRE_METRICS_LISTEN": "127.0.0.1:9464",
        "TRAINWIRE_DATA_DIR": "/tmp/elsewhere",
        "TRAINWIRE_MAX_CONCURRENT_JOBS": "4",
        "TRAINWIRE_JOBS_PER_DEVICE": "2",
        "TRAINWIRE_THREADS": "3",
        "TRAINWIRE_MAX_QUEUED_JOBS": "7",
        "TRAINWIRE_TENANT_QUEUED_JOBS": "8",
        "TRAINWIRE_TENANT_RUNNING_JOBS": "9",
        "TRAINWIRE_TENANT_STORED_BYTES": "2000000",
        "TRAINWIRE_TENANT_WATCHES": "11",
        "TRAINWIRE_TENANT_TRANSFERS": "12",
        "TRAINWIRE_MAX_TRANSFERS": "13",
        "TRAINWIRE_MAX_UNREAD_MB": "14",
        "TRAINWIRE_UPLOAD_IDLE_SECONDS": "7.5",
        "TRAINWIRE_DOWNLOAD_IDLE_SECONDS": "8.5",
        "TRAINWIRE_MAX_ATTEMPTS": "5",
        "TRAINWIRE_JOB_MEMORY_MB": "2048",
        "TRAINWIRE_LEASE": "20",
        "TRAINWIRE_HEARTBEAT": "2.5",
        "TRAINWIRE_RETAIN_DAYS": "0.5",
        "TRAINWIRE_MAX_DATA_BYTES": "1000000",
        "TRAINWIRE_INGEST_MEMORY_MB": "512",
        "TRAINWIRE_GRACE": "1.5",
        "TRAINWIRE_LOG_FORMAT": "json",
        "TRAINWIRE_LOG_LEVEL": "debug",
    }
    assert read_settings([], environment) == Settings(
        listen="[::1]:0",
        tls_cert=Path("/etc/trainwire/server.pem"),
        tls_key=Path("/etc/trainwire/server.key"),
        client_ca=Path("/etc/trainwire/clients.pem"),
        token_file=Path("/etc/trainwire/tokens"),
        insecure=True,
        metrics_listen="127.0.0.1:9464",
        data_dir=Path("/tmp/elsewhere"),
        max_concurrent_jobs=4,
        jobs_per_device=2,
        threads=3,
        max_queued_jobs=7,
        tenant_queued_jobs=8,
        tenant_running_jobs=9,
        tenant_stored_bytes=2_000_000,
        tenant_watches=11,
        tenant_transfers=12,
        max_transfers=13,
        max_unread_mb=14,
        upload_idle_seconds=7.5,
        download_idle_seconds=8.5,
        max_attempts=5,
        job_memory_mb=2048,
        lease=20,
        heartbeat=2.5,
        retain_days=0.5,
        max_data_bytes=1_000_000,
        ingest_memory_mb=512,
        grace=1.5,
        log_format="json",
        log_level="debug",
    )
    assert len(environment) == len(Settings.__dataclass_fields__)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_jobs_share_the_cores(jobs: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainwire_server.settings.count_cores", lambda: 6)
    assert read_settings(["--max-concurrent-jobs", str(jobs)], {}).threads == threads


def test_a_switch_from_the_environment_may_be_off() -> None:
    assert read_settings([], {"TRAINWIRE_INSECURE": "false"}).insecure is False
    assert read_settings(["--insecure"], {"TRAINWIRE_INSECURE": "false"}).insecure is True


def test_a_flag_wins_over_the_environment() -> None:
    settings = read_settings(["--threads", "2"], {"TRAINWIRE_THREADS": "3"})
    assert settings.threads == 2


@pytest.mark.parametrize(
    ("flag", "variable", "value"),
    [
        ("--listen", "TRAINWIRE_LISTEN", "50051"),
        ("--listen", "TRAINWIRE_LISTEN", "localhost:70000"),
        ("--listen", "TRAINWIRE_LISTEN", "unix:relative"),
        ("--metrics-listen", "TRAINWIRE_METRICS_LISTEN", "unix:/run/metrics"),
        ("--insecure", "TRAINWIRE_INSECURE", "1"),
        ("--threads", "TRAINWIRE_THREADS", "0"),
        ("--threads", "TRAINWIRE_THREADS", "many"),
        ("--grace", "TRAINWIRE_GRACE", "-1"),
        ("--grace", "TRAINWIRE_GRACE", "nan"),
        ("--max-queued-jobs", "TRAINWIRE_MAX_QUEUED_JOBS", "0"),
        ("--max-unread-mb", "TRAINWIRE_MAX_UNREAD_MB", "0"),
        ("--job-memory-mb", "TRAINWIRE_JOB_MEMORY_MB", "-1"),
        ("--lease", "TRAINWIRE_LEASE", "0"),
        ("--heartbeat", "TRAINWIRE_HEARTBEAT", "0.01"),
        ("--retain-days", "TRAINWIRE_RETAIN_DAYS", "36501"),
        ("--max-data-bytes", "TRAINWIRE_MAX_DATA_BYTES", "1.5"),
        ("--log-format", "TRAINWIRE_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_refused_wherever_it_stands(
    flag: str, variable: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, environment in (([flag, value], {}), ([], {variable: value})):
        with pytest.raises(SystemExit) as stop:
            read_settings(arguments, environment)
        assert stop.value.code == 2
        assert value in capsys.readouterr().err

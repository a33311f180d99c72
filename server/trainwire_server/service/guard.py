"""What stands between the server and its callers: TLS and tokens, where there are any."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import structlog

from trainwire.tls import is_local
from trainwire_server.service.access import Access, AccessInterceptor
from trainwire_server.service.status import DecodeInterceptor
from trainwire_server.service.transport import (
    Certificates,
    TransportError,
    check_exposure,
    tls_files,
)
from trainwire_server.settings import Settings
from trainwire_server.tokens import TokenFileError


class Guard:
    """Certificates and tokens as the settings say.

    Attributes:
        certificates: None without TLS.
        access: None where everybody may call.

    Raises:
        TransportError: a certificate or key cannot be used, or other machines could reach a server
            without TLS.
        TokenFileError: the token file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        check_exposure(settings)
        files = tls_files(settings)
        self.certificates = None if files is None else Certificates(files)
        self.access = None if settings.token_file is None else Access(settings.token_file)
        _warn(settings)

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What every call passes, the first of them first."""
        known = [] if self.access is None else [AccessInterceptor(self.access)]
        return [*known, DecodeInterceptor()]

    def reload(self) -> None:
        """Read certificates and tokens again; one that cannot be used stays as it was."""
        log = structlog.get_logger()
        for what, part in (("certificates", self.certificates), ("tokens", self.access)):
            if part is None:
                continue
            try:
                part.reload()
            except (TransportError, TokenFileError) as error:
                log.error("server.not_reloaded", what=what, problem=str(error))
            else:
                log.info("server.reloaded", what=what)


def _warn(settings: Settings) -> None:
    """Say what is open to more people than it has to be."""
    log = structlog.get_logger()
    for path in (settings.tls_key, settings.token_file):
        if path is not None and _readable_by_all(path):
            log.warning("server.exposed", problem=f"everybody on its machine may read {path}")
    if settings.metrics_listen and not is_local(settings.metrics_listen):
        log.warning("server.exposed", problem="anybody may read the metrics")
    if is_local(settings.listen):
        return
    if settings.tls_cert is None:
        log.warning("server.exposed", problem="without TLS, all that is sent can be read")
    if settings.token_file is None and settings.client_ca is None:
        log.warning("server.exposed", problem="without tokens or client CA, anybody may call")


def _readable_by_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)

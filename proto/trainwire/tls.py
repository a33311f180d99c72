"""Files and addresses that TLS is decided by, as the server and its clients both look at them."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import NoReturn

_Path = str | os.PathLike[str]
_LOCAL = ("unix:", "unix-abstract:")
_SCHEME = re.compile(r"(dns|ipv4|ipv6):(//[^/]*/)?")


class UnusableFile(Exception):
    """A file cannot be used; the message has its path and the reason."""


def is_local(address: str) -> bool:
    """Whether an address ("host:port") is on this machine alone: loopback or a Unix socket."""
    if address.startswith(_LOCAL):
        return True
    host = _SCHEME.sub("", address, count=1).rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_file(path: _Path, what: str) -> bytes:
    """The bytes of a file that must not be empty.

    Args:
        path: where it is.
        what: what the message calls it.

    Raises:
        UnusableFile: it cannot be read, or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnusableFile(f"cannot read the {what} {path}: {error.strerror}") from error
    if not data.strip():
        raise UnusableFile(f"the {what} {path} is empty")
    return data


def check_pair(cert: _Path, key: _Path) -> None:
    """Raise UnusableFile unless a certificate and a key, in PEM, belong together.

    gRPC itself would only say that the port cannot be opened, or the server not be reached.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_refuse_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise UnusableFile(
            f"the certificate {cert} and the key {key} are no pair in PEM: {reason}"
        ) from error
    except _Encrypted:
        raise UnusableFile(
            f"the key {key} is encrypted, and there is nobody to ask for its password"
        ) from None


def count_authorities(path: _Path, what: str) -> int:
    """How many certificates of CAs a file in PEM holds.

    Raises:
        UnusableFile: it holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise UnusableFile(f"the {what} {path} is no certificate in PEM") from error
    return context.cert_store_stats()["x509_ca"]


class _Encrypted(Exception):
    """The key wants a password."""


def _refuse_password() -> NoReturn:
    raise _Encrypted

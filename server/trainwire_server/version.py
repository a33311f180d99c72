"""Which version of the package this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def server_version() -> str:
    """Version of the installed package."""
    try:
        return version("trainwire")
    except PackageNotFoundError:
        return "unknown: not installed"

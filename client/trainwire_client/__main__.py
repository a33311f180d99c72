"""Entry point of `trainwire`, and of `python -m trainwire_client`."""

from __future__ import annotations

import sys

_CLI_PACKAGES = {"typer", "rich", "click", "grpc_health"}


def main() -> None:
    """Run the command line; without its packages say what to install."""
    try:
        from trainwire_client import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _CLI_PACKAGES:
            raise
        sys.stderr.write(
            f"trainwire: the command line needs {error.name}, which is not installed;\n"
            "install with: pip install 'trainwire[cli]'\n"
        )
        sys.exit(2)
    cli.app(prog_name="trainwire")


if __name__ == "__main__":
    main()

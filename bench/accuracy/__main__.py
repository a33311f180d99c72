"""Measures accuracy through a real server: `python -m bench.accuracy [--quick]`.

Beside published figures, with and without balancing, and on prices. The quick run is a small part
of it that ends with an error if a floor is missed; it writes nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import servers
from bench.accuracy import page, quick
from bench.accuracy.claims import listed
from bench.accuracy.full import SEEDS, describe_settings, measure
from bench.accuracy.results import Results
from bench.machine import describe_machine

from trainwire_client import TrainingClient

JOBS = 2
PACKAGES = ["torch", "numpy", "scikit-learn"]


def main() -> int:
    """Measure and write the page, or check the floors; the exit status."""
    # As with Ctrl-C: the server that it started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description="Measure accuracy through a real server.")
    parser.add_argument("--quick", action="store_true", help="a small part, against floors")
    if parser.parse_args().quick:
        with _serve() as (client, folder):
            return quick.check(client, folder)
    began = time.monotonic()
    with _serve() as (client, folder):
        records = list(measure(client, folder))
    results = Results(_facts(time.monotonic() - began), describe_settings(), records)
    results.write()
    page.write(results)
    return 0


def _facts(seconds: float) -> dict[str, str]:
    return describe_machine(PACKAGES) | {
        "server": f"{JOBS} jobs at a time, 1 thread each",
        "seeds": f"{listed(SEEDS)}; 0 alone where no deviation is shown",
        "date": time.strftime("%Y-%m-%d"),
        "run": f"{seconds / 60:.0f} minutes",
    }


@contextmanager
def _serve() -> Iterator[tuple[TrainingClient, Path]]:
    """A client of a server of its own, and a folder with the server's data in `data`."""
    flags = ["--max-concurrent-jobs", str(JOBS), "--threads", "1"]
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.serve(Path(folder) / "data", *flags) as (address, _),
        TrainingClient(address) as client,
    ):
        yield client, Path(folder)


if __name__ == "__main__":
    sys.exit(main())

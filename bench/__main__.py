"""Measures trainwire beside what people write by hand: `python -m bench`.

Every ratio is of two things measured in turns on the same machine, in one run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from bench import gpu, page, service
from bench.concurrency import measure_two_jobs
from bench.figures import Figure, Result
from bench.layout import measure_layout
from bench.machine import describe_machine
from bench.memory import measure_memory
from bench.plot import draw
from bench.starts import measure_start, measure_submit
from bench.training import measure_training

THREADS = 2
ROUNDS = 5
PACKAGES = ["torch", "numpy", "grpcio", "scikit-learn", "lightning", "tsai", "fastai"]


def main() -> None:
    """Measure, print the table, write the results and the page."""
    # As with Ctrl-C: the servers that it started end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, load = time.monotonic(), os.getloadavg()[2]
    figures = _measure()
    print("\n".join(figure.row() for figure in [*figures, gpu.LOOP, gpu.REPLAY]))
    facts = describe_machine(PACKAGES) | {
        "threads": f"{THREADS} for every side",
        "rounds": str(ROUNDS),
        "date": time.strftime("%Y-%m-%d"),
        "load of the machine when it began": f"{load:.1f}",
        "run": f"{(time.monotonic() - began) / 60:.0f} minutes",
    }
    device = f"CPU, {os.cpu_count()} cores"
    Result(device, facts, figures).write(page.RESULTS / "cpu.json")
    draw(page.read_results())
    page.write()
    passed = sum(figure.verdict == "PASS" for figure in figures)
    print(f"{passed} of {len(figures)} bars kept on {device}; docs/benchmarks.md is up to date")


def _measure() -> list[Figure]:
    # What needs quiet memory and caches first; the largest table last.
    parts: list[Callable[[], Figure | list[Figure]]] = [
        lambda: measure_training(THREADS, ROUNDS),
        lambda: measure_submit(THREADS),
        lambda: measure_start(ROUNDS),
        lambda: measure_two_jobs(THREADS, ROUNDS),
        lambda: measure_layout(THREADS, ROUNDS),
        service.measure_upload,
        service.measure_watchers,
        service.measure_unary,
        lambda: measure_memory(THREADS, ROUNDS),
    ]
    figures = list[Figure]()
    for part in parts:
        found = part()
        figures += found if isinstance(found, list) else [found]
    return figures


if __name__ == "__main__":
    main()

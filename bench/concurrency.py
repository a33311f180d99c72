"""Two jobs side by side against one that has the machine for itself."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.events import read_events
from bench.figures import Figure
from bench.servers import serve
from bench.task import make_columns, make_request

from trainwire_client import TrainingClient

JOBS = 2


def measure_two_jobs(threads: int, rounds: int) -> Figure:
    """Windows per second of two jobs together over those of one alone, on as many cores."""
    columns = make_columns()
    shared, alone = ["--max-concurrent-jobs", str(JOBS)], ["--max-concurrent-jobs", "1"]
    ratios = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder, "two"), *shared, "--threads", str(threads // JOBS)) as (two, _),
        serve(Path(folder, "one"), *alone, "--threads", str(threads)) as (one, _),
        TrainingClient(two) as side_by_side,
        TrainingClient(one) as single,
    ):
        dataset = side_by_side.upload(columns).name
        single.upload(columns)
        for number in range(rounds):
            together = _total_rate(side_by_side, dataset, JOBS)
            by_itself = _total_rate(single, dataset, 1)
            ratios.append(together / by_itself)
            print(f"jobs {number + 1}: {together:,.0f} and {by_itself:,.0f} windows/s", flush=True)
    return Figure(
        "windows/s of two jobs at a time / one job alone",
        ratios,
        1.4,
        how=f"Two servers, one with `--max-concurrent-jobs 2` and {threads // JOBS} thread each, "
        f"one with 1 and {threads} threads, in turns; the rates of the two jobs, which run the "
        "same epochs at the same time, are added.",
    )


def _total_rate(client: TrainingClient, dataset: str, jobs: int) -> float:
    requests = [make_request(dataset, seed) for seed in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(lambda request: read_events(client.train(request)), requests)
        return sum(trained.run.rate for trained in runs)

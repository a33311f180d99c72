"""Memory that a training process takes beyond an idle one, as the kernel counts it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Figure
from bench.servers import serve
from bench.task import make_columns, make_request

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

ROWS, FEATURES = 1_000_000, 64
SAMPLE_SECONDS = 0.01
HEARTBEATS = 3
"""Signs of training steps, a second apart, after which a run has shown its peak."""


def measure_memory(threads: int, rounds: int) -> Figure:
    """Peak memory that a worker adds to train, over the bytes of the table."""
    columns = make_columns(ROWS, FEATURES)
    size = sum(values.nbytes for name, values in columns.items() if name != "label")
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), "--threads", str(threads)) as (address, _),
        TrainingClient(address) as client,
    ):
        dataset = client.upload(columns).name
        del columns
        idle = _idle_bytes()
        peaks = [_train(client, make_request(dataset, seed)) for seed in range(rounds)]
    print(f"memory: {idle:,} bytes idle, peaks {peaks}", flush=True)
    return Figure(
        "memory a worker adds to train / the table's bytes",
        [(peak - idle) / size for peak in peaks],
        1.5,
        at_least=False,
        how=f"{ROWS:,} x {FEATURES} float32 and 60-step windows: peak of the memory that the "
        "training process alone has written (Private_Dirty of smaps_rollup, every 10 ms, from "
        "submit to three seconds of steps), less that of an idle one with torch loaded; mapped "
        "pages of files, which the kernel may drop, do not count.",
    )


def _train(client: TrainingClient, request: training_pb2.TrainingRequest) -> int:
    """Peak private bytes of the process that trains, until it has trained for a while."""
    with _watch_descendants() as peaks:
        job = client.submit(request)
        beats = 0
        for event in client.watch(job):
            beats += event.HasField("progress")
            if beats == HEARTBEATS:
                client.cancel(job)
    # Whichever process it is that trains: no other comes near the table's size.
    return max(peaks.values())


@contextmanager
def _watch_descendants() -> Iterator[dict[int, int]]:
    """Peak private bytes of each process below this one, by its id."""
    peaks, done = dict[int, int](), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            for process in _descendants(os.getpid()):
                peaks[process] = max(peaks.get(process, 0), _private_bytes(process))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _descendants(process: int) -> set[int]:
    found = set[int]()
    with contextlib.suppress(OSError):  # a process that has just ended
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, children.read_text(encoding="ascii").split()):
                found |= {child} | _descendants(child)
    return found


def _private_bytes(process: int) -> int:
    """Bytes that this process alone has written, and that would be free if it ended.

    Not pages of files, which the kernel may drop at any time: libraries, and one column of the
    stored table.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _idle_bytes() -> int:
    """Private bytes of a process forked from one that has torch loaded, and does nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainwire_server.execution.preload"])
    ready, finish = context.Event(), context.Event()
    process = context.Process(target=_idle, args=(ready, finish))
    process.start()
    ready.wait()
    assert process.pid is not None
    private = _private_bytes(process.pid)
    finish.set()
    process.join()
    return private


def _idle(ready: threading.Event, finish: threading.Event) -> None:
    ready.set()
    finish.wait()

"""The layout of the API that trainwire replaces: a window as one long series of one channel."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bench import loops
from bench.events import read_events
from bench.figures import Figure
from bench.network import HybridCnnLstm
from bench.servers import serve
from bench.task import Task, make_columns, make_request, make_task, store
from torch import nn
from torch.utils.data import DataLoader

from trainwire_client import TrainingClient

ROWS, FEATURES = 3_000, 110
SLOW_BATCH = 8
"""Windows of the slow side's step; a larger one takes minutes and is no faster per window."""


def measure_layout(threads: int, rounds: int) -> Figure:
    """Windows per second over the wire, features as channels, against one flattened channel."""
    columns = make_columns(ROWS, FEATURES)
    ratios = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder, "server"), "--threads", str(threads)) as (address, _),
        TrainingClient(address) as client,
    ):
        request = make_request(client.upload(columns).name)
        task = make_task(request, store(columns, Path(folder)), threads)
        for number in range(rounds):
            ours = read_events(client.train(request)).run.rate
            flat = _flattened(task)
            ratios.append(ours / flat)
            print(f"layout {number + 1}: {ours:,.0f} and {flat:.3g} windows/s", flush=True)
    return Figure(
        "windows/s over the wire / window flattened to one channel",
        ratios,
        100,
        how=f"{FEATURES} features x 60 steps; the other side is a plain loop's step on "
        f"{SLOW_BATCH} windows of one channel and {FEATURES * 60:,} steps, same kind of network "
        "(larger batches are no faster per window).",
    )


def _flattened(task: Task) -> float:
    """Windows per second of one plain step on flattened windows."""
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(task.threads)
    prepared = task.prepared
    network = HybridCnnLstm(task.request.model, 1, len(prepared.class_names))
    optimizer = loops.make_optimizer(task, network)
    some = replace(
        prepared.train,
        starts=prepared.train.starts[:SLOW_BATCH],
        labels=prepared.train.labels[:SLOW_BATCH],
    )
    batch, labels = next(iter(DataLoader(loops.Windows(prepared, some), SLOW_BATCH)))
    windows = batch.reshape(SLOW_BATCH, 1, -1)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(windows), labels))
        optimizer.step()

    return SLOW_BATCH / loops.repeat(step, 1)

"""What a run leaves on disk while it trains: the best weights, and checkpoints to go on from.

A checkpoint is one safetensors file per finished epoch, `checkpoints/<epoch>-<SHA-256>.safetensors`
in the job's folder. Its name says what its bytes must hash to, so that a damaged one shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from google.protobuf import json_format
from torch import Tensor, nn

from trainwire.v1 import training_pb2
from trainwire_server.data.durable import sync_folder, write_file
from trainwire_server.training.setup import Setup

BEST = "best.safetensors"
FOLDER = "checkpoints"
KEPT = 2
"""The newest two stay: should one turn out damaged, there is another."""

_NAME = re.compile(r"(?P<epoch>\d{6})-(?P<sha256>[0-9a-f]{64})\.safetensors")
# One entry for all that is no tensor: the order of several is not always the same.
_STATE = "state"

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """What a run carries from epoch to epoch beside model, optimizer and schedule.

    Attributes:
        epoch: the last epoch that was done, counted from 1; 0 before the first.
        best_epoch: the best of them; 0 before the first.
        best_score: its score; higher is better.
        best_weights: its weights, on the CPU; replaced, never changed.
        best_validation: its metrics on the validation split.
        collapsed: whether the last epoch predicted hardly more than one class.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    best_weights: Weights = field(default_factory=dict)
    best_validation: training_pb2.SplitMetrics = field(default_factory=training_pb2.SplitMetrics)
    collapsed: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A run as it was at the end of an epoch; later training does not change it.

    Attributes:
        state: what is no tensor, as JSON gives it back.
        tensors: weights, best weights and AdamW's moments, on the CPU.
    """

    state: dict[str, Any]
    tensors: Weights

    @property
    def epoch(self) -> int:
        """Epochs that were done."""
        return int(self.state["epoch"])

    @property
    def threads(self) -> int:
        """Threads that it was computed with: others would not give the same bits."""
        return int(self.state["threads"])


def copy_weights(module: nn.Module) -> Weights:
    """The module's weights now, on the CPU; later training does not change them.

    A state dict alone would not do: its tensors are the live weights.
    """
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def take(setup: Setup, progress: Progress, request_digest: str, threads: int) -> Snapshot:
    """Copy what a run needs to go on exactly as it would have.

    Random state is not in it: that of an epoch follows from seed and epoch (`seeds.reseed`).

    Args:
        setup: from `set_up`.
        progress: of the same run.
        request_digest: `contract.request_digest` of what is trained.
        threads: threads it computes with.
    """
    optimizer = setup.optimizer
    state = {
        "request_digest": request_digest,
        "threads": threads,
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_score": progress.best_score,
        "best_validation": json_format.MessageToDict(progress.best_validation),
        "collapsed": progress.collapsed,
        "schedule": setup.schedule.state_dict(),
        "optimizer": {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, float)},
    }
    moments = {
        f"{number}.{name}": tensor.to("cpu", copy=True)
        for number, tensors in optimizer.state_dict()["state"].items()
        for name, tensor in tensors.items()
    }
    parts = {"model": copy_weights(setup.model), "optimizer": moments}
    parts["best"] = progress.best_weights
    tensors = {f"{part}.{k}": v for part, found in parts.items() for k, v in found.items()}
    # Through JSON at once: the schedule goes on to change the lists in its state.
    return Snapshot(json.loads(json.dumps(state)), tensors)


def restore(snapshot: Snapshot, setup: Setup) -> Progress:
    """Bring a fresh setup of the same request to where the snapshot was taken."""
    state = snapshot.state
    setup.model.load_state_dict(_part(snapshot, "model"))
    _restore_optimizer(snapshot, setup)
    setup.schedule.load_state_dict(state["schedule"])
    return Progress(
        epoch=state["epoch"],
        best_epoch=state["best_epoch"],
        best_score=state["best_score"],
        best_weights=_part(snapshot, "best"),
        best_validation=json_format.ParseDict(
            state["best_validation"], training_pb2.SplitMetrics()
        ),
        collapsed=state["collapsed"],
    )


def _restore_optimizer(snapshot: Snapshot, setup: Setup) -> None:
    moments: dict[int, Weights] = {}
    for key, tensor in _part(snapshot, "optimizer").items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = tensor
    (group,) = setup.optimizer.state_dict()["param_groups"]
    groups = [group | snapshot.state["optimizer"]]
    setup.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _part(snapshot: Snapshot, part: str) -> Weights:
    start = f"{part}."
    return {k.removeprefix(start): v for k, v in snapshot.tensors.items() if k.startswith(start)}


class Checkpoints:
    """The checkpoints of one job; as a context, it waits for the last write.

    Args:
        folder: the job's own; nobody else writes there.
        request_digest: checkpoints of another request are no checkpoints of this job.
    """

    def __init__(self, folder: Path, request_digest: str) -> None:
        self._job_folder = folder
        self._folder = folder / FOLDER
        self._request_digest = request_digest
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        self._best_saved = 0
        self._kept: list[Path] = []

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def find_newest(self, last_epoch: int | None = None) -> Snapshot | None:
        """The newest checkpoint that is whole and of this request, if there is one.

        Args:
            last_epoch: ignores those of later epochs.
        """
        for path in sorted(self._folder.glob("*"), reverse=True):
            snapshot = _load(path)
            if snapshot is None or snapshot.state["request_digest"] != self._request_digest:
                continue
            if last_epoch is None or snapshot.epoch <= last_epoch:
                self._kept = [path]
                return snapshot
        return None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint and, if they are new, the best weights; wait for the last.

        A disk that refuses to write does not end the training: the next epoch tries again.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._pending is not None:
            with suppress(OSError):
                self._pending.result()

    def delete(self) -> None:
        """Delete all checkpoints; the best weights stay."""
        self.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, snapshot: Snapshot) -> None:
        best_epoch = snapshot.state["best_epoch"]
        if best_epoch != self._best_saved:
            save_weights(_part(snapshot, "best"), self._job_folder / BEST)
            self._best_saved = best_epoch
        if not self._folder.exists():
            self._folder.mkdir()
            sync_folder(self._job_folder)
        self._kept = [*self._kept, _save(snapshot, self._folder)][-KEPT:]
        # What is left of a process that is gone, or of another request, goes too.
        for path in set(self._folder.iterdir()) - set(self._kept):
            path.unlink()


def _save(snapshot: Snapshot, folder: Path) -> Path:
    metadata = {_STATE: json.dumps(snapshot.state)}
    data = safetensors.torch.save(snapshot.tensors, metadata)
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{snapshot.epoch:06}-{digest}.safetensors"
    write_file(path, data)
    return path


def _load(path: Path) -> Snapshot | None:
    """What is in a file, if it is a checkpoint with the bytes it was written with."""
    name = _NAME.fullmatch(path.name)
    if name is None:
        return None
    try:
        data = path.read_bytes()
    except OSError:  # a disk that cannot read it back
        return None
    if hashlib.sha256(data).hexdigest() != name["sha256"]:
        return None
    with safetensors.safe_open(path, "pt") as file:
        state = json.loads(file.metadata()[_STATE])
    # Copies, because training goes on in them: memory of torch's own, aligned like any other.
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    return Snapshot(state, tensors)


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in the safetensors format, whole or not at all; the bytes follow from them."""
    write_file(path, safetensors.torch.save(dict(weights)))

"""What a run leaves on disk while it trains: the best weights, and checkpoints to go on from.

A checkpoint is one safetensors file per finished epoch; `data.checkpoints` says where and under
which name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from google.protobuf import json_format
from torch import Tensor, nn

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.data.checkpoints import (
    BEST,
    FOLDER,
    KEPT,
    CheckpointFile,
    find_files,
    is_digest_of,
    name_file,
)
from trainwire_server.data.durable import refuse_links, sync_folder, write_file
from trainwire_server.training.setup import Setup

# One entry for all that is no tensor: the order of several is not always the same.
_STATE = "state"

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """What a run carries from epoch to epoch beside model, optimizer and schedule.

    Attributes:
        micro_batch: most windows that are computed together for their gradients; halved when
            memory runs out.
        epoch: the last epoch that was done, counted from 1; 0 before the first.
        best_epoch: the best of them; 0 before the first.
        best_score: its score; higher is better.
        best_weights: its weights, on the CPU; replaced, never changed.
        best_validation: its metrics on the validation split.
        collapsed: whether the last epoch predicted hardly more than one class.
    """

    micro_batch: int
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


def identity(request: training_pb2.TrainingRequest) -> str:
    """What a checkpoint belongs to: a digest of all that decides what is trained but how long.

    `trainer.epochs` is left out, so that a job may go on from another one's checkpoint to more
    epochs. Everything else must be the same: under another learning rate or network the weights
    would be those of neither request.

    Args:
        request: defaults are filled in.
    """
    kept = training_pb2.TrainingRequest()
    kept.CopyFrom(request)
    kept.trainer.ClearField("epochs")
    return contract.request_digest(kept)


def copy_weights(module: nn.Module) -> Weights:
    """The module's weights now, on the CPU; later training does not change them.

    A state dict alone would not do: its tensors are the live weights.
    """
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def take(setup: Setup, progress: Progress, belongs_to: str) -> Snapshot:
    """Copy what a run needs to go on exactly as it would have.

    Random state is not in it: that of an epoch follows from seed and epoch (`seeds.reseed`).

    Args:
        setup: from `set_up`.
        progress: of the same run.
        belongs_to: `identity` of what is trained.
    """
    optimizer = setup.optimizer
    state = {
        "belongs_to": belongs_to,
        "threads": setup.threads,
        "micro_batch": progress.micro_batch,
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
    """Bring a fresh setup to where the snapshot was taken, of the same `identity`.

    If the request has another number of epochs, the learning rate goes on as if it always had.
    """
    state = snapshot.state
    setup.model.load_state_dict(_part(snapshot, "model"))
    _restore_optimizer(snapshot, setup)
    setup.schedule.load_state_dict(state["schedule"], state["epoch"])
    return Progress(
        micro_batch=state["micro_batch"],
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

    A write that fails ends nothing: training goes on, the older checkpoints stay, and the next
    epoch tries again.

    Args:
        folder: the job's own; nobody else writes there.
        belongs_to: `identity` of what is trained; others are no checkpoints of this job.
    """

    def __init__(self, folder: Path, belongs_to: str) -> None:
        self._job_folder = folder
        self._folder = folder / FOLDER
        self._belongs_to = belongs_to
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        self._begun = 0
        self._best_saved = 0
        self._kept: list[CheckpointFile] = []
        self._failing = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
        finally:
            self._writer.shutdown()

    def find_newest(self, last_epoch: int) -> Snapshot | None:
        """The newest checkpoint that is whole and belongs here, if there is one.

        Args:
            last_epoch: passes over later ones.
        """
        for file in find_files(self._job_folder):
            snapshot = _load(file.path) if file.epoch <= last_epoch else None
            if snapshot and snapshot.state.get("belongs_to") == self._belongs_to:
                self._kept = [file]
                return snapshot
        return None

    def save(self, setup: Setup, progress: Progress) -> Iterator[training_pb2.TrainingEvent]:
        """Begin to write a checkpoint and, if they are new, the best weights; `settle` before.

        In this order there is one snapshot at a time in memory.
        """
        yield from self.settle()
        self._begun = progress.epoch
        snapshot = take(setup, progress, self._belongs_to)
        self._pending = self._writer.submit(self._write, snapshot)

    def settle(self) -> Iterator[training_pb2.TrainingEvent]:
        """Wait until nothing is being written.

        Yields:
            A `warning` if the write failed and the one before it had not.
        """
        known = self._failing
        error = self._wait()
        if error and not known:
            yield training_pb2.TrainingEvent(warning=self._warn(error))

    def _wait(self) -> OSError | MemoryError | None:
        """What kept the last one from being written, if there is one and something did."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            pending.result()
        except (OSError, MemoryError) as error:
            self._failing = True
            return error
        self._failing = False
        return None

    def _warn(self, error: OSError | MemoryError) -> training_pb2.JobWarning:
        # Not the whole of it: paths on the server tell a caller nothing.
        why = error.strerror if isinstance(error, OSError) else "memory ran out"
        safe = f"after epoch {self._kept[-1].epoch}" if self._kept else "from its start"
        return training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_CHECKPOINT_NOT_WRITTEN,
            message=f"the checkpoint of epoch {self._begun} could not be written ({why}); training "
            f"goes on and the next epoch tries again; a lost process would begin again {safe}",
        )

    def _write(self, snapshot: Snapshot) -> None:
        refuse_links(self._folder)
        best_epoch = snapshot.state["best_epoch"]
        if best_epoch != self._best_saved:
            save_weights(_part(snapshot, "best"), self._job_folder / BEST)
            self._best_saved = best_epoch
        if not self._folder.exists():
            self._folder.mkdir()
            sync_folder(self._job_folder)
            # The server has made the job's own folder and left it at that.
            sync_folder(self._job_folder.parent)
        self._kept = [*self._kept, _save(snapshot, self._folder)][-KEPT:]
        # What is left of a process that is gone, or of another request, goes too.
        for path in set(self._folder.iterdir()) - {file.path for file in self._kept}:
            path.unlink()


def _save(snapshot: Snapshot, folder: Path) -> CheckpointFile:
    metadata = {_STATE: json.dumps(snapshot.state)}
    data = _serialize(snapshot.tensors, metadata)
    digest = hashlib.sha256(data).hexdigest()
    path = folder / name_file(snapshot.epoch, digest)
    write_file(path, data)
    return CheckpointFile(snapshot.epoch, path)


def _load(path: Path) -> Snapshot | None:
    """What is in a checkpoint, if its bytes are those it was written with."""
    try:
        data = path.read_bytes()
    except OSError:  # gone, or on a disk that cannot read it back
        return None
    if not is_digest_of(path, hashlib.sha256(data).hexdigest()):
        return None
    with safetensors.safe_open(path, "pt") as file:
        state = json.loads(file.metadata()[_STATE])
    # Copies, because training goes on in them: memory of torch's own, aligned like any other.
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    return Snapshot(state, tensors)


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in the safetensors format, whole or not at all; the bytes follow from them."""
    write_file(path, _serialize(dict(weights)))


def _serialize(tensors: Weights, metadata: dict[str, str] | None = None) -> bytes:
    # Its Rust code ends the process where there is no memory for a buffer and its result. Taken and
    # given back untouched, so much costs nothing, and says in time that there is not.
    bytes(2 * sum(tensor.nbytes for tensor in tensors.values()))
    try:
        return safetensors.torch.save(tensors, metadata)
    except BaseException as error:
        # Another thread has taken it meanwhile: that is a panic, which is no `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        raise MemoryError("no memory to serialize weights") from error

"""The training run, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from trainwire import contract
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, prepare
from trainwire_server.errors import JobFailure
from trainwire_server.training import bundle, checkpoint, onnx_model
from trainwire_server.training.adjustment import adjust, is_wanted
from trainwire_server.training.augment import draw_shares
from trainwire_server.training.devices import (
    large_blocks_given_back,
    memory_errors_explained,
    peak_memory_bytes,
)
from trainwire_server.training.graphs import gradients_of
from trainwire_server.training.intervals import bootstrap_intervals, rows_reached
from trainwire_server.training.losses import plain_loss
from trainwire_server.training.metrics import Tally, split_metrics
from trainwire_server.training.plan import describe_start
from trainwire_server.training.ranking import Rankings
from trainwire_server.training.replicas import Replica
from trainwire_server.training.seeds import reseed
from trainwire_server.training.setup import EVALUATION_FACTOR, Samples, Setup, set_up
from trainwire_server.training.steps import Part, fit_into_memory

HEARTBEAT_SECONDS = 1.0
COLLAPSE_SHARE = 0.9


Events = Generator[training_pb2.TrainingEvent, None, None]


class Cancelled(Exception):
    """The run stopped because it was asked to; the best weights so far are in its folder.

    Args:
        epochs_run: epochs that were done.
        best_epoch: the best of them, counted from 1; 0 if none was done.
    """

    def __init__(self, epochs_run: int, best_epoch: int) -> None:
        super().__init__(f"cancelled after {epochs_run} epochs")
        self.epochs_run = epochs_run
        self.best_epoch = best_epoch


class Drained(Exception):
    """The run stopped between two epochs to go on in another process; its checkpoints are on disk.

    Args:
        epochs_run: epochs that were done.
    """

    def __init__(self, epochs_run: int) -> None:
        super().__init__(f"drained after {epochs_run} epochs")
        self.epochs_run = epochs_run


def _never() -> bool:
    return False


def fit(
    request: training_pb2.TrainingRequest,
    table: Path,
    folder: Path,
    threads: int,
    cancelled: Callable[[], bool],
    draining: Callable[[], bool] = _never,
    last_epoch: int | None = None,
    is_started: bool = False,
) -> Events:
    """Prepare the data, train, test, write the bundle to ``folder/bundle``.

    The same request, table and thread count give the same events (but for times and memory) and
    bit-identical weights on the same machine, if `trainer.deterministic` and memory is enough.

    Each epoch leaves a checkpoint in ``folder/checkpoints``, begun when the event after its `epoch`
    is asked for. A run that finds one there goes on from the newest with its thread count: events
    and weights are those that an undisturbed run would give from there. It may be of a request with
    other `trainer.epochs`; of one that differs in anything else it is passed over.
    Success leaves the checkpoints: until it is recorded, the run may have to be had again.

    Batches that memory is not enough for are computed in parts; see `steps`.

    Args:
        request: what to train; defaults are filled in.
        table: the dataset's Arrow file.
        folder: the job's own, existing folder.
        threads: threads to compute with on the CPU.
        cancelled: asked before every batch.
        draining: asked before every epoch.
        last_epoch: does not go on from later epochs: the last one whose events are known to have
            arrived, so that none is skipped.
        is_started: whether a run before this one has told `started`.

    Yields:
        Events with the oneof alone set. First `warning`, `started` and, if there is a checkpoint
        to go on from, `resumed`; if `is_started`, `resumed` alone, of epoch 0 if there is none.
        Then `progress`, `warning`, `epoch`, `succeeded`. An epoch's warning comes before its
        `epoch`; that its checkpoint could not be written, after it; that there is no ONNX file,
        before `succeeded`.

    Raises:
        JobFailure: the data cannot be used, or NON_FINITE_LOSS, OUT_OF_MEMORY (even for a single
            window), DEVICE_UNAVAILABLE, STORAGE_FULL; the checkpoints stay.
        Cancelled: `cancelled` returned true.
        Drained: `draining` returned true; the checkpoint of the last epoch is on disk.
    """
    effective = contract.resolve(request)
    with memory_errors_explained():
        with large_blocks_given_back():
            prepared = prepare(effective, table)
        yield from train(
            effective, prepared, folder, threads, cancelled, draining, last_epoch, is_started
        )


def train(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    folder: Path,
    threads: int,
    cancelled: Callable[[], bool],
    draining: Callable[[], bool] = _never,
    last_epoch: int | None = None,
    is_started: bool = False,
) -> Events:
    """`fit` from prepared data and an effective request on; memory errors come as torch's own."""
    with checkpoint.Checkpoints(folder, checkpoint.identity(request)) as checkpoints:
        epochs = request.trainer.epochs
        snapshot = checkpoints.find_newest(
            epochs if last_epoch is None else min(last_epoch, epochs)
        )
        setup = set_up(request, prepared, snapshot.threads if snapshot else threads)
        if not is_started:
            yield from _tell_start(request, prepared, setup)
        progress = _take_up(request, setup, snapshot)
        if snapshot or is_started:
            yield training_pb2.TrainingEvent(resumed=training_pb2.JobResumed(epoch=progress.epoch))
        # As large as weights and optimizer state together, and needed no more.
        del snapshot
        yield from _run_epochs(request, prepared, setup, progress, checkpoints, cancelled, draining)
        yield from checkpoints.settle()
        yield from _finish(request, prepared, setup, progress, folder, cancelled)


def _tell_start(request: training_pb2.TrainingRequest, prepared: Prepared, setup: Setup) -> Events:
    for warning in (*prepared.warnings, *setup.warnings):
        yield training_pb2.TrainingEvent(warning=warning)
    started = describe_start(request, prepared, setup)
    yield training_pb2.TrainingEvent(started=started)


def _take_up(
    request: training_pb2.TrainingRequest, setup: Setup, snapshot: checkpoint.Snapshot | None
) -> checkpoint.Progress:
    """Progress to go on with; the setup is brought to it."""
    if snapshot:
        return checkpoint.restore(snapshot, setup)
    return checkpoint.Progress(min(request.trainer.batch_size, len(setup.balance.positions)))


def _run_epochs(  # noqa: C901, PLR0915 - one flat loop, for the reason given below
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    setup: Setup,
    progress: checkpoint.Progress,
    checkpoints: checkpoint.Checkpoints,
    cancelled: Callable[[], bool],
    draining: Callable[[], bool],
) -> Events:
    """The epochs after those of `progress`."""
    # One flat loop on purpose: what happens to a batch, and in which order, is the part of a
    # trainer that people check, and the order is what makes a run reproducible.
    trainer = request.trainer
    epochs, batch_size, clip_norm = trainer.epochs, trainer.batch_size, trainer.gradient_clip_norm
    smoothing, patience = trainer.label_smoothing, trainer.early_stopping_patience
    model, optimizer, schedule = setup.model, setup.optimizer, setup.schedule
    names, mixup = prepared.class_names, setup.augmentation.mixup
    stop_if_cancelled = partial(_stop_if_cancelled, cancelled, progress)
    gradients = gradients_of(setup, smoothing, batch_size)

    for epoch in range(progress.epoch + 1, epochs + 1):
        if 0 < patience <= progress.epoch - progress.best_epoch:
            break
        if draining():
            yield from checkpoints.settle()
            raise Drained(progress.epoch)
        began = beat = time.monotonic()
        rng = reseed(trainer.seed, epoch, setup.replicas.generators)
        order = torch.from_numpy(rng.permutation(setup.balance.positions)).to(setup.device)
        batches = torch.split(order, batch_size)
        tally = Tally(len(names), setup.device)
        rate = schedule.learning_rate
        for step, positions in enumerate(batches, start=1):
            stop_if_cancelled()
            # Batch by batch: of a large table, all at once would take as much as the order itself.
            batch = setup.train.take(positions)
            shares = draw_shares(mixup, len(positions), rng, setup.device)
            compute = partial(gradients.set, batch.starts, batch.labels, shares=shares)
            parts = yield from fit_into_memory(compute, progress, setup.device)
            yield from gradients.warnings()
            if clip_norm > 0:
                clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            rate = schedule.learning_rate
            schedule.after_batch()
            # Nothing above waits for the device: loss and matrix stay there until they are read,
            # here once a second and below once an epoch.
            for part in parts:
                tally.add(*part)
            if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                train_loss = _finite(tally.loss(), "training", epoch, request)
                beat = time.monotonic()
                yield training_pb2.TrainingEvent(
                    progress=training_pb2.EpochProgress(
                        epoch=epoch,
                        epochs=epochs,
                        step=step,
                        steps=len(batches),
                        train_loss=train_loss,
                        windows_per_second=min(step * batch_size, len(order)) / (beat - began),
                    )
                )
        train_loss = _finite(tally.loss(), "training", epoch, request)
        train_seconds = time.monotonic() - began
        train_metrics = split_metrics(train_loss, tally.matrix(), names)

        tally = yield from _evaluate(setup, setup.validation, progress, cancelled)
        validation_loss = _finite(tally.loss(), "validation", epoch, request)
        validation = split_metrics(validation_loss, tally.matrix(), names, tally.rankings(names))
        schedule.after_epoch(validation_loss)

        score = _score(validation, epoch, trainer.early_stopping_metric)
        is_best = score > progress.best_score
        if is_best:
            progress.best_epoch, progress.best_score = epoch, score
            progress.best_weights = checkpoint.copy_weights(model)
            progress.best_validation = validation
        favourite = max(validation.classes, key=lambda metrics: metrics.predicted_share)
        if favourite.predicted_share > COLLAPSE_SHARE and not progress.collapsed:
            yield training_pb2.TrainingEvent(warning=_collapse(favourite, epoch))
        progress.collapsed = favourite.predicted_share > COLLAPSE_SHARE
        progress.epoch = epoch
        yield training_pb2.TrainingEvent(
            epoch=training_pb2.EpochCompleted(
                epoch=epoch,
                epochs=epochs,
                train=train_metrics,
                validation=validation,
                learning_rate=rate,
                seconds=time.monotonic() - began,
                windows_per_second=len(order) / train_seconds,
                peak_memory_bytes=peak_memory_bytes(setup.device),
                is_best=is_best,
            )
        )
        yield from checkpoints.save(setup, progress)


def _finish(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    setup: Setup,
    progress: checkpoint.Progress,
    folder: Path,
    cancelled: Callable[[], bool],
) -> Events:
    """Test the best weights and write the bundle."""
    setup.model.load_state_dict(progress.best_weights)
    names = prepared.class_names
    tally = yield from _evaluate(setup, setup.test, progress, cancelled)
    rankings = tally.rankings(names)
    test_loss = _finite(tally.loss(), "test", progress.best_epoch, request)
    adjusted = yield from _adjust(request, prepared, setup, progress, rankings, cancelled)
    succeeded = training_pb2.JobSucceeded(
        best_epoch=progress.best_epoch,
        epochs_run=progress.epoch,
        stopped_early=progress.epoch < request.trainer.epochs,
        validation=progress.best_validation,
        test=split_metrics(test_loss, tally.matrix(), names, rankings),
        adjusted=adjusted,
    )
    if rankings:
        likeliest = rankings.scores.likeliest
        succeeded.test_intervals.extend(_intervals(request, prepared, rankings, likeliest))
    weights = progress.best_weights
    at_once = _windows_at_once(progress.micro_batch)
    onnx = yield from _export(request, prepared, weights, at_once, adjusted)
    bundle.write(folder / bundle.FOLDER, request, prepared, weights, succeeded, onnx)
    yield training_pb2.TrainingEvent(succeeded=succeeded)


def _adjust(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    setup: Setup,
    progress: checkpoint.Progress,
    test: Rankings | None,
    cancelled: Callable[[], bool],
) -> Generator[training_pb2.TrainingEvent, None, training_pb2.AdjustedPrediction | None]:
    """What `prediction` makes of the best weights' answers; None if it asks for nothing."""
    # Where there are too many classes for rankings, `set_up` has refused what is wanted.
    if test is None or not is_wanted(request.prediction):
        return None
    names, find_intervals = prepared.class_names, partial(_intervals, request, prepared)
    tally = yield from _evaluate(setup, setup.validation, progress, cancelled)
    stop = partial(_stop_if_cancelled, cancelled, progress)
    return adjust(request.prediction, tally.scores(), test.scores, names, find_intervals, stop)


def _export(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    weights: checkpoint.Weights,
    at_once: int,
    adjusted: training_pb2.AdjustedPrediction | None,
) -> Generator[training_pb2.TrainingEvent, None, bytes | None]:
    """The ONNX file; None, and a warning, where there is none for this network."""
    try:
        return onnx_model.export(request, prepared, weights, at_once, adjusted)
    except onnx_model.NotExported as error:
        message = (
            f"the model has no {bundle.ONNX}: {error}; the other files are whole, and "
            "trainwire_client.bundle.load_bundle predicts with them"
        )
        reason = training_pb2.WARNING_REASON_ONNX_NOT_WRITTEN
        warning = training_pb2.JobWarning(reason=reason, message=message)
        yield training_pb2.TrainingEvent(warning=warning)
        return None


def _intervals(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    rankings: Rankings,
    predicted: npt.NDArray[np.int64],
) -> list[training_pb2.MetricInterval]:
    if not request.data.HasField("chronological"):
        return []
    block = rows_reached(request, prepared)
    return bootstrap_intervals(rankings, predicted, block, request.trainer.seed)


def _evaluate(
    setup: Setup, samples: Samples, progress: checkpoint.Progress, cancelled: Callable[[], bool]
) -> Generator[training_pb2.TrainingEvent, None, Tally]:
    stop = partial(_stop_if_cancelled, cancelled, progress)
    compute = partial(evaluate, setup, samples, stop_if_cancelled=stop)
    return (yield from fit_into_memory(compute, progress, setup.device))


def evaluate(
    setup: Setup, samples: Samples, micro_batch: int, stop_if_cancelled: Callable[[], None]
) -> Tally:
    """Plain cross-entropy and confusion matrix of the current weights.

    Samples come as they are: neither resampled nor augmented.

    Args:
        micro_batch: most windows of a training step; here there may be more.
    """
    tally = Tally(len(setup.weights), setup.device, keeps_scores=True)
    for batch in samples.batches(_windows_at_once(micro_batch)):
        stop_if_cancelled()
        for part in setup.replicas.map(partial(_predict, setup), batch.starts, batch.labels):
            tally.add(*part)
    return tally


def _windows_at_once(micro_batch: int) -> int:
    """Most windows that are computed together without gradients."""
    # Down to one, like training: that is the least that memory can be enough for.
    return EVALUATION_FACTOR * micro_batch if micro_batch > 1 else 1


@torch.inference_mode()
def _predict(setup: Setup, _: Replica, starts: Tensor, labels: Tensor) -> Part:
    with setup.autocast():
        logits = setup.model(setup.inputs[starts])
    logits = logits.float()
    return *plain_loss(logits, labels), logits, labels


def _stop_if_cancelled(cancelled: Callable[[], bool], progress: checkpoint.Progress) -> None:
    if cancelled():
        raise Cancelled(progress.epoch, progress.best_epoch)


def _score(
    validation: training_pb2.SplitMetrics,
    epoch: int,
    metric: training_pb2.EarlyStoppingMetric.ValueType,
) -> float:
    """What picks the best epoch: higher is better."""
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_LOSS:
        return -validation.loss
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_MACRO_F1:
        return validation.macro_f1
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_BALANCED_ACCURACY:
        return validation.balanced_accuracy
    if metric == training_pb2.EARLY_STOPPING_METRIC_LAST_EPOCH:
        return epoch
    name = training_pb2.EarlyStoppingMetric.Name(metric)
    raise ValueError(f"trainer.early_stopping_metric: {name} is not implemented")


def _finite(loss: float, split: str, epoch: int, request: training_pb2.TrainingRequest) -> float:
    """The loss, if it is a number to go on with."""
    if math.isfinite(loss):
        return loss
    rate, clip = request.trainer.learning_rate, request.trainer.gradient_clip_norm
    message = (
        f"the {split} loss is {loss} in epoch {epoch}; try a lower trainer.learning_rate (now "
        f"{rate:g}), a trainer.gradient_clip_norm that clips (now {clip:g}; 0 is off), and look "
        "for huge values in the features if data.scaling is SCALING_NONE"
    )
    field = Violation("trainer.learning_rate", f"{rate:g}: try a lower one")
    raise JobFailure(training_pb2.FAILURE_REASON_NON_FINITE_LOSS, message, (field,))


def _collapse(favourite: training_pb2.ClassMetrics, epoch: int) -> training_pb2.JobWarning:
    message = (
        f"epoch {epoch}: {favourite.predicted_share:.1%} of the validation windows are predicted "
        f"to be of class {favourite.name!r}; macro F1 and the per-class recalls say what accuracy "
        "hides"
    )
    reason = training_pb2.WARNING_REASON_PREDICTION_COLLAPSE
    return training_pb2.JobWarning(reason=reason, message=message)

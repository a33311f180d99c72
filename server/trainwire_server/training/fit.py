"""The training run, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from trainwire import contract
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, prepare
from trainwire_server.errors import JobFailure
from trainwire_server.training import bundle, checkpoint
from trainwire_server.training.augment import add_gaussian_noise
from trainwire_server.training.devices import memory_errors_explained, peak_memory_bytes
from trainwire_server.training.losses import focal_loss, plain_loss
from trainwire_server.training.metrics import Tally, split_metrics
from trainwire_server.training.plan import describe_start
from trainwire_server.training.seeds import reseed
from trainwire_server.training.setup import EVALUATION_FACTOR, Samples, Setup, set_up

HEARTBEAT_SECONDS = 1.0
COLLAPSE_SHARE = 0.9


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


def fit(
    request: training_pb2.TrainingRequest,
    table: Path,
    folder: Path,
    threads: int,
    cancelled: Callable[[], bool],
    last_epoch: int | None = None,
) -> Generator[training_pb2.TrainingEvent, None, None]:
    """Prepare the data, train, test, write the bundle to ``folder/bundle``.

    The same request, table and thread count give the same events (but for times and memory) and
    bit-identical weights on the same machine, if `trainer.deterministic`.

    Each epoch leaves a checkpoint in ``folder/checkpoints``, begun when the event after its `epoch`
    is asked for. A run that finds one there, of the same request, goes on from the newest with its
    thread count: its first event is `resumed`, all others, and the weights, are those that an
    undisturbed run would give from there. Success deletes the checkpoints, also when the next event
    is asked for: until then the run can be had again.

    Args:
        request: what to train; defaults are filled in.
        table: the dataset's Arrow file.
        folder: the job's own, existing folder.
        threads: threads to compute with on the CPU.
        cancelled: asked before every batch.
        last_epoch: does not go on from later epochs: the last one whose events are known to have
            arrived, so that none is skipped.

    Yields:
        Events with the oneof alone set: `resumed`, or `warning` and `started`; then `progress`,
        `warning`, `epoch`, `succeeded`. An epoch's warning comes before its `epoch`.

    Raises:
        JobFailure: the data cannot be used, or NON_FINITE_LOSS, OUT_OF_MEMORY, DEVICE_UNAVAILABLE.
        Cancelled: `cancelled` returned true.
    """
    effective = contract.resolve(request)
    with memory_errors_explained():
        prepared = prepare(effective, table)
        yield from train(effective, prepared, folder, threads, cancelled, last_epoch)


def train(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    folder: Path,
    threads: int,
    cancelled: Callable[[], bool],
    last_epoch: int | None = None,
) -> Generator[training_pb2.TrainingEvent, None, None]:
    """`fit` from prepared data and an effective request on; memory errors come as torch's own."""
    digest = contract.request_digest(request)
    with checkpoint.Checkpoints(folder, digest) as checkpoints:
        snapshot = checkpoints.find_newest(last_epoch)
        threads = snapshot.threads if snapshot else threads
        setup = set_up(request, prepared, threads)
        progress = checkpoint.Progress()
        if snapshot:
            progress = checkpoint.restore(snapshot, setup)
            yield training_pb2.TrainingEvent(resumed=training_pb2.JobResumed(epoch=progress.epoch))
        else:
            for warning in prepared.warnings:
                yield training_pb2.TrainingEvent(warning=warning)
            started = describe_start(request, prepared, setup, threads)
            yield training_pb2.TrainingEvent(started=started)

        def save() -> None:
            checkpoints.write(checkpoint.take(setup, progress, digest, threads))

        yield from _run(request, prepared, setup, progress, folder, save, cancelled)
        checkpoints.delete()


def _run(  # noqa: C901, PLR0915 - one flat loop, for the reason given below
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    setup: Setup,
    progress: checkpoint.Progress,
    folder: Path,
    save: Callable[[], None],
    cancelled: Callable[[], bool],
) -> Generator[training_pb2.TrainingEvent, None, None]:
    """The epochs after those of `progress`, the test, the bundle."""
    # One flat loop on purpose: what happens to a batch, and in which order, is the part of a
    # trainer that people check, and the order is what makes a run reproducible.
    trainer = request.trainer
    epochs, batch_size, clip_norm = trainer.epochs, trainer.batch_size, trainer.gradient_clip_norm
    smoothing, patience = trainer.label_smoothing, trainer.early_stopping_patience
    model, optimizer, schedule = setup.model, setup.optimizer, setup.schedule
    names = prepared.class_names

    def stop_if_cancelled() -> None:
        if cancelled():
            raise Cancelled(progress.epoch, progress.best_epoch)

    model.train()
    for epoch in range(progress.epoch + 1, epochs + 1):
        if 0 < patience <= progress.epoch - progress.best_epoch:
            break
        began = beat = time.monotonic()
        order = reseed(trainer.seed, epoch).permutation(setup.balance.positions)
        samples = setup.train.take(order)
        batches = samples.batches(batch_size)
        tally = Tally(len(names), setup.device)
        rate = schedule.learning_rate
        for step, (starts, labels) in enumerate(batches, start=1):
            stop_if_cancelled()
            windows = setup.windows[starts]
            if setup.noise > 0:
                windows = add_gaussian_noise(windows, setup.noise)
            with setup.autocast():
                logits = model(windows)
            logits = logits.float()
            loss, weight = focal_loss(logits, labels, setup.weights, setup.gamma, smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss / weight)
            if clip_norm > 0:
                clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            rate = schedule.learning_rate
            schedule.after_batch()
            # Nothing above waits for the device: loss and matrix stay there until they are read,
            # here once a second and below once an epoch.
            tally.add(loss, weight, logits, labels)
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

        tally = evaluate(setup, setup.validation, batch_size, stop_if_cancelled)
        validation_loss = _finite(tally.loss(), "validation", epoch, request)
        validation = split_metrics(validation_loss, tally.matrix(), names)
        schedule.after_epoch(validation_loss)

        score = _score(validation, trainer.early_stopping_metric)
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
        save()

    model.load_state_dict(progress.best_weights)
    tally = evaluate(setup, setup.test, batch_size, stop_if_cancelled)
    test_loss = _finite(tally.loss(), "test", progress.best_epoch, request)
    succeeded = training_pb2.JobSucceeded(
        best_epoch=progress.best_epoch,
        epochs_run=progress.epoch,
        stopped_early=progress.epoch < epochs,
        validation=progress.best_validation,
        test=split_metrics(test_loss, tally.matrix(), names),
    )
    bundle.write(folder / bundle.FOLDER, request, prepared, progress.best_weights, succeeded)
    yield training_pb2.TrainingEvent(succeeded=succeeded)


def evaluate(
    setup: Setup, samples: Samples, batch_size: int, stop_if_cancelled: Callable[[], None]
) -> Tally:
    """Plain cross-entropy and confusion matrix of the current weights; the model stays in training.

    Samples come as they are: neither resampled nor augmented.
    """
    tally = Tally(len(setup.weights), setup.device)
    setup.model.eval()
    with torch.inference_mode():
        for starts, labels in samples.batches(EVALUATION_FACTOR * batch_size):
            stop_if_cancelled()
            with setup.autocast():
                logits = setup.model(setup.windows[starts])
            logits = logits.float()
            tally.add(*plain_loss(logits, labels), logits, labels)
    setup.model.train()
    return tally


def _score(
    validation: training_pb2.SplitMetrics, metric: training_pb2.EarlyStoppingMetric.ValueType
) -> float:
    """What picks the best epoch: higher is better."""
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_LOSS:
        return -validation.loss
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_MACRO_F1:
        return validation.macro_f1
    if metric == training_pb2.EARLY_STOPPING_METRIC_VAL_BALANCED_ACCURACY:
        return validation.balanced_accuracy
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

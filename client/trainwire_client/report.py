"""Jobs, models and events as plain lines: one or a few for each, greppable and stable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, system_pb2, training_pb2

__all__ = [
    "PlainReport",
    "adjustment_texts",
    "continued_job",
    "dataset_line",
    "dataset_rows",
    "event_lines",
    "failure_reason",
    "info_lines",
    "job_lines",
    "job_rows",
    "model_line",
    "model_rows",
    "plan_lines",
    "printable",
    "short_name",
    "table_lines",
    "warning_message",
    "warning_reason",
]

_PROGRESS_SECONDS = 30.0
_CLASSES_SHOWN = 50
SELDOM = ("unscaled_windows", "dropped_rows", "filled_values")
"""Counts of a start that are shown where there is something to count."""


class PlainReport:
    """Writes every event of a job as it comes; progress within an epoch every 30 seconds.

    Args:
        job: the job.
        write: takes one line.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        job: training_pb2.TrainingJob,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._write = write
        self._clock = clock
        self._last = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is left to do: every line is out."""

    def show(self, event: training_pb2.TrainingEvent) -> None:
        """Write the lines of one event."""
        now = self._clock()
        if event.WhichOneof("event") == "progress" and now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        old = continued_job(event, self._job)
        for line in event_lines(event):
            self._write(f"{line} of {old}" if old else line)


# ------------------------------------------------------------------------ events


def event_lines(event: training_pb2.TrainingEvent) -> list[str]:
    """The lines of one event; each begins with the kind of the event."""
    kind = event.WhichOneof("event")
    if kind is None:
        newer = contract.beyond(event)
        return [printable(f"unknown {event.job} event {event.sequence}: {one}") for one in newer]
    lines = _EVENT_LINES[kind](getattr(event, kind), event)
    return [printable(f"{kind} {line}") for line in lines]


def continued_job(event: training_pb2.TrainingEvent, job: training_pb2.TrainingJob) -> str:
    """The job that a `resumed` event goes on from; empty if that is the job itself."""
    # Later attempts go on from where the one before them was.
    first = event.HasField("resumed") and event.attempt <= 1
    return printable(job.resumed_from) if first else ""


def _queued(queued: training_pb2.JobQueued, event: training_pb2.TrainingEvent) -> Iterator[str]:
    yield f"{event.job} position={queued.queue_position}"


def _started(started: training_pb2.JobStarted, event: training_pb2.TrainingEvent) -> Iterator[str]:
    where, *rest = _setup_texts(started)
    yield f"{event.job} {where}"
    yield from rest


def _setup_texts(started: training_pb2.JobStarted) -> Iterator[str]:
    """Device, sizes and classes of a training, one text each."""
    precision = short_name(training_pb2.Precision, started.precision)
    yield (
        f"device={started.device} precision={precision} threads={started.threads} "
        f"deterministic={str(started.deterministic).lower()}"
    )
    yield f"parameters={started.parameter_count} features={len(started.feature_columns)}"
    yield (
        f"windows train={started.train.windows} validation={started.validation.windows} "
        f"test={started.test.windows} purged={started.purged_windows} "
        f"unlabelled={started.unlabelled_windows}"
    )
    left_out = {name: getattr(started, name) for name in SELDOM if getattr(started, name)}
    if left_out:
        yield f"data {' '.join(f'{name}={count}' for name, count in left_out.items())}"
    yield from _limited(_started_class(started, i) for i in range(len(started.class_names)))
    if started.HasField("return_thresholds"):
        yield f"returns {thresholds_text(started.return_thresholds)}"


def thresholds_text(thresholds: training_pb2.ReturnThresholds) -> str:
    """What made classes of returns."""
    window = thresholds.volatility_window
    unit = f"volatilities of {window} rows" if window else "of the price"
    return f"SELL below {thresholds.lower:.6g}, BUY above {thresholds.upper:.6g} {unit}"


def _started_class(started: training_pb2.JobStarted, i: int) -> str:
    return (
        f"class {started.class_names[i]} windows={started.class_counts[i]} "
        f"balanced={started.balanced_class_counts[i]} weight={started.class_weights[i]:.4g}"
    )


def _epoch(epoch: training_pb2.EpochCompleted, _: training_pb2.TrainingEvent) -> Iterator[str]:
    yield (
        f"{epoch.epoch}/{epoch.epochs} loss={epoch.train.loss:.4f} "
        f"val={epoch.validation.loss:.4f} {_scores(epoch.validation)} "
        f"lr={epoch.learning_rate:.3g}{' *' if epoch.is_best else ''}"
    )


def _progress(step: training_pb2.EpochProgress, _: training_pb2.TrainingEvent) -> Iterator[str]:
    if not step.steps:  # a sign of life
        yield f"{step.epoch}/{step.epochs}"
        return
    yield (
        f"{step.epoch}/{step.epochs} step={step.step}/{step.steps} "
        f"loss={step.train_loss:.4f} windows/s={step.windows_per_second:.0f}"
    )


def _warning(warning: training_pb2.JobWarning, _: training_pb2.TrainingEvent) -> Iterator[str]:
    yield _warning_text(warning)


def _succeeded(done: training_pb2.JobSucceeded, _: training_pb2.TrainingEvent) -> Iterator[str]:
    early = str(done.stopped_early).lower()
    yield f"{done.model} best_epoch={done.best_epoch} epochs={done.epochs_run} early={early}"
    yield f"validation loss={done.validation.loss:.4f} {_scores(done.validation)}"
    yield f"test loss={done.test.loss:.4f} {_scores(done.test)}"
    yield from _limited(f"test class {_class_text(metrics)}" for metrics in done.test.classes)
    if done.HasField("adjusted"):
        yield from _adjusted(done.adjusted)


def _adjusted(adjusted: training_pb2.AdjustedPrediction) -> Iterator[str]:
    """What `prediction` changed, and the metrics with it."""
    for name, metrics in (("validation", adjusted.validation), ("test", adjusted.test)):
        yield f"adjusted {name} loss={metrics.loss:.4f} {_scores(metrics)}"
    yield from (f"adjusted {text}" for text in adjustment_texts(adjusted))


def adjustment_texts(adjusted: training_pb2.AdjustedPrediction) -> Iterator[str]:
    """Temperature and thresholds, one text each."""
    if adjusted.HasField("temperature"):
        error = adjusted.calibration_error
        yield (
            f"temperature={adjusted.temperature:.3g} "
            f"calibration_error={error.after:.3f} (without {error.before:.3f})"
        )
    # Names of the metrics: both have an entry for each class.
    named = zip(adjusted.test.classes, adjusted.decision_thresholds, strict=False)
    yield from _limited(f"threshold {item.name} {value:.3g}" for item, value in named)


def _failed(failed: training_pb2.JobFailed, _: training_pb2.TrainingEvent) -> Iterator[str]:
    yield from _failure_texts(failed.failure)


def _cancelled(done: training_pb2.JobCancelled, event: training_pb2.TrainingEvent) -> Iterator[str]:
    yield f"{event.job} epochs={done.epochs_run} best_epoch={done.best_epoch}"


def _resumed(resumed: training_pb2.JobResumed, event: training_pb2.TrainingEvent) -> Iterator[str]:
    yield f"{event.job} attempt={event.attempt} after epoch={resumed.epoch}"


_EVENT_LINES: dict[str, Callable[[Any, training_pb2.TrainingEvent], Iterator[str]]] = {
    "queued": _queued,
    "started": _started,
    "epoch": _epoch,
    "progress": _progress,
    "warning": _warning,
    "resumed": _resumed,
    "succeeded": _succeeded,
    "failed": _failed,
    "cancelled": _cancelled,
}


def _scores(metrics: training_pb2.SplitMetrics) -> str:
    return (
        f"acc={metrics.accuracy:.3f} bal={metrics.balanced_accuracy:.3f} f1={metrics.macro_f1:.3f}"
    )


def _class_text(metrics: training_pb2.ClassMetrics) -> str:
    return (
        f"{metrics.name} precision={metrics.precision:.3f} recall={metrics.recall:.3f} "
        f"f1={metrics.f1:.3f} windows={metrics.support}"
    )


def _limited(lines: Iterable[str]) -> Iterator[str]:
    """The first lines; a thousand classes are for `--json`."""
    every = list(lines)
    yield from every[:_CLASSES_SHOWN]
    if len(every) > _CLASSES_SHOWN:
        yield f"... {len(every) - _CLASSES_SHOWN} classes more"


def _warning_text(warning: training_pb2.JobWarning) -> str:
    return f"{warning_reason(warning)} {warning_message(warning)}"


def _failure_texts(failure: training_pb2.Failure) -> Iterator[str]:
    yield f"{failure_reason(failure)}: {failure.message}"
    yield from (f"{item.field}: {item.description}" for item in failure.field_violations)


# ------------------------------------------------------------------------ jobs, models, datasets


def job_lines(job: training_pb2.TrainingJob) -> list[str]:
    """All about a job: state, times, progress, failure, warnings, effective request."""
    lines = [
        f"{job.name} {short_name(training_pb2.JobState, job.state)} {job.display_name}".rstrip(),
        *_filled("resumed from", job.resumed_from),
        *_filled("created", _time(job.create_time)),
        *_filled("started", _time(job.start_time)),
        *_filled("ended", _time(job.end_time)),
        *(f"label {key}={job.labels[key]}" for key in sorted(job.labels)),
        *_filled("queue position", job.queue_position),
        f"epoch {job.progress.epoch} of {job.progress.epochs}",
        *_best_lines(job.progress),
        *_filled("model", job.model),
        *(
            (f"failure {text}" for text in _failure_texts(job.failure))
            if job.failure.reason
            else ()
        ),
        *(f"warning {_warning_text(warning)}" for warning in job.warnings),
        f"request digest {job.request_digest}, contract {job.contract_version}",
        *_request_lines(job),
    ]
    return [printable(line) for line in lines]


def plan_lines(answer: training_pb2.TrainingJob) -> list[str]:
    """The answer to validate_only: what would be trained, warnings, effective request."""
    plan = answer.plan
    sizes = (plan.started.train, plan.started.validation, plan.started.test)
    train, validation, test = (size.rows for size in sizes)
    shown = training_pb2.TrainingJob(request=answer.request, set_fields=answer.set_fields)
    shown.request.ClearField("validate_only")  # of the dry run, not of the training
    lines = [
        *(f"plan {text}" for text in _setup_texts(plan.started)),
        f"plan rows train={train} validation={validation} test={test}",
        f"plan memory={_size_text(plan.memory_estimate_bytes)} (estimate)",
        *(f"warning {_warning_text(warning)}" for warning in answer.warnings),
        f"request digest {answer.request_digest}, contract {answer.contract_version}",
        *_request_lines(shown),
    ]
    return [printable(line) for line in lines]


def _best_lines(progress: training_pb2.JobProgress) -> list[str]:
    if not progress.best_epoch:
        return []
    best = progress.best_validation
    return [f"best epoch {progress.best_epoch} val={best.loss:.4f} {_scores(best)}"]


def _request_lines(job: training_pb2.TrainingJob) -> list[str]:
    """The effective request, a field a line, each marked as set by the caller or default.

    A chosen member of a oneof that has no field set is a line without a value.
    """
    given = set(job.set_fields)
    values = [(path, _value_at(job.request, path)) for path in contract.set_fields(job.request)]
    rows = [("set" if path in given else "default", path, text) for path, text in values]
    return table_lines(("FROM", "FIELD", "VALUE"), rows)


def _value_at(message: Message, path: str) -> str:
    """The value at a path as a person writes it; nothing for a message."""
    name, _, rest = path.partition(".")
    field = cast("FieldDescriptor", message.DESCRIPTOR.fields_by_name[name])
    value = getattr(message, name)
    if field.has_presence:
        return _value_at(value, rest) if rest else contract.value_text(field, value)
    pairs = (f"{key}={value[key]}" for key in sorted(value)) if hasattr(value, "items") else value
    return ",".join(pairs)


def job_rows(jobs: Iterable[training_pb2.TrainingJob]) -> Iterator[tuple[str, ...]]:
    """A heading and one row for each job."""
    yield "JOB", "STATE", "EPOCH", "BEST", "VAL F1", "CREATED (UTC)", "NAME"
    for job in jobs:
        best = job.progress
        yield (
            job.name,
            short_name(training_pb2.JobState, job.state),
            f"{best.epoch}/{best.epochs}",
            str(best.best_epoch or "-"),
            f"{best.best_validation.macro_f1:.3f}" if best.best_epoch else "-",
            _time(job.create_time),
            job.display_name,
        )


def model_rows(models: Iterable[model_pb2.Model]) -> Iterator[tuple[str, ...]]:
    """A heading and one row for each model; its metrics are those of what it predicts."""
    yield "MODEL", "JOB", "CLASSES", "TEST F1", "TEST BAL", "CREATED (UTC)", "ALIASES"
    for model in models:
        test = model.adjusted_test if model.HasField("adjusted_test") else model.test
        yield (
            model.name,
            model.job,
            str(len(model.class_names)),
            f"{test.macro_f1:.3f}",
            f"{test.balanced_accuracy:.3f}",
            _time(model.create_time),
            ",".join(model.aliases),
        )


def model_line(model: model_pb2.Model) -> str:
    """A model and its aliases in one line."""
    return printable(f"{model.name} aliases={','.join(model.aliases) or '-'}")


def dataset_line(dataset: dataset_pb2.Dataset) -> str:
    """A dataset in one line."""
    columns, size = len(dataset.columns), dataset.size_bytes
    return f"{dataset.name} rows={dataset.row_count} columns={columns} bytes={size}"


def dataset_rows(datasets: Iterable[dataset_pb2.Dataset]) -> Iterator[tuple[str, ...]]:
    """A heading and one row for each dataset."""
    yield "DATASET", "FORMAT", "ROWS", "COLUMNS", "BYTES", "CREATED (UTC)"
    for dataset in datasets:
        yield (
            dataset.name,
            short_name(dataset_pb2.DatasetFormat, dataset.format),
            str(dataset.row_count),
            str(len(dataset.columns)),
            str(dataset.size_bytes),
            _time(dataset.create_time),
        )


def _contract_difference(info: system_pb2.SystemInfo) -> str:
    """Which side is older, where the contracts differ."""
    if info.contract_digest == contract.contract_digest():
        return ""
    mine = contract.contract_version()
    return f" (not the same as this client's {mine}: {_order(mine, info.contract_version)})"


def _order(mine: str, theirs: str) -> str:
    try:
        order = contract.compare_versions(mine, theirs)
    except ValueError:
        return "the server's is no version"
    return "built from other files" if order == "same" else f"the server is {order}"


def info_lines(info: system_pb2.SystemInfo) -> list[str]:
    """The server's versions, devices and queue."""
    lines = [
        f"server {info.version}",
        f"contract {info.contract_version}{_contract_difference(info)}",
        f"torch {info.torch_version}",
        *(_device_text(device) for device in info.devices),
        f"executor {info.executor}",
        f"jobs running={info.running_jobs} of at most {info.max_concurrent_jobs}, "
        f"queued={info.queued_jobs} of at most {info.max_queued_jobs}, "
        f"threads for each={info.threads_per_job}",
    ]
    return [printable(line) for line in lines]


def _device_text(device: system_pb2.DeviceInfo) -> str:
    return f"device {device.name} memory={_size_text(device.memory_bytes)} {device.model}".rstrip()


def table_lines(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as aligned lines, two spaces between columns."""
    table = [[printable(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


# ------------------------------------------------------------------------ words


def short_name(enum: Any, value: int) -> str:
    """Name of an enum value without the enum's prefix; the number if this client is too old."""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(known.name.removeprefix(prefix)) if known else str(value)


def failure_reason(failure: training_pb2.Failure) -> str:
    """The reason of a failure, short."""
    return short_name(training_pb2.FailureReason, failure.reason)


def warning_reason(warning: training_pb2.JobWarning) -> str:
    """The reason of a warning, short."""
    return short_name(training_pb2.WarningReason, warning.reason)


def warning_message(warning: training_pb2.JobWarning) -> str:
    """The message of a warning, with the field concerned before it if there is one."""
    return f"{warning.field}: {warning.message}" if warning.field else warning.message


def printable(text: str) -> str:
    """One line without control characters: names come from anybody, terminals obey them."""
    return "".join(character if character.isprintable() else " " for character in text)


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _filled(label: str, value: str | int) -> list[str]:
    return [f"{label} {value}"] if value else []


def _time(stamp: Timestamp) -> str:
    """UTC, to the second; empty if the time is not set."""
    if not stamp.ByteSize():
        return ""
    return stamp.ToDatetime().isoformat(" ", timespec="seconds")

"""The live view of a job on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainwire.v1 import training_pb2
from trainwire_client import plot
from trainwire_client.history import History
from trainwire_client.report import (
    SELDOM,
    adjustment_texts,
    continued_job,
    failure_reason,
    printable,
    short_name,
    thresholds_text,
    warning_message,
    warning_reason,
)

__all__ = ["LiveView", "frame", "result"]

_REFRESHES_PER_SECOND = 4
_TRAIN, _VALIDATION = "cyan", "yellow"
_STATE_STYLES = {"succeeded": "bold green", "failed": "bold red", "cancelled": "bold yellow"}
_PLOT_ROWS = (4, 12)
_TABLE_ROWS = (3, 14)
_WARNING_ROWS = 2
_CLASS_ROWS = 50
_LABEL_WIDTH = 9


class LiveView:
    """Shows a job as its events come: one frame that is redrawn, then the result below it.

    Args:
        console: a terminal.
        job: the job to show.
    """

    def __init__(self, console: Console, job: training_pb2.TrainingJob) -> None:
        self._console = console
        self._history = History(job)
        self._lock = threading.Lock()  # the frame is drawn in a thread of rich's
        self._live = Live(
            console=console, refresh_per_second=_REFRESHES_PER_SECOND, get_renderable=self._frame
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
        if self._history.end is not None:
            self._console.print(result(self._history.end))

    def show(self, event: training_pb2.TrainingEvent) -> None:
        """Take note of an event; the next frame has it."""
        with self._lock:
            self._history.add(event)

    def _frame(self) -> RenderableType:
        size = self._console.size
        with self._lock:
            return frame(self._history, size.width, size.height)


# ------------------------------------------------------------------------ the frame


def frame(history: History, width: int, height: int) -> RenderableType:
    """The view, at most `width` columns wide and `height` - 1 rows high.

    What there is no room for is left out: first the plot, then all but three epochs.
    """
    parts: list[RenderableType] = [*_header(history, width), *_bars(history, width)]
    warnings = _warnings(history.warnings)
    room = height - 1 - len(parts) - len(warnings)
    plot_rows, table_rows = _share(room, len(history.epochs))
    if table_rows:
        parts.append(_epochs(history, table_rows))
    if plot_rows:
        parts += _losses(history, width, plot_rows)
    return Group(*(parts + warnings)[: height - 1])


def _share(room: int, epochs: int) -> tuple[int, int]:
    """Rows of the plot and of the table (without headings) that fit into `room` rows."""
    if not epochs or room < 2:
        return 0, 0
    least, most = _PLOT_ROWS
    # A heading for the table; a blank row and a legend for the plot.
    plot_rows = min(most, (room - 3) // 2)
    if plot_rows < least or epochs < 2:
        return 0, min(room - 1, _TABLE_ROWS[1])
    return plot_rows, min(room - 3 - plot_rows, _TABLE_ROWS[1])


def _header(history: History, width: int) -> Iterator[Text]:
    job = history.job
    state = f"{history.state} {_clock_text(history.elapsed_seconds)}"
    if history.state == "queued" and history.queue_position:
        state = f"queued, position {history.queue_position}"
    title = _line(f"{job.name}  {job.display_name}", "bold")
    title.truncate(max(width - len(state) - 2, 1), overflow="ellipsis", pad=True)
    yield title.append("  ").append(state, _STATE_STYLES.get(history.state, "bold blue"))
    yield _fact("dataset", [job.request.dataset])
    if history.started is not None:
        yield from _started_facts(history.started)
    if history.resumed is not None:
        yield _fact("resumed", [_resumed_text(history.resumed, history.job)])
    yield Text()


def _started_facts(started: training_pb2.JobStarted) -> Iterator[Text]:
    threads = f"{started.threads} thread{'s' if started.threads != 1 else ''}"
    precision = short_name(training_pb2.Precision, started.precision)
    parameters = f"{started.parameter_count:,} parameters"
    yield _fact("training", [started.device, precision, threads, parameters])
    sizes = (("train", started.train), ("validation", started.validation), ("test", started.test))
    yield _fact("windows", [f"{name} {size.windows:,}" for name, size in sizes])
    seldom = {name: getattr(started, name) for name in SELDOM if getattr(started, name)}
    if seldom:
        yield _fact("data", [f"{n:,} {name.replace('_', ' ')}" for name, n in seldom.items()])
    counts = zip(
        started.class_names, started.class_counts, started.balanced_class_counts, strict=True
    )
    yield _fact("classes", [_count_text(*count) for count in counts])
    if started.HasField("return_thresholds"):
        yield _fact("returns", [thresholds_text(started.return_thresholds)])


def _resumed_text(event: training_pb2.TrainingEvent, job: training_pb2.TrainingJob) -> str:
    old = continued_job(event, job)
    return f"after epoch {event.resumed.epoch} of {old or f'attempt {event.attempt - 1}'}"


def _count_text(name: str, before: int, after: int) -> str:
    return f"{name} {before:,}" + (f" -> {after:,}" if after != before else "")


def _fact(label: str, values: Iterable[str]) -> Text:
    line = _line("")
    line.append(label.ljust(_LABEL_WIDTH), "dim")
    return line.append(printable(" · ".join(values)))


def _line(text: str, style: str = "") -> Text:
    """One line, cut off where the terminal ends."""
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _bars(history: History, width: int) -> Iterator[RenderableType]:
    limit = max(history.epoch_limit, 1)
    left = history.seconds_left()
    note = "" if left is None else f"at most {_clock_text(left)} left"
    if history.end is not None:
        note = f"{history.done} epoch{'s' if history.done != 1 else ''}"
    done = history.done + history.fraction_of_epoch
    yield _bar("epoch", f"{history.done}/{limit}", done / limit, note, width)
    progress = history.progress
    if progress is None or history.end is not None:
        yield Text()
    else:
        pace = f"loss {progress.train_loss:.4f}, {progress.windows_per_second:,.0f} windows/s"
        count = f"{progress.step}/{progress.steps}"
        yield _bar("step", count, history.fraction_of_epoch, pace, width)
    yield Text()


def _bar(label: str, count: str, fraction: float, note: str, width: int) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=_LABEL_WIDTH - 1, style="dim")
    grid.add_column(width=9, justify="right", no_wrap=True)
    grid.add_column()
    grid.add_column(no_wrap=True, overflow="ellipsis", width=max(width - 52, 0))
    grid.add_row(label, count, _progress_bar(fraction), Text(note))
    return grid


def _progress_bar(fraction: float) -> ProgressBar:
    return ProgressBar(
        total=1, completed=fraction, width=30, complete_style="cyan", finished_style="green"
    )


def _epochs(history: History, rows: int) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for heading in ("epoch", "train", "val loss", "acc", "bal acc", "macro F1", "lr", "win/s", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    best = history.best
    for epoch in _recent(history, rows):
        style = "bold green" if epoch is best else ""
        table.add_row(*_epoch_cells(epoch), "★" if epoch is best else "", style=style)
    return table


def _recent(history: History, rows: int) -> list[training_pb2.EpochCompleted]:
    """The last epochs; the best one stays in sight when it is older."""
    recent, best = history.epochs[-rows:], history.best
    if best is not None and best.epoch < recent[0].epoch:
        return [best, *recent[1:]]
    return recent


def _epoch_cells(epoch: training_pb2.EpochCompleted) -> tuple[str, ...]:
    metrics = epoch.validation
    return (
        str(epoch.epoch),
        f"{epoch.train.loss:.4f}",
        f"{metrics.loss:.4f}",
        f"{metrics.accuracy:.3f}",
        f"{metrics.balanced_accuracy:.3f}",
        f"{metrics.macro_f1:.3f}",
        f"{epoch.learning_rate:.2e}",
        f"{epoch.windows_per_second:,.0f}",
    )


def _losses(history: History, width: int, rows: int) -> Iterator[Text]:
    """Train (scale on the left) and validation loss (on the right) over the epochs."""
    series = [
        [epoch.train.loss for epoch in history.epochs],
        [epoch.validation.loss for epoch in history.epochs],
    ]
    drawn = plot.draw(series, max(width - 2 * _LABEL_WIDTH, 1), rows)
    yield Text()
    legend = _fact("loss", [])
    yield legend.append("⣀⣀ train (left)   ", _TRAIN).append("⣀⣀ validation (right)", _VALIDATION)
    left, right = (_scale(limits, rows) for limits in drawn.limits)
    for cells, train, validation in zip(drawn.rows, left, right, strict=True):
        line = Text(train.rjust(_LABEL_WIDTH - 1) + " ", _TRAIN, no_wrap=True)
        for character, owner in cells:
            line.append(character, (_TRAIN, _VALIDATION)[owner] if owner >= 0 else "")
        yield line.append(f" {validation}", _VALIDATION)


def _scale(limits: tuple[float, float], rows: int) -> list[str]:
    """The labels of a y axis, one a row: the highest value at the top, the lowest at the bottom."""
    low, high = (f"{value:.4g}" for value in limits)
    return [high, *[""] * (rows - 2), low]


def _warnings(warnings: list[training_pb2.JobWarning]) -> list[Text]:
    """The latest warnings; those of one kind about one field count as one."""
    kinds: dict[tuple[int, str], list[training_pb2.JobWarning]] = {}
    for warning in warnings:
        # Taken out and put back at the end: the order is that of the last of each kind.
        kind = kinds.pop((warning.reason, warning.field), [])
        kinds[warning.reason, warning.field] = [*kind, warning]
    latest = list(kinds.values())[-_WARNING_ROWS:]
    lines = [_line(f"! {_warning_text(kind)}", "yellow") for kind in latest]
    hidden = len(kinds) - len(latest)
    return [_line(f"! and {hidden} more (trainwire show)", "yellow"), *lines] if hidden else lines


def _warning_text(kind: list[training_pb2.JobWarning]) -> str:
    times = f" ({len(kind)} times)" if len(kind) > 1 else ""
    return f"{warning_reason(kind[-1])}{times}: {warning_message(kind[-1])}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ------------------------------------------------------------------------ the result


def result(end: training_pb2.TrainingEvent) -> RenderableType:
    """What a terminal event says, in full."""
    kind = end.WhichOneof("event")
    if kind == "succeeded":
        return _success(end.succeeded)
    if kind == "failed":
        return _failure(end.failed.failure)
    epochs = end.cancelled.epochs_run
    return Text(printable(f"cancelled: {end.job} after {epochs} epochs"), "bold yellow")


def _success(done: training_pb2.JobSucceeded) -> RenderableType:
    early = ", stopped early" if done.stopped_early else ""
    title = Text(f"succeeded: best epoch {done.best_epoch} of {done.epochs_run}{early}")
    title.stylize("bold green")
    scores = Text(f"test: {_scores_text(done.test)}")
    where = Text(printable(f"model: {done.model} (trainwire download {done.model} DIR)"))
    return Group(title, scores, _classes(done.test), *_adjusted(done), where)


def _adjusted(done: training_pb2.JobSucceeded) -> Iterator[RenderableType]:
    if done.HasField("adjusted"):
        yield Text(f"test, adjusted: {_scores_text(done.adjusted.test)}")
        yield from (Text(printable(f"  {text}")) for text in adjustment_texts(done.adjusted))


def _scores_text(test: training_pb2.SplitMetrics) -> str:
    return (
        f"macro F1 {test.macro_f1:.3f}, balanced accuracy {test.balanced_accuracy:.3f}, "
        f"accuracy {test.accuracy:.3f}, MCC {test.matthews_correlation:.3f}, loss {test.loss:.4f}"
    )


def _classes(metrics: training_pb2.SplitMetrics) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=24)
    for heading in ("precision", "recall", "F1", "windows", "predicted"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in metrics.classes[:_CLASS_ROWS]:
        scores = (f"{score:.3f}" for score in (item.precision, item.recall, item.f1))
        share = f"{item.predicted_share:.1%}"
        table.add_row(Text(printable(item.name)), *scores, f"{item.support:,}", share)
    if len(metrics.classes) > _CLASS_ROWS:
        table.add_row(f"... {len(metrics.classes) - _CLASS_ROWS} more")
    return table


def _failure(failure: training_pb2.Failure) -> RenderableType:
    lines = [Text(f"failed: {failure_reason(failure)}", "bold red"), _paragraph(failure.message)]
    violations = (f"  {item.field}: {item.description}" for item in failure.field_violations)
    return Group(*lines, *(_paragraph(text) for text in violations))


def _paragraph(text: str) -> Text:
    return Text("\n".join(printable(line) for line in text.splitlines()))

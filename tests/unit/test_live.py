"""The live view: what it shows, and that it fits the terminal."""

from __future__ import annotations

import io
import itertools
import math

import pytest
from rich.console import Console

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_client import live, plot
from trainwire_client.history import History

JOB = "jobs/one"
CLASSES = ("SELL", "HOLD", "BUY")


def _job(
    state: training_pb2.JobState.ValueType = training_pb2.JOB_STATE_QUEUED,
) -> training_pb2.TrainingJob:
    request = training_pb2.TrainingRequest(dataset="datasets/sha256-" + "a" * 64)
    request.data.column.name = "label"
    request.trainer.epochs = 40
    return training_pb2.TrainingJob(
        name=JOB,
        display_name="[red]EURUSD[/nope] \x1b[2J",
        request=contract.resolve(request),
        state=state,
        queue_position=3,
    )


def _metrics(loss: float) -> training_pb2.SplitMetrics:
    metrics = training_pb2.SplitMetrics(
        loss=loss, accuracy=0.712, balanced_accuracy=0.444, macro_f1=0.333
    )
    for name in CLASSES:
        metrics.classes.add(name=name, precision=0.5, recall=0.25, f1=0.34, support=1203)
    return metrics


def _started() -> training_pb2.JobStarted:
    return training_pb2.JobStarted(
        device="cuda:0",
        precision=training_pb2.PRECISION_BF16,
        threads=2,
        class_names=CLASSES,
        class_counts=[612, 2960, 641],
        balanced_class_counts=[1480, 2960, 1480],
        train=training_pb2.SplitSize(windows=4213),
        validation=training_pb2.SplitSize(windows=903),
        test=training_pb2.SplitSize(windows=901),
        parameter_count=181123,
        unscaled_windows=1190,
        filled_values=7,
    )


def _epoch(number: int, best: int = 2) -> training_pb2.EpochCompleted:
    return training_pb2.EpochCompleted(
        epoch=number,
        epochs=40,
        train=_metrics(1 / number),
        validation=_metrics(abs(number - best) / 10 + 0.5),
        learning_rate=5e-5,
        seconds=4,
        windows_per_second=1642,
        is_best=number <= best,
    )


def _warning(i: int) -> training_pb2.JobWarning:
    return training_pb2.JobWarning(
        reason=training_pb2.WARNING_REASON_CONSTANT_FEATURE,
        field=f"field{i}",
        message="a very long message " * 20,
    )


def _events(epochs: int, warnings: int = 0) -> list[training_pb2.TrainingEvent]:
    events = [
        training_pb2.TrainingEvent(queued=training_pb2.JobQueued(queue_position=3)),
        training_pb2.TrainingEvent(started=_started()),
    ]
    events += [training_pb2.TrainingEvent(epoch=_epoch(i + 1)) for i in range(epochs)]
    events += [training_pb2.TrainingEvent(warning=_warning(i)) for i in range(warnings)]
    progress = training_pb2.EpochProgress(
        epoch=epochs + 1, epochs=40, step=20, steps=80, train_loss=0.75, windows_per_second=1700
    )
    events.append(training_pb2.TrainingEvent(progress=progress))
    for i, event in enumerate(events):
        event.job = JOB
        event.sequence = i + 1
        event.time.FromSeconds(1_800_000_000 + 4 * i)
    return events


SUCCESS = training_pb2.TrainingEvent(
    job=JOB,
    succeeded=training_pb2.JobSucceeded(
        model="models/m", best_epoch=2, epochs_run=9, stopped_early=True, test=_metrics(0.81)
    ),
)


def _history(events: list[training_pb2.TrainingEvent]) -> History:
    history = History(_job())
    for event in events:
        history.add(event)
    return history


def _lines(history: History, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(live.frame(history, width, height))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("height", [5, 8, 12, 16, 24, 40, 60])
@pytest.mark.parametrize("warnings", [0, 1, 5])
def test_no_frame_is_larger_than_the_terminal(width: int, height: int, warnings: int) -> None:
    for epochs in (0, 1, 2, 7, 40):
        lines = _lines(_history(_events(epochs, warnings)), width, height)
        assert len(lines) < height
        assert max(len(line) for line in lines) <= width


def test_the_frame_shows_the_job() -> None:
    text = "\n".join(_lines(_history(_events(9)), 100, 40))
    for part in (
        "jobs/one  [red]EURUSD[/nope]",
        "running 0:40",
        "datasets/sha256-aaaa",
        "cuda:0 · BF16 · 2 threads · 181,123 parameters",
        "train 4,213 · validation 903 · test 901",
        "1,190 unscaled windows · 7 filled values",
        "SELL 612 -> 1,480 · HOLD 2,960 · BUY 641 -> 1,480",
        "9/40",
        "at most 2:03 left",
        "20/80",
        "loss 0.7500, 1,700 windows/s",
        "⣀⣀ train (left)   ⣀⣀ validation (right)",
    ):
        assert part in text
    assert "\x1b" not in text


def test_the_table_shows_recent_epochs_and_keeps_the_best_in_sight() -> None:
    lines = _lines(_history(_events(30)))
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("loss"))]
    rows = [line.split() for line in table if line.split()[:1] and line.split()[0].isdigit()]
    assert [row[0] for row in rows] == ["2", "27", "28", "29", "30"]
    assert rows[0] == [
        "2", "0.5000", "0.5000", "0.712", "0.444", "0.333", "5.00e-05", "1,642", "★",
    ]  # fmt: skip
    assert not any("★" in row for row in rows[1:])


def test_a_queued_job_shows_its_place() -> None:
    assert "queued, position 3" in _lines(History(_job()))[0]


def _resumed(epoch: int, attempt: int) -> training_pb2.TrainingEvent:
    resumed = training_pb2.JobResumed(epoch=epoch)
    return training_pb2.TrainingEvent(job=JOB, attempt=attempt, resumed=resumed)


def test_a_resumed_job_shows_what_it_goes_on_from() -> None:
    job = _job()
    job.resumed_from = "jobs/old"
    history = History(job)
    history.add(_resumed(epoch=12, attempt=1))
    text = "\n".join(_lines(history, 100, 40))
    assert "resumed  after epoch 12 of jobs/old" in text
    assert "12/40" in text


def test_a_job_that_lost_its_process_shows_where_it_goes_on() -> None:
    history = _history([*_events(9), _resumed(epoch=8, attempt=2)])
    text = "\n".join(_lines(history, 100, 40))
    assert "resumed  after epoch 8 of attempt 1" in text
    assert "9/40" in text
    assert "step " not in text  # what that process was doing is over


def test_signs_of_life_change_nothing() -> None:
    alive = training_pb2.EpochProgress(epoch=0, epochs=40)
    sign = training_pb2.TrainingEvent(job=JOB, progress=alive)
    assert _history([sign]).state == "queued"
    assert _lines(_history([*_events(9), sign])) == _lines(_history(_events(9)))


def test_warnings_of_a_kind_count_as_one() -> None:
    warned = [training_pb2.TrainingEvent(warning=_warning(7)) for _ in range(3)]
    lines = _lines(_history([*_events(1), *warned]))
    assert [line[:38] for line in lines if line.startswith("!")] == [
        "! CONSTANT_FEATURE (3 times): field7: "
    ]


def test_many_warnings_say_how_many_more_there_are() -> None:
    lines = [line for line in _lines(_history(_events(1, 5))) if line.startswith("!")]
    assert lines[0] == "! and 3 more (trainwire show)"
    assert "field3" in lines[1]
    assert "field4" in lines[2]


def test_the_view_draws_frames_and_leaves_the_result() -> None:
    output = io.StringIO()
    console = Console(file=output, width=100, height=40, force_terminal=True, color_system=None)
    with live.LiveView(console, _job()) as view:
        for event in [*_events(9), SUCCESS]:
            view.show(event)
    last = output.getvalue().rsplit("jobs/one  ", 1)[1]
    assert "succeeded 0:40" in last
    assert "9 epochs" in last
    assert "succeeded: best epoch 2 of 9, stopped early" in last
    assert "macro F1 0.333, balanced accuracy 0.444, accuracy 0.712, MCC 0.000, loss 0.8100" in last
    for name in CLASSES:
        assert f"{name:4}         0.500     0.250    0.340      1,203" in last
    assert "trainwire download models/m DIR" in last


def test_the_cursor_comes_back_after_an_interrupt() -> None:
    output = io.StringIO()
    console = Console(file=output, width=80, height=24, force_terminal=True)
    with pytest.raises(KeyboardInterrupt), live.LiveView(console, _job()):
        raise KeyboardInterrupt
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")


def _result(end: training_pb2.TrainingEvent) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(live.result(end))
    return capture.get()


def test_what_the_model_predicts_stands_beside_what_the_network_says() -> None:
    end = training_pb2.TrainingEvent()
    end.CopyFrom(SUCCESS)
    adjusted = end.succeeded.adjusted
    adjusted.test.CopyFrom(_metrics(0.42))
    adjusted.decision_thresholds.extend([0.25, 0.25, 0.5])
    lines = _result(end).replace("\n0.", " 0.").splitlines()
    shown = next(i for i, line in enumerate(lines) if line.startswith("test, adjusted: macro F1"))
    assert lines[shown].endswith("loss 0.4200")
    assert lines[shown + 1 : shown + 4] == [
        "  threshold SELL 0.25",
        "  threshold HOLD 0.25",
        "  threshold BUY 0.5",
    ]


def test_a_failure_is_told_in_full() -> None:
    violation = training_pb2.FieldViolation(field="data.split", description="too small")
    failure = training_pb2.Failure(
        reason=training_pb2.FAILURE_REASON_EMPTY_SPLIT,
        message="no [test] window\nuse more rows",
        field_violations=[violation],
    )
    text = _result(training_pb2.TrainingEvent(failed=training_pb2.JobFailed(failure=failure)))
    assert text.splitlines() == [
        "failed: EMPTY_SPLIT",
        "no [test] window",
        "use more rows",
        "  data.split: too small",
    ]


def test_a_cancelled_job_says_after_how_many_epochs() -> None:
    cancelled = training_pb2.JobCancelled(epochs_run=4)
    end = training_pb2.TrainingEvent(job=JOB, cancelled=cancelled)
    assert _result(end) == "cancelled: jobs/one after 4 epochs\n"


def test_a_thousand_classes_are_cut() -> None:
    end = training_pb2.TrainingEvent()
    end.CopyFrom(SUCCESS)
    for i in range(997):
        end.succeeded.test.classes.add(name=f"class {i}")
    assert "... 950 more" in _result(end)
    assert len(_result(end).splitlines()) < 60


# ------------------------------------------------------------------------ the history


def test_time_left_follows_the_recent_pace() -> None:
    history = _history(_events(0)[:2])
    assert history.seconds_left() is None
    for event in _events(20)[2:]:
        history.add(event)
    assert history.seconds_left() == pytest.approx((40 - 20 - 0.25) * 4)
    assert history.state == "running"
    history.add(SUCCESS)
    assert history.state == "succeeded"


def test_the_best_epoch_is_the_last_that_was_marked() -> None:
    best = _history(_events(9)).best
    assert best is not None
    assert best.epoch == 2
    assert _history(_events(0)).best is None


# ------------------------------------------------------------------------ the plot


def _dots(drawn: plot.Plot) -> set[tuple[int, int]]:
    """Places of the dots from the top left, read back from the characters."""
    bits = [0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80]
    places = itertools.product(range(2), range(4))
    offsets = dict(zip(bits, places, strict=True))
    return {
        (2 * column + offsets[bit][0], 4 * row + offsets[bit][1])
        for row, cells in enumerate(drawn.rows)
        for column, (character, _) in enumerate(cells)
        for bit in bits
        if (ord(character) - 0x2800) & bit
    }


def test_a_straight_line_is_a_diagonal() -> None:
    drawn = plot.draw([[0, 1, 2, 3, 4, 5, 6, 7]], width=4, height=2)
    assert _dots(drawn) == {(x, 7 - x) for x in range(8)}
    assert drawn.limits == [(0, 7)]


def test_neighbours_are_connected_without_holes() -> None:
    columns = {x for x, _ in _dots(plot.draw([[1, 0, 1]], width=10, height=3))}
    assert columns == set(range(20))
    steep = {y for _, y in _dots(plot.draw([[0, 1]], width=1, height=5))}
    assert steep == set(range(20))


def test_cells_know_their_series() -> None:
    drawn = plot.draw([[1, 0], [0, 1]], width=4, height=2)
    assert [[owner for _, owner in row] for row in drawn.rows] == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_every_series_has_a_y_axis_of_its_own() -> None:
    near, far = [[0, 1, 0]], [[1000, 1001, 1000]]
    assert _dots(plot.draw(near, width=6, height=3)) == _dots(plot.draw(far, width=6, height=3))
    assert plot.draw([*near, *far], width=6, height=3).limits == [(0, 1), (1000, 1001)]


@pytest.mark.parametrize(
    "series", [[], [[]], [[1.0]], [[2.0, 2.0]], [[math.nan, math.inf]], [[1.0] * 1000]]
)
def test_odd_series_are_drawn_too(series: list[list[float]]) -> None:
    drawn = plot.draw(series, width=5, height=2)
    assert [len(row) for row in drawn.rows] == [5, 5]


def test_values_that_are_not_finite_leave_a_hole() -> None:
    columns = {x for x, _ in _dots(plot.draw([[1, math.nan, 1, 2]], width=8, height=2))}
    assert 0 in columns
    assert not columns & set(range(1, 9))

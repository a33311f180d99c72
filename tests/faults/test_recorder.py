"""The checker of histories refuses every history that is not as promised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.faults.recorder import Events, History, problems

from trainwire import contract
from trainwire.v1 import training_pb2

JOB = "jobs/a"
WATCHERS = ("client", "stream")


def event(sequence: int, attempt: int, **kind: object) -> training_pb2.TrainingEvent:
    return training_pb2.TrainingEvent(job=JOB, sequence=sequence, attempt=attempt, **kind)  # type: ignore[arg-type]


def epoch(sequence: int, attempt: int, number: int) -> training_pb2.TrainingEvent:
    return event(sequence, attempt, epoch=training_pb2.EpochCompleted(epoch=number))


def log() -> Events:
    """A job that lost its process after two epochs and went on from the first."""
    return [
        event(1, 0, queued=training_pb2.JobQueued()),
        event(2, 1, started=training_pb2.JobStarted()),
        epoch(3, 1, 1),
        event(0, 1, progress=training_pb2.EpochProgress(epoch=2)),
        epoch(4, 1, 2),
        event(5, 2, resumed=training_pb2.JobResumed(epoch=1)),
        epoch(6, 2, 3),
        event(7, 2, succeeded=training_pb2.JobSucceeded()),
    ]


def history() -> History:
    """What nothing is wrong with."""
    request = training_pb2.TrainingRequest(dataset="datasets/d", request_id="r")
    job = training_pb2.TrainingJob(name=JOB, request=contract.resolve(request))
    found = training_pb2.TrainingJob()
    found.CopyFrom(job)
    found.state = training_pb2.JOB_STATE_SUCCEEDED
    found.attempt, found.last_sequence, found.progress.epoch = 2, 7, 3
    return History([(request, job)], {JOB: {w: log() for w in WATCHERS}}, {JOB: found}, [JOB])


def test_a_history_as_promised_has_no_problems() -> None:
    assert problems(history()) == []


def both(change: Callable[[Events], object]) -> Callable[[History], None]:
    """The same change at every watcher: it is not found by comparing them."""

    def apply(broken: History) -> None:
        for events in broken.watched[JOB].values():
            change(events)

    return apply


def drop(place: int) -> Callable[[Events], object]:
    return lambda events: events.pop(place)


def set_in(place: int, **values: int) -> Callable[[Events], object]:
    def change(events: Events) -> None:
        for name, value in values.items():
            setattr(events[place], name, value)

    return change


def set_epoch(place: int, number: int) -> Callable[[Events], object]:
    return lambda events: setattr(events[place].epoch, "epoch", number)


def forget(broken: History) -> None:
    del broken.found[JOB]


def acknowledge_again(broken: History) -> None:
    request, job = broken.acknowledged[0]
    twin = training_pb2.TrainingJob()
    twin.CopyFrom(job)
    twin.name = "jobs/b"
    broken.acknowledged.append((request, twin))


def change_request(broken: History) -> None:
    broken.found[JOB].request.trainer.epochs = 3


def answer_with_another(broken: History) -> None:
    broken.acknowledged[0][1].request.trainer.epochs = 3
    broken.found[JOB].request.trainer.epochs = 3


def set_found(**values: int) -> Callable[[History], None]:
    def change(broken: History) -> None:
        for name, value in values.items():
            setattr(broken.found[JOB], name, value)

    return change


def at_one(change: Callable[[Events], object]) -> Callable[[History], None]:
    def apply(broken: History) -> None:
        change(broken.watched[JOB]["stream"])

    return apply


FAILED = training_pb2.JOB_STATE_FAILED
BROKEN: dict[str, tuple[Callable[[History], object], str]] = {
    "a gap": (both(drop(2)), "sequences [1, 2, 4"),
    "a duplicate": (both(lambda e: e.insert(3, e[2])), "sequences [1, 2, 3, 3"),
    "out of order": (both(lambda e: e.insert(2, e.pop(4))), "sequences [1, 2, 4, 3"),
    "not from the first": (both(drop(0)), "sequences [2"),
    "one watcher missed the end": (at_one(drop(7)), "stream: 0 terminal events"),
    "watchers were told different things": (
        at_one(lambda e: setattr(e[2].epoch, "seconds", 1.0)),
        "event 3 differs between client and stream",
    ),
    "the attempt goes back": (
        both(lambda e: e.insert(6, event(0, 1, progress=training_pb2.EpochProgress()))),
        "progress of attempt 1 after attempt 2",
    ),
    "two attempts at a time": (both(set_in(4, attempt=2)), "epoch of attempt 2, which has not"),
    "started twice": (
        both(lambda e: e[5].started.CopyFrom(training_pb2.JobStarted())),
        "attempt 2 began with started",
    ),
    "resumed without a start": (
        both(lambda e: e[1].resumed.CopyFrom(training_pb2.JobResumed())),
        "attempt 1 began with resumed",
    ),
    "one attempt begins twice": (both(set_in(5, attempt=1)), "attempt 1 began twice"),
    "an epoch twice": (both(set_epoch(6, 2)), "epoch 2 after epoch 2"),
    "an epoch skipped": (both(set_epoch(6, 4)), "epoch 4 after epoch 2"),
    "resumed from what is not known": (
        both(lambda e: setattr(e[5].resumed, "epoch", 3)),
        "resumed from epoch 3 after epoch 2",
    ),
    "no end": (both(drop(7)), "0 terminal events"),
    "two ends": (
        both(lambda e: e.append(event(8, 2, cancelled=training_pb2.JobCancelled()))),
        "2 terminal events",
    ),
    "something after the end": (
        both(lambda e: e.append(event(0, 2, progress=training_pb2.EpochProgress()))),
        "events after the terminal one",
    ),
    "an acknowledged job is gone": (forget, "jobs/a was acknowledged and is gone"),
    "one request, two jobs": (acknowledge_again, "r was answered with jobs/a and jobs/b"),
    "another request": (change_request, "has changed since it was acknowledged"),
    "not what was sent": (answer_with_another, "is not of the request that was sent"),
    "missing in the list": (lambda h: h.listed.clear(), "the list has []"),
    "a job nobody submitted": (lambda h: h.listed.append("jobs/x"), "the list has"),
    "twice in the list": (lambda h: h.listed.append(JOB), "the list has"),
    "another state": (set_found(state=FAILED), "JOB_STATE_FAILED after succeeded"),
    "another length": (set_found(last_sequence=8), "8 events and attempt 2, its log has 7 and 2"),
    "another attempt": (set_found(attempt=1), "7 events and attempt 1"),
    "another progress": (
        lambda h: setattr(h.found[JOB].progress, "epoch", 2),
        "progress of epoch 2, its log has 3",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_history_is_refused(name: str) -> None:
    break_it, expected = BROKEN[name]
    broken = history()
    break_it(broken)
    assert [problem for problem in problems(broken) if expected in problem] != []

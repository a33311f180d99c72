"""Clients that write down all they are told, and what must hold for all of it together."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc

from trainwire import contract
from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient
from trainwire_client.channel import OPTIONS

Events = list[training_pb2.TrainingEvent]

ENDS = {
    "succeeded": training_pb2.JOB_STATE_SUCCEEDED,
    "failed": training_pb2.JOB_STATE_FAILED,
    "cancelled": training_pb2.JOB_STATE_CANCELLED,
}
PATIENCE = 90.0
"""Seconds without any news after which a recording is given up."""
_RETRY_SECONDS = 60.0


@dataclass
class History:
    """What clients of one server, and of those that took its place, were told.

    Attributes:
        acknowledged: requests as they were sent, each with the job that was the answer.
        watched: by job and watcher, all it was sent, from the first event on.
        found: the jobs as they are at the end, by name.
        listed: names in the list of jobs at the end.
    """

    acknowledged: list[tuple[training_pb2.TrainingRequest, training_pb2.TrainingJob]] = field(
        default_factory=list
    )
    watched: dict[str, dict[str, Events]] = field(default_factory=dict)
    found: dict[str, training_pb2.TrainingJob] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------ recording


class Recorder:
    """Submits, watches and writes down, through every outage of the server at an address.

    Each job has three watchers: the client, which reconnects by itself; a bare stream, which hides
    nothing that the server sends twice; and one that hangs up every few events.
    """

    def __init__(self, address: str, seed: str = "") -> None:
        self.client = TrainingClient(address, retry_for=_RETRY_SECONDS)
        self.history = History()
        self.epochs = 0
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = training_pb2_grpc.TrainingServiceStub(self._channel)
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._running = 0
        self._errors: list[str] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self.client.close()

    def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """Submit until it is acknowledged, and watch."""
        job = self.client.submit(request)
        every = self._random.randint(1, 5)
        with self._changed:
            self.history.acknowledged.append((request, job))
            if job.name not in self.history.watched:
                self.history.watched[job.name] = {}
                self._watch("client", job, self.client.watch(job))
                self._watch("stream", job, self._stream(job.name, None))
                self._watch("hopping", job, self._stream(job.name, every))
        return job

    def submit_all(self, *clients: Sequence[training_pb2.TrainingRequest]) -> None:
        """Let each client submit what it has, one after the other; all clients at once."""

        def send(requests: Sequence[training_pb2.TrainingRequest]) -> None:
            for request in requests:
                self.submit(request)

        with self._changed:
            for number, requests in enumerate(clients):
                self._run(f"client {number}", partial(send, requests))

    def wait_for_epochs(self, count: int) -> bool:
        """Wait until so many epochs are known; false if everything ends before."""
        self._wait(lambda: self.epochs >= count or not self._running)
        return self.epochs >= count

    def finish(self) -> History:
        """Wait for the end of every job, then look at what is there."""
        self._wait(lambda: not self._running)
        history = self.history
        for name, watched in history.watched.items():
            watched["late"] = list(self._stub.WatchTraining(_request(name, 0)))
            history.found[name] = self.client.get(name)
        history.listed = [job.name for job in self.client.list()]
        return history

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Wait as long as there is news."""
        with self._changed:
            while not is_over() and not self._errors:
                assert self._changed.wait(PATIENCE), f"nothing came for {PATIENCE:g} s"
        assert not self._errors, self._errors

    def _watch(
        self, name: str, job: training_pb2.TrainingJob, told: Iterator[training_pb2.TrainingEvent]
    ) -> None:
        events = self.history.watched[job.name][name] = []

        def record() -> None:
            for event in told:
                with self._changed:
                    events.append(event)
                    self.epochs += name == "client" and event.HasField("epoch")
                    self._changed.notify_all()

        self._run(f"{name} of {job.name}", record)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        """Work in a thread of its own, until it ends or fails; the caller has the lock."""

        def run() -> None:
            error = ""
            try:
                work()
            except Exception as failure:
                error = f"{name}: {failure!r}"
            with self._changed:
                self._errors += [error] if error else []
                self._running -= 1
                self._changed.notify_all()

        self._running += 1
        threading.Thread(target=run, daemon=True).start()

    def _stream(self, job: str, every: int | None) -> Iterator[training_pb2.TrainingEvent]:
        """All that bare streams say, one after the other, until one has said how the job ended."""
        last, ended = 0, False
        while not ended:
            call = self._stub.WatchTraining(_request(job, last))
            try:
                for count, event in enumerate(call, start=1):
                    yield event
                    last = max(last, event.sequence)
                    ended |= event.WhichOneof("event") in ENDS
                    if count == every and not ended:
                        break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                time.sleep(0.1)
            finally:
                call.cancel()


def _request(job: str, after: int) -> training_pb2.WatchTrainingRequest:
    return training_pb2.WatchTrainingRequest(name=job, after_sequence=after)


# ------------------------------------------------------------------------ checking


def problems(history: History) -> list[str]:
    """What is wrong with a history; nothing if all promises were kept."""
    found = _submission_problems(history)
    for name, watched in history.watched.items():
        logs = {watcher: [e for e in events if e.sequence] for watcher, events in watched.items()}
        told = [(f"{name} as seen by {w}", events) for w, events in watched.items()]
        for check in (_sequence_problems, _attempt_problems, _epoch_problems, _end_problems):
            found += [f"{who}: {problem}" for who, events in told for problem in check(events)]
        found += [f"{name}: {problem}" for problem in _difference_problems(logs)]
        job = history.found.get(name)
        if job is None:
            found.append(f"{name} was acknowledged and is gone")
        else:
            longest = max(logs.values(), key=len)
            found += [f"{name}: {problem}" for problem in _state_problems(job, longest)]
    return found


def _submission_problems(history: History) -> list[str]:
    found = []
    answers: dict[str, str] = {}
    for request, job in history.acknowledged:
        first = answers.setdefault(request.request_id, job.name)
        if first != job.name:
            found.append(f"{request.request_id} was answered with {first} and {job.name}")
        if job.request != contract.resolve(request):
            found.append(f"{job.name} is not of the request that was sent")
        kept = history.found.get(job.name)
        if kept and (kept.request != job.request or kept.create_time != job.create_time):
            found.append(f"{job.name} has changed since it was acknowledged")
    if sorted(history.listed) != sorted(set(answers.values())):
        found.append(f"the list has {sorted(history.listed)}, not {sorted(set(answers.values()))}")
    return found


def _sequence_problems(events: Events) -> list[str]:
    numbers = [event.sequence for event in events if event.sequence]
    if numbers != list(range(1, len(numbers) + 1)):
        return [f"sequences {numbers}"]
    return []


def _attempt_problems(events: Events) -> list[str]:
    """Attempts never go back, and each after the first says from where it goes on."""
    found = []
    started: list[int] = []
    for before, event in itertools.pairwise([training_pb2.TrainingEvent(), *events]):
        kind, attempt = event.WhichOneof("event"), event.attempt
        if attempt < before.attempt:
            found.append(f"{kind} of attempt {attempt} after attempt {before.attempt}")
        if kind in ("started", "resumed"):
            if attempt in started:
                found.append(f"attempt {attempt} began twice")
            if (kind == "started") == bool(started):
                found.append(f"attempt {attempt} began with {kind} after {started}")
            started.append(attempt)
        # Not progress: it is also the sign of life of a job that waits for its process.
        if kind in ("epoch", "succeeded") and (not started or started[-1] != attempt):
            found.append(f"{kind} of attempt {attempt}, which has not begun")
    return found


def _epoch_problems(events: Events) -> list[str]:
    """Every epoch once and in order; an attempt takes up what is known, or something before it."""
    found, last = [], 0
    for event in events:
        if event.HasField("epoch"):
            if event.epoch.epoch != last + 1:
                found.append(f"epoch {event.epoch.epoch} after epoch {last}")
            last = event.epoch.epoch
        elif event.HasField("resumed") and event.resumed.epoch > last:
            found.append(f"resumed from epoch {event.resumed.epoch} after epoch {last}")
    return found


def _end_problems(events: Events) -> list[str]:
    ends = [event.WhichOneof("event") in ENDS for event in events]
    if ends.count(True) != 1:
        return [f"{ends.count(True)} terminal events"]
    return [] if ends[-1] else ["events after the terminal one"]


def _difference_problems(logs: dict[str, Events]) -> list[str]:
    seen: dict[int, tuple[str, bytes]] = {}
    found = []
    for watcher, events in logs.items():
        for event in events:
            content = event.SerializeToString(deterministic=True)
            other, expected = seen.setdefault(event.sequence, (watcher, content))
            if content != expected:
                found.append(f"event {event.sequence} differs between {other} and {watcher}")
    if len({len(events) for events in logs.values()}) > 1:
        found.append(f"events seen: { {watcher: len(events) for watcher, events in logs.items()} }")
    return found


def _state_problems(job: training_pb2.TrainingJob, log: Events) -> list[str]:
    last = log[-1] if log else training_pb2.TrainingEvent()
    found = []
    if job.state != ENDS.get(last.WhichOneof("event") or ""):
        state = training_pb2.JobState.Name(job.state)
        found.append(f"{state} after {last.WhichOneof('event')}")
    if (job.last_sequence, job.attempt) != (last.sequence, last.attempt):
        found.append(
            f"{job.last_sequence} events and attempt {job.attempt}, its log has "
            f"{last.sequence} and {last.attempt}"
        )
    epochs = sum(event.HasField("epoch") for event in log)
    if job.progress.epoch != epochs:
        found.append(f"progress of epoch {job.progress.epoch}, its log has {epochs}")
    return found

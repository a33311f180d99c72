"""What a job is and how events change it. Pure: no clock but the one handed in, no storage."""

from __future__ import annotations

import secrets

from google.protobuf.timestamp_pb2 import Timestamp

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2

TERMINAL = frozenset(
    {
        training_pb2.JOB_STATE_SUCCEEDED,
        training_pb2.JOB_STATE_FAILED,
        training_pb2.JOB_STATE_CANCELLED,
    }
)
_TERMINAL_EVENTS = {
    "succeeded": training_pb2.JOB_STATE_SUCCEEDED,
    "failed": training_pb2.JOB_STATE_FAILED,
    "cancelled": training_pb2.JOB_STATE_CANCELLED,
}


def now() -> Timestamp:
    """The current time."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp


def new_job(
    submitted: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset, time: Timestamp
) -> training_pb2.TrainingJob:
    """A job for a request that keeps the contract, not yet queued."""
    effective = contract.resolve(submitted)
    job = training_pb2.TrainingJob(
        name=f"jobs/{secrets.token_hex(8)}",
        display_name=effective.display_name,
        labels=effective.labels,
        state=training_pb2.JOB_STATE_QUEUED,
        request=effective,
        set_fields=contract.set_fields(submitted),
        request_digest=contract.request_digest(effective),
        dataset_digest=dataset.sha256,
        contract_version=contract.contract_version(),
        create_time=time,
        update_time=time,
    )
    job.progress.epochs = effective.trainer.epochs
    return job


def continued(
    job: training_pb2.TrainingJob, old: training_pb2.TrainingJob, epoch: int
) -> training_pb2.TrainingJob:
    """A new job that goes on where an old one was after an epoch."""
    after = _copy(job)
    after.resumed_from = old.name
    after.progress.epoch = epoch
    if old.progress.best_epoch <= epoch:
        after.progress.best_epoch = old.progress.best_epoch
        after.progress.best_validation.CopyFrom(old.progress.best_validation)
    return after


def first_events(
    submitted: training_pb2.TrainingRequest, queue_position: int
) -> list[training_pb2.TrainingEvent]:
    """What a new job's log begins with: queued, then a warning for each field without effect."""
    queued = training_pb2.JobQueued(queue_position=queue_position)
    warnings = [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_FIELD_WITHOUT_EFFECT,
            message=warning.description,
            field=warning.field,
        )
        for warning in contract.warnings(submitted)
    ]
    return [
        training_pb2.TrainingEvent(queued=queued),
        *(training_pb2.TrainingEvent(warning=warning) for warning in warnings),
    ]


def apply(
    job: training_pb2.TrainingJob, event: training_pb2.TrainingEvent, time: Timestamp
) -> tuple[training_pb2.TrainingJob, training_pb2.TrainingEvent]:
    """The job after an event, and the event numbered and stamped. The inputs are not changed."""
    after, stamped = _copy(job), training_pb2.TrainingEvent()
    after.last_sequence += 1
    after.update_time.CopyFrom(time)
    stamped.CopyFrom(event)
    stamped.sequence = after.last_sequence
    _stamp(stamped, after, time)
    _record(after, stamped, time)
    return after, stamped


def stamp_progress(
    job: training_pb2.TrainingJob, event: training_pb2.TrainingEvent, time: Timestamp
) -> training_pb2.TrainingEvent:
    """A progress event with job, time and attempt, and no number: it is not stored."""
    stamped = training_pb2.TrainingEvent()
    stamped.CopyFrom(event)
    _stamp(stamped, job, time)
    return stamped


def sign_of_life(job: training_pb2.TrainingJob) -> training_pb2.TrainingEvent:
    """A progress event for a stream that has nothing else to say."""
    progress = training_pb2.EpochProgress(epoch=job.progress.epoch, epochs=job.progress.epochs)
    return stamp_progress(job, training_pb2.TrainingEvent(progress=progress), now())


def _stamp(
    event: training_pb2.TrainingEvent, job: training_pb2.TrainingJob, time: Timestamp
) -> None:
    event.job = job.name
    event.attempt = job.attempt
    event.time.CopyFrom(time)


def _record(
    job: training_pb2.TrainingJob, event: training_pb2.TrainingEvent, time: Timestamp
) -> None:
    kind = event.WhichOneof("event")
    if kind == "warning":
        job.warnings.append(event.warning)
    elif kind == "epoch":
        _record_epoch(job.progress, event.epoch)
    elif kind in _TERMINAL_EVENTS:
        job.state = _TERMINAL_EVENTS[kind]
        job.end_time.CopyFrom(time)
        if kind == "failed":
            job.failure.CopyFrom(event.failed.failure)
        elif kind == "succeeded":
            job.model = event.succeeded.model


def _record_epoch(progress: training_pb2.JobProgress, epoch: training_pb2.EpochCompleted) -> None:
    progress.epoch = epoch.epoch
    if epoch.is_best:
        progress.best_epoch = epoch.epoch
        progress.best_validation.CopyFrom(epoch.validation)


def begin(job: training_pb2.TrainingJob, time: Timestamp) -> training_pb2.TrainingJob:
    """The job as its training process is started."""
    after = with_state(job, training_pb2.JOB_STATE_RUNNING, time)
    after.attempt += 1
    after.start_time.CopyFrom(time)
    return after


def with_state(
    job: training_pb2.TrainingJob, state: training_pb2.JobState.ValueType, time: Timestamp
) -> training_pb2.TrainingJob:
    """The job in another state."""
    after = _copy(job)
    after.state = state
    after.update_time.CopyFrom(time)
    return after


def cancelled(job: training_pb2.TrainingJob) -> training_pb2.TrainingEvent:
    """The event that ends a job on request, as far as the server knows how far it was."""
    progress = job.progress
    return training_pb2.TrainingEvent(
        cancelled=training_pb2.JobCancelled(
            epochs_run=progress.epoch, best_epoch=progress.best_epoch
        )
    )


def failed(
    reason: training_pb2.FailureReason.ValueType, message: str
) -> training_pb2.TrainingEvent:
    """The event that ends a job by an error."""
    failure = training_pb2.Failure(reason=reason, message=message)
    return training_pb2.TrainingEvent(failed=training_pb2.JobFailed(failure=failure))


def is_known(job: training_pb2.TrainingJob, event: training_pb2.TrainingEvent) -> bool:
    """Whether an attempt before this one has told the same: epochs and warnings come again when a
    process starts behind what the one before it had reached."""
    if event.HasField("epoch"):
        return event.epoch.epoch <= job.progress.epoch
    return event.HasField("warning") and job.attempt > 1 and event.warning in job.warnings


def is_terminal(event: training_pb2.TrainingEvent) -> bool:
    """Whether nothing comes after the event."""
    return event.WhichOneof("event") in _TERMINAL_EVENTS


def waited_seconds(queued: training_pb2.TrainingJob, begun: training_pb2.TrainingJob) -> float:
    """How long a job has waited this time, from the job as it waited and as it began."""
    nanoseconds = begun.start_time.ToNanoseconds() - queued.update_time.ToNanoseconds()
    return max(nanoseconds / 1e9, 0.0)  # clocks are set back now and then


def state_text(job: training_pb2.TrainingJob) -> str:
    """The job's state as a metric has it, such as "running"."""
    return training_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def _copy(job: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
    copy = training_pb2.TrainingJob()
    copy.CopyFrom(job)
    return copy

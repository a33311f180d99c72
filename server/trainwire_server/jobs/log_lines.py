"""What the server's log says of a job."""

from __future__ import annotations

import structlog
from google.protobuf import json_format

from trainwire.v1 import training_pb2


def parameters(job: training_pb2.TrainingJob) -> dict[str, object]:
    """The effective parameters, for one line of log."""
    plain = json_format.MessageToDict(job.request, preserving_proto_field_name=True)
    return {"set_fields": list(job.set_fields), "request": plain}


def ending(job: training_pb2.TrainingJob) -> dict[str, object]:
    """How a job ended."""
    said: dict[str, object] = {"state": training_pb2.JobState.Name(job.state)}
    if job.HasField("failure"):
        said["reason"] = training_pb2.FailureReason.Name(job.failure.reason)
        said["message"] = job.failure.message
    return said


def log_event(log: structlog.stdlib.BoundLogger, event: training_pb2.TrainingEvent) -> None:
    """Log an event that an operator wants to see: epochs and warnings."""
    if event.HasField("epoch"):
        epoch = event.epoch
        log.info(
            "job.epoch",
            epoch=epoch.epoch,
            train_loss=round(epoch.train.loss, 6),
            validation_loss=round(epoch.validation.loss, 6),
            macro_f1=round(epoch.validation.macro_f1, 4),
            seconds=round(epoch.seconds, 3),
        )
    elif event.HasField("warning"):
        log.warning("job.warning", message=event.warning.message)

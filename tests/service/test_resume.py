"""ResumeTraining: a new job goes on where a cancelled or failed one was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from trainwire import contract
from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
Refusal = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def stub(channel: grpc.Channel) -> training_pb2_grpc.TrainingServiceStub:
    return training_pb2_grpc.TrainingServiceStub(channel)


def cancel_after(client: TrainingClient, request: training_pb2.TrainingRequest, epoch: int) -> str:
    """A job that was cancelled when it had done so many epochs at least."""
    job = client.submit(request)
    next(e for e in client.watch(job) if e.HasField("epoch") and e.epoch.epoch >= epoch)
    client.cancel(job)
    *_, last = client.watch(job)
    assert last.HasField("cancelled")
    return job.name


def resume(name: str, **changes: Any) -> training_pb2.ResumeTrainingRequest:
    request = training_pb2.TrainingRequest(**changes)
    return training_pb2.ResumeTrainingRequest(name=name, changes=request)


def kinds(client: TrainingClient, job: training_pb2.TrainingJob) -> list[str | None]:
    return [event.WhichOneof("event") for event in client.watch(job) if event.sequence]


@pytest.fixture
def cancelled(client: TrainingClient, request_for: RequestFor) -> str:
    request = request_for(epochs=25, early_stopping_patience=0)
    request.display_name, request.labels["team"] = "nightly", "alpha"
    return cancel_after(client, request, epoch=3)


def test_a_resumed_job_ends_as_if_it_had_never_been_cancelled(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    cancelled: str,
    tmp_path: Path,
) -> None:
    before, log = client.get(cancelled), list(client.watch(cancelled))
    job = stub.ResumeTraining(resume(cancelled))
    assert job.name != cancelled
    assert (job.resumed_from, job.display_name) == (cancelled, "nightly")
    assert dict(job.labels) == {"team": "alpha"}
    assert contract.differences(job.request, before.request) == ["request_id"]
    assert set(before.set_fields) - set(job.set_fields) == {"request_id"}
    assert (job.request_digest, job.progress.epoch > 0) == (before.request_digest, True)
    done = client.wait(job)
    events = [event for event in client.watch(job) if event.sequence]
    found = [event.WhichOneof("event") for event in events]
    assert found[:3] == ["queued", "started", "resumed"]
    first = events[2].resumed.epoch + 1
    epochs = [event.epoch.epoch for event in events if event.HasField("epoch")]
    assert epochs == list(range(first, 26))
    assert found == ["queued", "started", "resumed", *["epoch"] * len(epochs), "succeeded"]
    assert events[-1].succeeded.epochs_run == 25
    whole = client.wait(client.submit(request_for(epochs=25, early_stopping_patience=0)))
    weights = [
        (client.download(model, tmp_path / name) / "model.safetensors").read_bytes()
        for model, name in ((done.model, "resumed"), (whole.model, "whole"))
    ]
    assert weights[0] == weights[1]
    # The old job and its log are what they were.
    assert client.get(cancelled) == before
    assert list(client.watch(cancelled)) == log


def test_a_resumed_job_may_train_longer(
    client: TrainingClient, stub: training_pb2_grpc.TrainingServiceStub, cancelled: str
) -> None:
    request = resume(cancelled, display_name="longer", labels={"more": "yes"})
    request.changes.trainer.epochs = 28
    job = stub.ResumeTraining(request)
    assert job.request.trainer.epochs == job.progress.epochs == 28
    assert (job.display_name, dict(job.labels)) == ("longer", {"team": "alpha", "more": "yes"})
    assert "trainer.epochs" in job.set_fields
    assert client.wait(job).progress.epoch == 28


def test_what_was_set_to_the_same_value_is_no_change(
    client: TrainingClient, stub: training_pb2_grpc.TrainingServiceStub, cancelled: str
) -> None:
    request = training_pb2.ResumeTrainingRequest(name=cancelled)
    request.changes.CopyFrom(client.get(cancelled).request)
    request.changes.ClearField("request_id")
    job = stub.ResumeTraining(request)
    assert job.resumed_from == cancelled
    client.cancel(job)


def test_every_other_change_is_named_and_refused(
    stub: training_pb2_grpc.TrainingServiceStub, refusal: Refusal, cancelled: str
) -> None:
    request = training_pb2.ResumeTrainingRequest(name=cancelled)
    request.changes.dataset = "datasets/other"
    request.changes.trainer.learning_rate = 0.5
    request.changes.trainer.epochs = 24
    request.changes.model.hybrid_cnn_lstm.lstm_layers = 2
    request.changes.data.windows.feature_columns[:] = ["b"]
    refused = refusal(lambda: stub.ResumeTraining(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refused.fields.pop("changes.trainer.epochs").startswith("24 is not allowed")
    assert set(refused.fields) == {
        "changes.dataset",
        "changes.trainer.learning_rate",
        "changes.model.hybrid_cnn_lstm.lstm_layers",
        "changes.data.windows.feature_columns",
    }
    assert set(refused.fields.values()) == {"cannot be changed in a resumed job; submit a new one"}


def test_changes_keep_the_contract(
    stub: training_pb2_grpc.TrainingServiceStub, refusal: Refusal
) -> None:
    request = resume("jobs/none")
    request.changes.trainer.epochs = 0
    request.changes.trainer.MergeFromString(bytes([0xF8, 0xF0, 0x04, 0x01]))
    refused = refusal(lambda: stub.ResumeTraining(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"changes.trainer.9999", "changes.trainer.epochs"}


def test_the_same_request_id_gives_the_same_job(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    refusal: Refusal,
    cancelled: str,
) -> None:
    request = resume(cancelled, request_id=f"again-{cancelled[5:]}")
    first = stub.ResumeTraining(request)
    assert stub.ResumeTraining(request).name == first.name
    request.changes.trainer.epochs = 26
    refused = refusal(lambda: stub.ResumeTraining(request))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
    )
    assert set(refused.fields) == {"trainer.epochs"}
    submitted = request_for(epochs=25, early_stopping_patience=0)
    submitted.display_name, submitted.labels["team"] = "nightly", "alpha"
    submitted.request_id = request.changes.request_id
    assert set(refusal(lambda: stub.SubmitTraining(submitted)).fields) == {"resumed_from"}
    client.cancel(first)


def test_only_cancelled_and_failed_jobs_with_a_checkpoint_go_on(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    refusal: Refusal,
) -> None:
    endless = client.submit(request_for(epochs=100_000, early_stopping_patience=0))
    waiting = client.submit(request_for())
    refused = [refusal(partial(stub.ResumeTraining, resume(job.name)))
               for job in (endless, waiting)]  # fmt: skip
    client.cancel(waiting)
    refused.append(refusal(lambda: stub.ResumeTraining(resume(waiting.name))))
    client.cancel(endless)
    done = client.wait(client.submit(request_for()))
    refused.append(refusal(lambda: stub.ResumeTraining(resume(done.name))))
    assert {r.code for r in refused} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert {r.reason for r in refused} == {"JOB_NOT_RESUMABLE"}
    said = [r.message.removeprefix(r.message.split()[0]) for r in refused]
    assert said[1] == " is JOB_STATE_QUEUED; only cancelled and failed jobs go on"
    assert said[2] == " has no checkpoint; submit its request again"
    assert said[3] == " is JOB_STATE_SUCCEEDED; only cancelled and failed jobs go on"


def test_a_job_that_does_not_exist_cannot_go_on(
    stub: training_pb2_grpc.TrainingServiceStub, refusal: Refusal
) -> None:
    refused = refusal(lambda: stub.ResumeTraining(resume("jobs/none")))
    assert refused.code is grpc.StatusCode.NOT_FOUND


def test_the_old_job_may_be_deleted_while_the_new_one_trains(
    client: TrainingClient, stub: training_pb2_grpc.TrainingServiceStub, cancelled: str
) -> None:
    job = stub.ResumeTraining(resume(cancelled))
    client.delete(cancelled)
    assert client.wait(job).progress.epoch == 25
    assert "resumed" in kinds(client, job)


def test_a_job_that_was_resumed_and_cancelled_can_be_resumed_again(
    client: TrainingClient, stub: training_pb2_grpc.TrainingServiceStub, cancelled: str
) -> None:
    name = cancelled
    for _ in range(2):
        job = stub.ResumeTraining(resume(name))
        reached = next(e.epoch.epoch for e in client.watch(job) if e.HasField("epoch"))
        client.cancel(job)
        assert kinds(client, job)[-1] == "cancelled"
        assert client.get(job).progress.epoch >= reached
        name = job.name
    first, last = client.get(cancelled).request, client.get(name).request
    assert contract.differences(first, last) == ["request_id"]

"""Limits: how many jobs may wait, and how much memory one may take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.conftest import Server

from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]


def wait_for_epoch(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    next(event for event in client.watch(job) if event.HasField("epoch"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on which few jobs may wait, and may allocate little."""
    flags = ("--max-queued-jobs", "2", "--job-memory-mb", "300")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *flags)
        yield server
        assert server.stop() == 0


@pytest.fixture
def narrow(server: Server) -> Iterator[TrainingClient]:
    with server.client() as client:
        yield client


def test_one_job_more_than_may_wait_is_refused(
    server: Server, narrow: TrainingClient, columns: Any, small: RequestFor, refusal: Any
) -> None:
    dataset = narrow.upload(columns()).name
    endless = narrow.submit(small(dataset, epochs=100_000, early_stopping_patience=0))
    wait_for_epoch(narrow, endless)
    request = small(dataset)
    request.request_id = "first"
    waiting = [narrow.submit(request), narrow.submit(small(dataset))]
    assert narrow.info().max_queued_jobs == narrow.info().queued_jobs == 2
    with server.channel() as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        refused = refusal(lambda: stub.SubmitTraining(small(dataset)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert "--max-queued-jobs is 2" in refused.message
    # One that waits already is no new one, and one that is refused is not stored.
    assert narrow.submit(request).name == waiting[0].name
    assert len(list(narrow.list())) == 3
    narrow.cancel(waiting[1])
    accepted = narrow.submit(small(dataset))
    narrow.cancel(endless)
    assert narrow.wait(accepted).state == training_pb2.JOB_STATE_SUCCEEDED


def test_a_job_that_needs_more_memory_than_it_may_have_trains_in_smaller_parts(
    narrow: TrainingClient, columns: Any, small: RequestFor
) -> None:
    dataset = narrow.upload(columns(4_000)).name
    request = small(dataset, epochs=1, batch_size=8192)
    request.data.windows.sequence_length = 64
    request.model.hybrid_cnn_lstm.conv_channels = 64
    job = narrow.wait(narrow.submit(request))
    (halved, *_) = [w for w in job.warnings if w.field == "trainer.batch_size"]
    assert halved.reason == training_pb2.WARNING_REASON_MICRO_BATCH_HALVED
    assert "memory ran out" in halved.message
    # The next job has the same limit, and its process its own memory.
    assert narrow.wait(narrow.submit(small(dataset, epochs=1))).warnings == []


def test_a_job_whose_every_window_needs_more_memory_fails_alone(
    narrow: TrainingClient, columns: Any, small: RequestFor
) -> None:
    dataset = narrow.upload(columns(60_000)).name
    request = small(dataset, epochs=1, batch_size=1)
    # What can be told before would fit.
    request.data.windows.sequence_length = 4096
    request.model.hybrid_cnn_lstm.conv_channels = 512
    request.model.hybrid_cnn_lstm.conv_blocks = 11
    request.model.hybrid_cnn_lstm.kernel_size = 1
    job = narrow.submit(request)
    *_, last = narrow.watch(job)
    assert last.failed.failure.reason == training_pb2.FAILURE_REASON_OUT_OF_MEMORY
    assert narrow.wait(narrow.submit(small(dataset, epochs=1))).model

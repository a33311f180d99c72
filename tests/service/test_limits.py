"""Limits: how many jobs may wait, and how much memory one may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests.conftest import Server

from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient

StartServer = Callable[..., Any]
RequestFor = Callable[..., training_pb2.TrainingRequest]


def wait_for_epoch(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    next(event for event in client.watch(job) if event.HasField("epoch"))


def test_one_job_more_than_may_wait_is_refused(
    start_server: StartServer, columns: Any, small: RequestFor, refusal: Any
) -> None:
    server = start_server("--max-queued-jobs", "2")
    with server.client() as client, server.channel() as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        dataset = client.upload(columns()).name
        endless = client.submit(small(dataset, epochs=100_000, early_stopping_patience=0))
        wait_for_epoch(client, endless)
        request = small(dataset)
        request.request_id = "first"
        waiting = [client.submit(request), client.submit(small(dataset))]
        assert client.info().max_queued_jobs == client.info().queued_jobs == 2
        refused = refusal(lambda: stub.SubmitTraining(small(dataset)))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "QUEUE_FULL",
        )
        assert "--max-queued-jobs is 2" in refused.message
        # One that waits already is no new one, and one that is refused is not stored.
        assert client.submit(request).name == waiting[0].name
        assert len(list(client.list())) == 3
        client.cancel(waiting[1])
        accepted = client.submit(small(dataset))
        client.cancel(endless)
        assert client.wait(accepted).state == training_pb2.JOB_STATE_SUCCEEDED


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingClient]:
    """A client of a server whose jobs may allocate little."""
    server = Server(tmp_path_factory.mktemp("narrow"), "--job-memory-mb", "300")
    with server.client() as client:
        yield client
    server.stop()


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
    dataset = narrow.upload(columns(8_000)).name
    request = small(dataset, epochs=1, batch_size=1)
    request.data.windows.sequence_length = 512
    request.model.hybrid_cnn_lstm.conv_channels = 2048
    request.model.hybrid_cnn_lstm.conv_blocks = 8
    job = narrow.submit(request)
    *_, last = narrow.watch(job)
    assert last.failed.failure.reason == training_pb2.FAILURE_REASON_OUT_OF_MEMORY
    assert narrow.wait(narrow.submit(small(dataset, epochs=1))).model

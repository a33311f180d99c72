"""TrainingService over the wire."""

from __future__ import annotations


def test_train_streams_from_queued_to_succeeded(client, request_for):
    events = list(client.train(request_for()))
    kinds = [event.WhichOneof("event") for event in events if event.sequence]
    assert kinds == ["queued", "started", "epoch", "epoch", "epoch", "succeeded"]
    assert [event.sequence for event in events if event.sequence] == list(range(1, 7))

"""A table the device has no room for: the same training, window by window from the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainwire.v1 import training_pb2

pytestmark = pytest.mark.usefixtures("without_onnx")

Run = Callable[..., list[training_pb2.TrainingEvent]]


@pytest.mark.parametrize("architecture", ["hybrid_cnn_lstm", "mini_rocket"])
def test_where_windows_come_from_changes_nothing(
    architecture: str,
    run: Run,
    make_request: Callable[..., training_pb2.TrainingRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = make_request(**{f"model__{architecture}": ""})
    resident = run(request, folder="resident")
    monkeypatch.setattr("trainwire_server.training.setup.has_room", lambda *_: False)
    streamed = run(request, folder="streamed")
    warnings = [event.warning for event in streamed if event.HasField("warning")]
    (warning,) = (w for w in warnings if w.reason == training_pb2.WARNING_REASON_WINDOWS_STREAMED)
    assert "it stays in the host's memory" in warning.message
    assert _results(streamed) == _results(resident)


def _results(events: list[training_pb2.TrainingEvent]) -> list[tuple[float, float]]:
    epochs = [event.epoch for event in events if event.HasField("epoch")]
    test = events[-1].succeeded.test
    return [(e.train.loss, e.validation.loss) for e in epochs] + [(test.loss, test.macro_f1)]

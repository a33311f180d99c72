"""The model as one ONNX file: raw windows in, probabilities of named classes out.

What a program needs that has onnxruntime and no torch. onnx and onnxruntime are imported where they
are used: without them a training gives its model all the same, and a warning.
"""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainwire import rolling
from trainwire.architectures.build import build
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training.checkpoint import Weights
from trainwire_server.training.devices import is_memory_error

INPUT, OUTPUT = "windows", "probabilities"
TOLERANCE = 1e-4
"""Between a probability from torch and the same one from onnxruntime."""
_OPSET = 17
"""Of 2022: what reads the file may be years older than what wrote it."""
_CHECKED_WINDOWS = 100
_CHECKED_STEPS = 2**12
"""Time steps computed at once in the check: onnxruntime keeps attention's whole matrices."""


class NotExported(Exception):
    """There is no ONNX file that computes what the network computes; the message says why."""


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, windows: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.network(windows)
        return logits / self.temperature


class Classifier(nn.Module):
    """A network with all around it that turns raw windows into probabilities.

    Takes float64 [n, time, features], or [n, features, time] of labelled series (`channels_first`),
    or [n, history + time, features] where rows are scaled by those before them, and returns float32
    [n, classes]; NaN for a window with values that are NaN, infinite or too large for float32.
    Scaling is in float64, as of the training data: a large offset costs no digits.

    Args:
        network: from scaled float32 [n, features, time] to logits [n, classes].
        mean, scale: float64 [features].
        history: rows before each row that it is scaled by; 0 where `mean` and `scale` do that.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        scale: Tensor,
        *,
        channels_first: bool,
        history: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.history = history
        self.channels_first = channels_first
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    mean: Tensor
    scale: Tensor

    def forward(self, windows: Tensor) -> Tensor:
        """Probabilities of raw windows."""
        steps = windows.transpose(1, 2) if self.channels_first else windows
        scaled = self._scaled(steps).float()
        probabilities = self.network(scaled.transpose(1, 2)).softmax(dim=1)
        # Said, not left to the network, which may hide it: onnxruntime's LSTM gives a number.
        is_usable = scaled.isfinite().flatten(1).all(dim=1, keepdim=True)
        return torch.where(is_usable, probabilities, torch.nan)

    def _scaled(self, steps: Tensor) -> Tensor:
        if not self.history:
            return (steps - self.mean) / self.scale
        rolled: Tensor = rolling.scale(steps.transpose(0, 1), self.history + 1)
        return rolled.transpose(0, 1)


def export(
    request: training_pb2.TrainingRequest,
    prepared: Prepared,
    weights: Weights,
    at_once: int,
    adjusted: training_pb2.AdjustedPrediction | None = None,
) -> bytes:
    """The ONNX file, compared with torch on windows of the validation and test splits.

    Equal weights give equal bytes. Metadata, JSON each: `class_names`, in the order of the
    probabilities; `feature_columns`, in that of the features; `sequence_length`; `history`, rows
    before these that a window begins with, to scale them by.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: what the network was trained on.
        weights: of the network.
        at_once: most windows that memory is enough for.
        adjusted: its temperature is in the probabilities, its thresholds are in the metadata, as
            `decision_thresholds`.

    Raises:
        NotExported: the network could not be exported, or the file gives probabilities that differ
            by more than `TOLERANCE`.
    """
    is_series = request.data.WhichOneof("layout") == "samples"
    try:
        network = _network(request, prepared, weights)
        if adjusted and adjusted.HasField("temperature"):
            network = Tempered(network, adjusted.temperature)
        exported = _exported(network, prepared, channels_first=is_series)
        found = _with_metadata(exported, prepared, adjusted)
        difference = _difference(found, network, prepared, at_once, channels_first=is_series)
    except Exception as error:  # of four libraries: none is worth losing a trained model for
        reason = "memory ran out" if is_memory_error(error) else type(error).__name__
        raise NotExported(f"the export failed ({reason})") from error
    # Not the other way round: NaN is no agreement.
    if not difference <= TOLERANCE:
        raise NotExported(
            f"its probabilities differ from those of the network by {difference:.2g}; "
            f"allowed: {TOLERANCE:g}"
        )
    return found


def _network(
    request: training_pb2.TrainingRequest, prepared: Prepared, weights: Weights
) -> nn.Module:
    features, classes = len(prepared.feature_columns), len(prepared.class_names)
    network = build(request.model, features, classes, prepared.sequence_length)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _exported(network: nn.Module, prepared: Prepared, *, channels_first: bool) -> bytes:
    """By tracing, which takes 0.2 s; the exporter that torch prefers takes 3 s and more."""
    mean, scale = torch.from_numpy(prepared.mean), torch.from_numpy(prepared.scale)
    classifier = Classifier(
        network, mean, scale, channels_first=channels_first, history=prepared.history
    ).eval()
    steps, features = prepared.history + prepared.sequence_length, len(prepared.feature_columns)
    shape = (2, features, steps) if channels_first else (2, steps, features)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # That this exporter is an old one, and that what it traced might not hold for other
        # windows: a comparison on other windows follows.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            classifier,
            (torch.zeros(shape, dtype=torch.float64),),
            file,  # type: ignore[arg-type]  # what traces takes a file object too
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
        )
    return file.getvalue()


def _with_metadata(
    file: bytes, prepared: Prepared, adjusted: training_pb2.AdjustedPrediction | None
) -> bytes:
    import onnx

    model = onnx.load_model_from_string(file)
    facts: dict[str, object] = {
        "class_names": prepared.class_names,
        "feature_columns": prepared.feature_columns,
        "sequence_length": prepared.sequence_length,
        "history": prepared.history,
    }
    if adjusted and adjusted.decision_thresholds:
        facts["decision_thresholds"] = list(adjusted.decision_thresholds)
    texts = {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString(deterministic=True))


# ------------------------------------------------------------------------ the comparison


def _difference(
    file: bytes, network: nn.Module, prepared: Prepared, at_once: int, *, channels_first: bool
) -> float:
    """The largest between the probabilities of the file and of the network, over real windows."""
    # Here, in the process that trains: it starts a thread, which a fork would leave behind.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters comes as an exception
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for starts in _batches(prepared, at_once):
        raw = _raw(prepared, starts, channels_first=channels_first)
        (found,) = session.run([OUTPUT], {INPUT: raw})
        expected = _expected(network, prepared, starts)
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
    return largest


def _batches(prepared: Prepared, at_once: int) -> list[npt.NDArray[np.int64]]:
    """First steps of windows that were not trained on, spread evenly; one by itself, then more."""
    held_out = np.concatenate([prepared.validation.starts, prepared.test.starts])
    if prepared.raw_windows is not None:
        held_out = prepared.raw_windows.starts
    count = min(_CHECKED_WINDOWS, len(held_out))
    chosen = held_out[np.linspace(0, len(held_out) - 1, count).astype(np.int64)]
    steps = prepared.history + prepared.sequence_length
    size = max(1, min(at_once, _CHECKED_STEPS // steps))
    return np.split(chosen, np.arange(1, count, size))


def _expected(
    network: nn.Module, prepared: Prepared, starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """From the features as they were trained on: what the file makes of scaling is checked too."""
    windows = torch.from_numpy(_windows(prepared, starts)).transpose(1, 2)
    with torch.inference_mode():
        probabilities: npt.NDArray[np.float32] = network(windows).softmax(dim=1).numpy()
    return probabilities


def _windows(prepared: Prepared, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Scaled windows [n, time, features]."""
    rows = starts[:, None] + np.arange(prepared.sequence_length)
    return np.asarray(prepared.features[rows])


def _raw(
    prepared: Prepared, starts: npt.NDArray[np.int64], *, channels_first: bool
) -> npt.NDArray[np.float64]:
    """The same windows before they were scaled, in the shape that `Classifier` takes."""
    # Rows scaled by those before them do not lead back to either.
    if prepared.raw_windows is not None:
        return prepared.raw_windows.values[np.searchsorted(prepared.raw_windows.starts, starts)]
    windows = _windows(prepared, starts) * prepared.scale + prepared.mean
    return np.ascontiguousarray(windows.transpose(0, 2, 1) if channels_first else windows)

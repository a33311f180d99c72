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


class Classifier(nn.Module):
    """A network with all around it that turns raw windows into probabilities.

    Takes float64 [n, time, features], or [n, features, time] of labelled series (`channels_first`),
    and returns float32 [n, classes]; NaN for a window with values that are NaN, infinite or too
    large for float32. Scaling is in float64, as of the training data: a large offset costs no
    digits.

    Args:
        network: from scaled float32 [n, features, time] to logits [n, classes].
        mean, scale: float64 [features].
    """

    def __init__(
        self, network: nn.Module, mean: Tensor, scale: Tensor, *, channels_first: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.channels_first = channels_first
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    mean: Tensor
    scale: Tensor

    def forward(self, windows: Tensor) -> Tensor:
        """Probabilities of raw windows."""
        steps = windows.transpose(1, 2) if self.channels_first else windows
        scaled = ((steps - self.mean) / self.scale).float()
        probabilities = self.network(scaled.transpose(1, 2)).softmax(dim=1)
        # Said, not left to the network, which may hide it: onnxruntime's LSTM gives a number.
        is_usable = scaled.isfinite().flatten(1).all(dim=1, keepdim=True)
        return torch.where(is_usable, probabilities, torch.nan)


def export(
    request: training_pb2.TrainingRequest, prepared: Prepared, weights: Weights, at_once: int
) -> bytes:
    """The ONNX file, compared with torch on windows of the validation and test splits.

    Equal weights give equal bytes. Metadata, JSON each: `class_names`, in the order of the
    probabilities; `feature_columns`, in that of the features; `sequence_length`.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: what the network was trained on.
        weights: of the network.
        at_once: most windows that memory is enough for.

    Raises:
        NotExported: the network could not be exported, or the file gives probabilities that differ
            by more than `TOLERANCE`.
    """
    is_series = request.data.WhichOneof("layout") == "samples"
    try:
        network = _network(request, prepared, weights)
        found = _with_metadata(_exported(network, prepared, channels_first=is_series), prepared)
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
    classifier = Classifier(network, mean, scale, channels_first=channels_first).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        # That this exporter is an old one, and that what it traced might not hold for other
        # windows: a comparison on other windows follows.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            classifier,
            (torch.from_numpy(_raw(prepared, np.arange(2), channels_first=channels_first)),),
            file,  # type: ignore[arg-type]  # what traces takes a file object too
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
        )
    return file.getvalue()


def _with_metadata(file: bytes, prepared: Prepared) -> bytes:
    import onnx

    model = onnx.load_model_from_string(file)
    facts = {
        "class_names": prepared.class_names,
        "feature_columns": prepared.feature_columns,
        "sequence_length": prepared.sequence_length,
    }
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
    count = min(_CHECKED_WINDOWS, len(held_out))
    chosen = held_out[np.linspace(0, len(held_out) - 1, count).astype(np.int64)]
    size = max(1, min(at_once, _CHECKED_STEPS // prepared.sequence_length))
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
    windows = _windows(prepared, starts) * prepared.scale + prepared.mean
    return np.ascontiguousarray(windows.transpose(0, 2, 1) if channels_first else windows)

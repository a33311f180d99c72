"""Predict with a downloaded model: no server, no trainer, only torch.

    model = load_bundle("model")
    model.predict_proba(windows)

Importing this module loads neither torch nor NumPy; `load_bundle` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from trainwire import rolling
from trainwire.decisions import decide
from trainwire.v1 import training_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

_BATCH = 1024


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to predict.

    Attributes:
        class_names: in the order of the probabilities.
        feature_columns: in the order of a window's last axis, or of the channels of a series.
        sequence_length: rows of a window, or values in each channel of a series.
        history: rows that a window has besides, at its beginning: those before it, which scale it.
        request: the effective request it was trained with.
        module: the network, in evaluation mode: scaled float32 [n, features, sequence_length] to
            logits [n, classes].
        mean, scale: float64 [features]; a feature is scaled as (x - mean) / scale, unless by the
            rows before it (`history`).
        temperature: logits are divided by it; 1 if the model was not calibrated.
        decision_thresholds: in the order of the classes; predicted is the class with the largest
            probability / threshold, or the most probable one if there are none.
    """

    class_names: list[str]
    feature_columns: list[str]
    sequence_length: int
    history: int
    request: training_pb2.TrainingRequest
    module: nn.Module
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    temperature: float
    decision_thresholds: list[float]

    def predict_proba(self, windows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probability of each class.

        Args:
            windows: raw, unscaled values, as the data were that the model was trained on: windows
                [n, history + sequence_length, features], rows in time order; or labelled series
                (the samples layout) [n, channels, sequence_length], the shape in which they are
                uploaded.

        Returns:
            float64 [n, classes]; rows sum to 1.

        Raises:
            ValueError: another shape, or values that are NaN, infinite or too large for float32.
        """
        import numpy as np

        raw = self._windows(np.asarray(windows))
        steps = self.history + self.sequence_length
        size = max(1, _BATCH * self.sequence_length // steps)
        parts = [self._predict(raw[i : i + size]) for i in range(0, len(raw), size)]
        return np.concatenate([np.empty((0, len(self.class_names))), *parts])

    def _windows(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[n, history + sequence_length, features], whatever the layout's shape is."""
        series = self.request.data.WhichOneof("layout") == "samples"
        steps, features = self.history + self.sequence_length, len(self.feature_columns)
        expected = (features, steps) if series else (steps, features)
        if raw.ndim != 3 or raw.shape[1:] != expected:
            words = "{} channels, {} values" if series else "{} rows, {} features"
            wanted = f"[n, {words.format(*expected)}]"
            raise ValueError(f"windows have shape {list(raw.shape)}; expected {wanted}")
        return raw.transpose(0, 2, 1) if series else raw

    def predict(self, windows: npt.ArrayLike) -> list[str]:
        """Name of the class predicted for each window; see `predict_proba`."""
        predicted = decide(self.predict_proba(windows), self.decision_thresholds)
        return [self.class_names[i] for i in predicted]

    def _scale(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        import numpy as np

        # In float64 and then rounded, as the training data were: equal bits, equal predictions.
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = self._scaled(raw.astype(np.float64)).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError("windows hold values that are NaN, infinite or too large for float32")
        return scaled

    def _scaled(self, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if not self.history:
            return (raw - self.mean) / self.scale
        rolled: npt.NDArray[np.float64] = rolling.scale(raw.swapaxes(0, 1), self.history + 1)
        return rolled.swapaxes(0, 1)

    def _predict(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        import torch

        device = next(self.module.parameters()).device
        with torch.inference_mode():
            batch = torch.from_numpy(self._scale(raw)).to(device).transpose(1, 2).contiguous()
            logits: torch.Tensor = self.module(batch).double() / self.temperature
            probabilities = logits.softmax(dim=1)
        result: npt.NDArray[np.float64] = probabilities.cpu().numpy()
        return result


def load_bundle(folder: str | Path) -> Bundle:
    """Load a bundle, as `trainwire download` writes it, for prediction on the CPU.

    Raises:
        ImportError: torch, NumPy or safetensors is not installed.
        FileNotFoundError: a file of the bundle is missing.
    """
    try:
        import numpy as np
        import safetensors.torch

        from trainwire.architectures.build import build
    except ImportError as error:
        message = f"load_bundle needs {error.name}: pip install 'trainwire[torch]'"
        raise ImportError(message, name=error.name) from error
    folder = Path(folder)
    request = training_pb2.TrainingRequest()
    json_format.Parse((folder / "request.json").read_text(encoding="utf-8"), request)
    steps = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    sizes = (len(steps["feature_columns"]), len(steps["class_names"]), steps["sequence_length"])
    answers = _answers(folder, request.prediction)
    module = build(request.model, *sizes)
    module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return Bundle(
        class_names=steps["class_names"],
        feature_columns=steps["feature_columns"],
        sequence_length=steps["sequence_length"],
        # A server of before rolling scaling does not say.
        history=steps.get("history", 0),
        request=request,
        module=module.eval(),
        mean=np.array(steps["mean"], dtype=np.float64),
        scale=np.array(steps["scale"], dtype=np.float64),
        temperature=answers["temperature"],
        decision_thresholds=answers["decision_thresholds"],
    )


def _answers(folder: Path, params: training_pb2.PredictionParams) -> dict[str, Any]:
    """What is made of the network's answers; where nothing was asked for, there is no file."""
    if not (params.calibrate_probabilities or params.tune_thresholds):
        return {"temperature": 1.0, "decision_thresholds": []}
    found: dict[str, Any] = json.loads((folder / "postprocessing.json").read_text(encoding="utf-8"))
    return found

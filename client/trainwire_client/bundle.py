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
        request: the effective request it was trained with.
        module: the network, in evaluation mode: scaled float32 [n, features, sequence_length] to
            logits [n, classes].
        mean, scale: float64 [features]; a feature is scaled as (x - mean) / scale.
    """

    class_names: list[str]
    feature_columns: list[str]
    sequence_length: int
    request: training_pb2.TrainingRequest
    module: nn.Module
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def predict_proba(self, windows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probability of each class.

        Args:
            windows: raw, unscaled values, as the data were that the model was trained on: windows
                [n, sequence_length, features], rows in time order; or labelled series (the samples
                layout) [n, channels, sequence_length], the shape in which they are uploaded.

        Returns:
            float64 [n, classes]; rows sum to 1.

        Raises:
            ValueError: another shape, or values that are NaN, infinite or too large for float32.
        """
        import numpy as np

        raw = self._windows(np.asarray(windows))
        parts = [self._predict(raw[i : i + _BATCH]) for i in range(0, len(raw), _BATCH)]
        return np.concatenate([np.empty((0, len(self.class_names))), *parts])

    def _windows(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[n, sequence_length, features], whatever the layout's shape is."""
        series = self.request.data.WhichOneof("layout") == "samples"
        steps, features = self.sequence_length, len(self.feature_columns)
        expected = (features, steps) if series else (steps, features)
        if raw.ndim != 3 or raw.shape[1:] != expected:
            words = "{} channels, {} values" if series else "{} rows, {} features"
            wanted = f"[n, {words.format(*expected)}]"
            raise ValueError(f"windows have shape {list(raw.shape)}; expected {wanted}")
        return raw.transpose(0, 2, 1) if series else raw

    def predict(self, windows: npt.ArrayLike) -> list[str]:
        """Name of the most probable class of each window; see `predict_proba`."""
        return [self.class_names[i] for i in self.predict_proba(windows).argmax(axis=1)]

    def _scale(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        import numpy as np

        # In float64 and then rounded, as the training data were: equal bits, equal predictions.
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((raw.astype(np.float64) - self.mean) / self.scale).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError("windows hold values that are NaN, infinite or too large for float32")
        return scaled

    def _predict(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        import torch

        device = next(self.module.parameters()).device
        with torch.inference_mode():
            batch = torch.from_numpy(self._scale(raw)).to(device).transpose(1, 2).contiguous()
            probabilities: torch.Tensor = self.module(batch).double().softmax(dim=1)
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
    module = build(request.model, *sizes)
    module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return Bundle(
        class_names=steps["class_names"],
        feature_columns=steps["feature_columns"],
        sequence_length=steps["sequence_length"],
        request=request,
        module=module.eval(),
        mean=np.array(steps["mean"], dtype=np.float64),
        scale=np.array(steps["scale"], dtype=np.float64),
    )

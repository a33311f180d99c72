"""A bundle's `model.onnx`, computed by onnxruntime: no torch, no server.

    model = load_onnx_model("model")
    model.predict_proba(windows)

Importing this module loads neither onnxruntime nor NumPy; `load_onnx_model` does.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwire.decisions import decide
from trainwire_client.errors import MissingExtraError, UnreadableModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FILE", "OnnxModel", "load_onnx_model", "needed"]

FILE = "model.onnx"
_STEPS = 2**14
"""Time steps computed at once: some networks keep a matrix of these for each window."""


@dataclass(frozen=True)
class OnnxModel:
    """A trained model, ready to predict.

    Attributes:
        class_names: in the order of the probabilities.
        feature_columns: in the order of a window's last axis, or of the channels of a series.
        sequence_length: rows of a window, or values in each channel of a series.
        session: the `onnxruntime.InferenceSession`.
        decision_thresholds: in the order of the classes; predicted is the class with the largest
            probability / threshold, or the most probable one if there are none.
        history: rows that a window has besides, at its beginning: those before it, which scale it.
    """

    class_names: list[str]
    feature_columns: list[str]
    sequence_length: int
    session: Any
    decision_thresholds: list[float]
    history: int = 0

    def predict_proba(self, windows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probability of each class.

        Args:
            windows: raw, unscaled values, as the data were that the model was trained on: windows
                [n, history + sequence_length, features], rows in time order; or labelled series
                (the samples layout) [n, channels, sequence_length].

        Returns:
            float32 [n, classes]; rows sum to 1.

        Raises:
            ValueError: another shape, or values that are NaN, infinite or too large for float32.
        """
        import numpy as np

        raw = np.asarray(windows)
        shape = tuple(self.session.get_inputs()[0].shape[1:])
        if raw.ndim != 3 or raw.shape[1:] != shape:
            raise ValueError(f"windows have shape {list(raw.shape)}; expected {['n', *shape]}")
        size = max(1, _STEPS // (self.history + self.sequence_length))
        parts = [self._predict(raw[i : i + size]) for i in range(0, len(raw), size)]
        return np.concatenate([np.empty((0, len(self.class_names)), np.float32), *parts])

    def predict(self, windows: npt.ArrayLike) -> list[str]:
        """Name of the class predicted for each window; see `predict_proba`."""
        return self.names_of(self.predict_proba(windows))

    def names_of(self, probabilities: npt.NDArray[np.float32]) -> list[str]:
        """Name of the class that each row of probabilities [n, classes] stands for."""
        return [self.class_names[i] for i in decide(probabilities, self.decision_thresholds)]

    def _predict(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        import numpy as np

        found: npt.NDArray[np.float32]
        (found,) = self.session.run(None, {"windows": np.ascontiguousarray(raw, np.float64)})
        if not np.isfinite(found).all():
            raise ValueError("windows hold values that are NaN, infinite or too large for float32")
        return found


def load_onnx_model(folder: str | Path) -> OnnxModel:
    """Load a bundle, as `trainwire download` writes it, for prediction on the CPU.

    Raises:
        MissingExtraError: onnxruntime or NumPy is not installed.
        UnreadableModelError: the folder has no `model.onnx`, or one that cannot be read.
    """
    needed("numpy")
    # It would report to its makers and keep an id of this machine; read when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    runtime = needed("onnxruntime")
    path = Path(folder) / FILE
    if not path.is_file():
        raise UnreadableModelError(
            f"{folder} has no {FILE}; allowed: the folder of a downloaded model (those trained "
            "before 0.3 have none, nor has one whose job warned ONNX_NOT_WRITTEN)"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what matters comes as an exception
    try:
        providers = ["CPUExecutionProvider"]
        session = runtime.InferenceSession(str(path), options, providers=providers)
        facts = session.get_modelmeta().custom_metadata_map
        return OnnxModel(
            class_names=json.loads(facts["class_names"]),
            feature_columns=json.loads(facts["feature_columns"]),
            sequence_length=json.loads(facts["sequence_length"]),
            session=session,
            decision_thresholds=json.loads(facts.get("decision_thresholds", "[]")),
            history=json.loads(facts.get("history", "0")),
        )
    except Exception as error:  # onnxruntime has a dozen kinds, with no base of their own
        raise UnreadableModelError(
            f"cannot read {path}: it is damaged or of another make"
        ) from error


def needed(package: str) -> Any:
    """A module that predicting needs.

    Raises:
        MissingExtraError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"predicting needs {package}, which is not installed; "
            "install it with: pip install 'trainwire[predict]'"
        ) from error

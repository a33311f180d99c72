"""Metrics of a split, counted on the device and read when the split is done."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainwire.v1 import training_pb2

MATRIX_CLASSES = 50
"""Up to this many classes the confusion matrix itself is reported."""


class Tally:
    """Adds up loss and confusion matrix on the device: adding never waits for it, reading does."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._cells = torch.zeros(classes * classes, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, weight: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Args:
            loss, weight: numerator and denominator of the batch's loss, scalars.
            logits: [batch, classes].
            labels: int64 [batch].
        """
        self._loss += loss.detach()
        self._weight += weight
        cells = labels * self._classes + logits.detach().argmax(dim=1)
        self._cells.scatter_add_(0, cells, torch.ones_like(cells))

    def loss(self) -> float:
        """Mean loss so far: sum of the numerators over sum of the denominators."""
        return float(self._loss / self._weight)

    def matrix(self) -> npt.NDArray[np.int64]:
        """Confusion matrix int64 [classes, classes]: row = true class, column = predicted class."""
        cells: npt.NDArray[np.int64] = self._cells.cpu().numpy()
        return cells.reshape(self._classes, self._classes)


def split_metrics(
    loss: float, matrix: npt.NDArray[np.int64], class_names: list[str]
) -> training_pb2.SplitMetrics:
    """Metrics that follow from a confusion matrix, defined as in scikit-learn.

    Balanced accuracy is the mean recall of the classes that occur; macro F1 the mean F1 of those
    that occur or are predicted. A quotient with denominator 0 is 0 (``zero_division=0``).

    Args:
        loss: mean loss over the split.
        matrix: int64 [classes, classes], row = true class, column = predicted class.
        class_names: name of each class.
    """
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    recall = _quotient(hits, support)
    f1 = _quotient(2 * hits, support + predicted)
    columns = (_quotient(hits, predicted), recall, f1, support, predicted / matrix.sum())
    shown = matrix.ravel().tolist() if len(class_names) <= MATRIX_CLASSES else []
    return training_pb2.SplitMetrics(
        loss=loss,
        accuracy=hits.sum() / matrix.sum(),
        balanced_accuracy=recall[support > 0].mean(),
        macro_f1=f1[support + predicted > 0].mean(),
        classes=[
            _class_metrics(name, *(column[i].item() for column in columns))
            for i, name in enumerate(class_names)
        ],
        confusion_matrix=shown,
    )


def _class_metrics(
    name: str, precision: float, recall: float, f1: float, support: int, share: float
) -> training_pb2.ClassMetrics:
    return training_pb2.ClassMetrics(
        name=name,
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        predicted_share=share,
    )


def _quotient(
    above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)

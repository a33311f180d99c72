"""Metrics of a split, counted on the device and read when the split is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.training.ranking import Floats, Rankings, Scores

MATRIX_CLASSES = 50
"""Up to this many classes the confusion matrix and areas under ROC curves are reported."""


class Tally:
    """Adds up loss and confusion matrix on the device: adding never waits for it, reading does.

    Args:
        classes: number of classes.
        device: where all is added up.
        keeps_scores: whether to keep what was said about each window, for up to 50 classes.
    """

    def __init__(self, classes: int, device: torch.device, keeps_scores: bool = False) -> None:
        self._classes = classes
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._cells = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._keeps_scores = keeps_scores and classes <= MATRIX_CLASSES
        self._kept: list[tuple[Tensor, Tensor]] = []

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
        if self._keeps_scores:
            self._kept.append((logits.detach().log_softmax(dim=1), labels))

    def loss(self) -> float:
        """Mean loss so far: sum of the numerators over sum of the denominators."""
        return float(self._loss / self._weight)

    def matrix(self) -> npt.NDArray[np.int64]:
        """Confusion matrix int64 [classes, classes]: row = true class, column = predicted class."""
        cells: npt.NDArray[np.int64] = self._cells.cpu().numpy()
        return cells.reshape(self._classes, self._classes)

    def scores(self) -> Scores:
        """What was said about each window, in the order added; it was kept."""
        said, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*self._kept, strict=True))
        return Scores(said, labels)

    def rankings(self, class_names: list[str]) -> Rankings | None:
        """Rankings of what was said; None if that was not kept."""
        return Rankings(self.scores(), class_names) if self._kept else None


def split_metrics(
    loss: float,
    matrix: npt.NDArray[np.int64],
    class_names: list[str],
    rankings: Rankings | None = None,
) -> training_pb2.SplitMetrics:
    """Metrics of a split, defined as in scikit-learn.

    Balanced accuracy is the mean recall of the classes that occur; macro F1 the mean F1 of those
    that occur or are predicted; the macro area under the ROC curve the mean of those classes that
    occur and are not alone. A quotient with denominator 0 is 0 (``zero_division=0``).

    Args:
        loss: mean loss over the split.
        matrix: int64 [classes, classes], row = true class, column = predicted class.
        class_names: name of each class.
        rankings: areas under ROC curves follow from them, if there are any.
    """
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    columns = (
        _quotient(hits, predicted),
        _quotient(hits, support),
        _quotient(2 * hits, support + predicted),
        support,
        predicted / matrix.sum(),
    )
    found = training_pb2.SplitMetrics(
        loss=loss,
        **{name: values.item() for name, values in summarise(matrix).items()},
        classes=[
            _class_metrics(name, *(column[i].item() for column in columns))
            for i, name in enumerate(class_names)
        ],
        confusion_matrix=matrix.ravel().tolist() if len(class_names) <= MATRIX_CLASSES else [],
    )
    if rankings:
        _add_areas(found, rankings)
    return found


def count_cells(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """Confusion matrix int64 [classes, classes] of windows, int64 [n] each."""
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def summarise(matrices: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """What follows from confusion matrices alone, by fields of `SplitMetrics`.

    The Matthews correlation is that of any number of classes (Gorodkin 2004).

    Args:
        matrices: int64 [..., classes, classes], rows = true classes.

    Returns:
        float64 [...] each.
    """
    hits = matrices.diagonal(axis1=-2, axis2=-1)
    support, predicted = matrices.sum(axis=-1), matrices.sum(axis=-2)
    recall = _quotient(hits, support)
    count = matrices.sum(axis=(-2, -1)).astype(np.float64)
    correct = hits.sum(axis=-1)
    true, said = support.astype(np.float64), predicted.astype(np.float64)
    spread = (count**2 - (true**2).sum(axis=-1)) * (count**2 - (said**2).sum(axis=-1))
    covariance = correct * count - (true * said).sum(axis=-1)
    return {
        "accuracy": correct / count,
        "balanced_accuracy": recall.sum(axis=-1) / (support > 0).sum(axis=-1),
        "macro_f1": macro_f1(hits, support, predicted),
        "matthews_correlation": _quotient(covariance, np.sqrt(spread)),
    }


def macro_f1(
    hits: npt.NDArray[np.int64], support: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> Floats:
    """Mean F1 of the classes that occur or are predicted.

    Args:
        hits, support, predicted: windows of each class recognised, there and predicted, int64
            [..., classes].
    """
    f1 = _quotient(2 * hits, support + predicted)
    mean: Floats = f1.sum(axis=-1) / (support + predicted > 0).sum(axis=-1)
    return mean


def _add_areas(found: training_pb2.SplitMetrics, rankings: Rankings) -> None:
    areas = rankings.areas(np.ones(len(rankings.scores.labels), dtype=np.int64))
    for name, area in areas.summary.items():
        if not np.isnan(area):
            setattr(found, name, float(area))
    for metrics, area in zip(found.classes, areas.classes, strict=True):
        if not np.isnan(area):
            metrics.roc_auc = float(area)


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


def _quotient(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    quotient: Floats = np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
    return quotient

"""Two honest baselines on exactly the windows the server trained and tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split, prepare

Scores = dict[str, float]
"""Macro F1, balanced accuracy and the recall of each class, by name."""


def score_baselines(request: training_pb2.TrainingRequest, table: Path) -> dict[str, Scores]:
    """Scores of both baselines on the test windows of an effective request.

    Args:
        request: an effective request, from a job or a bundle.
        table: the dataset's Arrow file on the server.
    """
    data = prepare(request, table)
    majority = DummyClassifier(strategy="most_frequent")
    majority.fit(flatten(data, data.train), data.train.labels)
    return {
        "majority class": _score(majority, data),
        "logistic regression, balanced": _score(fit_logistic(data), data),
    }


def fit_logistic(data: Prepared) -> LogisticRegression:
    """Fitted on the training windows; its C is the one with the best validation macro F1."""
    rows, truth = flatten(data, data.train), data.train.labels
    held_out = flatten(data, data.validation)
    fitted = [
        LogisticRegression(class_weight="balanced", C=c, max_iter=1000).fit(rows, truth)
        for c in (1e-4, 1e-3, 1e-2, 1e-1)
    ]
    return max(
        fitted,
        key=lambda one: f1_score(data.validation.labels, one.predict(held_out), average="macro"),
    )


def _score(classifier: DummyClassifier | LogisticRegression, data: Prepared) -> Scores:
    predicted = classifier.predict(flatten(data, data.test))
    truth, present = data.test.labels, np.unique(data.test.labels)
    recalls = recall_score(truth, predicted, labels=present, average=None, zero_division=0)
    return {
        "macro F1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "balanced accuracy": float(balanced_accuracy_score(truth, predicted)),
        **{data.class_names[c]: float(r) for c, r in zip(present, recalls, strict=True)},
    }


def flatten(data: Prepared, split: Split) -> npt.NDArray[np.float32]:
    """Windows as rows: float32 [windows, sequence_length * features]."""
    steps = np.arange(data.sequence_length)
    windows: npt.NDArray[np.float32] = data.features[split.starts[:, None] + steps]
    return windows.reshape(len(split.starts), -1)

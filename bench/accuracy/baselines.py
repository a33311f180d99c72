"""What others make of the very windows the server trained and tested on.

The classifiers of `examples/baselines.py`, and gradient boosting. The intervals are those of the
server's own jobs (`trainwire_server.training.intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.accuracy.jobs import Record
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import baselines
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split, prepare
from trainwire_server.training.intervals import bootstrap_intervals
from trainwire_server.training.ranking import Rankings, Scores

TREES = 150
MAJORITY, LOGISTIC, BOOSTING = "majority", "logistic regression", "gradient boosting"
_Probabilities = npt.NDArray[np.floating[Any]]


def score_all(
    part: str, data: str, request: training_pb2.TrainingRequest, table: Path
) -> Iterator[Record]:
    """A record for each baseline.

    Args:
        part, data: what the records belong to.
        request: effective request of a job on this data, for windows, labels and splits.
        table: the data as the server stored them.
    """
    prepared = prepare(request, table)
    block = prepared.sequence_length + request.data.column.horizon
    for model, (validation, test) in _predict_all(prepared).items():
        yield Record(
            part=part,
            data=data,
            model=model,
            variant="",
            seed=0,
            test=_metrics(prepared.test.labels, test),
            validation=_metrics(prepared.validation.labels, validation),
            interval=_interval(prepared, test, block),
            windows=_sizes(prepared),
        )


def _predict_all(data: Prepared) -> dict[str, tuple[_Probabilities, _Probabilities]]:
    """Probabilities of the validation and the test windows, by baseline."""
    held_out = baselines.flatten(data, data.validation), baselines.flatten(data, data.test)
    majority = DummyClassifier(strategy="prior")
    majority.fit(baselines.flatten(data, data.train), data.train.labels)
    found = {}
    for name, model in ((MAJORITY, majority), (LOGISTIC, baselines.fit_logistic(data))):
        found[name] = (model.predict_proba(held_out[0]), model.predict_proba(held_out[1]))
    return found | {BOOSTING: _boost(data)}


def _boost(data: Prepared) -> tuple[_Probabilities, _Probabilities]:
    """As many trees as give the best macro F1 on the validation windows."""
    rows = [baselines.flatten(data, split) for split in (data.train, data.validation, data.test)]
    model = HistGradientBoostingClassifier(
        class_weight="balanced",
        learning_rate=0.05,
        max_iter=TREES,
        max_leaf_nodes=15,
        early_stopping=False,
        random_state=0,
    )
    model.fit(rows[0], data.train.labels)
    staged = zip(
        model.staged_predict_proba(rows[1]), model.staged_predict_proba(rows[2]), strict=True
    )
    return max(staged, key=lambda both: _macro_f1(data.validation, both[0]))


def _macro_f1(split: Split, probabilities: _Probabilities) -> float:
    predicted = probabilities.argmax(axis=1)
    return float(f1_score(split.labels, predicted, average="macro", zero_division=0))


def _metrics(truth: npt.NDArray[np.int64], probabilities: _Probabilities) -> dict[str, float]:
    predicted = probabilities.argmax(axis=1)
    macro_f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    return {
        "accuracy": round(float(accuracy_score(truth, predicted)), 5),
        "balanced_accuracy": round(float(balanced_accuracy_score(truth, predicted)), 5),
        "macro_f1": round(float(macro_f1), 5),
    }


def _interval(data: Prepared, probabilities: _Probabilities, block: int) -> tuple[float, float]:
    # No logarithm of 0: float64 may underflow.
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    scores = Scores(logarithms.astype(np.float32), data.test.labels)
    found = bootstrap_intervals(Rankings(scores, data.class_names), scores.likeliest, block, seed=0)
    interval = next(one for one in found if one.metric == "macro_f1")
    return round(interval.lower, 5), round(interval.upper, 5)


def _sizes(data: Prepared) -> tuple[int, int, int]:
    splits = (data.train, data.validation, data.test)
    train, validation, test = (len(split.labels) for split in splits)
    return train, validation, test

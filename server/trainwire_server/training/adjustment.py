"""What `prediction` makes of a network's answers: a temperature, decision thresholds, or both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.decisions import decide
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure
from trainwire_server.training.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    mean_loss,
)
from trainwire_server.training.metrics import MATRIX_CLASSES, count_cells, split_metrics
from trainwire_server.training.ranking import Rankings, Scores
from trainwire_server.training.thresholds import tune_thresholds

Indices = npt.NDArray[np.int64]
FindIntervals = Callable[[Rankings, Indices], list[training_pb2.MetricInterval]]


def is_wanted(params: training_pb2.PredictionParams) -> bool:
    """Whether anything is to be changed."""
    return params.calibrate_probabilities or params.tune_thresholds


def refuse_many_classes(params: training_pb2.PredictionParams, classes: int) -> None:
    """Refuse what is asked for of more classes than answers are kept of.

    Raises:
        JobFailure: TOO_MANY_CLASSES, naming the fields.
    """
    if classes <= MATRIX_CLASSES:
        return
    names = ("calibrate_probabilities", "tune_thresholds")
    wanted = [f"prediction.{name}" for name in names if getattr(params, name)]
    if wanted:
        message = f"{' and '.join(wanted)} take up to {MATRIX_CLASSES} classes; there are {classes}"
        fields = tuple(Violation(path, f"allowed for {classes} classes: false") for path in wanted)
        raise JobFailure(training_pb2.FAILURE_REASON_TOO_MANY_CLASSES, message, fields)


def adjust(
    params: training_pb2.PredictionParams,
    validation: Scores,
    test: Scores,
    class_names: list[str],
    find_intervals: FindIntervals,
    stop_if_cancelled: Callable[[], object] = lambda: None,
) -> training_pb2.AdjustedPrediction:
    """Fit what is wanted to the validation split, and measure it on both.

    Thresholds are those of calibrated probabilities where both are wanted.

    Args:
        params: what is wanted.
        validation, test: what the network said about the two splits.
        class_names: name of each class.
        find_intervals: intervals of the test metrics.
        stop_if_cancelled: called before each step that takes long; raises to stop.
    """
    found = training_pb2.AdjustedPrediction()
    if params.calibrate_probabilities:
        found.temperature = fit_temperature(validation)
        found.calibration_error.before = calibration_error(test)
        validation, test = (calibrate(said, found.temperature) for said in (validation, test))
        found.calibration_error.after = calibration_error(test)
    if params.tune_thresholds:
        found.decision_thresholds.extend(tune_thresholds(validation, stop_if_cancelled).tolist())
    known, unseen = (Rankings(said, class_names) for said in (validation, test))
    predicted = _decide(test, found)
    found.validation.CopyFrom(_measure(known, _decide(validation, found), class_names))
    found.test.CopyFrom(_measure(unseen, predicted, class_names))
    stop_if_cancelled()
    found.test_intervals.extend(find_intervals(unseen, predicted))
    return found


def _decide(scores: Scores, found: training_pb2.AdjustedPrediction) -> Indices:
    probabilities = np.exp(scores.log_probabilities.astype(np.float64))
    return decide(probabilities, found.decision_thresholds)


def _measure(
    rankings: Rankings, predicted: Indices, class_names: list[str]
) -> training_pb2.SplitMetrics:
    scores = rankings.scores
    matrix = count_cells(scores.labels, predicted, len(class_names))
    return split_metrics(mean_loss(scores), matrix, class_names, rankings)

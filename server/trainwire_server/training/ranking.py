"""How well a network ranks windows: areas under ROC curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire_server.data.labels import RETURN_CLASSES


@dataclass(frozen=True)
class Scores:
    """What a network said about the windows of a split, in order.

    Attributes:
        log_probabilities: float32 [n, classes].
        labels: int64 [n], the true classes.
    """

    log_probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class Ranking:
    """Windows by one score, lowest first: areas under its ROC curve for any weights of theirs.

    Args:
        scores: float32 [n].
        positive: bool [n], windows that should score high.
        negative: bool [n], windows that should score low; what is neither does not count.
    """

    def __init__(
        self,
        scores: npt.NDArray[np.float32],
        positive: npt.NDArray[np.bool_],
        negative: npt.NDArray[np.bool_],
    ) -> None:
        self._order = np.argsort(scores, kind="stable")
        self._positive, self._negative = positive[self._order], negative[self._order]
        ordered = scores[self._order]
        # Where other scores begin: in which order equal ones lie must not count.
        self._ties = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))

    def area(self, weights: npt.NDArray[np.int64]) -> float:
        """Chance that a positive scores above a negative, ties counting half; NaN without either.

        Mann and Whitney 1947. Whole weights count as if each window were there so often.

        Args:
            weights: int64 [n], in the order of the scores given.
        """
        ordered = weights[self._order]
        positive = np.add.reduceat(ordered * self._positive, self._ties)
        negative = np.add.reduceat(ordered * self._negative, self._ties)
        pairs = float(positive.sum()) * float(negative.sum())
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum()) / pairs if pairs else float("nan")


class Rankings:
    """All rankings of a split.

    Args:
        scores: of its windows.
        class_names: name of each class.
    """

    def __init__(self, scores: Scores, class_names: Sequence[str]) -> None:
        self._classes = [
            Ranking(column, scores.labels == index, scores.labels != index)
            for index, column in enumerate(scores.log_probabilities.T)
        ]
        self._market = _rank_market(scores, class_names)

    def class_areas(self, weights: npt.NDArray[np.int64]) -> list[float]:
        """Each class against all others; NaN for one that does not occur, or alone.

        Args:
            weights: int64 [n], how often each window counts.
        """
        return [ranking.area(weights) for ranking in self._classes]

    def areas(self, weights: npt.NDArray[np.int64]) -> dict[str, float]:
        """By fields of `SplitMetrics`; without those that nothing can be said about.

        `roc_auc` is the mean of the classes that an area exists for; direction and movement exist
        for the classes SELL, HOLD and BUY alone.

        Args:
            weights: int64 [n], how often each window counts.
        """
        classes = [area for area in self.class_areas(weights) if not math.isnan(area)]
        found = {name: ranking.area(weights) for name, ranking in self._market.items()}
        if classes:
            found["roc_auc"] = sum(classes) / len(classes)
        return {name: area for name, area in found.items() if not math.isnan(area)}


def _rank_market(scores: Scores, class_names: Sequence[str]) -> dict[str, Ranking]:
    """Direction: of windows that are SELL or BUY, which is likelier. Movement: is HOLD unlikely."""
    if sorted(class_names) != sorted(RETURN_CLASSES):
        return {}
    sell, hold, buy = (
        scores.log_probabilities[:, class_names.index(name)] for name in RETURN_CLASSES
    )
    is_sell, is_hold, is_buy = (scores.labels == class_names.index(name) for name in RETURN_CLASSES)
    return {
        "direction_roc_auc": Ranking(buy - sell, is_buy, is_sell),
        "movement_roc_auc": Ranking(-hold, ~is_hold, is_hold),
    }

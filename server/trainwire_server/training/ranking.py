"""How well a network ranks windows: areas under ROC curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire_server.data.labels import RETURN_CLASSES

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a network said about the windows of a split, in order.

    Attributes:
        log_probabilities: float32 [n, classes].
        labels: int64 [n], the true classes.
    """

    log_probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def likeliest(self) -> npt.NDArray[np.int64]:
        """The most probable class of each window, int64 [n]."""
        found: npt.NDArray[np.int64] = self.log_probabilities.argmax(axis=1)
        return found


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

    def area(self, weights: npt.NDArray[np.int64]) -> Floats:
        """Chance that a positive scores above a negative, ties counting half; NaN without either.

        Mann and Whitney 1947. Whole weights count as if each window were there so often.

        Args:
            weights: int64 [..., n], in the order of the scores given.

        Returns:
            float64 [...].
        """
        ordered = weights[..., self._order]
        positive = np.add.reduceat(ordered * self._positive, self._ties, axis=-1)
        negative = np.add.reduceat(ordered * self._negative, self._ties, axis=-1)
        pairs = positive.sum(axis=-1).astype(np.float64) * negative.sum(axis=-1)
        below = np.cumsum(negative, axis=-1) - negative
        won = (positive * (below + negative / 2)).sum(axis=-1)
        area: Floats = np.divide(won, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)
        return area


@dataclass(frozen=True)
class Areas:
    """Areas under the ROC curves of a split.

    Attributes:
        classes: float64 [...] for each class against all others; NaN where it does not occur, or
            alone.
        summary: float64 [...] by fields of `SplitMetrics`, NaN where nothing can be said: `roc_auc`
            is the mean of the classes that an area exists for; direction and movement are there for
            the classes SELL, HOLD and BUY alone.
    """

    classes: list[Floats]
    summary: dict[str, Floats]


class Rankings:
    """All rankings of a split.

    Args:
        scores: of its windows; also an attribute.
        class_names: name of each class.
    """

    def __init__(self, scores: Scores, class_names: Sequence[str]) -> None:
        self.scores = scores
        self._classes = [
            Ranking(column, scores.labels == index, scores.labels != index)
            for index, column in enumerate(scores.log_probabilities.T)
        ]
        self._market = _rank_market(scores, class_names)

    def areas(self, weights: npt.NDArray[np.int64]) -> Areas:
        """Areas for any weights of the windows.

        Args:
            weights: int64 [..., n], how often each window counts.
        """
        classes = [ranking.area(weights) for ranking in self._classes]
        found = {name: ranking.area(weights) for name, ranking in self._market.items()}
        return Areas(classes, found | {"roc_auc": _mean_of_known(np.stack(classes))})


def _mean_of_known(areas: Floats) -> Floats:
    """Mean over the first axis of what is not NaN."""
    known = ~np.isnan(areas)
    count = known.sum(axis=0)
    mean = np.where(known, areas, 0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


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

"""Decision thresholds that give the best macro F1 on windows that were not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainwire.decisions import decide
from trainwire_server.training.metrics import count_cells, macro_f1, summarise
from trainwire_server.training.ranking import Scores

_PASSES = 10
_CUTS = 1_000
"""Most thresholds of a class that are tried in a pass."""
_GAP = 1e-5
"""Between logarithms of two windows' ratios: less might be decided by rounding."""
_LIMIT = math.log(1e6)
"""Of a threshold's logarithm, relative to no threshold."""
_GAIN = 1e-9

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def tune_thresholds(
    scores: Scores, stop_if_cancelled: Callable[[], object] = lambda: None
) -> Floats:
    """A threshold for each class; predicted is the class with the largest probability / threshold.

    Coordinate search: class by class, the threshold with the best macro F1 while the others stay,
    until a pass gains nothing. Candidates lie halfway between windows; of equal ones the nearest to
    the present one is taken, and the present one stays unless another gains. A class that does not
    occur keeps its own. The result is never worse on these windows than the likeliest class.

    Args:
        scores: of windows that were not trained on.
        stop_if_cancelled: called before each class; raises to stop.

    Returns:
        float64 [classes], adding up to 1; all equal where nothing is gained.
    """
    ratios = scores.log_probabilities.astype(np.float64)
    count = ratios.shape[1]
    equal, offsets = np.full(count, 1 / count), np.zeros(count)
    best = _score(scores, equal)
    for _ in range(_PASSES):
        before = best
        for index in np.unique(scores.labels):
            stop_if_cancelled()
            cut, score = _best_cut(ratios, scores.labels, index, offsets[index])
            if score > best + _GAIN:
                offsets[index] += cut
                ratios[:, index] -= cut
                best = score
        if best == before:
            break
    tuned = np.exp(offsets) / np.exp(offsets).sum()
    return tuned if _score(scores, tuned) > _score(scores, equal) else equal


def _score(scores: Scores, thresholds: Floats) -> float:
    predicted = decide(np.exp(scores.log_probabilities.astype(np.float64)), thresholds)
    matrix = count_cells(scores.labels, predicted, len(thresholds))
    return float(summarise(matrix)["macro_f1"])


def _best_cut(ratios: Floats, labels: Indices, index: int, offset: float) -> tuple[float, float]:
    """How much to move the threshold of one class, and the macro F1 that this gives.

    Args:
        ratios: float64 [n, classes], logarithms of probability / threshold; left as they are.
        labels: int64 [n].
        index: of the class.
        offset: logarithm of its present threshold.

    Returns:
        (0, 0) if no two windows differ by enough.
    """
    own = ratios[:, index].copy()
    ratios[:, index] = -np.inf
    rivals = ratios.argmax(axis=1)
    leads = own - ratios[np.arange(len(labels)), rivals]
    ratios[:, index] = own
    cuts = _find_cuts(leads)
    cuts = cuts[np.abs(offset + cuts) <= _LIMIT]
    if not len(cuts):
        return 0.0, 0.0
    scores = _scores_at(cuts, leads, rivals, labels, index, ratios.shape[1])
    equal = cuts[scores > scores.max() - _GAIN]
    return float(equal[np.abs(equal).argmin()]), float(scores.max())


def _find_cuts(leads: Floats) -> Floats:
    """Ascending, halfway between neighbouring leads; spread evenly if there are many."""
    ordered = np.unique(leads)
    wide = np.diff(ordered) > _GAP
    cuts: Floats = ((ordered[1:] + ordered[:-1]) / 2)[wide]
    if len(cuts) <= _CUTS:
        return cuts
    return cuts[np.linspace(0, len(cuts) - 1, _CUTS).astype(np.int64)]


def _scores_at(
    cuts: Floats, leads: Floats, rivals: Indices, labels: Indices, index: int, count: int
) -> Floats:
    """Macro F1 for each cut: windows that lead by more are of the class, others of its rival.

    Args:
        cuts: float64 [cuts], ascending.
        leads: float64 [n], of the class over its likeliest rival.
        rivals: int64 [n], which that is.
        labels: int64 [n].
        index: of the class.
        count: number of classes.
    """
    places = np.searchsorted(cuts, leads)

    def count_up_to_cuts(classes: Indices, chosen: npt.NDArray[np.bool_]) -> Indices:
        """Windows chosen, by class, that lead by no more than each cut: int64 [cuts, classes]."""
        cells = places[chosen] * count + classes[chosen]
        counts = np.bincount(cells, minlength=(len(cuts) + 1) * count)
        return counts.reshape(-1, count).cumsum(axis=0)[:-1]

    predicted = count_up_to_cuts(rivals, np.ones(len(labels), dtype=np.bool_))
    hits = count_up_to_cuts(rivals, rivals == labels)
    is_own = labels == index
    predicted[:, index] = len(labels) - predicted.sum(axis=1)
    hits[:, index] = is_own.sum() - count_up_to_cuts(labels, is_own)[:, index]
    return macro_f1(hits, np.bincount(labels, minlength=count), predicted)

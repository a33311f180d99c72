"""Where test metrics may well lie on other data of the same kind."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2
from trainwire_server.training.metrics import summarise
from trainwire_server.training.ranking import Rankings, Scores

LEVEL = 0.9
_MOST, _FEWEST = 1_000, 200
# Windows times classes times resamples: about a second.
_BUDGET = 20_000_000


def bootstrap_intervals(
    scores: Scores, class_names: list[str], block: int, seed: int
) -> list[training_pb2.MetricInterval]:
    """Percentile intervals by a moving-block bootstrap (Kuensch 1989).

    Neighbouring windows share rows, so they are drawn in blocks, as long as windows and labels
    overlap or the cube root of the number of windows, whichever is longer. 200 to 1,000 resamples,
    the fewer the more windows there are.

    Args:
        scores: of the windows of a split in time order, one series after the other.
        class_names: name of each class.
        block: windows that a row is part of, with the rows their labels look ahead to.
        seed: of the resamples.

    Returns:
        One for each metric that exists; none for fewer than two blocks of windows.
    """
    count = len(scores.labels)
    block = max(block, round(count ** (1 / 3)))
    if count < 2 * block:
        return []
    rankings, classes = Rankings(scores, class_names), len(class_names)
    cells = scores.labels * classes + scores.log_probabilities.argmax(axis=1)
    resamples = int(np.clip(_BUDGET // (count * classes), _FEWEST, _MOST))
    found: dict[str, list[float]] = defaultdict(list)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        weights = _draw_blocks(count, block, rng)
        # Exact: the sums are far below 2^53.
        matrix = np.bincount(cells, weights, classes**2).astype(np.int64).reshape(classes, classes)
        areas = rankings.areas(weights)
        for name, value in (summarise(matrix) | areas).items():
            found[name].append(float(value))
    return [_interval(name, np.array(values)) for name, values in sorted(found.items())]


def _draw_blocks(count: int, block: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each of `count` windows is drawn, `count` of them in all."""
    starts = rng.integers(0, count - block + 1, size=-(-count // block))
    drawn = (starts[:, None] + np.arange(block)).ravel()[:count]
    return np.bincount(drawn, minlength=count)


def _interval(name: str, values: npt.NDArray[np.float64]) -> training_pb2.MetricInterval:
    lower, upper = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return training_pb2.MetricInterval(metric=name, lower=lower, upper=upper, level=LEVEL)

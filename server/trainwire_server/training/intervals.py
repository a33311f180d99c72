"""Where test metrics may well lie on other data of the same kind."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.data.targets import find_target
from trainwire_server.training.metrics import summarise
from trainwire_server.training.ranking import Floats, Rankings

LEVEL = 0.9
_MOST, _FEWEST = 1_000, 200
# Windows times classes times resamples: about a second.
_BUDGET = 20_000_000
# Windows times resamples: small arrays, so that they stay in a cache, but few loops.
_AT_ONCE = 20_000


def rows_reached(request: training_pb2.TrainingRequest, prepared: Prepared) -> int:
    """Rows that a window and its label are made of: two that begin closer together share some.

    With what rolling scaling and a label's volatility look back to, and what labels look ahead to.

    Args:
        request: effective parameters (`contract.resolve`).
    """
    target = find_target(request)
    before = max(prepared.history + prepared.sequence_length, target.volatility_window + 1)
    return before + target.horizon


def bootstrap_intervals(
    rankings: Rankings, predicted: npt.NDArray[np.int64], block: int, seed: int
) -> list[training_pb2.MetricInterval]:
    """Percentile intervals by a moving-block bootstrap (Kuensch 1989).

    Neighbouring windows share rows, so they are drawn in blocks, as long as windows and labels
    overlap or the cube root of the number of windows, whichever is longer. 200 to 1,000 resamples,
    the fewer the more windows there are.

    Args:
        rankings: of the windows of a split in time order, one series after the other.
        predicted: int64 [n], the class predicted for each.
        block: windows that a row is part of; see `rows_reached`.
        seed: of the resamples.

    Returns:
        One for each metric that exists; none for fewer than two blocks of windows.
    """
    count, classes = rankings.scores.log_probabilities.shape
    block = max(block, round(count ** (1 / 3)))
    if count < 2 * block:
        return []
    cells = rankings.scores.labels * classes + predicted
    resamples = int(np.clip(_BUDGET // (count * classes), _FEWEST, _MOST))
    found: dict[str, list[Floats]] = defaultdict(list)
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // count)
    for first in range(0, resamples, at_once):
        weights = _draw_blocks(min(at_once, resamples - first), count, block, rng)
        matrices = _count_cells(weights, cells, classes**2).reshape(-1, classes, classes)
        for name, values in (summarise(matrices) | rankings.areas(weights).summary).items():
            found[name].append(values[~np.isnan(values)])
    collected = {name: np.concatenate(parts) for name, parts in sorted(found.items())}
    return [_interval(name, values) for name, values in collected.items() if len(values)]


def _draw_blocks(
    resamples: int, count: int, block: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How often each of `count` windows is drawn, `count` of them in all: [resamples, count]."""
    starts = rng.integers(0, count - block + 1, size=(resamples, -(-count // block)))
    drawn = (starts[..., None] + np.arange(block)).reshape(resamples, -1)[:, :count]
    return _count_cells(np.ones_like(drawn), drawn, count)


def _count_cells(
    weights: npt.NDArray[np.int64], cells: npt.NDArray[np.int64], number: int
) -> npt.NDArray[np.int64]:
    """Sum of the weights [resamples, n] of each of `number` cells: [resamples, number]."""
    own = cells + number * np.arange(len(weights))[:, None]
    # Exact: the sums are far below 2^53.
    sums = np.bincount(own.ravel(), weights.ravel(), number * len(weights))
    return sums.astype(np.int64).reshape(len(weights), number)


def _interval(name: str, values: Floats) -> training_pb2.MetricInterval:
    lower, upper = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return training_pb2.MetricInterval(metric=name, lower=lower, upper=upper, level=LEVEL)

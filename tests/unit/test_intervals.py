"""Block-bootstrap intervals of test metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.training.intervals import LEVEL, bootstrap_intervals, rows_reached
from trainwire_server.training.ranking import Rankings, Scores

NAMES = ["a", "b"]
ALL = ["accuracy", "balanced_accuracy", "macro_f1", "matthews_correlation", "roc_auc"]


def find_intervals(scores: Scores, block: int, seed: int = 1) -> list[training_pb2.MetricInterval]:
    return bootstrap_intervals(Rankings(scores, NAMES), scores.likeliest, block, seed)


def make_scores(hits: np.ndarray, seed: int = 0) -> Scores:
    """Two classes of which some windows are recognised."""
    labels = np.random.default_rng(seed).integers(0, 2, len(hits))
    said = np.where(hits, labels, 1 - labels)
    return Scores(np.log(np.where(np.eye(2)[said] > 0, 0.9, 0.1)).astype(np.float32), labels)


def width(intervals: list[training_pb2.MetricInterval], metric: str = "accuracy") -> float:
    (found,) = (each for each in intervals if each.metric == metric)
    return found.upper - found.lower


def test_independent_windows_give_the_binomial_interval() -> None:
    hits = np.random.default_rng(1).random(4_000) < 0.7
    intervals = find_intervals(make_scores(hits), 1)
    assert [each.metric for each in intervals] == ALL
    assert all(each.lower < each.upper for each in intervals)
    assert {each.level for each in intervals} == {LEVEL}
    expected = 2 * 1.645 * (0.7 * 0.3 / 4_000) ** 0.5
    assert width(intervals) == pytest.approx(expected, rel=0.15)


def test_windows_that_overlap_widen_it() -> None:
    # Forty windows at a time are right or wrong together.
    hits = np.repeat(np.random.default_rng(1).random(100) < 0.7, 40)
    scores = make_scores(hits)
    alone = find_intervals(scores, 1)
    blocks = find_intervals(scores, 40)
    expected = 2 * 1.645 * (0.7 * 0.3 / 100) ** 0.5
    assert width(blocks) == pytest.approx(expected, rel=0.3)
    assert width(blocks) > 1.3 * width(alone)


def test_it_contains_the_metric_and_follows_from_the_seed() -> None:
    hits = np.random.default_rng(2).random(500) < 0.6
    scores = make_scores(hits)
    first, again, other = (find_intervals(scores, 5, seed) for seed in (1, 1, 2))
    accuracy = next(each for each in first if each.metric == "accuracy")
    assert accuracy.lower < hits.mean() < accuracy.upper
    assert first == again != other


@pytest.mark.parametrize(("count", "known"), [(19, False), (20, True)])
def test_fewer_than_two_blocks_say_nothing(count: int, known: bool) -> None:
    scores = make_scores(np.arange(count) % 3 > 0)
    assert bool(find_intervals(scores, 10)) == known


@pytest.mark.parametrize(
    ("history", "target", "rows"),
    [
        (0, {"data.column.name": "y", "data.column.horizon": "5"}, 8 + 5),
        (119, {"data.column.name": "y", "data.column.horizon": "5"}, 119 + 8 + 5),
        (0, {"data.quantile.volatility_window": "20", "data.quantile.horizon": "3"}, 21 + 3),
        (19, {"data.triple_barrier.volatility_window": "20"}, 19 + 8 + 5),
        (0, {"data.triple_barrier.volatility_window": "7"}, 8 + 5),
    ],
)
def test_blocks_are_as_long_as_windows_share_rows(
    history: int, target: dict[str, str], rows: int, make_prepared: Callable[..., Any]
) -> None:
    request = training_pb2.TrainingRequest(dataset="datasets/x")
    for path, text in target.items():
        contract.assign(request, path, text)
    prepared = replace(make_prepared(), history=history)
    assert rows_reached(contract.resolve(request), prepared) == rows

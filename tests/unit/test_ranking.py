"""Areas under ROC curves against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from trainwire_server.training.ranking import Ranking, Rankings, Scores

# Few different scores, so that many are equal.
windows = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2)


@given(windows)
def test_areas_are_scikit_learns_with_and_without_weights(
    drawn: list[tuple[int, bool, int]],
) -> None:
    scores = np.array([score for score, _, _ in drawn], dtype=np.float32)
    positive = np.array([high for _, high, _ in drawn])
    ranking = Ranking(scores, positive, ~positive)
    for weights in (np.ones(len(drawn), dtype=np.int64), np.array([w for _, _, w in drawn])):
        area = ranking.area(weights)
        if len(set(positive[weights > 0].tolist())) < 2:
            assert math.isnan(area)
        else:
            expected = roc_auc_score(positive, scores, sample_weight=weights)
            assert area == pytest.approx(expected)


def make_scores(classes: int, count: int = 300, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 0.7 * np.eye(classes)[labels]
    likelihoods = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scores(np.log(likelihoods).astype(np.float32), labels)


def test_the_macro_area_is_scikit_learns_one_against_the_rest() -> None:
    scores, names = make_scores(4), ["a", "b", "c", "d"]
    rankings, once = Rankings(scores, names), np.ones(300, dtype=np.int64)
    probabilities = np.exp(scores.log_probabilities.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = roc_auc_score(scores.labels, probabilities, multi_class="ovr")
    assert rankings.areas(once) == {"roc_auc": pytest.approx(expected)}
    assert np.mean(rankings.class_areas(once)) == pytest.approx(expected)


def test_a_class_that_does_not_occur_leaves_the_mean_alone() -> None:
    scores = make_scores(3)
    seen = Scores(scores.log_probabilities, np.minimum(scores.labels, 1))
    rankings, once = Rankings(seen, ["a", "b", "c"]), np.ones(300, dtype=np.int64)
    first, second, third = rankings.class_areas(once)
    assert math.isnan(third)
    assert rankings.areas(once)["roc_auc"] == pytest.approx((first + second) / 2)


def test_a_single_class_has_no_areas() -> None:
    scores = Scores(make_scores(2).log_probabilities, np.zeros(300, dtype=np.int64))
    assert Rankings(scores, ["a", "b"]).areas(np.ones(300, dtype=np.int64)) == {}


@pytest.mark.parametrize("names", [["BUY", "HOLD", "SELL"], ["SELL", "HOLD", "BUY"]])
def test_direction_and_movement_are_asked_of_the_windows_they_are_about(names: list[str]) -> None:
    scores = make_scores(3)
    found = Rankings(scores, names).areas(np.ones(300, dtype=np.int64))
    labels = np.array(names)[scores.labels]
    likelihood = {n: np.exp(scores.log_probabilities[:, i]) for i, n in enumerate(names)}
    moved = labels != "HOLD"
    buy_share = likelihood["BUY"] / (likelihood["BUY"] + likelihood["SELL"])
    direction = roc_auc_score(labels[moved] == "BUY", buy_share[moved])
    assert found["direction_roc_auc"] == pytest.approx(direction)
    assert found["movement_roc_auc"] == pytest.approx(roc_auc_score(moved, 1 - likelihood["HOLD"]))

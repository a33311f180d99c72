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
    found = rankings.areas(once)
    assert {name: float(area) for name, area in found.summary.items()} == {
        "roc_auc": pytest.approx(expected)
    }
    assert np.mean(found.classes) == pytest.approx(expected)


def test_a_class_that_does_not_occur_leaves_the_mean_alone() -> None:
    scores = make_scores(3)
    seen = Scores(scores.log_probabilities, np.minimum(scores.labels, 1))
    rankings, once = Rankings(seen, ["a", "b", "c"]), np.ones(300, dtype=np.int64)
    found = rankings.areas(once)
    first, second, third = found.classes
    assert math.isnan(third)
    assert found.summary["roc_auc"] == pytest.approx((first + second) / 2)


def test_a_single_class_has_no_areas() -> None:
    scores = Scores(make_scores(2).log_probabilities, np.zeros(300, dtype=np.int64))
    found = Rankings(scores, ["a", "b"]).areas(np.ones(300, dtype=np.int64))
    assert np.isnan([*found.classes, found.summary["roc_auc"]]).all()


def test_many_weights_at_once_are_each_by_itself() -> None:
    scores, rng = make_scores(3), np.random.default_rng(3)
    rankings = Rankings(scores, ["SELL", "HOLD", "BUY"])
    weights = rng.integers(0, 3, (5, 300))
    # The windows of one class do not count: nothing can be said of it there, and there alone.
    weights[1, scores.labels == 2] = 0
    together = rankings.areas(weights)
    for number, each in enumerate(weights):
        alone = rankings.areas(each)
        for name, areas in together.summary.items():
            np.testing.assert_array_equal(areas[number], alone.summary[name])
        np.testing.assert_array_equal([a[number] for a in together.classes], alone.classes)
    assert np.isnan(together.classes[2]).tolist() == [False, True, False, False, False]
    assert not np.isnan(together.summary["roc_auc"]).any()


@pytest.mark.parametrize("names", [["BUY", "HOLD", "SELL"], ["SELL", "HOLD", "BUY"]])
def test_direction_and_movement_are_asked_of_the_windows_they_are_about(names: list[str]) -> None:
    scores = make_scores(3)
    found = Rankings(scores, names).areas(np.ones(300, dtype=np.int64)).summary
    labels = np.array(names)[scores.labels]
    likelihood = {n: np.exp(scores.log_probabilities[:, i]) for i, n in enumerate(names)}
    moved = labels != "HOLD"
    buy_share = likelihood["BUY"] / (likelihood["BUY"] + likelihood["SELL"])
    direction = roc_auc_score(labels[moved] == "BUY", buy_share[moved])
    assert found["direction_roc_auc"] == pytest.approx(direction)
    assert found["movement_roc_auc"] == pytest.approx(roc_auc_score(moved, 1 - likelihood["HOLD"]))

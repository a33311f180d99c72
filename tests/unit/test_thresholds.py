"""Decision thresholds: what they do to predictions, and that they never make validation worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from trainwire.decisions import decide
from trainwire_server.training.ranking import Scores
from trainwire_server.training.thresholds import tune_thresholds

# Few different values, so that many windows are equal.
windows = st.lists(
    st.tuples(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


def make_scores(weights: list[list[int]], labels: list[int]) -> Scores:
    chances = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
    return Scores(np.log(chances).astype(np.float32), np.array(labels))


def macro_f1(scores: Scores, thresholds: list[float] | None = None) -> float:
    predicted = decide(np.exp(scores.log_probabilities), thresholds or [])
    return float(f1_score(scores.labels, predicted, average="macro", zero_division=0))


def test_the_class_is_that_of_the_largest_ratio() -> None:
    eighths = np.array([[4, 2, 2], [1, 3, 4], [3, 3, 2]], dtype=np.float32) / 8
    assert decide(eighths).tolist() == [0, 2, 0]
    assert decide(eighths, [0.5, 0.375, 0.125]).tolist() == [2, 2, 2]
    assert decide(eighths, [0.25, 0.125, 0.625]).tolist() == [0, 1, 1]
    close = np.array([[0.3, np.nextafter(np.float32(0.3), 1, dtype=np.float32)]], dtype=np.float32)
    assert decide(close, [0.5, 0.5]).tolist() == [1]


def test_of_two_classes_it_is_the_probability_above_which_one_is_predicted() -> None:
    weights = [[9, 1], [8, 2], [7, 3], [65, 35], [6, 4], [55, 45]]
    scores = make_scores(weights, [0, 0, 0, 1, 1, 1])
    first, second = tune_thresholds(scores)
    assert 0.3 < second < 0.35
    assert first + second == pytest.approx(1)
    # Halfway between the two windows, in logarithms of the odds.
    assert np.log(second / first) == pytest.approx((np.log(3 / 7) + np.log(35 / 65)) / 2, abs=1e-6)
    assert macro_f1(scores) == pytest.approx(1 / 3)
    assert macro_f1(scores, [first, second]) == 1


@given(windows)
def test_they_are_never_worse_than_the_likeliest_class(
    drawn: list[tuple[list[int], int]],
) -> None:
    scores = make_scores([weights for weights, _ in drawn], [label for _, label in drawn])
    found = tune_thresholds(scores)
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0
    before, after = macro_f1(scores), macro_f1(scores, found.tolist())
    if len(set(found.tolist())) > 1:
        assert after > before
    else:
        assert after == before


@given(windows)
def test_of_two_classes_none_is_better(drawn: list[tuple[list[int], int]]) -> None:
    scores = make_scores([weights[:2] for weights, _ in drawn], [label % 2 for _, label in drawn])
    odds = np.unique(scores.log_probabilities[:, 1] - scores.log_probabilities[:, 0])
    limits = 1 / (1 + np.exp(-(odds[1:] + odds[:-1]) / 2))
    every = [macro_f1(scores, [1 - limit, limit]) for limit in limits]
    # Those that predict one class alone are not tried: nothing says where they should lie.
    best = max([macro_f1(scores), *every])
    assert macro_f1(scores, tune_thresholds(scores).tolist()) == pytest.approx(best)


def test_it_can_be_stopped_before_each_class() -> None:
    scores = make_scores([[9, 1], [8, 2], [7, 3], [6, 4]], [0, 0, 1, 1])
    asked = iter([False, True])

    def stop_if_cancelled() -> None:
        if next(asked):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tune_thresholds(scores, stop_if_cancelled)


def test_a_class_that_does_not_occur_keeps_its_threshold() -> None:
    # A higher one would mend the last two but one, and say that the class is never to be expected.
    weights = [*[[5, 4, 1]] * 3, *[[4, 5, 1]] * 3, [3, 1, 6], [1, 3, 6], [1, 1, 18]]
    scores = make_scores(weights, [0, 0, 0, 1, 1, 1, 0, 1, 0])
    assert tune_thresholds(scores).tolist() == [1 / 3] * 3
    # Where it occurs there is something to learn.
    assert tune_thresholds(make_scores(weights, [0, 0, 0, 1, 1, 1, 0, 1, 2]))[2] > 0.5


def test_a_rare_class_gains_on_windows_that_were_not_looked_at() -> None:
    def draw(seed: int) -> Scores:
        """Calibrated answers: one window in twelve is of the second class, seldom the likelier."""
        rng = np.random.default_rng(seed)
        labels = (rng.random(3_000) < 1 / 12).astype(np.int64)
        logits = 1.5 * rng.normal(size=3_000) + 2.25 * labels - np.log(11) - 1.125
        chances = 1 / (1 + np.exp(-logits))
        return Scores(np.log([1 - chances, chances]).T.astype(np.float32), labels)

    validation, test = draw(0), draw(1)
    found = tune_thresholds(validation).tolist()
    assert found[1] < 0.4
    assert macro_f1(test, found) > macro_f1(test) + 0.03


def test_the_same_windows_give_the_same_thresholds() -> None:
    rng = np.random.default_rng(3)
    scores = make_scores(rng.integers(1, 100, (500, 5)).tolist(), rng.integers(0, 5, 500).tolist())
    first, again = tune_thresholds(scores), tune_thresholds(scores)
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) > 1

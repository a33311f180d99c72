"""Metrics against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from trainwire_server.training.metrics import Tally, split_metrics

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)
CPU = torch.device("cpu")


def tally_of(true: list[int], predicted: list[int], classes: int, batch: int = 7) -> Tally:
    tally = Tally(classes, CPU)
    for i in range(0, len(true), batch):
        labels = torch.tensor(true[i : i + batch])
        logits = torch.eye(classes)[predicted[i : i + batch]]
        tally.add(torch.tensor(2.0 * len(labels)), torch.tensor(len(labels)), logits, labels)
    return tally


@given(pairs)
def test_metrics_are_scikit_learns(drawn: list[tuple[int, int]]) -> None:
    true, predicted = [a for a, _ in drawn], [b for _, b in drawn]
    names = [f"c{i}" for i in range(5)]
    matrix = tally_of(true, predicted, 5).matrix()
    found = split_metrics(0.5, matrix, names)

    assert matrix.tolist() == sk.confusion_matrix(true, predicted, labels=range(5)).tolist()
    assert list(found.confusion_matrix) == matrix.ravel().tolist()
    assert found.accuracy == pytest.approx(sk.accuracy_score(true, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted but do not occur
        balanced = sk.balanced_accuracy_score(true, predicted)
        correlation = sk.matthews_corrcoef(true, predicted)
    assert found.balanced_accuracy == pytest.approx(balanced)
    f1 = sk.f1_score(true, predicted, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(f1)
    assert found.matthews_correlation == pytest.approx(correlation, abs=1e-12)
    assert not found.HasField("roc_auc")
    table = sk.precision_recall_fscore_support(true, predicted, labels=range(5), zero_division=0)
    for i, row in enumerate(found.classes):
        assert (row.name, row.support) == (names[i], table[3][i])
        assert (row.precision, row.recall, row.f1) == pytest.approx([t[i] for t in table[:3]])
        assert row.predicted_share == pytest.approx(np.mean(np.array(predicted) == i))


@given(pairs, st.integers(1, 60))
def test_batches_add_up(drawn: list[tuple[int, int]], batch: int) -> None:
    true, predicted = [a for a, _ in drawn], [b for _, b in drawn]
    tally = tally_of(true, predicted, 5, batch)
    assert tally.loss() == 2.0
    assert tally.matrix().tolist() == tally_of(true, predicted, 5, len(drawn)).matrix().tolist()


def test_the_loss_is_weighted_by_the_denominators() -> None:
    tally = Tally(2, CPU)
    for above, below in ((3.0, 1.0), (1.0, 4.0)):
        tally.add(torch.tensor(above), torch.tensor(below), torch.eye(2), torch.tensor([0, 1]))
    assert tally.loss() == pytest.approx(4 / 5)


@pytest.mark.parametrize(("classes", "cells"), [(50, 2500), (51, 0)])
def test_the_matrix_is_shown_up_to_fifty_classes(classes: int, cells: int) -> None:
    labels = list(range(classes))
    matrix = tally_of(labels, labels, classes).matrix()
    found = split_metrics(0.0, matrix, [str(i) for i in labels])
    assert len(found.confusion_matrix) == cells
    assert found.macro_f1 == found.balanced_accuracy == 1


def test_scores_are_kept_on_request_in_order_and_up_to_fifty_classes() -> None:
    logits, labels = torch.randn(30, 3), torch.arange(30) % 3
    tally = Tally(3, CPU, keeps_scores=True)
    for part in torch.split(torch.arange(30), 7):
        tally.add(torch.tensor(0.0), torch.tensor(1.0), logits[part], labels[part])
    kept, names = tally.scores(), ["a", "b", "c"]
    assert np.array_equal(kept.log_probabilities, logits.log_softmax(1).numpy())
    assert kept.labels.tolist() == labels.tolist()
    found = split_metrics(0.0, tally.matrix(), names, tally.rankings(names))
    assert found.roc_auc == pytest.approx(np.mean([each.roc_auc for each in found.classes]))

    many = Tally(51, CPU, keeps_scores=True)
    many.add(torch.tensor(0.0), torch.tensor(1.0), torch.eye(51), torch.arange(51))
    assert many.rankings([str(i) for i in range(51)]) is None
    assert tally_of([0, 1], [0, 1], 2).rankings(["a", "b"]) is None

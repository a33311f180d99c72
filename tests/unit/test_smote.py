"""Synthetic windows: between two of the same class, of the training split alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.errors import JobFailure
from trainwire_server.training import fit, smote
from trainwire_server.training.setup import Setup, set_up
from trainwire_server.training.smote import Synthesis, synthesize

pytestmark = pytest.mark.usefixtures("without_onnx")

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Run = Callable[..., list[training_pb2.TrainingEvent]]

TIME = 8
SMOTE = {"balancing__oversample_method": "SMOTE", "balancing__oversample_ratio": "1"}


def make(
    prepared: Prepared,
    ratio: float = 1.0,
    neighbors: int = 5,
    seed: int = 0,
    threads: int = 1,
    samples: Split | None = None,
) -> Synthesis:
    train, rng = samples or prepared.train, np.random.default_rng(seed)
    features, time = prepared.features, prepared.sequence_length
    return synthesize(features, time, train, 3, ratio, neighbors, threads, rng)


def windows_of(
    features: npt.NDArray[np.float32], samples: Split, label: int
) -> npt.NDArray[np.float64]:
    """float64 [n, values], of the samples of a class."""
    starts = samples.starts[samples.labels == label]
    return np.stack([features[s : s + TIME].ravel() for s in starts]).astype(np.float64)


def made_of(synthesis: Synthesis, label: int) -> npt.NDArray[np.float64]:
    """float64 [n, values], of the windows made for a class."""
    rows = synthesis.rows.reshape(len(synthesis.labels), -1).astype(np.float64)
    made: npt.NDArray[np.float64] = rows[synthesis.labels == label]
    return made


def segments(
    point: npt.NDArray[np.float64], ends: npt.NDArray[np.float64]
) -> list[tuple[int, int, float]]:
    """Pairs of `ends` that the point lies between, and where: 0 at the first, 1 at the second."""
    found = []
    for i, one in enumerate(ends):
        ways = ends - one
        lengths = np.maximum((ways**2).sum(axis=1), 1e-30)
        places = ((point - one) * ways).sum(axis=1) / lengths
        gaps = np.abs(one + places[:, None] * ways - point).max(axis=1)
        fits = (gaps < 1e-5) & (places >= -1e-6) & (places <= 1 + 1e-6)
        found += [(i, int(j), float(places[j])) for j in np.flatnonzero(fits) if j != i]
    return found


def nearest(ends: npt.NDArray[np.float64], count: int) -> list[set[int]]:
    distances = ((ends[:, None] - ends) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return [set(row[:count].tolist()) for row in distances.argsort(axis=1)]


# ------------------------------------------------------------------------ what is made


def test_new_windows_lie_between_neighbours_of_the_same_class(make_prepared: MakePrepared) -> None:
    prepared = make_prepared()
    synthesis = make(prepared, neighbors=3)
    counts = np.bincount(prepared.train.labels)
    assert np.bincount(synthesis.labels, minlength=3).tolist() == (counts.max() - counts).tolist()
    places, pairs = [], set()
    for label in (1, 2):
        ends = windows_of(prepared.features, prepared.train, label)
        near = nearest(ends, 3)
        for point in made_of(synthesis, label):
            fitting = [(i, j, place) for i, j, place in segments(point, ends) if j in near[i]]
            assert fitting, "on no segment between a window and one of its three nearest"
            places.append(fitting[0][2])
            pairs.add(fitting[0][:2])
    # Neither copies nor always the same ends; places are drawn evenly.
    assert len(pairs) > 60
    assert abs(np.mean(places) - 0.5) < 0.08
    assert 0.2 < np.std(places) < 0.35


@pytest.mark.parametrize("ratio", ["0.3", "0.77"])
@pytest.mark.parametrize("cut", ["false", "true"])
def test_classes_grow_as_they_do_by_repeating(
    ratio: str, cut: str, make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    changes = {
        "balancing__use_undersampling": cut,
        "balancing__undersample_ratio": "0.4",
        "balancing__oversample_ratio": ratio,
    }
    requests = (make_request(**SMOTE | changes), make_request(**changes))
    one, other = (set_up(request, make_prepared(), 1).balance for request in requests)
    assert one.counts.tolist() == other.counts.tolist()
    assert one.balanced_counts.tolist() == other.balanced_counts.tolist()
    assert one.weights.tolist() == other.weights.tolist()


def test_seeds_decide_and_threads_do_not(make_prepared: MakePrepared) -> None:
    prepared = make_prepared()
    one, same, other = (make(prepared, seed=seed).rows for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.array_equal(one, make(prepared, seed=1, threads=2).rows)
    assert not np.array_equal(one, other)
    # Two classes are not drawn alike.
    assert made_of(make(prepared, seed=1), 1).shape != made_of(make(prepared, seed=1), 2).shape


def test_few_samples_are_fewer_neighbours_and_a_single_one_is_repeated(
    make_prepared: MakePrepared,
) -> None:
    prepared = make_prepared()
    train = prepared.train
    keep = np.concatenate([
        np.flatnonzero(train.labels == 0),
        np.flatnonzero(train.labels == 1)[:3],
        np.flatnonzero(train.labels == 2)[:1],
    ])  # fmt: skip
    few = replace(train, starts=train.starts[keep], labels=train.labels[keep])
    synthesis = make(prepared, ratio=0.5, samples=few)
    ends = windows_of(prepared.features, few, 1)
    used = {pair[:2] for point in made_of(synthesis, 1) for pair in segments(point, ends)}
    assert {frozenset(pair) for pair in used} == {frozenset(p) for p in ((0, 1), (0, 2), (1, 2))}
    alone = windows_of(prepared.features, few, 2)
    repeated = made_of(synthesis, 2)
    assert len(repeated) == round(0.5 * (few.labels == 0).sum()) - 1
    assert (repeated == alone).all()


@pytest.mark.parametrize(
    ("counts", "neighbors", "expected"),
    [
        ([100, 6, 50], 5, None),
        ([100, 5, 50], 5, ["buy (5)"]),
        ([100, 1, 3], 5, ["buy (1), sell (3)", "the only one of buy is repeated"]),
        ([100, 3, 0], 2, None),
        ([5, 5, 5], 5, None),
    ],
)
def test_classes_with_too_few_samples_are_named(
    counts: list[int], neighbors: int, expected: list[str] | None
) -> None:
    numbers = np.array(counts)
    missing = smote.missing_samples(numbers, 1.0)
    names = ["hold", "buy", "sell"]
    warnings = smote.warn_of_few_samples(numbers, missing, neighbors, names)
    if expected is None:
        assert warnings == []
        return
    (warning,) = warnings
    assert warning.reason == training_pb2.WARNING_REASON_TOO_FEW_FOR_SMOTE
    assert warning.field == "balancing.smote_k_neighbors"
    assert all(text in warning.message for text in expected)
    assert "hold" not in warning.message


def test_a_class_without_samples_stays_without() -> None:
    assert smote.missing_samples(np.array([0, 4, 10]), 0.5).tolist() == [0, 1, 0]


@pytest.mark.parametrize("bound", ["MOST_BYTES", "MOST_PRODUCTS"])
def test_what_is_too_large_is_refused_before_it_begins(
    bound: str, make_prepared: MakePrepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_prepared()
    counts = np.bincount(prepared.train.labels)
    values = TIME * prepared.features.shape[1]
    missing = smote.missing_samples(counts, 1.0)
    needed = {
        "MOST_BYTES": smote.peak_bytes(counts, missing, values),
        # Of both classes that grow.
        "MOST_PRODUCTS": int((counts[1:] ** 2).sum()) * values,
    }
    monkeypatch.setattr(smote, bound, needed[bound])
    make(prepared)
    monkeypatch.setattr(smote, bound, needed[bound] - 1)
    monkeypatch.setattr(smote, "_interpolate", None)
    with pytest.raises(JobFailure, match="oversample_ratio") as caught:
        make(prepared)
    assert caught.value.reason == training_pb2.FAILURE_REASON_SMOTE_TOO_LARGE
    assert [v.field for v in caught.value.fields] == ["balancing.oversample_method"]


# ------------------------------------------------------------------------ in a run


def synthetic(setup: Setup) -> torch.Tensor:
    """The windows that training sees and the split does not have."""
    added = setup.train.starts[int(setup.balance.counts.sum()) :]
    return setup.windows[added]


def test_validation_and_test_windows_leave_no_trace(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    prepared, request = make_prepared(), make_request(**SMOTE)
    before = synthetic(set_up(request, prepared, 1))
    assert len(before) > 100
    prepared.features[257:] = 1e6
    assert torch.equal(before, synthetic(set_up(request, prepared, 1)))
    prepared.features[:257] *= 2
    assert not torch.equal(before, synthetic(set_up(request, prepared, 1)))


def test_windows_are_gathered_by_their_first_rows_whoever_made_them(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    prepared = make_prepared()
    changes = {"balancing__use_undersampling": "true", "balancing__undersample_ratio": "0.4"}
    setup = set_up(make_request(**SMOTE, **changes), prepared, 1)
    balance, train = setup.balance, setup.train
    real = int(balance.counts.sum())
    before = torch.from_numpy(prepared.features).unfold(0, TIME, 1)
    assert torch.equal(setup.windows[: len(before)], before)
    seen = train.take(torch.from_numpy(balance.positions))
    assert torch.bincount(seen.labels).tolist() == balance.balanced_counts.tolist()
    assert len(set(balance.positions.tolist())) == len(balance.positions)
    for label in (1, 2):
        ends = windows_of(prepared.features, prepared.train, label)
        own = (train.labels[real:] == label).nonzero().flatten()
        assert len(own)
        for window in setup.windows[train.starts[real:][own]]:
            point = window.T.reshape(-1).double().numpy()
            assert segments(point, ends), "on no segment between two windows of the class"


def test_a_run_with_smote_and_mixup_goes_on_as_if_nothing_was(
    run: Run, make_request: MakeRequest, make_prepared: MakePrepared, tmp_path: Path
) -> None:
    changes = {
        "trainer__mixup_alpha": "0.3",
        "trainer__scaling_std": "0.1",
        "trainer__time_mask_ratio": "0.3",
        "trainer__feature_dropout": "0.1",
        "balancing__smote_k_neighbors": "100",
    }
    request = make_request(**SMOTE, **changes)
    whole = run(request, folder="whole")
    warning = next(event.warning for event in whole if event.HasField("warning"))
    assert warning.reason == training_pb2.WARNING_REASON_TOO_FEW_FOR_SMOTE
    started = next(event.started for event in whole if event.HasField("started"))
    assert len(set(started.balanced_class_counts)) == 1
    assert started.train.windows == sum(started.class_counts) < sum(started.balanced_class_counts)
    epochs = [event.epoch for event in whole if event.HasField("epoch")]
    assert sum(sum(c.support for c in e.train.classes) for e in epochs) == 3 * sum(
        started.balanced_class_counts
    )

    (tmp_path / "job").mkdir()
    events = fit.train(request, make_prepared(), tmp_path / "job", 1, lambda: False)
    next(event for event in events if event.epoch.epoch == 2)
    events.close()
    resumed = run(request, folder="job", is_started=True)
    assert resumed[0].resumed.epoch == 1
    weights = [(tmp_path / f / "bundle/model.safetensors").read_bytes() for f in ("whole", "job")]
    assert weights[0] == weights[1]


def test_without_anything_to_make_the_matrix_stays_as_it_is(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    prepared, few = make_prepared(), {"balancing__oversample_ratio": "0.01"}
    setup = set_up(make_request(**SMOTE | few), prepared, 1)
    assert np.shares_memory(setup.windows.numpy(), prepared.features)
    repeating = set_up(make_request(**few), prepared, 1).balance
    assert setup.balance.positions.tolist() == sorted(repeating.positions.tolist())


def test_imbalanced_learn_is_imported_by_those_who_ask_for_it(
    make_request: MakeRequest, make_prepared: MakePrepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "imblearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imblearn", None)
    set_up(make_request(), make_prepared(), 1)
    with pytest.raises(ImportError):
        set_up(make_request(**SMOTE), make_prepared(), 1)

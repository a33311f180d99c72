"""MiniRocket against a plain loop over kernels, dilations and biases; what it is fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from torch import Tensor

from trainwire import contract
from trainwire.architectures import mini_rocket
from trainwire.architectures.build import build
from trainwire.architectures.mini_rocket import DilatedKernels, MiniRocket, spread_dilations
from trainwire.architectures.ridge import ALPHAS, fit_ridge
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training import extraction
from trainwire_server.training.extraction import Extraction
from trainwire_server.training.replicas import Replicas
from trainwire_server.training.setup import Setup, set_up

MakePrepared = Callable[..., Prepared]
MakeRequest = Callable[..., training_pb2.TrainingRequest]
Floats = npt.NDArray[np.float64]

KERNELS = list(combinations(range(9), 3))
"""Positions of the three weights 2; the other six are -1."""


def small(features: int, time: int, dropout: float = 0.0, **sizes: int) -> MiniRocket:
    sizes = {"features_per_kernel": 5, "max_dilations": 3, **sizes}
    model = training_pb2.ModelParams(dropout=dropout, mini_rocket=training_pb2.MiniRocket(**sizes))
    network = build(model, features, 3, time)
    assert isinstance(network, MiniRocket)
    return network


def fit(network: MiniRocket, windows: Tensor, rows: Tensor) -> None:
    """With classes that take turns, of equal weight."""
    network.fit_to(windows, rows, torch.arange(len(rows)) % 3, torch.ones(3, dtype=torch.float64))


def fitted(features: int, time: int, **sizes: int) -> tuple[MiniRocket, Tensor]:
    """A network and the windows it was fitted to, in float64: the comparison is one of formulas."""
    torch.manual_seed(0)
    network = small(features, time, **sizes).double()
    windows = torch.randn(30, features, time, dtype=torch.float64)
    fit(network, windows, torch.arange(30))
    return network, windows


def dilated(network: MiniRocket) -> list[Any]:
    return list(network.kernels)


# ------------------------------------------------------------------------ features


def output_by_hand(window: Floats, channels: list[int], kernel: int, dilation: int) -> Floats:
    """Output of one kernel for one window [features, time]; zeros beyond the ends."""
    time = window.shape[1]
    output = np.zeros(time)
    for channel in channels:
        for position in range(9):
            weight = 2.0 if position in KERNELS[kernel] else -1.0
            for t in range(time):
                step = t + (position - 4) * dilation
                if 0 <= step < time:
                    output[t] += weight * window[channel, step]
    return output


def channels_of(kernels: Any, kernel: int) -> list[int]:
    return [c for c in kernels.channels[kernel].tolist() if c < kernels.features]


def shares_by_hand(network: MiniRocket, window: Floats) -> Floats:
    """Features of one window, before they are standardised, as in the paper's own code."""
    shares = []
    for index, kernels in enumerate(dilated(network)):
        for kernel in range(84):
            channels = channels_of(kernels, kernel)
            output = output_by_hand(window, channels, kernel, kernels.dilation)
            end = 4 * kernels.dilation
            if (index + kernel) % 2 == 1 and window.shape[1] > 2 * end:
                output = output[end:-end]
            shares += [(output > bias).mean() for bias in kernels.biases[kernel].tolist()]
    return np.array(shares)


@pytest.mark.parametrize(("features", "time"), [(1, 30), (1, 9), (1, 4), (2, 25), (12, 18)])
def test_features_are_those_of_a_plain_loop(features: int, time: int) -> None:
    network, windows = fitted(features, time)
    shares = np.stack([shares_by_hand(network, window) for window in windows[:3].numpy()])
    expected = (shares - network.mean.numpy()) / network.scale.numpy()
    assert shares.std() > 0.1
    np.testing.assert_allclose(network.extract(windows[:3]).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("features", [1, 7])
def test_a_windows_features_have_the_same_bits_in_any_batch(features: int) -> None:
    torch.manual_seed(0)
    network, windows = small(features, 40), torch.randn(50, features, 40)
    fit(network, windows, torch.arange(50))
    alone = torch.cat([network.extract(window[None]) for window in windows])
    assert torch.equal(network.extract(windows), alone)


@given(st.integers(9, 4096), st.integers(1, 300), st.integers(1, 64))
def test_dilations_are_spread_as_in_the_papers_code(time: int, features: int, most: int) -> None:
    drawn = min(features, most)
    longest = np.log2((time - 1) / 8)
    # Its rounding may make one too few where the longest dilation is a whole number.
    exact = np.logspace(0, longest, drawn, base=2) + 1e-9
    dilations, counts = np.unique(exact.astype(np.int32), return_counts=True)
    counts = (counts * (features / drawn) + 1e-9).astype(np.int32)
    rest = features - counts.sum()
    while rest > 0:
        counts[: min(rest, len(counts))] += 1
        rest = features - counts.sum()
    expected = dict(zip(dilations.tolist(), counts.tolist(), strict=True))
    assert spread_dilations(time, features, most) == expected


@given(st.integers(2, 9))
def test_short_windows_have_one_dilation(time: int) -> None:
    assert spread_dilations(time, 119, 32) == {1: 119}


# ------------------------------------------------------------------------ what it is fitted to


def test_biases_are_quantiles_of_a_training_windows_output() -> None:
    torch.manual_seed(0)
    network = small(2, 25).double()
    windows = torch.randn(5, 2, 25, dtype=torch.float64)
    fit(network, windows, torch.tensor([3]))
    number = 0
    for kernels in dilated(network):
        for kernel in range(84):
            channels = channels_of(kernels, kernel)
            output = output_by_hand(windows[3].numpy(), channels, kernel, kernels.dilation)
            for bias in kernels.biases[kernel].tolist():
                number += 1
                quantile = np.quantile(output, number * (5**0.5 + 1) / 2 % 1)
                assert bias == pytest.approx(quantile, abs=1e-9)
    assert number == 84 * 5


def test_biases_come_from_many_windows() -> None:
    torch.manual_seed(0)
    network, offsets = small(1, 9, features_per_kernel=1), torch.arange(40.0)
    # Constant but for the ends: at 0 and 1000 times the window's number, in turn.
    windows = (1000 * offsets[:, None, None]).expand(40, 1, 9)
    fit(network, windows, torch.arange(40))
    assert len({round(b / 1000) for b in dilated(network)[0].biases[:, 0].tolist()}) > 20


def test_only_the_rows_given_are_looked_at() -> None:
    windows = torch.randn(20, 2, 15)
    others = windows.clone()
    others[10:] = torch.nan
    states = []
    for each in (windows, others):
        torch.manual_seed(1)
        network = small(2, 15)
        fit(network, each, torch.arange(10))
        states.append(network.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_kernels_add_up_one_to_nine_different_channels() -> None:
    network, _ = fitted(12, 20, features_per_kernel=2)
    found = [channels_of(kernels, k) for kernels in dilated(network) for k in range(84)]
    assert all(len(set(channels)) == len(channels) for channels in found)
    assert {len(channels) for channels in found} == set(range(1, 10))
    assert {channel for channels in found for channel in channels} == set(range(12))


def test_features_of_the_training_windows_are_standardised() -> None:
    network, windows = fitted(1, 40)
    features = network.extract(windows)
    deviation = features.std(dim=0, correction=0)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(420).double())
    varying = deviation > 0.5
    torch.testing.assert_close(deviation[varying], torch.ones(int(varying.sum())).double())
    assert varying.sum() > 300


def test_a_feature_without_variation_is_not_blown_up() -> None:
    network = small(1, 12)
    fit(network, torch.ones(5, 1, 12), torch.arange(5))
    assert torch.equal(network.scale, torch.ones(420))
    assert network.extract(torch.randn(5, 1, 12)).abs().max() <= 1


def test_statistics_of_many_windows_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_rocket, "_STANDARDISED_BY", 10)
    network, windows = fitted(1, 20)
    all_of_them = network.extract(windows).mean(dim=0)
    assert 0 < all_of_them.abs().mean() < 0.5


# ------------------------------------------------------------------------ first weights


def begun(series: int, step: int, **sizes: int) -> tuple[MiniRocket, Tensor, Tensor]:
    """A network fitted to windows of 25 rows of one table, a step apart; and these, and rows."""
    torch.manual_seed(0)
    network, table = small(2, 25, **sizes).double(), torch.randn(series * step + 25, 2).double()
    windows, rows = table.unfold(0, 25, 1), step * torch.arange(series)
    fit(network, windows, rows)
    return network, windows[rows], rows


def test_the_linear_layer_begins_at_scikit_learns_ridge_times_a_factor() -> None:
    network, windows, _ = begun(30, step=25, ridge_windows=100)
    features, labels = network.extract(windows).numpy(), np.arange(30) % 3
    expected = RidgeClassifierCV(alphas=ALPHAS).fit(features, labels)
    scores = expected.decision_function(features)
    logits = network(windows).detach().numpy()
    factor = (logits / scores).mean()
    assert 0.01 < factor < 100
    assert factor != pytest.approx(1)
    np.testing.assert_allclose(logits, factor * scores, rtol=0, atol=1e-5)
    assert not begun(30, step=25)[0].head.weight.any()


@pytest.mark.parametrize(("step", "block"), [(25, 1), (24, 2)])
def test_of_many_windows_some_give_the_first_weights(
    step: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(*arguments: Any) -> Any:
        seen.append(arguments)
        return fit_ridge(*arguments)

    monkeypatch.setattr(mini_rocket, "fit_ridge", note)
    network, windows, _ = begun(60, step, ridge_windows=12)
    ((features, labels, _, _, found),) = seen
    distances = torch.cdist(features, network.extract(windows))
    rows = distances.argmin(dim=1)
    assert distances.amin(dim=1).max() < 1e-5
    assert len(rows) == 12
    assert (rows.diff() > 0).all()
    assert rows.max() > 12
    assert torch.equal(labels, rows % 3)
    # Those drawn here are rarely neighbours; some are.
    assert rows.diff().min() == 1
    # Windows that overlap are left out with their neighbours.
    assert found == block


# ------------------------------------------------------------------------ in a run


@pytest.fixture
def request_(make_request: MakeRequest) -> training_pb2.TrainingRequest:
    return make_request(
        model__mini_rocket__features_per_kernel="3", trainer__use_augmentation="false"
    )


def buffers(setup: Setup) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in setup.model.named_buffers()}


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_validation_and_test_windows_leave_no_trace(
    request_: training_pb2.TrainingRequest, make_prepared: MakePrepared
) -> None:
    prepared = make_prepared()
    before = buffers(set_up(request_, prepared, 1))
    prepared.features[257:] = 1e6
    assert are_equal(before, buffers(set_up(request_, prepared, 1)))
    prepared.features[:257] *= 2
    assert not are_equal(before, buffers(set_up(request_, prepared, 1)))


def test_seed_and_threads_decide_as_they_should(
    make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    sizes = {"model__mini_rocket__features_per_kernel": "3"}
    one, other = (make_request(**sizes, trainer__seed=seed) for seed in ("1", "2"))
    first = buffers(set_up(one, make_prepared(), 1))
    assert are_equal(first, buffers(set_up(one, make_prepared(), 2)))
    assert not are_equal(first, buffers(set_up(other, make_prepared(), 1)))


@pytest.mark.parametrize("balancing", [
    {"balancing__use_class_weights": "true"},
    {"balancing__use_oversampling": "true", "balancing__oversample_ratio": "1"},
    {"balancing__use_undersampling": "true", "balancing__undersample_ratio": "1"},
])  # fmt: skip
def test_the_first_weights_count_classes_as_the_epochs_do(
    balancing: dict[str, str], make_request: MakeRequest, make_prepared: MakePrepared
) -> None:
    off = {f"balancing__use_{name}": "false" for name in ("class_weights", "oversampling")}
    sizes = {"model__mini_rocket__features_per_kernel": "3"}
    prepared = make_prepared()
    kept = np.flatnonzero((prepared.train.labels > 0) | (np.arange(250) % 5 == 0))
    train = replace(
        prepared.train, starts=prepared.train.starts[kept], labels=prepared.train.labels[kept]
    )
    setup = set_up(make_request(**sizes, **(off | balancing)), replace(prepared, train=train), 1)
    network = setup.model
    assert isinstance(network, MiniRocket)
    features = network.extract(setup.windows[setup.train.starts]).double().numpy()
    labels, found = setup.train.labels.numpy(), network.head.weight.detach().numpy().ravel()
    near, far = (
        max(
            np.corrcoef(found, model.fit(features, labels).coef_.ravel())[0, 1]
            for alpha in ALPHAS
            for model in [RidgeClassifier(alpha=alpha, class_weight=class_weight)]
        )
        for class_weight in ("balanced", None)
    )
    assert near > 1 - 1e-6
    assert far < 1 - 1e-3


def test_replicas_compute_with_what_a_checkpoint_brings() -> None:
    torch.manual_seed(0)
    windows = torch.randn(40, 1, 20)
    model, source = small(1, 20), small(1, 20)
    for network, rows in ((model, torch.arange(20)), (source, torch.arange(20, 40))):
        fit(network, windows, rows)
        torch.nn.init.normal_(network.head.weight)
    replicas = Replicas(model, 2, 64, torch.device("cpu"))
    model.load_state_dict(source.state_dict())
    for logits in replicas.map(lambda replica, part: replica.model(part), windows[:1]):
        assert torch.equal(logits, source(windows[:1]))
    parts = replicas.map(lambda replica, part: replica.model(part), windows)
    assert len(parts) == 2
    torch.testing.assert_close(torch.cat(parts), source(windows))


def test_features_that_are_kept_train_as_those_computed_each_time(
    train_in: Callable[..., Any],
    make_request: MakeRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Synthetic windows have features like all others.
    request = make_request(
        model__mini_rocket__features_per_kernel="3",
        trainer__use_augmentation="false",
        balancing__oversample_method="SMOTE",
    )
    weights = []
    for most_bytes in (extraction.MOST_BYTES, 0):
        monkeypatch.setattr(extraction, "MOST_BYTES", most_bytes)
        train_in(tmp_path / str(most_bytes), request)
        weights.append((tmp_path / str(most_bytes) / "bundle/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("changes", "are_kept"), [
    ({"trainer__use_augmentation": "false"}, True),
    ({"trainer__gaussian_noise_std": "0"}, True),
    ({"trainer__mixup_alpha": "0.2", "trainer__use_augmentation": "false"}, True),
    ({}, False),
    ({"trainer__mixup_alpha": "0.2", "trainer__gaussian_noise_std": "0"}, False),
])  # fmt: skip
def test_features_are_kept_where_windows_stay_the_same(
    changes: dict[str, str],
    are_kept: bool,
    make_request: MakeRequest,
    make_prepared: MakePrepared,
) -> None:
    request = make_request(model__mini_rocket__features_per_kernel="3", **changes)
    assert isinstance(set_up(request, make_prepared(), 1).inputs, Extraction) is are_kept


# ------------------------------------------------------------------------ the network


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(2, 60), st.integers(1, 12), st.integers(1, 8))
def test_any_sizes_give_logits_and_gradients(
    features: int, time: int, per_kernel: int, most: int
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = small(features, time, features_per_kernel=per_kernel, max_dilations=most)
    windows = torch.randn(6, features, time)
    fit(network, windows, torch.arange(6))
    assert network.width == 84 * per_kernel == network.extract(windows).shape[1]
    logits = network(windows)
    assert logits.shape == (6, 3)
    torch.autograd.backward(logits[:, 0].sum())
    assert [name for name, _ in network.named_parameters()] == ["head.weight", "head.bias"]
    assert network.head.weight.grad is not None
    assert network.head.weight.grad.isfinite().all()
    assert network.head.weight.grad[0].count_nonzero() > 0


def test_the_default_has_the_papers_sizes() -> None:
    model = contract.resolve(training_pb2.ModelParams(mini_rocket=training_pb2.MiniRocket()))
    network = build(model, 1, 2, 150)
    assert isinstance(network, MiniRocket)
    assert network.width == 9996
    longest = max(kernels.dilation for kernels in dilated(network))
    assert longest == 149 // 8
    assert isinstance(dilated(network)[0], DilatedKernels)


def test_dropout_leaves_out_features_in_training_alone() -> None:
    torch.manual_seed(0)
    network, windows = small(1, 20, dropout=0.5), torch.randn(3, 1, 20)
    fit(network, windows, torch.arange(3))
    torch.nn.init.normal_(network.head.weight)
    assert not torch.equal(network(windows), network(windows))
    network.eval()
    assert torch.equal(network(windows), network(windows))

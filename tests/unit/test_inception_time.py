"""InceptionTime against a plain computation, and its sizes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.architectures.inception_time import InceptionModule, InceptionTime
from trainwire.v1 import training_pb2

Floats = npt.NDArray[np.float64]
SIZES = {"depth": 3, "filters": 2, "kernel_size": 9, "bottleneck_size": 3}


def small(features: int = 2, dropout: float = 0.0, **changes: int) -> InceptionTime:
    sizes = training_pb2.InceptionTime(**{**SIZES, **changes})
    network = build(
        training_pb2.ModelParams(dropout=dropout, inception_time=sizes), features, 3, 12
    )
    assert isinstance(network, InceptionTime)
    return network


@settings(max_examples=30)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(4, 40),
    st.integers(1, 4),
    st.integers(2, 20),
)
def test_any_sizes_give_logits_and_gradients(
    features: int, depth: int, filters: int, kernel: int, bottleneck: int, time: int
) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = small(
            features,
            depth=depth,
            filters=filters,
            kernel_size=kernel,
            bottleneck_size=bottleneck,
        )
        logits = network(torch.randn(2, features, time))
    assert logits.shape == (2, 3)
    torch.autograd.backward(logits.square().sum())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("field", SIZES)
def test_every_size_changes_the_network(field: str) -> None:
    torch.manual_seed(0)
    before = small()
    torch.manual_seed(0)
    after = small(**{field: SIZES[field] + 1})
    windows = torch.randn(2, 2, 12)
    assert not torch.equal(before.eval()(windows), after.eval()(windows))


def convolve(x: Floats, weights: Floats) -> Floats:
    """[inputs, time] and [outputs, inputs, length] -> [outputs, time]; zeros beyond the ends.

    With an even length one step more is seen ahead than back.
    """
    outputs, _, length = weights.shape
    time = x.shape[1]
    result = np.zeros((outputs, time))
    for t in range(time):
        for i in range(length):
            step = t + i - (length - 1) // 2
            if 0 <= step < time:
                result[:, t] += weights[:, :, i] @ x[:, step]
    return result


def normalise(x: Floats, norm: Any) -> Floats:
    """GroupNorm as in its paper."""
    groups = x.reshape(norm.num_groups, -1)
    centred = groups - groups.mean(axis=1, keepdims=True)
    scaled = (centred / np.sqrt(groups.var(axis=1, keepdims=True) + norm.eps)).reshape(x.shape)
    return np.asarray(scaled * to_numpy(norm.weight)[:, None] + to_numpy(norm.bias)[:, None])


def to_numpy(tensor: torch.Tensor) -> Floats:
    return tensor.detach().numpy()


def module_by_hand(module: Any, x: Floats) -> Floats:
    narrow = x if x.shape[0] == 1 else convolve(x, to_numpy(module.bottleneck.weight))
    parts = [convolve(narrow, to_numpy(each.weight)) for each in module.convolutions]
    time = x.shape[1]
    highest = np.stack([x[:, max(0, t - 1) : t + 2].max(axis=1) for t in range(time)], axis=1)
    parts.append(convolve(highest, to_numpy(module.maximum[1].weight)))
    return np.maximum(normalise(np.concatenate(parts), module.norm), 0)


def network_by_hand(network: Any, window: Floats) -> Floats:
    x = window
    for block in network.blocks:
        before = x
        for module in block.body:
            x = module_by_hand(module, x)
        if len(block.body) == 3:
            skip = convolve(before, to_numpy(block.skip[0].weight))
            x = np.maximum(x + normalise(skip, block.skip[1]), 0)
    head = network.head[1]
    return np.asarray(to_numpy(head.weight) @ x.mean(axis=1) + to_numpy(head.bias))


@pytest.mark.parametrize(("features", "time"), [(1, 12), (2, 5), (2, 12)])
def test_it_computes_what_the_paper_says(features: int, time: int) -> None:
    torch.manual_seed(0)
    network = small(features, depth=5).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    windows = torch.randn(3, features, time, dtype=torch.float64)
    expected = [network_by_hand(network, window.numpy()) for window in windows]
    np.testing.assert_allclose(to_numpy(network(windows)), expected, rtol=1e-9, atol=1e-9)


def test_a_single_channel_has_no_bottleneck() -> None:
    assert isinstance(InceptionModule(1, 2, 8, 3).bottleneck, torch.nn.Identity)
    assert isinstance(InceptionModule(2, 2, 8, 3).bottleneck, torch.nn.Conv1d)


def test_dropout_acts_before_the_head_in_training_alone() -> None:
    torch.manual_seed(0)
    network, windows = small(dropout=0.5), torch.randn(2, 2, 12)
    assert not torch.equal(network(windows), network(windows))
    network.eval()
    assert torch.equal(network(windows), network(windows))


def test_the_default_has_the_papers_sizes() -> None:
    model = contract.resolve(training_pb2.ModelParams(inception_time=training_pb2.InceptionTime()))
    network = build(model, 1, 2, 150)
    first, second, *_ = [m for m in network.modules() if isinstance(m, InceptionModule)]
    assert first.lengths == [40, 20, 10]
    assert isinstance(second.bottleneck, torch.nn.Conv1d)
    assert second.bottleneck.weight.shape == (32, 128, 1)
    assert len([m for m in network.modules() if isinstance(m, InceptionModule)]) == 6
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == 420_192 + 2 * 129
    )  # LITE reports the first


def test_groups_have_four_channels() -> None:
    norm = InceptionModule(2, 3, 8, 3).norm
    assert (norm.num_groups, norm.num_channels) == (3, 12)

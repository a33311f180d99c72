"""Logistic regression on the window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.architectures.linear import Linear
from trainwire.v1 import training_pb2


def small(features: int, time: int, pool: int, dropout: float = 0.0) -> Linear:
    model = training_pb2.ModelParams(dropout=dropout, linear=training_pb2.Linear(pool_size=pool))
    network = build(model, features, 3, time)
    assert isinstance(network, Linear)
    return network


def with_random_weights(network: Linear) -> Linear:
    torch.manual_seed(0)
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.head.bias)
    return network


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(2, 12), st.integers(1, 12))
def test_logits_are_products_with_the_means_of_steps(features: int, time: int, pool: int) -> None:
    network = with_random_weights(small(features, time, pool)).double()
    windows = np.random.default_rng(0).normal(size=(2, features, time))
    parts = [windows[:, :, i : i + pool].mean(axis=2) for i in range(0, time, pool)]
    values = np.stack(parts, axis=2).reshape(2, -1)
    weights, biases = (p.detach().numpy() for p in network.head.parameters())
    logits = network(torch.from_numpy(windows)).detach().numpy()
    np.testing.assert_allclose(logits, values @ weights.T + biases, rtol=1e-9, atol=1e-12)


def test_it_begins_without_an_opinion() -> None:
    network = small(2, 6, 1)
    assert torch.equal(network(torch.randn(4, 2, 6)), torch.zeros(4, 3))


def test_dropout_leaves_out_inputs_in_training_alone() -> None:
    network = with_random_weights(small(2, 6, 1, dropout=0.5))
    windows = torch.ones(1, 2, 6)
    values = {tuple(network(windows)[0].tolist()) for _ in range(20)}
    assert len(values) > 10
    network.eval()
    assert torch.equal(network(windows), network(windows))


def test_the_default_has_a_weight_for_each_value_of_the_window() -> None:
    model = contract.resolve(training_pb2.ModelParams(linear=training_pb2.Linear()))
    network = build(model, 8, 3, 60)
    assert sum(parameter.numel() for parameter in network.parameters()) == 8 * 60 * 3 + 3


def test_a_part_longer_than_the_window_is_refused() -> None:
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "y"
    request.data.windows.sequence_length = 10
    request.model.linear.pool_size = 11
    (violation,) = contract.violations(request)
    assert violation.field == "model.linear.pool_size"


@pytest.mark.parametrize("pool", [1, 4])
def test_gradients_reach_every_weight(pool: int) -> None:
    torch.manual_seed(0)
    network = small(2, 7, pool)
    torch.autograd.backward(network(torch.randn(5, 2, 7))[:, 0].sum())
    assert network.head.weight.grad is not None
    assert (network.head.weight.grad[0] != 0).all()

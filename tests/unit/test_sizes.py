"""The size of a network from its request alone is that of the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainwire import contract
from trainwire.architectures import sizes
from trainwire.architectures.build import build
from trainwire.v1 import training_pb2

LARGEST = {
    "hybrid_cnn_lstm": {
        "conv_blocks": 4, "conv_channels": 24, "kernel_size": 7, "pool_size": 4,
        "lstm_hidden_size": 16, "lstm_layers": 3, "attention_heads": 4, "attention_head_size": 8,
    },
    "linear": {"pool_size": 9},
    "inception_time": {"depth": 8, "filters": 8, "kernel_size": 20, "bottleneck_size": 8},
    "mini_rocket": {"features_per_kernel": 40, "max_dilations": 8},
}  # fmt: skip
"""The largest value of each size where windows are computed."""
BOUNDS = {each.path: (int(each.param.minimum), each.param.maximum) for each in contract.describe()}
NAMES = [field.name for field in training_pb2.ModelParams.DESCRIPTOR.oneofs[0].fields]


@st.composite
def models(draw: st.DrawFn, computed: bool) -> training_pb2.ModelParams:
    """Any architecture, with any sizes that the contract allows, or those that compute quickly."""
    name = draw(st.sampled_from(NAMES))
    model = training_pb2.ModelParams()
    chosen: Any = getattr(model, name)
    chosen.SetInParent()
    for field in chosen.DESCRIPTOR.fields:
        if field.type == field.TYPE_BOOL:
            setattr(chosen, field.name, draw(st.booleans()))
            continue
        least, most = BOUNDS[f"model.{name}.{field.name}"]
        # A pool size ends with the window.
        most = LARGEST[name].get(field.name, 8) if computed else int(most or 4096)
        setattr(chosen, field.name, draw(st.integers(least, most)))
    return contract.resolve(model)


def saved_values(network: nn.Module, windows: Tensor) -> int:
    """Values that the backward pass of a forward pass needs, parameters left out."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        kept = network(windows)
    for parameter in network.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    del kept
    return sum(saved.values()) // 4


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(models(computed=False), st.integers(1, 500), st.integers(2, 1000), st.integers(2, 4096))
def test_parameters_are_those_of_the_network(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> None:
    with torch.device("meta"):  # shapes alone: the largest would be 300 GB
        network = build(model, features, classes, time)
    count = sum(each.numel() for each in network.parameters())
    assert sizes.count(model, features, classes, time).parameters == count


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(models(computed=True), st.integers(1, 12), st.integers(2, 6), st.integers(9, 40))
def test_activations_are_no_more_than_torch_keeps(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> None:
    network = build(model, features, classes, time).train()
    kept = saved_values(network, torch.randn(1, features, time))
    assert 0 < sizes.count(model, features, classes, time).activations <= kept


@pytest.mark.parametrize(
    "large",
    [
        {"hybrid_cnn_lstm.conv_channels": "256", "hybrid_cnn_lstm.conv_blocks": "4"},
        {"hybrid_cnn_lstm.attention_heads": "32", "hybrid_cnn_lstm.attention_head_size": "32"},
        {"linear.pool_size": "1"},
        {"inception_time.filters": "32"},
        {"mini_rocket.features_per_kernel": "119"},
    ],
    ids=str,
)
def test_of_a_large_network_most_activations_are_counted(large: dict[str, str]) -> None:
    request = training_pb2.TrainingRequest()
    for name, text in large.items():
        contract.assign(request, f"model.{name}", text)
    model = contract.resolve(request.model)
    kept = saved_values(build(model, 10, 2, 200).train(), torch.randn(1, 10, 200))
    assert sizes.count(model, 10, 2, 200).activations > 0.4 * kept

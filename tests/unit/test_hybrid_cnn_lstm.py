"""The hybrid network and the function that builds networks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.architectures.hybrid_cnn_lstm import HybridCnnLstm, ResidualBlock, SelfAttention
from trainwire.v1 import training_pb2

SIZES = training_pb2.HybridCnnLstm(
    conv_blocks=2,
    conv_channels=6,
    kernel_size=3,
    pool_size=2,
    lstm_hidden_size=5,
    lstm_layers=1,
    attention_heads=2,
    attention_head_size=3,
    normalization=training_pb2.NORMALIZATION_GROUP_NORM,
)


def small(dropout: float = 0.5, **changes: Any) -> torch.nn.Module:
    sizes = training_pb2.HybridCnnLstm()
    sizes.CopyFrom(SIZES)
    sizes.MergeFrom(training_pb2.HybridCnnLstm(**changes))
    return build(training_pb2.ModelParams(dropout=dropout, hybrid_cnn_lstm=sizes), 4, 3, 12)


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 2),
    st.integers(2, 12),
)
def test_any_sizes_give_logits_and_gradients(
    blocks: int, channels: int, kernel: int, pool: int, layers: int, time: int
) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's hint that even kernels cost a copy
        network = small(
            conv_blocks=blocks,
            conv_channels=channels,
            kernel_size=kernel,
            pool_size=min(pool, time),
            lstm_layers=layers,
        )
        logits = network(torch.randn(2, 4, time))
    assert logits.shape == (2, 3)
    torch.autograd.backward(logits.square().sum())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "field", sorted({field.name for field in SIZES.DESCRIPTOR.fields} - {"channel_noise"})
)
def test_every_size_changes_the_network(field: str) -> None:
    torch.manual_seed(0)
    before = small()
    torch.manual_seed(0)
    after = small(**{field: getattr(SIZES, field) + 1})
    windows = torch.randn(2, 4, 12)
    assert not torch.equal(before.eval()(windows), after.eval()(windows))


def test_a_convolution_head_answers_beside_the_other_one() -> None:
    torch.manual_seed(0)
    network: Any = small(convolution_head=True).eval()
    windows = torch.randn(2, 4, 12)
    shapes = network.blocks(windows)
    states = network.norm(network.lstm(network.pool(shapes).transpose(1, 2))[0])
    recurrent = network.head(network.attention(states).mean(dim=1))
    own = network.convolution_head(shapes.mean(dim=2))
    torch.testing.assert_close(network(windows), (recurrent + own) / 2)


@pytest.mark.parametrize(
    ("head", "taught"),
    [(0, {"lstm", "norm", "attention", "head"}), (1, {"blocks", "convolution_head"})],
)
def test_each_of_two_heads_teaches_a_part_of_its_own(head: int, taught: set[str]) -> None:
    torch.manual_seed(0)
    network = small(convolution_head=True)
    logits = network(torch.randn(2, 4, 12))
    assert logits.shape == (2, 2, 3)
    torch.autograd.backward(logits[:, head].square().sum())
    learned = {
        name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {name.partition(".")[0] for name in learned} == taught


def block(inputs: int, outputs: int, *, instance_norm: bool = False) -> ResidualBlock:
    return ResidualBlock(inputs, outputs, 3, 0.0, instance_norm=instance_norm, channel_noise=0)


def test_instance_norm_normalises_each_channel_over_time() -> None:
    torch.manual_seed(0)
    own, windows = block(4, 6, instance_norm=True), torch.randn(2, 4, 12)
    shapes = own.body[0](windows)
    deviations = shapes - shapes.mean(dim=2, keepdim=True)
    normalised = deviations / (deviations.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
    expected = own.skip(windows) + torch.nn.functional.gelu(normalised)
    torch.testing.assert_close(own(windows), expected)


@pytest.mark.parametrize("noise", [{"dropout": 0.5}, {"channel_noise": 0.2}])
def test_noise_acts_in_training_alone(noise: dict[str, float]) -> None:
    torch.manual_seed(0)
    network, windows = small(**({"dropout": 0.0} | noise)), torch.randn(2, 4, 12)
    assert not torch.equal(network(windows), network(windows))
    network.eval()
    assert torch.equal(network(windows), network(windows))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network, windows = small().double().eval(), torch.randn(5, 4, 12, dtype=torch.float64)
    alone = torch.cat([network(window[None]) for window in windows])
    torch.testing.assert_close(network(windows), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("time", [10, 11])
def test_every_time_step_counts_even_where_pooling_leaves_a_rest(time: int) -> None:
    torch.manual_seed(0)
    network = small(pool_size=4, kernel_size=1).eval()
    windows = torch.randn(1, 4, time, requires_grad=True)
    torch.autograd.backward(network(windows)[0, 0])
    assert windows.grad is not None
    assert (windows.grad.abs().sum(dim=(0, 1)) > 0).all()


def test_the_skip_is_a_projection_only_where_widths_differ() -> None:
    assert isinstance(block(4, 4).skip, torch.nn.Identity)
    assert isinstance(block(4, 6).skip, torch.nn.Conv1d)


def test_attention_is_softmax_of_scaled_products_plus_input() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(6, heads=2, head_size=3).double(), torch.randn(1, 5, 6).double()
    query, key, value = attention.projection(x)[0].chunk(3, dim=1)
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        weights = (query[:, h] @ key[:, h].T / 3**0.5).softmax(dim=1)
        heads.append(weights @ value[:, h])
    expected = x + attention.output(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-12)


def test_the_default_is_built_with_the_contracts_sizes() -> None:
    network = build(contract.resolve(training_pb2.ModelParams()), 8, 3, 60)
    assert isinstance(network, HybridCnnLstm)
    assert sum(parameter.numel() for parameter in network.parameters()) == 105_699


def test_no_architecture_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"model\.architecture.*allowed: hybrid_cnn_lstm"):
        build(training_pb2.ModelParams(), 4, 3, 12)


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, trainwire, trainwire.architectures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""From a request's `model` to the network it names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainwire.architectures.hybrid_cnn_lstm import HybridCnnLstm
from trainwire.architectures.inception_time import InceptionTime
from trainwire.architectures.linear import Linear
from trainwire.architectures.mini_rocket import MiniRocket
from trainwire.v1 import training_pb2


def build(model: training_pb2.ModelParams, features: int, classes: int, time: int) -> nn.Module:
    """The network that `model.architecture` names, freshly initialised from torch's generator.

    A `FittedNetwork` has yet to be fitted to training windows, or given a state dict.

    Args:
        model: effective parameters (`contract.resolve`).
        features: values per time step.
        classes: number of logits.
        time: steps of a window.

    Returns:
        A module from float32 [batch, features, time] to logits [batch, classes].

    Raises:
        ValueError: no architecture is chosen, or one that this version cannot build.
    """
    name = model.WhichOneof("architecture")
    if name is None or name not in _BUILDERS:
        allowed = ", ".join(_BUILDERS)
        raise ValueError(f"model.architecture: cannot build {name or 'none'}; allowed: {allowed}")
    return _BUILDERS[name](model, features, classes, time)


def _hybrid_cnn_lstm(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> nn.Module:
    sizes = model.hybrid_cnn_lstm
    return HybridCnnLstm(
        features,
        classes,
        conv_blocks=sizes.conv_blocks,
        conv_channels=sizes.conv_channels,
        kernel_size=sizes.kernel_size,
        pool_size=min(sizes.pool_size, time),
        lstm_hidden_size=sizes.lstm_hidden_size,
        lstm_layers=sizes.lstm_layers,
        attention_heads=sizes.attention_heads,
        attention_head_size=sizes.attention_head_size,
        instance_norm=sizes.normalization == training_pb2.NORMALIZATION_INSTANCE_NORM,
        convolution_head=sizes.convolution_head,
        channel_noise=sizes.channel_noise,
        dropout=model.dropout,
    )


def _linear(model: training_pb2.ModelParams, features: int, classes: int, time: int) -> nn.Module:
    pool_size = min(model.linear.pool_size, time)
    return Linear(features, time, classes, pool_size=pool_size, dropout=model.dropout)


def _inception_time(
    model: training_pb2.ModelParams, features: int, classes: int, _: int
) -> nn.Module:
    sizes = model.inception_time
    return InceptionTime(
        features,
        classes,
        depth=sizes.depth,
        filters=sizes.filters,
        kernel_size=sizes.kernel_size,
        bottleneck_size=sizes.bottleneck_size,
        dropout=model.dropout,
    )


def _mini_rocket(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> nn.Module:
    sizes = model.mini_rocket
    return MiniRocket(
        features,
        time,
        classes,
        features_per_kernel=sizes.features_per_kernel,
        max_dilations=sizes.max_dilations,
        ridge_windows=sizes.ridge_windows,
        dropout=model.dropout,
    )


_BUILDERS: dict[str, Callable[[training_pb2.ModelParams, int, int, int], nn.Module]] = {
    "hybrid_cnn_lstm": _hybrid_cnn_lstm,
    "linear": _linear,
    "inception_time": _inception_time,
    "mini_rocket": _mini_rocket,
}

"""How large a network would be, from its request alone: nothing is built, torch is not loaded.

A server asks before it lets a process allocate anything. The formulas count what the modules beside
this one hold, and are compared with these by the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainwire.v1 import training_pb2

_ROCKET_KERNELS = 84
_SHORTEST_LENGTHS = (1, 2, 4)
"""What the longest kernel of an inception module is divided by."""
_MODULES_OF_A_BLOCK = 3


@dataclass(frozen=True)
class Sizes:
    """What a network holds.

    Attributes:
        parameters: values that are trained.
        activations: values that the backward pass of one window needs, at least: what every
            version of torch keeps, without masks, indices and buffers of single kernels.
    """

    parameters: int
    activations: int


def count(model: training_pb2.ModelParams, features: int, classes: int, time: int) -> Sizes:
    """Sizes of what `build` makes of the same arguments.

    Args:
        model: effective parameters (`contract.resolve`).
        features: values per time step.
        classes: number of logits.
        time: steps of a window.

    Raises:
        ValueError: no architecture is chosen, or one that this version does not know.
    """
    name = model.WhichOneof("architecture")
    if name is None or name not in _COUNTERS:
        allowed = ", ".join(_COUNTERS)
        raise ValueError(f"model.architecture: cannot size {name or 'none'}; allowed: {allowed}")
    return _COUNTERS[name](model, features, classes, time)


# ------------------------------------------------------------------------ hybrid_cnn_lstm


def _hybrid_cnn_lstm(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> Sizes:
    sizes = model.hybrid_cnn_lstm
    width, steps = 2 * sizes.lstm_hidden_size, -(-time // min(sizes.pool_size, time))
    mixed = sizes.attention_heads * sizes.attention_head_size
    heads = _head(width, classes)
    if sizes.convolution_head:
        heads += _head(sizes.conv_channels, classes)
    after = 2 * width + _attention(width, mixed) + heads
    return Sizes(
        parameters=_residual_blocks(sizes, features) + _lstm(sizes) + after,
        # Input, output and normalised output of each block's convolution; the states; query, key,
        # value and what they come to.
        activations=time * (features + (3 * sizes.conv_blocks - 1) * sizes.conv_channels)
        + steps * (sizes.lstm_layers * width + 4 * mixed),
    )


def _residual_blocks(sizes: training_pb2.HybridCnnLstm, features: int) -> int:
    channels, kernel = sizes.conv_channels, sizes.kernel_size
    first = features * channels * kernel + 3 * channels
    skip = _linear_layer(features, channels) if features != channels else 0
    later = channels * channels * kernel + 3 * channels
    return first + skip + (sizes.conv_blocks - 1) * later


def _lstm(sizes: training_pb2.HybridCnnLstm) -> int:
    """Four gates, each with two biases, in both directions."""
    hidden = sizes.lstm_hidden_size

    def layer(inputs: int) -> int:
        return 2 * 4 * hidden * (inputs + hidden + 2)

    return layer(sizes.conv_channels) + (sizes.lstm_layers - 1) * layer(2 * hidden)


def _head(width: int, classes: int) -> int:
    # LayerNorm has two values for each of the width.
    return 2 * width + _linear_layer(width, classes)


def _attention(width: int, mixed: int) -> int:
    return _linear_layer(width, 3 * mixed) + _linear_layer(mixed, width)


def _linear_layer(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


# ------------------------------------------------------------------------ the others


def _linear(model: training_pb2.ModelParams, features: int, classes: int, time: int) -> Sizes:
    values = features * -(-time // min(model.linear.pool_size, time))
    return Sizes(_linear_layer(values, classes), values)


def _mini_rocket(model: training_pb2.ModelParams, _: int, classes: int, __: int) -> Sizes:
    width = _ROCKET_KERNELS * model.mini_rocket.features_per_kernel
    return Sizes(_linear_layer(width, classes), width)


def _inception_time(
    model: training_pb2.ModelParams, features: int, classes: int, time: int
) -> Sizes:
    sizes = model.inception_time
    width = 4 * sizes.filters
    inputs = [features] + [width] * (sizes.depth - 1)
    # A whole block has a convolution of length 1 beside it, and its normalisation.
    skips = (inputs[i] * width + 2 * width for i in _starts_of_whole_blocks(sizes.depth))
    modules = (_inception_module(sizes, each) for each in inputs)
    return Sizes(
        parameters=sum(skips) + sum(modules) + _linear_layer(width, classes),
        # Of each module its input, twice with the maximum of it, what each of the longer
        # convolutions takes, and what all four give.
        activations=time * sum(2 * each + 3 * _narrowed(sizes, each) + width for each in inputs),
    )


def _starts_of_whole_blocks(depth: int) -> range:
    return range(0, depth - _MODULES_OF_A_BLOCK + 1, _MODULES_OF_A_BLOCK)


def _narrowed(sizes: training_pb2.InceptionTime, inputs: int) -> int:
    """Channels that the longer convolutions take: there is no bottleneck after one channel."""
    return sizes.bottleneck_size if inputs > 1 else inputs


def _inception_module(sizes: training_pb2.InceptionTime, inputs: int) -> int:
    middle = _narrowed(sizes, inputs)
    bottleneck = inputs * middle if inputs > 1 else 0
    lengths = sum(sizes.kernel_size // part for part in _SHORTEST_LENGTHS)
    maximum, normalisation = inputs * sizes.filters, 8 * sizes.filters
    return bottleneck + middle * sizes.filters * lengths + maximum + normalisation


_COUNTERS: dict[str, Callable[[training_pb2.ModelParams, int, int, int], Sizes]] = {
    "hybrid_cnn_lstm": _hybrid_cnn_lstm,
    "linear": _linear,
    "inception_time": _inception_time,
    "mini_rocket": _mini_rocket,
}

"""From a request's `model` to the network it names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainwire.architectures.hybrid_cnn_lstm import HybridCnnLstm
from trainwire.v1 import training_pb2


def build(model: training_pb2.ModelParams, features: int, classes: int) -> nn.Module:
    """The network that `model.architecture` names, freshly initialised from torch's generator.

    Args:
        model: effective parameters (`contract.resolve`).
        features: values per time step.
        classes: number of logits.

    Returns:
        A module from float32 [batch, features, time] to logits [batch, classes].

    Raises:
        ValueError: no architecture is chosen, or one that this version cannot build.
    """
    name = model.WhichOneof("architecture")
    if name is None or name not in _BUILDERS:
        allowed = ", ".join(_BUILDERS)
        raise ValueError(f"model.architecture: cannot build {name or 'none'}; allowed: {allowed}")
    return _BUILDERS[name](model, features, classes)


def _hybrid_cnn_lstm(model: training_pb2.ModelParams, features: int, classes: int) -> nn.Module:
    sizes = model.hybrid_cnn_lstm
    return HybridCnnLstm(
        features,
        classes,
        conv_blocks=sizes.conv_blocks,
        conv_channels=sizes.conv_channels,
        kernel_size=sizes.kernel_size,
        pool_size=sizes.pool_size,
        lstm_hidden_size=sizes.lstm_hidden_size,
        lstm_layers=sizes.lstm_layers,
        attention_heads=sizes.attention_heads,
        attention_head_size=sizes.attention_head_size,
        dropout=model.dropout,
    )


_BUILDERS: dict[str, Callable[[training_pb2.ModelParams, int, int], nn.Module]] = {
    "hybrid_cnn_lstm": _hybrid_cnn_lstm,
}

"""Convolutions for local shape, a recurrence for order, attention for what matters."""

from __future__ import annotations

from itertools import pairwise
from math import gcd

from torch import Tensor, nn, stack
from torch.nn.functional import scaled_dot_product_attention

from trainwire.architectures.channel_noise import ChannelNoise
from trainwire.architectures.dropout import Dropout


class HybridCnnLstm(nn.Module):
    """Residual Conv1d blocks over time, bidirectional LSTM, multi-head self-attention, mean, head.

    Takes float32 [batch, features, time] and returns logits [batch, classes]; with two heads, in
    training, [batch, 2, classes]: each learns by itself. Features are the channels of the
    convolutions, so the cost grows with time and features separately, not with their product as a
    sequence. Every normalisation works within one sample (GroupNorm, Wu and He
    2018, or InstanceNorm, Ulyanov et al. 2016; LayerNorm, Ba et al. 2016): a sample's logits do not
    depend on its batch.

    Args:
        features: values per time step.
        classes: number of logits.
        conv_blocks: residual blocks (He et al. 2016), of one convolution each.
        conv_channels: channels of each convolution.
        kernel_size: time steps each convolution sees.
        pool_size: time steps averaged into one before the LSTM.
        lstm_hidden_size: hidden size of the LSTM, per direction.
        lstm_layers: stacked LSTM layers.
        attention_heads: heads of the self-attention.
        attention_head_size: size of each head's queries, keys and values.
        instance_norm: a convolution's channels are normalised each by itself, not in groups.
        convolution_head: the mean over time of the convolutions has a head of its own (as FCN, Wang
            et al. 2017; a loss for each head as in Lee et al. 2015, "Deeply-supervised nets"), and
            the LSTM takes what they give without training them; logits are the mean of both
            heads'. Else the LSTM, which learns few series by heart first, shapes what they learn.
        channel_noise: standard deviation, after each normalisation.
        dropout: probability, in the convolution blocks and the head.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        conv_blocks: int,
        conv_channels: int,
        kernel_size: int,
        pool_size: int,
        lstm_hidden_size: int,
        lstm_layers: int,
        attention_heads: int,
        attention_head_size: int,
        instance_norm: bool,
        convolution_head: bool,
        channel_noise: float,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [features] + [conv_channels] * conv_blocks
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    before,
                    after,
                    kernel_size,
                    dropout,
                    instance_norm=instance_norm,
                    channel_noise=channel_noise,
                )
                for before, after in pairwise(widths)
            )
        )
        # ceil_mode keeps the last time steps where pool_size does not divide the length.
        self.pool = nn.AvgPool1d(pool_size, ceil_mode=True)
        self.lstm = nn.LSTM(
            conv_channels, lstm_hidden_size, lstm_layers, batch_first=True, bidirectional=True
        )
        width = 2 * lstm_hidden_size
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, attention_heads, attention_head_size)
        self.head = _head(width, classes, dropout)
        self.convolution_head = _head(conv_channels, classes, dropout) if convolution_head else None

    def forward(self, windows: Tensor) -> Tensor:
        """Logits of windows [batch, features, time]: [batch, classes], or of each head."""
        shapes: Tensor = self.blocks(windows)
        if self.convolution_head is None:
            return self._recur(shapes)
        own = self.convolution_head(shapes.mean(dim=2))
        logits = stack([self._recur(shapes.detach()), own], dim=1)
        return logits if self.training else logits.mean(dim=1)

    def _recur(self, shapes: Tensor) -> Tensor:
        """[batch, channels, time] -> logits [batch, classes] of LSTM and attention."""
        states = self.norm(self.lstm(self.pool(shapes).transpose(1, 2))[0])
        logits: Tensor = self.head(self.attention(states).mean(dim=1))
        return logits


def _head(width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), Dropout(dropout), nn.Linear(width, classes))


class ResidualBlock(nn.Module):
    """Convolution, normalisation, noise, GELU and dropout, added to the input; the length stays."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        dropout: float,
        *,
        instance_norm: bool,
        channel_noise: float,
    ) -> None:
        super().__init__()
        # With a group for each channel it is InstanceNorm.
        groups = outputs if instance_norm else gcd(8, outputs)
        self.body = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel_size, padding="same"),
            nn.GroupNorm(groups, outputs),
            ChannelNoise(channel_noise),
            nn.GELU(),
            Dropout(dropout),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, time] -> [batch, outputs, time]."""
        total: Tensor = self.skip(x) + self.body(x)
        return total


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017), added to its input."""

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, 3 * heads * head_size)
        self.output = nn.Linear(heads * head_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        parts = self.projection(x).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [batch, heads, time, head_size]
        mixed = scaled_dot_product_attention(query, key, value)
        total: Tensor = x + self.output(mixed.transpose(1, 2).flatten(2))
        return total

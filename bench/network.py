"""The hybrid network as people write it: `torch.nn` alone, nothing of trainwire's.

What training is measured against uses this one, so that no shortcut of ours helps it. It takes the
same weights (`load_state_dict`) and gives the same logits as ours.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainwire.v1 import training_pb2


class HybridCnnLstm(nn.Module):
    """Residual convolutions, LSTM, self-attention: float32 [batch, features, time] -> logits.

    Args:
        model: effective parameters (`contract.resolve`); only numbers are read from it.
        features: values per time step.
        classes: number of logits.
    """

    def __init__(self, model: training_pb2.ModelParams, features: int, classes: int) -> None:
        super().__init__()
        sizes = model.hybrid_cnn_lstm
        blocks, inputs = [], features
        for _ in range(sizes.conv_blocks):
            block = ResidualBlock(inputs, sizes.conv_channels, sizes.kernel_size, model.dropout)
            blocks.append(block)
            inputs = sizes.conv_channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AvgPool1d(sizes.pool_size, ceil_mode=True)
        self.lstm = nn.LSTM(
            sizes.conv_channels,
            sizes.lstm_hidden_size,
            sizes.lstm_layers,
            batch_first=True,
            bidirectional=True,
        )
        width = 2 * sizes.lstm_hidden_size
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, sizes.attention_heads, sizes.attention_head_size)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(model.dropout), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of windows [batch, features, time]."""
        x = self.pool(self.blocks(x)).transpose(1, 2)
        states, _ = self.lstm(x)
        x = self.attention(self.norm(states))
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


class ResidualBlock(nn.Module):
    """Convolution, GroupNorm, GELU and dropout, added to the input."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel_size, padding="same"),
            nn.GroupNorm(8, outputs),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, time] -> [batch, outputs, time]."""
        total: Tensor = self.skip(x) + self.body(x)
        return total


class SelfAttention(nn.Module):
    """Multi-head self-attention over time, added to its input."""

    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, 3 * heads * head_size)
        self.output = nn.Linear(heads * head_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        batch, time, _ = x.shape
        parts = self.projection(x).reshape(batch, time, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        total: Tensor = x + self.output(mixed.transpose(1, 2).reshape(batch, time, -1))
        return total

"""Multinomial logistic regression, the least that a network has to beat."""

from __future__ import annotations

from torch import Tensor, nn

from trainwire.architectures.dropout import Dropout


class Linear(nn.Module):
    """One linear layer on every value of the window.

    Takes float32 [batch, features, time] and returns logits [batch, classes]. The weights start at
    0, from where the loss, which is convex, has one way down.

    Args:
        features: values per time step.
        time: steps of a window.
        classes: number of logits.
        pool_size: time steps averaged into one.
        dropout: probability that a value is left out (Srivastava et al. 2014).
    """

    def __init__(
        self, features: int, time: int, classes: int, *, pool_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(pool_size, ceil_mode=True)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(features * -(-time // pool_size), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Logits [batch, classes] of windows [batch, features, time]."""
        logits: Tensor = self.head(self.dropout(self.pool(windows).flatten(1)))
        return logits

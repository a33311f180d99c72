"""Fixed convolutions, many features of each, and a linear layer on these."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import log2, sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trainwire.architectures.dropout import Dropout
from trainwire.architectures.fitted import FittedNetwork
from trainwire.architectures.ridge import find_scale, fit_ridge, peak_bytes

KERNELS = 84
_LENGTH = 9
_LARGE_WEIGHTS = 3
_MOST_CHANNELS = 9
"""That a kernel adds up."""
_STANDARDISED_BY = 500
"""Windows whose features give the means and deviations: enough to know these to 4 %."""
_FOLDS = 10
_OUTPUTS_AT_A_TIME = 2**18
"""Of a dilation's kernels: they stay in a processor's cache."""
_FEATURES_AT_A_TIME = 2**20


class MiniRocket(FittedNetwork):
    """MiniRocket (Dempster, Schmidt and Webb 2021) with a linear layer trained by gradients.

    Takes float32 [batch, features, time], or [batch, width] from `extract`, and returns logits
    [batch, classes]. Each of the 84 kernels of length 9 with three weights 2 and six weights -1
    is applied at several dilations. A feature is the share of time steps at which the output
    exceeds a bias, a quantile of the output for a training window. With several features per time
    step each kernel and dilation takes the sum of some of them (the paper's multivariate version).
    The features are standardised by training windows. The linear layer begins at the paper's
    classifier, ridge regression of up to `ridge_windows` training windows, times the factor that
    makes probabilities of its scores.

    Every value follows from additions in a fixed order and multiplications that are exact, so that
    features have the same bits in any batch and on any device: next to a bias a last bit decides.

    Args:
        features: values per time step.
        time: steps of a window.
        classes: number of logits.
        features_per_kernel: over all dilations.
        max_dilations: of each kernel.
        ridge_windows: for the first weights; 0: these are 0.
        dropout: probability that a feature is left out (Srivastava et al. 2014).
    """

    def __init__(
        self,
        features: int,
        time: int,
        classes: int,
        *,
        features_per_kernel: int,
        max_dilations: int,
        ridge_windows: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = KERNELS * features_per_kernel
        self.ridge_windows = ridge_windows
        by_outputs = _OUTPUTS_AT_A_TIME // (KERNELS * time)
        by_features = _FEATURES_AT_A_TIME // self.width
        self.windows_at_a_time = max(1, min(by_outputs, by_features))
        self.kernels = nn.ModuleList(
            DilatedKernels(features, time, dilation, biases, first_is_padded=index % 2 == 0)
            for index, (dilation, biases) in enumerate(
                spread_dilations(time, features_per_kernel, max_dilations).items()
            )
        )
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(self.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    mean: Tensor
    scale: Tensor

    def forward(self, windows: Tensor) -> Tensor:
        """Logits [batch, classes] of windows [batch, features, time] or of their features."""
        found = windows if windows.dim() == 2 else self.extract(windows)
        logits: Tensor = self.head(self.dropout(found))
        return logits

    @torch.no_grad()
    def extract(self, windows: Tensor) -> Tensor:
        """Standardised features [batch, width] of windows [batch, features, time]."""
        return (self._shares(windows) - self.mean) / self.scale

    @torch.no_grad()
    def fit_to(self, windows: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Draw channels and biases, standardise features, find first weights of the linear layer.

        Labels and weights are for the last of these.
        """
        first = 1
        for kernels in self._each():
            kernels.draw(windows, rows, first)
            first += kernels.biases.numel()
        chosen = rows[torch.randperm(len(rows))[:_STANDARDISED_BY]]
        self._standardise(windows, chosen)
        if self.ridge_windows:
            picks = torch.randperm(len(rows))[: self.ridge_windows].sort().values
            self._begin_at_ridge(windows, rows[picks], labels[picks], weights[labels[picks]])

    def fitting_bytes(self, rows: int) -> int:
        """Most memory that `fit_to` takes at a time, given so many rows: that of the ridge."""
        return peak_bytes(min(rows, self.ridge_windows), self.width)

    def _begin_at_ridge(
        self, windows: Tensor, rows: Tensor, labels: Tensor, weights: Tensor
    ) -> None:
        features = windows.new_empty(len(rows), self.width)
        for places in torch.split(torch.arange(len(rows)), self.windows_at_a_time):
            features[places] = self.extract(windows[rows[places]])
        block = _block_to_leave_out(rows, windows.shape[2])
        ridge = fit_ridge(features, labels, weights, self.head.out_features, block)
        scale = find_scale(ridge.left_out, labels, weights)
        self.head.weight.copy_(scale * ridge.coefficients)
        self.head.bias.copy_(scale * ridge.intercepts)

    def _standardise(self, windows: Tensor, rows: Tensor) -> None:
        total, squares = torch.zeros((2, self.width), dtype=torch.float64)
        for part in torch.split(rows, self.windows_at_a_time):
            shares = self._shares(windows[part]).double()
            total += shares.sum(dim=0)
            squares += shares.square().sum(dim=0)
        mean = total / len(rows)
        deviation = (squares / len(rows) - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        # A share that does not vary says nothing, and its rounding errors must not be blown up.
        self.scale.copy_(deviation.where(deviation > 1e-6, 1.0))

    def _shares(self, windows: Tensor) -> Tensor:
        return torch.cat([kernels.compare(kernels(windows)) for kernels in self._each()], dim=1)

    def _each(self) -> Iterable[DilatedKernels]:
        return cast("Iterable[DilatedKernels]", self.kernels)


class DilatedKernels(nn.Module):
    """The 84 kernels at one dilation.

    Takes windows [batch, features, time] and returns their outputs [batch, 84, time]; the ends of
    the windows are filled up with zeros. Every other kernel has its biases compared only where it
    lies within the window as a whole; in windows too short for that, all are compared everywhere.

    Args:
        features: values per time step.
        time: steps of a window.
        dilation: steps from one weight of a kernel to the next.
        biases: of each kernel.
        first_is_padded: whether the first kernel is compared everywhere, or the second one.
    """

    def __init__(
        self, features: int, time: int, dilation: int, biases: int, *, first_is_padded: bool
    ) -> None:
        super().__init__()
        self.features = features
        self.dilation = dilation
        most = min(features, _MOST_CHANNELS)
        self.register_buffer("channels", torch.zeros(KERNELS, most, dtype=torch.int64))
        self.register_buffer("biases", torch.zeros(KERNELS, biases))
        large = torch.tensor(list(combinations(range(_LENGTH), _LARGE_WEIGHTS)))
        weights = torch.full((KERNELS, _LENGTH), -1.0).scatter(1, large, 2.0)
        self.register_buffer("weights", weights, persistent=False)
        reach = (_LENGTH // 2) * dilation
        is_padded = torch.arange(KERNELS) % 2 == (0 if first_is_padded else 1)
        steps = torch.arange(time)
        is_inside = (steps >= reach) & (steps < time - reach)
        counted = is_padded[:, None] | is_inside | (time <= 2 * reach)
        self.register_buffer("counted", counted, persistent=False)

    channels: Tensor
    biases: Tensor
    weights: Tensor
    counted: Tensor

    def forward(self, windows: Tensor) -> Tensor:
        """Outputs [batch, 84, time] of windows [batch, features, time]."""
        return self._convolve(self._add_up(windows))

    def compare(self, outputs: Tensor) -> Tensor:
        """Shares [batch, 84 x biases] of the time steps at which outputs exceed each bias."""
        seen = outputs.where(self.counted, -torch.inf)
        biases = self.biases[:, :, None].unbind(1)
        if torch.onnx.is_in_onnx_export():  # ONNX has no `out`
            above = [(seen > bias).float().sum(dim=2) for bias in biases]
        else:
            # Floats, and always the same ones: booleans are summed three times slower on a CPU.
            room = torch.empty_like(seen)
            above = [torch.gt(seen, bias, out=room).sum(dim=2) for bias in biases]
        shares = torch.stack(above, dim=2) / self.counted.sum(dim=1, keepdim=True)
        return shares.flatten(1)

    def draw(self, windows: Tensor, rows: Tensor, first: int) -> None:
        """Draw the channels of each kernel, and its biases from one of the windows.

        Args:
            windows: float32 [rows, features, time].
            rows: int64 [n]: those that may be looked at.
            first: number of the first bias among those of all dilations.
        """
        self._draw_channels()
        picks = rows[torch.randint(len(rows), (KERNELS,))]
        summed = self._with_zeros(windows[picks])[torch.arange(KERNELS)[:, None], self.channels]
        outputs = self._convolve(summed.sum(dim=1)[None])[0]
        self.biases.copy_(_quantiles(outputs, low_discrepancy(first, self.biases.numel())))

    def _draw_channels(self) -> None:
        most = self.channels.shape[1]
        counts = (2 ** (torch.rand(KERNELS) * log2(most + 1))).long()
        order = torch.rand(KERNELS, self.features).argsort(dim=1)[:, :most]
        self.channels.copy_(order.where(torch.arange(most) < counts[:, None], self.features))

    def _with_zeros(self, windows: Tensor) -> Tensor:
        """A channel more, for the places of `channels` that a kernel leaves free."""
        return pad(windows, (0, 0, 0, 1))

    def _add_up(self, windows: Tensor) -> Tensor:
        """The sum of each kernel's channels, [batch, 84 or 1, time]."""
        if self.features == 1:
            return windows
        values = self._with_zeros(windows)
        total = values[:, self.channels[:, 0]]
        for channels in self.channels[:, 1:].unbind(1):
            total = total + values[:, channels]
        return total

    def _convolve(self, summed: Tensor) -> Tensor:
        time, reach = summed.shape[2], (_LENGTH // 2) * self.dilation
        padded = pad(summed, (reach, reach))
        parts = [padded[..., i * self.dilation :][..., :time] for i in range(_LENGTH)]
        weights = self.weights[:, :, None].unbind(1)
        total = weights[0] * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            total = total.addcmul(weight, part)
        return total


def _block_to_leave_out(rows: Tensor, time: int) -> int:
    """How many neighbours to leave out together: a tenth of windows that overlap, or else one.

    A window that overlaps with another one would not be left out while that one stays.
    """
    overlap = bool((rows.diff() < time).any())
    return -(-len(rows) // _FOLDS) if overlap else 1


def spread_dilations(time: int, features_per_kernel: int, most: int) -> dict[int, int]:
    """Dilations and how many of a kernel's features each gets (sec. 3.1.3 of the paper).

    The exponents are spread evenly from 0 to that of the longest dilation at which a kernel still
    lies within the window.
    """
    drawn = min(features_per_kernel, most)
    exponent = max(0.0, log2((time - 1) / (_LENGTH - 1)))
    counts: dict[int, int] = {}
    for index in range(drawn):
        # Not a hair below the whole number that it would be without rounding.
        dilation = int(2 ** (exponent * index / max(1, drawn - 1)) + 1e-9)
        counts[dilation] = counts.get(dilation, 0) + 1
    spread = {d: count * features_per_kernel // drawn for d, count in counts.items()}
    rest = features_per_kernel - sum(spread.values())
    return {d: count + (i < rest) for i, (d, count) in enumerate(spread.items())}


def low_discrepancy(first: int, count: int) -> Tensor:
    """Members first, first + 1... of the golden ratio's sequence in [0, 1), float64 [count]."""
    golden = (sqrt(5) + 1) / 2
    return torch.arange(first, first + count, dtype=torch.float64) * golden % 1


def _quantiles(outputs: Tensor, shares: Tensor) -> Tensor:
    """For each row of outputs [84, time] as many of the shares as are its; linear in between."""
    ordered = outputs.double().sort(dim=1).values
    places = shares.view(KERNELS, -1) * (outputs.shape[1] - 1)
    below = places.long()
    lower = ordered.gather(1, below)
    upper = ordered.gather(1, (below + 1).clamp(max=outputs.shape[1] - 1))
    return lower + (upper - lower) * (places - below)

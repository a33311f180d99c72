"""Random changes to training windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainwire.v1 import training_pb2

_SMALLEST_ALPHA = 1e-6
"""Shares are 0 or 1 there already; NumPy's logarithms overflow far below."""


@dataclass(frozen=True)
class Augmentation:
    """How strong each change is; 0 is off.

    Attributes:
        noise: standard deviation.
        mixup: both parameters of the Beta distribution that shares of mixtures are drawn from.
        scaling: standard deviation.
        time_mask: largest share of the time steps.
        feature_dropout: probability.
    """

    noise: float = 0.0
    mixup: float = 0.0
    scaling: float = 0.0
    time_mask: float = 0.0
    feature_dropout: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether training windows differ from epoch to epoch."""
        return self != Augmentation()


def read_augmentation(trainer: training_pb2.TrainerParams) -> Augmentation:
    """The changes that a request asks for, all off where `use_augmentation` is."""
    if not trainer.use_augmentation:
        return Augmentation()
    return Augmentation(
        noise=trainer.gaussian_noise_std,
        mixup=trainer.mixup_alpha,
        scaling=trainer.scaling_std,
        time_mask=trainer.time_mask_ratio,
        feature_dropout=trainer.feature_dropout,
    )


def augment(
    windows: Tensor, augmentation: Augmentation, generator: torch.Generator | None = None
) -> Tensor:
    """The windows with all changes but mixup, each drawn for every window anew.

    Values are scaled and disturbed before they are masked, so that what is masked is 0.

    Args:
        windows: float32 [n, features, time].
        augmentation: what to do; without any the windows come back as they are.
        generator: to draw from; torch's own of the windows' device if None.
    """
    if augmentation.scaling > 0:
        windows = scale_features(windows, augmentation.scaling, generator)
    if augmentation.noise > 0:
        windows = add_gaussian_noise(windows, augmentation.noise, generator)
    if augmentation.time_mask > 0:
        windows = mask_time(windows, augmentation.time_mask, generator)
    if augmentation.feature_dropout > 0:
        windows = drop_features(windows, augmentation.feature_dropout, generator)
    return windows


def add_gaussian_noise(
    windows: Tensor, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """`windows` plus independent normal noise of standard deviation `std`, of the same shape.

    Draws from the generator, or from torch's of the windows' device. The features are scaled, so
    `std` is in units of their standard deviation.
    """
    # Not randn_like: gathered windows are not contiguous, and torch then draws nine times slower.
    noise = torch.randn(
        windows.shape, generator=generator, dtype=windows.dtype, device=windows.device
    )
    return windows + std * noise


def scale_features(windows: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Each feature of each window times one number of the normal distribution N(1, std^2).

    "Scaling" of Um et al. 2017 (Data Augmentation of Wearable Sensor Data for Parkinson's Disease
    Monitoring using Convolutional Neural Networks, sec. 3).

    Args:
        windows: float32 [n, features, time].
        std: standard deviation.
        generator: as in `augment`.
    """
    shape = (*windows.shape[:2], 1)
    drawn = torch.randn(shape, generator=generator, dtype=windows.dtype, device=windows.device)
    return windows * (1 + std * drawn)


def mask_time(windows: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """One stretch of time steps of each window set to 0, in all features.

    Time masking of SpecAugment (Park et al. 2019, sec. 2): the length is drawn evenly from 0 to
    `ratio` of the steps (rounded up, and never all of them), then the first step evenly from all
    at which the stretch fits.

    Args:
        windows: float32 [n, features, time].
        ratio: in (0, 1).
        generator: as in `augment`.
    """
    count, _, time = windows.shape
    # Not a step more because 0.07 x 100 is a hair above 7 in floating point.
    longest = min(math.ceil(ratio * time - 1e-9), time - 1)
    drawn = torch.rand((2, count, 1, 1), generator=generator, device=windows.device)
    lengths = (drawn[0] * (longest + 1)).long()
    firsts = (drawn[1] * (time - lengths + 1)).long()
    steps = torch.arange(time, device=windows.device)
    return windows.masked_fill((steps >= firsts) & (steps < firsts + lengths), 0)


def drop_features(
    windows: Tensor, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Each feature of each window set to 0 over all time steps with this probability.

    The others stay as they are: unlike dropout within a network, nothing makes up for the loss.

    Args:
        windows: float32 [n, features, time].
        probability: in [0, 1).
        generator: as in `augment`.
    """
    shape = (*windows.shape[:2], 1)
    drawn = torch.rand(shape, generator=generator, device=windows.device)
    return windows.masked_fill(drawn < probability, 0)


def draw_shares(
    alpha: float, count: int, rng: np.random.Generator, device: torch.device
) -> Tensor | None:
    """Share of each sample in its mixture, float32 [count], of the Beta(alpha, alpha) distribution.

    mixup (Zhang et al. 2018, eq. 1), with a share for each sample instead of one for each batch.
    None where alpha is 0: nothing is mixed.
    """
    if alpha == 0:
        return None
    shares = rng.beta(*(max(alpha, _SMALLEST_ALPHA),) * 2, size=count)
    return torch.from_numpy(shares.astype(np.float32)).to(device, non_blocking=True)


def warn_of_lone_windows(
    augmentation: Augmentation, batch_size: int
) -> list[training_pb2.JobWarning]:
    """A warning if each window is mixed with itself, because it has its batch to itself.

    Args:
        augmentation: what is asked for.
        batch_size: windows of the largest batch.
    """
    if augmentation.mixup == 0 or batch_size > 1:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_FIELD_WITHOUT_EFFECT,
            message="set, but without effect: batches of one window have no other to mix it with",
            field="trainer.mixup_alpha",
        )
    ]


def mix(windows: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """share x window + (1 - share) x other (Zhang et al. 2018, eq. 1).

    Args:
        windows, others: float32 [n, features, time].
        shares: float32 [n].
    """
    return torch.lerp(others, windows, shares[:, None, None])

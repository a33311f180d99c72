"""Probabilities that say how often predictions are right: temperature scaling.

Guo, Pleiss, Sun and Weinberger 2017, On calibration of modern neural networks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trainwire_server.training.ranking import Scores

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature."""
_HALVINGS = 30

Floats = npt.NDArray[np.float64]


def fit_temperature(scores: Scores) -> float:
    """The temperature of the lowest cross-entropy, `LOWEST` to `HIGHEST`; 1 if none is better.

    Cross-entropy is convex in the inverse of the temperature, so bisection of its slope finds the
    one minimum, always in the same steps.

    Args:
        scores: of windows that were not trained on.
    """
    leads = _leads(scores)
    own = float(leads[np.arange(len(leads)), scores.labels].mean())
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _expected(leads, math.exp(-middle)) > own:
            low = middle
        else:
            high = middle
    found = math.exp((low + high) / 2)
    return found if mean_loss(calibrate(scores, found)) < mean_loss(scores) else 1.0


def calibrate(scores: Scores, temperature: float) -> Scores:
    """What the network would have said with its outputs divided by a temperature."""
    scaled = _leads(scores) / temperature
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return Scores(scaled.astype(np.float32), scores.labels)


def mean_loss(scores: Scores) -> float:
    """Plain cross-entropy: mean of -log p of the true classes."""
    own = scores.log_probabilities[np.arange(len(scores.labels)), scores.labels]
    return -float(own.mean(dtype=np.float64))


def calibration_error(scores: Scores) -> float:
    """Expected calibration error, sum_m |B_m| / n |acc(B_m) - conf(B_m)| (Guo et al. 2017, eq. 3).

    B_m are the windows whose largest probability lies in the m-th of 15 bins of equal width, each
    with its upper end; acc is the share whose likeliest class is the true one, conf the mean of
    the largest probabilities.
    """
    confidence = np.exp(scores.log_probabilities.max(axis=1).astype(np.float64))
    is_right = scores.likeliest == scores.labels
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, is_right - confidence, BINS)
    return float(np.abs(gaps).sum()) / len(bins)


def _leads(scores: Scores) -> Floats:
    """Logits [n, classes] less the largest of their window: no exponential of them overflows."""
    logs = scores.log_probabilities.astype(np.float64)
    logs -= logs.max(axis=1, keepdims=True)
    return logs


def _expected(leads: Floats, inverse: float) -> float:
    """Mean logit that is expected of the true classes; less the real one, the slope.

    The slope is the derivative of the cross-entropy by 1 / temperature.
    """
    likelihoods = np.exp(leads * inverse)
    total = likelihoods.sum(axis=1)
    likelihoods *= leads
    return float((likelihoods.sum(axis=1) / total).mean())

"""The training objective and the validation loss.

Both come as sums, not means: sums of micro-batches add up to the sums of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, nll_loss


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    gamma: float,
    smoothing: float,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the focal loss with class weights and label smoothing.

    With q = (1 - smoothing) onehot(y) + smoothing / K, p = softmax(logits) and
    CE_i = -sum_c w_c q_ic log p_ic, the loss is
    ``sum_i (1 - p_i,y_i)^gamma CE_i / sum_i w_y_i`` (focal factor: Lin et al. 2017, eq. 4;
    normalisation and smoothing: `torch.nn.functional.cross_entropy`, which it equals at gamma 0).

    Args:
        logits: [batch, K], real.
        labels: int64 [batch].
        weights: [K], of the type of `logits`.
        gamma: focusing exponent, at least 0.
        smoothing: share of each label spread evenly over all classes.
        shares: [batch], how much each sample counts, in both sums; 1 if None.

    Returns:
        Two scalars; their quotient over the whole batch is the loss.
    """
    log_p = log_softmax(logits, dim=1)
    # Not `gather`: its reproducible gradient on a GPU is two dozen kernels.
    own = -nll_loss(log_p, labels, reduction="none")
    own_weight = weights[labels]
    spread = log_p @ weights * (smoothing / logits.shape[1])
    entropy = -((1 - smoothing) * own_weight * own + spread)
    # p is the plain softmax: exp(-weighted CE) would not be a probability. Below gamma 1 the slope
    # of x^gamma is infinite at 0, which a sample that is predicted perfectly would reach.
    doubt = (-torch.expm1(own)).clamp_min(torch.finfo(logits.dtype).eps)
    focused = doubt**gamma * entropy
    if shares is None:
        return focused.sum(), own_weight.sum()
    return (shares * focused).sum(), (shares * own_weight).sum()


def mixed_focal_loss(
    logits: Tensor,
    labels: Tensor,
    others: Tensor,
    shares: Tensor,
    weights: Tensor,
    gamma: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the focal loss of mixtures of two samples.

    Each mixture counts as both of its samples, by their shares (mixup, Zhang et al. 2018: the loss
    is share x loss(label) + (1 - share) x loss(other)). With l_i the share and f_i(y) the summand
    (1 - p_i,y)^gamma CE_i(y) of `focal_loss`, the loss is
    ``sum_i (l_i f_i(a_i) + (1 - l_i) f_i(b_i)) / sum_i (l_i w_a_i + (1 - l_i) w_b_i)``.

    Args:
        logits: [batch, K], real.
        labels, others: int64 [batch], a and b.
        shares: [batch], of `labels`, in [0, 1].
        weights, gamma, smoothing: as in `focal_loss`.

    Returns:
        Two scalars; their quotient over the whole batch is the loss.
    """
    one, own_weight = focal_loss(logits, labels, weights, gamma, smoothing, shares)
    other, other_weight = focal_loss(logits, others, weights, gamma, smoothing, 1 - shares)
    return one + other, own_weight + other_weight


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the cross-entropy, neither weighted nor smoothed.

    Args:
        logits: [batch, K], real.
        labels: int64 [batch].

    Returns:
        Two scalars; their quotient is the mean over the batch.
    """
    total = cross_entropy(logits, labels, reduction="sum")
    return total, total.new_full((), len(labels))

"""Ridge regression on class labels, its strength chosen by leaving out samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHAS = tuple(10 ** (-3 + 6 * index / 9) for index in range(10))
"""Strengths tried: those of the MiniRocket authors' code, `numpy.logspace(-3, 3, 10)`."""
_FEATURES_AT_A_TIME = 256
_MATRICES = 4
"""Of n x n at a time: the products, their eigenvectors, and what LAPACK works in."""
_LOWEST, _HIGHEST = 0.01, 100.0
"""Bounds of the factor that makes logits of scores."""
_HALVINGS = 40


@dataclass(frozen=True)
class Ridge:
    """The solution of the best strength.

    Attributes:
        alpha: the strength.
        coefficients: float64 [classes, width].
        intercepts: float64 [classes].
        left_out: float64 [n, classes], the score of each sample without its block.
    """

    alpha: float
    coefficients: Tensor
    intercepts: Tensor
    left_out: Tensor


def fit_ridge(
    features: Tensor, labels: Tensor, weights: Tensor, classes: int, block: int = 1
) -> Ridge:
    """Weighted ridge regression of one column for each class: 1 for its samples, -1 for others.

    Minimises ``sum_i s_i |y_i - B x_i - b|^2 + alpha |B|^2`` with the `alpha` of `ALPHAS` whose
    weighted squared errors of samples left out are least, the smallest of several such; one at a
    time, this is what scikit-learn's `RidgeClassifierCV` does. With Z the rows
    sqrt(s_i) (x_i - mean), Q diag(v) Q^T the eigendecomposition of Z Z^T and
    c = Q diag(1 / (v + alpha)) Q^T t for targets t that are weighted and centred alike, the
    solution is Z^T c, and the errors of a block left out are ``alpha (I - H)_bb^-1 c_b`` with
    ``I - H = alpha Q diag(1 / (v + alpha)) Q^T - u u^T`` for u = sqrt(s / sum s), which stands for
    the intercept (Rifkin and Lippert 2007, Notes on regularized least squares, for one sample; the
    same holds for several).

    Args:
        features: real [n, width], finite.
        labels: int64 [n], in 0 .. classes - 1; a class may have no sample.
        weights: float64 [n], above 0; their mean is taken to be 1.
        classes: columns.
        block: how many neighbouring samples are left out together.
    """
    shares = weights / weights.sum()
    roots = (shares * len(shares)).sqrt()[:, None]
    targets = 2 * torch.nn.functional.one_hot(labels, classes).double() - 1
    offset = shares @ targets
    means = torch.cat([shares @ part.double() for part in _parts(features)])
    spectrum = _decompose(_products(features, means, roots), roots * (targets - offset), shares)
    errors = [spectrum.leave_out(alpha, block) for alpha in ALPHAS]
    losses = [float(error.square().sum()) for error in errors]
    best = losses.index(min(losses))
    dual = roots * spectrum.solve(ALPHAS[best])
    coefficients = torch.cat([dual.T @ part for part in _centred(features, means)], dim=1)
    return Ridge(
        alpha=ALPHAS[best],
        coefficients=coefficients,
        intercepts=offset - coefficients @ means,
        left_out=targets - errors[best] / roots,
    )


@dataclass(frozen=True)
class _Spectrum:
    """Eigenvalues [n] and eigenvectors [n, n] of Z Z^T + lift u u^T.

    Attributes:
        targets: float64 [n, classes], weighted and centred.
        roots: float64 [n, 1], u.
        lift: the eigenvalue of u.
    """

    values: Tensor
    vectors: Tensor
    targets: Tensor
    roots: Tensor
    lift: float

    def solve(self, alpha: float) -> Tensor:
        """(Z Z^T + alpha)^-1 targets, [n, classes]."""
        projected = self.vectors.T @ self.targets
        return self.vectors @ (projected / (self.values + alpha)[:, None])

    def leave_out(self, alpha: float, block: int) -> Tensor:
        """Weighted errors of samples left out, [n, classes]."""
        own = alpha * self.solve(alpha)
        if block >= len(own):
            # Nobody is left to say anything else.
            return own
        whole = len(own) - len(own) % block
        errors = [
            self._leave_out(alpha, own, slice(0, whole), block),
            self._leave_out(alpha, own, slice(whole, None), len(own) - whole),
        ]
        return torch.cat(errors)

    def _leave_out(self, alpha: float, own: Tensor, some: slice, block: int) -> Tensor:
        """Errors of samples whose number is a multiple of a block."""
        if not len(own[some]):
            return own[some]
        mine, vectors, roots = (
            each[some].view(-1, block, each.shape[1]) for each in (own, self.vectors, self.roots)
        )
        inverse = (vectors / (self.values + alpha)) @ vectors.mT
        kept = alpha * (inverse - roots @ roots.mT / (self.lift + alpha))
        errors: Tensor = torch.linalg.solve(kept, mine)
        return errors.flatten(0, 1)


def _decompose(products: Tensor, targets: Tensor, shares: Tensor) -> _Spectrum:
    # The eigenvalue of u would be 0, and its 1 / alpha so large that the rest is lost beside it.
    lift, roots = float(products.diagonal().mean()), shares.sqrt()
    values, vectors = torch.linalg.eigh(products.addr_(roots, roots, alpha=lift))
    return _Spectrum(values.clamp(min=0), vectors, targets, roots[:, None], lift)


def peak_bytes(samples: int, width: int) -> int:
    """Most memory that `fit_ridge` takes at a time, its features included."""
    return 4 * samples * width + 8 * _MATRICES * samples**2


def _parts(features: Tensor) -> tuple[Tensor, ...]:
    """Some features of all samples at a time: in float64 they are twice as large."""
    return torch.split(features, _FEATURES_AT_A_TIME, dim=1)


def _centred(features: Tensor, means: Tensor) -> Iterator[Tensor]:
    for part, mean in zip(_parts(features), torch.split(means, _FEATURES_AT_A_TIME), strict=True):
        yield part.double() - mean


def _products(features: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    """Z Z^T, float64 [n, n]."""
    total = means.new_zeros(len(features), len(features))
    for part in _centred(features, means):
        weighted = roots * part
        total.addmm_(weighted, weighted.T)
    return total


def find_scale(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The factor of the lowest cross-entropy of `softmax(factor * scores)`, 0.01 to 100.

    Each label counts as (n + 1) / (n + K) of its class and 1 / (n + K) of each other one, as if
    every class had been seen once more (Platt 1999, Probabilistic outputs for support vector
    machines, for K classes): where all samples are right the factor would grow without an end. The
    cross-entropy is convex in the factor, so bisection of its slope finds the one minimum.

    Args:
        scores: float64 [n, K], of samples that did not make them.
        labels: int64 [n].
        weights: float64 [n], above 0.
    """
    count, classes = scores.shape
    expected = torch.full_like(scores, 1 / (count + classes))
    expected[torch.arange(count), labels] = (count + 1) / (count + classes)
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        likelihoods = torch.softmax(math.exp(middle) * scores, dim=1)
        slope = float((weights * ((likelihoods - expected) * scores).sum(dim=1)).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp((low + high) / 2)

"""Dropout with a generator of its own."""

from __future__ import annotations

import pytest
import torch

from trainwire.architectures.dropout import Dropout


def seeded(p: float, seed: int = 0) -> Dropout:
    module = Dropout(p)
    module.generator = torch.Generator().manual_seed(seed)
    return module


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.4, 0.9])
def test_values_are_dropped_with_the_given_probability_and_the_mean_stays(p: float) -> None:
    count = 1_000_000
    y = seeded(p)(torch.ones(count))
    deviation = (p * (1 - p) / count) ** 0.5
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=5 * deviation + 2**-17)
    kept = y[y != 0]
    assert torch.equal(kept, kept[:1].expand(len(kept)))
    assert float(kept[0]) == pytest.approx(1 / (1 - p), rel=1e-4)


def test_neighbours_are_independent() -> None:
    # Four values come from one number drawn.
    dropped = (seeded(0.4)(torch.ones(4_000_000)) == 0).float().view(-1, 4)
    correlation = torch.corrcoef(torch.cat([dropped[1:].T, dropped[:-1].T]))
    assert float((correlation - torch.eye(8)).abs().max()) < 5 / len(dropped) ** 0.5


def test_the_gradient_is_that_of_the_values_kept() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    y = seeded(0.4)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    scale = (y / x).detach()
    torch.testing.assert_close(gradient, scale)
    assert set((gradient == 0).flatten().tolist()) == {True, False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_type_shape_and_layout_do_not_matter(dtype: torch.dtype) -> None:
    x = torch.ones(3, 5, 7, dtype=dtype).transpose(0, 2)
    y = seeded(0.5)(x)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert torch.equal(y, seeded(0.5)(x.contiguous()))


def test_it_follows_from_its_generator_or_from_torchs() -> None:
    x = torch.ones(1000)
    assert torch.equal(seeded(0.4, 1)(x), seeded(0.4, 1)(x))
    assert not torch.equal(seeded(0.4, 1)(x), seeded(0.4, 2)(x))
    module = Dropout(0.4)
    torch.manual_seed(3)
    one = module(x)
    assert not torch.equal(module(x), one)
    torch.manual_seed(3)
    assert torch.equal(module(x), one)


def test_evaluation_changes_and_draws_nothing() -> None:
    module, x = seeded(0.4).eval(), torch.randn(10)
    assert torch.equal(module(x), x)
    assert module.generator is not None
    assert module.generator.get_state().equal(torch.Generator().manual_seed(0).get_state())

"""Noise on whole channels, in training alone."""

from __future__ import annotations

import pytest
import torch

from trainwire.architectures.channel_noise import ChannelNoise


def seeded(deviation: float, seed: int = 0) -> ChannelNoise:
    module = ChannelNoise(deviation)
    module.generator = torch.Generator().manual_seed(seed)
    return module


def test_each_channel_of_each_sample_is_scaled_and_shifted_as_a_whole() -> None:
    x = torch.randn(200, 300, 4, dtype=torch.float64)
    y = seeded(0.3)(x)
    factor = (y[..., 1] - y[..., 0]) / (x[..., 1] - x[..., 0])
    shift = y[..., 0] - factor * x[..., 0]
    torch.testing.assert_close(y, factor[..., None] * x + shift[..., None], rtol=1e-6, atol=1e-6)
    for drawn, mean in ((factor, 1), (shift, 0)):
        assert float(drawn.mean()) == pytest.approx(mean, abs=5 * 0.3 / drawn.numel() ** 0.5)
        assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)
    drawn = torch.stack([factor.flatten(), shift.flatten()])
    assert abs(float(torch.corrcoef(drawn)[0, 1])) < 5 / factor.numel() ** 0.5


def test_the_gradient_is_the_factor() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    y = seeded(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, gradient[..., :1].expand_as(gradient))
    torch.testing.assert_close(gradient[..., :6] * x.diff(dim=2), y.diff(dim=2))


def test_it_follows_from_its_generator_or_from_torchs() -> None:
    x = torch.ones(4, 5, 6)
    assert torch.equal(seeded(0.4, 1)(x), seeded(0.4, 1)(x))
    assert not torch.equal(seeded(0.4, 1)(x), seeded(0.4, 2)(x))
    module = ChannelNoise(0.4)
    torch.manual_seed(3)
    one = module(x)
    assert not torch.equal(module(x), one)
    torch.manual_seed(3)
    assert torch.equal(module(x), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_shape_stay(dtype: torch.dtype) -> None:
    y = seeded(0.5)(torch.ones(3, 5, 7, dtype=dtype))
    assert (y.dtype, y.shape) == (dtype, (3, 5, 7))


@pytest.mark.parametrize(("deviation", "training"), [(0.4, False), (0.0, True)])
def test_without_training_or_deviation_it_changes_and_draws_nothing(
    deviation: float, training: bool
) -> None:
    module, x = seeded(deviation).train(training), torch.randn(2, 3, 4)
    assert torch.equal(module(x), x)
    assert module.generator is not None
    assert module.generator.get_state().equal(torch.Generator().manual_seed(0).get_state())

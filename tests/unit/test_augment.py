"""Gaussian noise."""

from __future__ import annotations

import torch

from trainwire_server.training.augment import add_gaussian_noise


def test_noise_has_the_given_deviation_and_is_independent_everywhere() -> None:
    torch.manual_seed(0)
    windows = torch.randn(500, 8).unfold(0, 20, 1)[torch.arange(0, 400)]
    noise = add_gaussian_noise(windows, 0.25) - windows
    assert noise.shape == (400, 8, 20)
    assert abs(float(noise.mean())) < 0.005
    assert abs(float(noise.std()) - 0.25) < 0.005
    # Windows overlap: window 1 at time 0 is window 0 at time 1, but their noise is not the same.
    assert abs(float((noise[1:, :, :-1] * noise[:-1, :, 1:]).mean())) < 0.005


def test_noise_follows_from_torchs_seed_and_leaves_its_input_alone() -> None:
    windows = torch.zeros(3, 2, 4)
    torch.manual_seed(7)
    one = add_gaussian_noise(windows, 1.0)
    torch.manual_seed(7)
    assert torch.equal(one, add_gaussian_noise(windows, 1.0))
    assert not torch.equal(one, add_gaussian_noise(windows, 1.0))
    assert not windows.any()

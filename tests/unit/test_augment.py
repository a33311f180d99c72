"""Changes to training windows: what they draw, and what that does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training.augment import (
    Augmentation,
    add_gaussian_noise,
    augment,
    draw_shares,
    drop_features,
    mask_time,
    mix,
    read_augmentation,
    scale_features,
)
from trainwire_server.training.setup import set_up

MakeRequest = Callable[..., training_pb2.TrainingRequest]

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ones(count: int, features: int, time: int) -> Tensor:
    """Windows in which every 0 is one that was put there."""
    return torch.ones(time, features).unfold(0, time, 1).expand(count, features, time)


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


def test_scaling_is_one_normal_factor_for_each_feature_of_each_window() -> None:
    windows = torch.randn(4000, 5, 6, generator=seeded())
    factors = scale_features(windows, 0.3, seeded(1)) / windows
    drawn = 1 + 0.3 * torch.randn(4000, 5, 1, generator=seeded(1))
    torch.testing.assert_close(factors, drawn.expand_as(factors))
    first = factors[:, :, 0]
    assert abs(float(first.mean()) - 1) < 0.01
    assert abs(float(first.std()) - 0.3) < 0.01
    assert float(torch.corrcoef(first.T).tril(-1).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("ratio", "time", "longest"),
    [(0.5, 8, 4), (0.3, 8, 3), (0.07, 100, 7), (0.01, 8, 1), (0.9, 8, 7), (0.5, 2, 1)],
)
def test_a_time_mask_is_one_stretch_of_even_length_and_place(
    ratio: float, time: int, longest: int
) -> None:
    masked = mask_time(ones(6000, 3, time), ratio, seeded()) == 0
    assert (masked == masked[:, :1]).all(), "the same steps in all features"
    steps = masked[:, 0]
    edges = steps.int().diff(dim=1, prepend=torch.zeros(6000, 1), append=torch.zeros(6000, 1))
    assert ((edges != 0).sum(dim=1) <= 2).all(), "one stretch"
    lengths = steps.sum(dim=1)
    counts = np.bincount(lengths.numpy(), minlength=longest + 1)
    assert len(counts) == longest + 1
    np.testing.assert_allclose(counts / 6000, 1 / (longest + 1), atol=0.03)
    alone = steps[lengths == 1].float().mean(dim=0)
    np.testing.assert_allclose(alone.numpy(), 1 / time, atol=0.05)


def test_features_are_dropped_as_a_whole_with_the_given_probability() -> None:
    dropped = drop_features(ones(5000, 4, 6), 0.2, seeded()) == 0
    assert (dropped == dropped[:, :, :1]).all()
    shares = dropped[:, :, 0].float()
    np.testing.assert_allclose(shares.mean(dim=0).numpy(), 0.2, atol=0.02)
    assert float(torch.corrcoef(shares.T).tril(-1).abs().max()) < 0.05


def test_what_is_not_masked_stays_as_it_is() -> None:
    windows = torch.randn(50, 3, 9, generator=seeded())
    for changed in (mask_time(windows, 0.5, seeded()), drop_features(windows, 0.5, seeded())):
        assert torch.equal(changed, torch.where(changed == 0, 0.0, windows))
        assert 0 < int((changed == 0).sum()) < windows.numel()


def test_all_changes_follow_from_the_generator_and_masks_come_last() -> None:
    windows = torch.randn(50, 3, 9, generator=seeded())
    before = windows.clone()
    strong = Augmentation(noise=0.1, scaling=0.2, time_mask=0.5, feature_dropout=0.2)
    one = augment(windows, strong, seeded(3))
    assert torch.equal(one, augment(windows, strong, seeded(3)))
    assert not torch.equal(one, augment(windows, strong, seeded(4)))
    generator = seeded(3)
    by_hand = scale_features(windows, 0.2, generator)
    by_hand = add_gaussian_noise(by_hand, 0.1, generator)
    by_hand = mask_time(by_hand, 0.5, generator)
    assert torch.equal(one, drop_features(by_hand, 0.2, generator))
    assert (one == 0).any()
    assert torch.equal(windows, before)


def test_what_is_off_draws_nothing() -> None:
    windows, generator = torch.randn(5, 3, 9, generator=seeded()), seeded(1)
    state = generator.get_state()
    rng = np.random.default_rng(0)
    assert augment(windows, Augmentation(mixup=0.4), generator) is windows
    assert draw_shares(0.0, 5, rng, CPU) is None
    assert torch.equal(generator.get_state(), state)
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 8.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    shares = draw_shares(alpha, 20_000, np.random.default_rng(0), CPU)
    assert shares is not None
    assert shares.dtype == torch.float32
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    assert abs(float(shares.mean()) - 0.5) < 0.01
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("alpha", [5e-324, 1e-9])
def test_the_smallest_alpha_mixes_nothing(alpha: float) -> None:
    shares = draw_shares(alpha, 1000, np.random.default_rng(0), CPU)
    assert shares is not None
    assert set(shares.tolist()) == {0.0, 1.0}


def test_mixtures_are_what_the_formula_says() -> None:
    one, other = torch.randn(2, 4, 3, 9, generator=seeded())
    shares = torch.tensor([0.0, 0.3, 0.8, 1.0])
    mixed = mix(one, other, shares)
    for i, share in enumerate(shares.tolist()):
        torch.testing.assert_close(mixed[i], share * one[i] + (1 - share) * other[i])
    assert torch.equal(mixed[0], other[0])
    assert torch.equal(mixed[3], one[3])


@pytest.mark.parametrize(
    ("alpha", "size", "off"), [("0.2", "1", True), ("0.2", "2", False), ("0", "1", False)]
)
def test_windows_without_another_in_their_batch_are_not_mixed(
    alpha: str,
    size: str,
    off: bool,
    make_request: MakeRequest,
    make_prepared: Callable[..., Prepared],
) -> None:
    request = make_request(trainer__mixup_alpha=alpha, trainer__batch_size=size)
    warnings = set_up(request, make_prepared(), 1).warnings
    assert [warning.field for warning in warnings] == ["trainer.mixup_alpha"] * off


def test_the_request_is_read_where_augmentation_is_on(make_request: MakeRequest) -> None:
    fields = {
        "trainer__gaussian_noise_std": "0.1",
        "trainer__mixup_alpha": "0.2",
        "trainer__scaling_std": "0.3",
        "trainer__time_mask_ratio": "0.4",
        "trainer__feature_dropout": "0.5",
    }
    read = read_augmentation(make_request(**fields).trainer)
    assert read == Augmentation(0.1, 0.2, 0.3, 0.4, 0.5)
    assert read.is_active
    off = make_request(**fields, trainer__use_augmentation="false")
    assert not read_augmentation(off.trainer).is_active
    default = read_augmentation(make_request().trainer)
    assert default == Augmentation(noise=0.01)

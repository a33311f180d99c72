"""Features that are computed once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from trainwire.architectures.fitted import FittedNetwork
from trainwire_server.training import extraction
from trainwire_server.training.extraction import Extraction, is_small_enough


class Mean(FittedNetwork):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.windows_at_a_time = 2, 3
        self.batches: list[int] = []

    def fit_to(self, windows: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Nothing to fit."""

    def fitting_bytes(self, rows: int) -> int:
        """None."""
        return 0

    def extract(self, windows: Tensor) -> Tensor:
        """The mean over time of two features."""
        self.batches.append(len(windows))
        return windows.mean(dim=2)


WINDOWS = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([4, 7, 8, 9, 12, 20, 29])


def test_each_window_is_computed_once() -> None:
    network = Mean()
    features = Extraction(network, WINDOWS, ROWS)
    for _ in range(3):
        for rows in (ROWS[:5], ROWS[3:], ROWS.flip(0)):
            assert torch.equal(features[rows], WINDOWS[rows].mean(dim=2))
    assert sum(network.batches) == len(ROWS)
    assert max(network.batches) <= 3
    assert features.nbytes == len(ROWS) * 2 * 4


def test_a_window_twice_in_a_batch_is_no_trouble() -> None:
    rows = torch.tensor([7, 7, 29, 7])
    features = Extraction(Mean(), WINDOWS, ROWS)
    assert torch.equal(features[rows], WINDOWS[rows].mean(dim=2))
    assert torch.equal(features[ROWS], WINDOWS[ROWS].mean(dim=2))


def test_evaluation_may_be_the_first_to_ask() -> None:
    features = Extraction(Mean(), WINDOWS, ROWS)
    with torch.inference_mode():
        features[ROWS[:4]]
    weights = torch.ones(2, 1, requires_grad=True)
    torch.autograd.backward((features[ROWS] @ weights).sum())
    assert weights.grad is not None


def test_threads_may_ask_at_the_same_time() -> None:
    features = Extraction(Mean(), WINDOWS, ROWS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: features[ROWS], range(40)))
    assert all(torch.equal(each, WINDOWS[ROWS].mean(dim=2)) for each in found)


def test_features_beyond_the_limit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MOST_BYTES", 80)
    assert is_small_enough(Mean(), 10)
    assert not is_small_enough(Mean(), 11)

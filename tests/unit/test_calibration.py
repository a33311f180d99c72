"""Temperature scaling and the calibration error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainwire_server.training.calibration import (
    HIGHEST,
    LOWEST,
    calibrate,
    calibration_error,
    fit_temperature,
    mean_loss,
)
from trainwire_server.training.ranking import Scores


def make_scores(distortion: float, count: int = 4_000, seed: int = 0) -> Scores:
    """Labels drawn from what logits say; the logits are then multiplied by `distortion`."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(1.5 * rng.normal(size=(count, 3)) + [1.0, 0.0, -1.0])
    chances = logits.softmax(dim=1).numpy()
    labels = (chances.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    said = (distortion * logits).log_softmax(dim=1).numpy().astype(np.float32)
    return Scores(said, labels)


@pytest.mark.parametrize("distortion", [3.0, 1.0, 0.4])
def test_a_planted_distortion_is_found_and_undone(distortion: float) -> None:
    validation, test = make_scores(distortion), make_scores(distortion, seed=1)
    temperature = fit_temperature(validation)
    assert temperature == pytest.approx(distortion, rel=0.08)
    cured = calibrate(test, temperature)
    assert np.array_equal(cured.likeliest, test.likeliest)
    # By chance alone it is about 0.02 for so many windows.
    assert calibration_error(cured) < 0.03
    if distortion != 1:
        assert calibration_error(test) > 0.1
        assert mean_loss(cured) < mean_loss(test) - 0.05


@pytest.mark.parametrize("seed", range(3))
def test_no_temperature_of_a_fine_grid_is_better(seed: int) -> None:
    scores = make_scores(2.2, count=100, seed=seed)
    logits, labels = torch.from_numpy(scores.log_probabilities), torch.from_numpy(scores.labels)
    grid = np.geomspace(LOWEST, HIGHEST, 3_001)
    losses = [
        float(torch.nn.functional.cross_entropy(logits.double() / each, labels)) for each in grid
    ]
    found = fit_temperature(scores)
    assert abs(np.log(found / grid[np.argmin(losses)])) <= np.log(grid[1] / grid[0])
    assert mean_loss(calibrate(scores, found)) == pytest.approx(min(losses), abs=1e-6)
    expected = (logits.double() / found).log_softmax(dim=1).numpy()
    assert calibrate(scores, found).log_probabilities == pytest.approx(expected, abs=1e-6)


def test_where_validation_says_nothing_more_it_stays_within_bounds() -> None:
    labels = np.arange(30) % 3
    right = np.log(np.where(np.eye(3)[labels] > 0, 0.8, 0.1)).astype(np.float32)
    assert fit_temperature(Scores(right, labels)) == pytest.approx(LOWEST)
    assert fit_temperature(Scores(right, (labels + 1) % 3)) == pytest.approx(HIGHEST)
    undecided = Scores(np.full((30, 3), -np.log(3), dtype=np.float32), labels)
    assert fit_temperature(undecided) == 1.0


def test_the_calibration_error_is_that_of_fifteen_bins() -> None:
    # In the bin up to 10/15: confidences 0.61 and 0.65, one of the two right. In the bin up to
    # 14/15: 0.9 three times, all right.
    confidence = np.array([0.61, 0.65, 0.9, 0.9, 0.9])
    said = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)
    scores = Scores(said, np.array([0, 1, 0, 0, 0]))
    expected = 2 / 5 * abs(0.5 - 0.63) + 3 / 5 * abs(1 - 0.9)
    assert calibration_error(scores) == pytest.approx(expected, abs=1e-6)
    sure = Scores(np.array([[0.0, -50.0]], dtype=np.float32), np.array([0]))
    assert calibration_error(sure) == pytest.approx(0, abs=1e-9)

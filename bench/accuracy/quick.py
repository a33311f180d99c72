"""A few minutes of it, for every change: fixed seeds, and floors well below what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.accuracy import markets
from bench.accuracy.jobs import Record, Run, train_all
from bench.accuracy.published import MINI_ROCKET, PUBLISHED
from bench.accuracy.series import Sets, literature_runs

from trainwire_client import TrainingClient

SETS = ("ItalyPowerDemand", "GunPoint", "ArrowHead")
"""All in one small package."""
TOLERANCE = 0.02
"""Other processors give other last bits, and with them now and then another series."""


@dataclass(frozen=True)
class Floor:
    """A demand on the quick run.

    Attributes:
        name: what was measured.
        value: what came of it.
        floor: what it must reach.
    """

    name: str
    value: float
    floor: float

    @property
    def kept(self) -> bool:
        """Whether it is reached; NaN reaches nothing."""
        return self.value >= self.floor

    def row(self) -> str:
        """One line for people."""
        word = "PASS" if self.kept else "FAIL"
        return f"{self.name:58} {self.value:.3f}  at least {self.floor:.3f}  {word}"


def check(client: TrainingClient, folder: Path) -> int:
    """Train, print every floor; the exit status."""
    sets = Sets(client, folder)
    stocks = markets.upload(client, "stocks", folder)
    records = list(train_all(client, _runs(sets, stocks)))
    floors = find_floors(records)
    print("\n".join(floor.row() for floor in floors))
    return 0 if all(floor.kept for floor in floors) else 1


def _runs(sets: Sets, stocks: str) -> Iterator[Run]:
    yield from literature_runs(sets, SETS, "mini_rocket", [0])
    for run in literature_runs(sets, ["BasicMotions"], "inception_time", [0]):
        yield replace(run, settings=run.settings | {"trainer.epochs": "30"})
    yield from literature_runs(sets, ["ItalyPowerDemand"], "hybrid_cnn_lstm", [0])
    yield from markets.market_runs("stocks", stocks, "mini_rocket", [0])


def find_floors(records: list[Record]) -> list[Floor]:
    """What the quick run must reach."""
    rocket = [_accuracy(records, "mini_rocket", name) for name in SETS]
    published = [PUBLISHED[name][MINI_ROCKET] / 100 for name in SETS]
    market = _find(records, "mini_rocket", "stocks")
    return [
        Floor(
            "mini_rocket, mean accuracy of 3 sets",
            statistics.mean(rocket),
            statistics.mean(published) - 0.01 - TOLERANCE,
        ),
        Floor(
            "inception_time, accuracy on BasicMotions",
            _accuracy(records, "inception_time", "BasicMotions"),
            0.98 - TOLERANCE,
        ),
        Floor(
            "hybrid_cnn_lstm, accuracy on ItalyPowerDemand",
            _accuracy(records, "hybrid_cnn_lstm", "ItalyPowerDemand"),
            0.95 - TOLERANCE,
        ),
        Floor(
            "mini_rocket, macro F1 on stocks (always HOLD: 0.28)",
            market.test["macro_f1"],
            0.34 - TOLERANCE,
        ),
    ]


def _accuracy(records: list[Record], model: str, data: str) -> float:
    return _find(records, model, data).test["accuracy"]


def _find(records: list[Record], model: str, data: str) -> Record:
    return next(record for record in records if (record.model, record.data) == (model, data))

"""Everything that is measured, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.accuracy import markets, recipes
from bench.accuracy.bars import DEVELOPMENT, FURTHER
from bench.accuracy.jobs import Record, Run, Settings, train_all
from bench.accuracy.prices import LAYOUT, MARKETS
from bench.accuracy.series import Sets, ablation_runs, literature_runs

from trainwire_client import TrainingClient

SEEDS = (0, 1, 2)
INCEPTION_SEEDS = (0,)
INCEPTION_SETS = (
    "ItalyPowerDemand",
    "GunPoint",
    "ArrowHead",
    "BasicMotions",
    "CBF",
    "Coffee",
    "ECG200",
    "ECGFiveDays",
    "FaceFour",
)
"""Sets of at most 100 training series: more would take too long on a CPU."""


def measure(client: TrainingClient, folder: Path) -> Iterator[Record]:
    """A record for every run and baseline.

    Args:
        client: of a server whose data directory is `folder / "data"`.
        folder: for what is unpacked.
    """
    sets = Sets(client, folder)
    prices = {name: markets.upload(client, name, folder) for name in MARKETS}
    runs = [*_series_runs(sets), *_market_runs(sets, prices)]
    yield from train_all(client, runs)
    # Not before: both would want all cores.
    for name, dataset in prices.items():
        yield from markets.baseline_records(name, dataset, folder / "data")


def _series_runs(sets: Sets) -> Iterator[Run]:
    everything = (*DEVELOPMENT, *FURTHER)
    yield from literature_runs(sets, everything, "mini_rocket", SEEDS)
    yield from literature_runs(sets, everything, "hybrid_cnn_lstm", SEEDS)
    yield from literature_runs(sets, INCEPTION_SETS, "inception_time", INCEPTION_SEEDS)


def _market_runs(sets: Sets, prices: dict[str, str]) -> Iterator[Run]:
    for name, dataset in prices.items():
        seeds = SEEDS if name == "stocks" else SEEDS[:1]
        for model in recipes.MARKET:
            yield from markets.market_runs(name, dataset, model, seeds)
    ecg = sets["ECG5000"]
    yield from ablation_runs("ECG5000", ecg.dataset, ecg.settings, SEEDS)
    yield from ablation_runs("stocks", prices["stocks"], LAYOUT, SEEDS)


def describe_settings() -> dict[str, Settings]:
    """The settings of every recipe, by what it is for."""
    named = {
        f"`{model}`, beside published figures": settings
        for model, settings in recipes.LITERATURE.items()
    }
    for data, models in recipes.ABLATION.items():
        named |= {f"`{m}`, balancing on {data}": settings for m, settings in models.items()}
    return named | {f"`{m}`, on markets": settings for m, settings in recipes.MARKET.items()}

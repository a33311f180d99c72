"""Runs on prices: the comparison with baselines on the same windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from bench.accuracy import recipes
from bench.accuracy.baselines import score_all
from bench.accuracy.jobs import Record, Run, make_request
from bench.accuracy.prices import LAYOUT, MARKETS

from trainwire import contract
from trainwire_client import TrainingClient

MARKET = "market"


def upload(client: TrainingClient, name: str, folder: Path) -> str:
    """Resource name of a market's table."""
    table = pa.Table.from_pandas(MARKETS[name](folder), preserve_index=False)
    return client.upload(table).name


def market_runs(name: str, dataset: str, model: str, seeds: Sequence[int]) -> Iterator[Run]:
    """A model on one market."""
    for seed in seeds:
        yield Run(MARKET, name, model, "", seed, dataset, LAYOUT | recipes.MARKET[model])


def baseline_records(name: str, dataset: str, data_dir: Path) -> Iterator[Record]:
    """The baselines on the windows that every run on this market trains and tests on.

    Args:
        name: of the market.
        dataset: its resource name.
        data_dir: of the server, whose tables are read.
    """
    run = next(market_runs(name, dataset, "mini_rocket", [0]))
    request = contract.resolve(make_request(run))
    yield from score_all(MARKET, name, request, data_dir / dataset / "table")

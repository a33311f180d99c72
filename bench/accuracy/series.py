"""Runs on labelled series: beside published figures, and of the ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from bench.accuracy import recipes
from bench.accuracy.archives import extract
from bench.accuracy.jobs import Run, Settings

from trainwire_client import TrainingClient, series

LITERATURE, ABLATION = "literature", "ablation"


class Uploaded(NamedTuple):
    """A set on the server.

    Attributes:
        dataset: its resource name.
        settings: those of the data.
        training_series: of the training part.
    """

    dataset: str
    settings: Settings
    training_series: int


class Sets:
    """Sets of the archives, uploaded when they are first asked for.

    Args:
        client: of the server that trains.
        folder: for what is unpacked.
    """

    def __init__(self, client: TrainingClient, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._known: dict[str, Uploaded] = {}

    def __getitem__(self, name: str) -> Uploaded:
        """The set of this name."""
        if name not in self._known:
            self._known[name] = self._upload(name)
        return self._known[name]

    def _upload(self, name: str) -> Uploaded:
        files = extract(name, self._folder)
        table = series.read_table([files.train, files.test], pa)
        training = pc.sum(pc.equal(table["split"], "train")).as_py()
        settings = recipes.SERIES | recipes.hold_out(training)
        return Uploaded(self._client.upload(table).name, settings, training)


def literature_runs(
    sets: Sets, names: Sequence[str], model: str, seeds: Sequence[int]
) -> Iterator[Run]:
    """A model on sets with published figures."""
    for name in names:
        one = sets[name]
        settings = one.settings | recipes.literature(model, one.training_series)
        for seed in seeds:
            yield Run(LITERATURE, name, model, "", seed, one.dataset, settings)


def ablation_runs(data: str, dataset: str, layout: Settings, seeds: Sequence[int]) -> Iterator[Run]:
    """Every balancing on one data set, for every model that is tried there."""
    for model, recipe in recipes.ABLATION[data].items():
        for variant, balancing in recipes.BALANCING.items():
            for seed in seeds:
                settings = layout | recipe | balancing
                yield Run(ABLATION, data, model, variant, seed, dataset, settings)

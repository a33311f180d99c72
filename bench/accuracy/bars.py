"""What was asked for before anything was measured, and whether it was reached."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.accuracy.published import INCEPTION, MINI_ROCKET, PUBLISHED, RESNET
from bench.accuracy.results import Results, spread
from bench.accuracy.series import LITERATURE

DEVELOPMENT = (
    "ItalyPowerDemand",
    "GunPoint",
    "ArrowHead",
    "ECG5000",
    "DistalPhalanxOutlineAgeGroup",
    "ChlorineConcentration",
    "BasicMotions",
    "JapaneseVowels",
)
"""The bars are over these; some were looked at while the models were made."""
FURTHER = ("CBF", "Coffee", "ECG200", "ECGFiveDays", "FaceFour")
"""First looked at by this bench: they tell whether the others flatter."""
ROUNDING = 0.05
"""Published figures are rounded to a tenth."""


@dataclass(frozen=True)
class Bar:
    """One demand and what came of it.

    Attributes:
        model: whose it is.
        demand: in words.
        found: in words, over the development sets.
        further: in words, over the further sets; no part of the verdict.
        kept: whether the demand is met; None where nothing was measured.
    """

    model: str
    demand: str
    found: str
    further: str
    kept: bool | None

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or that there is nothing to judge."""
        return {True: "PASS", False: "FAIL", None: "not measured"}[self.kept]


@dataclass(frozen=True)
class Pair:
    """Our mean accuracy on a set and a published one, in per cent."""

    name: str
    ours: float
    published: float


def find_pairs(results: Results, model: str, classifier: str, names: tuple[str, ...]) -> list[Pair]:
    """The sets, of those named, that were measured and have a published figure."""
    pairs = []
    for name in names:
        records = results.select(part=LITERATURE, data=name, model=model)
        if records and classifier in PUBLISHED[name]:
            ours = 100 * spread(records, "accuracy").mean
            pairs.append(Pair(name, ours, PUBLISHED[name][classifier]))
    return pairs


def find_bars(results: Results) -> list[Bar]:
    """The three demands on accuracy."""
    return [
        _mean_bar(results, "mini_rocket", MINI_ROCKET, 1.0),
        _mean_bar(results, "inception_time", INCEPTION, 2.0),
        _count_bar(results, "hybrid_cnn_lstm", RESNET),
    ]


def _mean_bar(results: Results, model: str, classifier: str, points: float) -> Bar:
    demand = (
        f"`{model}`: its mean accuracy over the sets at most {points:g} "
        f"point{'s' if points > 1 else ''} below that of published {classifier}"
    )
    pairs = find_pairs(results, model, classifier, DEVELOPMENT)
    kept = _difference(pairs) >= -points - ROUNDING if pairs else None
    further = find_pairs(results, model, classifier, FURTHER)
    return Bar(model, demand, _say_mean(pairs, points), _say_mean(further, points), kept)


def _difference(pairs: list[Pair]) -> float:
    return statistics.mean(pair.ours - pair.published for pair in pairs)


def _say_mean(pairs: list[Pair], points: float) -> str:
    if not pairs:
        return "none"
    close = sum(pair.ours >= pair.published - points - ROUNDING for pair in pairs)
    ours = statistics.mean(pair.ours for pair in pairs)
    theirs = statistics.mean(pair.published for pair in pairs)
    return (
        f"{ours:.1f} beside {theirs:.1f}: {_difference(pairs):+.1f} "
        f"({close} of {len(pairs)} sets by themselves)"
    )


def _count_bar(results: Results, model: str, classifier: str) -> Bar:
    demand = f"`{model}`: no worse than published {classifier} on at least half of the sets"
    pairs = find_pairs(results, model, classifier, DEVELOPMENT)
    kept = 2 * _reached(pairs) >= len(pairs) if pairs else None
    further = find_pairs(results, model, classifier, FURTHER)
    return Bar(model, demand, _say_count(pairs), _say_count(further), kept)


def _reached(pairs: list[Pair]) -> int:
    return sum(pair.ours >= pair.published - ROUNDING for pair in pairs)


def _say_count(pairs: list[Pair]) -> str:
    return f"{_reached(pairs)} of {len(pairs)} sets" if pairs else "none"

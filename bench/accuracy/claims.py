"""Sentences about the figures, made from the figures: no more than they support."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bench.accuracy.jobs import Record
from bench.accuracy.markets import MARKET
from bench.accuracy.recipes import BALANCING
from bench.accuracy.results import Results, Spread, hull, spread
from bench.accuracy.series import ABLATION

DEFAULTS = list(BALANCING)[-1]


@dataclass(frozen=True)
class Scored:
    """A model or variant by name.

    Attributes:
        macro_f1: of the test windows, over seeds.
        interval: of the test windows, all seeds in one; (0, 1) where there is none.
    """

    name: str
    macro_f1: Spread
    interval: tuple[float, float] = (0.0, 1.0)


def compare_markets(results: Results, market: str) -> str:
    """Who is best on a market, and whom its interval does not tell from the best."""
    models = [
        Scored(name, spread(records, "macro_f1"), hull(records))
        for name, records in _by_model(results, market).items()
    ]
    best = max(models, key=lambda one: one.macro_f1.mean)
    others = [one for one in models if one is not best]
    alike = [one.name for one in others if one.interval[1] >= best.interval[0]]
    apart = [one.name for one in others if one.interval[1] < best.interval[0]]
    lead = f"**{market}**: {best.name} has the highest macro F1, {best.macro_f1.mean:.3f}."
    return " ".join([lead, _say_alike(alike), _say_apart(apart)])


def _by_model(results: Results, market: str) -> dict[str, list[Record]]:
    names = results.names("model", part=MARKET, data=market)
    return {name: results.select(part=MARKET, data=market, model=name) for name in names}


def _say_alike(names: list[str]) -> str:
    if not names:
        return "No other interval reaches its own."
    reach = "interval of {} reaches" if len(names) == 1 else "intervals of {} reach"
    return f"The {reach.format(listed(names))} its own: these data do not tell them apart."


def _say_apart(names: list[str]) -> str:
    if not names:
        return "It is told from none."
    return f"Told from {listed(names)}: the intervals do not meet."


def judge_balancing(results: Results, data: str, model: str) -> str:
    """Whether the default balancing wins, and what to use where it does not."""
    variants = [
        Scored(
            name,
            spread(results.select(part=ABLATION, data=data, model=model, variant=name), "macro_f1"),
        )
        for name in results.names("variant", part=ABLATION, data=data, model=model)
    ]
    best = max(variants, key=lambda one: one.macro_f1.mean)
    lead = f"**{data}, `{model}`**:"
    if best.name == DEFAULTS:
        second = max((one for one in variants if one is not best), key=_mean)
        return f"{lead} the defaults have the highest macro F1{_margin(best, second)}."
    defaults = next(one for one in variants if one.name == DEFAULTS)
    advice = "" if _within(best, defaults) else f" Use {_instead(best.name)}."
    return f"{lead} the defaults do not win: `{best.name}` does{_margin(best, defaults)}.{advice}"


def _mean(one: Scored) -> float:
    return one.macro_f1.mean


def _margin(best: Scored, other: Scored) -> str:
    gain = 100 * (best.macro_f1.mean - other.macro_f1.mean)
    doubt = "which is within what seeds do" if _within(best, other) else "more than seeds do"
    return f", by {gain:.1f} points over `{other.name}`, {doubt}"


def _within(best: Scored, other: Scored) -> bool:
    """Whether two means differ by less than two standard errors of their difference."""
    one, two = best.macro_f1, other.macro_f1
    error = math.sqrt(one.deviation**2 / one.count + two.deviation**2 / two.count)
    return one.mean - two.mean < 2 * error


def _instead(variant: str) -> str:
    changes = [f"`{path}={value}`" for path, value in BALANCING[variant].items()]
    return listed(changes)


def listed(names: Iterable[object]) -> str:
    """Names or numbers as a sentence has them."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last

"""Figures with their bars: a table for people, JSON for the record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NOT_MEASURED = "no GPU here"


@dataclass(frozen=True)
class Check:
    """Whether two sides that were timed have learned the same.

    Attributes:
        what: the metric that is compared.
        ours, theirs: final values, one per round, each of another seed.
        tolerance: largest difference of the means that counts as equal.
    """

    what: str
    ours: Sequence[float]
    theirs: Sequence[float]
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the means are equal to the tolerance."""
        # Not `difference > tolerance`: a NaN must fail.
        return abs(statistics.mean(self.ours) - statistics.mean(self.theirs)) <= self.tolerance

    def describe(self) -> str:
        """Both means, and whether they are equal."""
        ours, theirs = statistics.mean(self.ours), statistics.mean(self.theirs)
        word = "equal" if self.passes else "NOT EQUAL"
        return f"{self.what} {ours:.3f} and {theirs:.3f}, {word} to {self.tolerance:g}"


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured.
        values: one per round; the median counts. Empty if it could not be measured here.
        bar: what the median is held against.
        at_least: whether it must reach the bar, or stay below it.
        unit: of the values; empty for a ratio.
        how: one sentence on how it is measured.
        check: that both sides did the same, where that can be checked.
    """

    name: str
    values: Sequence[float]
    bar: float
    at_least: bool = True
    unit: str = ""
    how: str = ""
    check: Check | None = None

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)

    @property
    def margin(self) -> float:
        """How far the median is on the good side of the bar: 1 is just there, 2 twice as good."""
        return self._margin(self.median)

    @property
    def margins(self) -> tuple[float, float]:
        """The margins of the worst and of the best round."""
        margins = sorted(self._margin(value) for value in self.values)
        return margins[0], margins[-1]

    def _margin(self, value: float) -> float:
        return value / self.bar if self.at_least else self.bar / value

    @property
    def verdict(self) -> str:
        """PASS or FAIL, or that there is nothing to judge."""
        if not self.values:
            return NOT_MEASURED
        kept = self.median >= self.bar if self.at_least else self.median <= self.bar
        return "PASS" if kept and (self.check is None or self.check.passes) else "FAIL"

    def cells(self) -> list[str]:
        """Name, median, spread, bar and verdict, as text."""
        bar = f"{'>=' if self.at_least else '<='} {self.bar:g} {self.unit}".strip()
        if not self.values:
            return [self.name, "", "", bar, self.verdict]
        median = f"{_number(self.median)} {self.unit}".strip()
        spread = f"{_number(min(self.values))} to {_number(max(self.values))}"
        return [self.name, median, spread, bar, self.verdict]

    def row(self) -> str:
        """One line of the table, and one more for a check."""
        name, median, spread, bar, verdict = self.cells()
        line = f"{name:70} {median:>10}   {spread:20} {bar:>10}   {verdict}"
        return f"{line}\n    {self.check.describe()}" if self.check else line


def _number(value: float) -> str:
    """Three digits, and as many more as a large number has."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


@dataclass(frozen=True)
class Result:
    """All figures of one machine.

    Attributes:
        device: what it measured on, in words.
        facts: machine, versions and settings, by name.
    """

    device: str
    facts: dict[str, str]
    figures: list[Figure]

    def write(self, path: Path) -> None:
        """Write all values, with what follows from them for those who read JSON."""
        rows = [
            asdict(f) | {"median": f.median if f.values else None, "verdict": f.verdict}
            for f in self.figures
        ]
        content = {"device": self.device, "facts": self.facts, "figures": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> Result:
    """What `Result.write` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Result(content["device"], content["facts"], [_figure(r) for r in content["figures"]])


def _figure(row: dict[str, Any]) -> Figure:
    derived = ("median", "verdict")
    fields = {name: value for name, value in row.items() if name not in derived}
    return Figure(**fields | {"check": Check(**row["check"]) if row["check"] else None})

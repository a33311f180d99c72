"""Figures with their bars: a table for people, JSON for the record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured.
        values: one per round; the median counts.
        bar: what the median is held against.
        at_least: whether it must reach the bar, or stay below it.
        unit: of the values; empty for a ratio.
    """

    name: str
    values: Sequence[float]
    bar: float
    at_least: bool = True
    unit: str = ""

    @property
    def median(self) -> float:
        """The value that counts."""
        return statistics.median(self.values)

    @property
    def passes(self) -> bool:
        """Whether the bar is kept."""
        return self.median >= self.bar if self.at_least else self.median <= self.bar

    def row(self) -> str:
        """One line of the table."""
        sign = ">=" if self.at_least else "<="
        spread = f"{min(self.values):.3g} to {max(self.values):.3g}"
        verdict = "PASS" if self.passes else "FAIL"
        measured = f"{self.median:.3g} {self.unit}".strip()
        bar = f"{sign} {self.bar:g} {self.unit}".strip()
        return f"{self.name:58} {measured:>10}   {spread:18} {bar:>12}   {verdict}"


def write_json(path: Path, device: str, figures: Sequence[Figure]) -> None:
    """Write all values of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(f) | {"median": f.median, "passes": f.passes} for f in figures]
    path.write_text(json.dumps({"device": device, "figures": rows}, indent=2) + "\n")

"""All records of a measurement: JSON for the record, means and deviations for the page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.accuracy.jobs import Record, Settings

RESULTS = Path(__file__).parents[1] / "results" / "accuracy" / "cpu.json"


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Attributes:
        mean: of all seeds.
        deviation: standard deviation of one seed (n - 1); 0 for a single one.
        count: seeds.
    """

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Results:
    """What one measurement found.

    Attributes:
        facts: machine, versions and date, by name.
        settings: of every recipe, by name.
        records: one for each run and baseline.
    """

    facts: dict[str, str]
    settings: dict[str, Settings]
    records: list[Record]

    def write(self, path: Path = RESULTS) -> None:
        """Write all of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def select(self, **wanted: str) -> list[Record]:
        """Records whose fields have these values, in the order they were made."""
        return [
            record
            for record in self.records
            if all(getattr(record, name) == value for name, value in wanted.items())
        ]

    def names(self, field: str, **wanted: str) -> list[str]:
        """The values of a field among records of these values, in the order they were made."""
        return list(dict.fromkeys(getattr(record, field) for record in self.select(**wanted)))


def read(path: Path = RESULTS) -> Results:
    """What `Results.write` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    records = [_record(record) for record in content["records"]]
    return Results(content["facts"], content["settings"], records)


def _record(content: dict[str, Any]) -> Record:
    interval = content["interval"]
    return Record(
        **content
        | {
            "interval": tuple(interval) if interval else None,
            "windows": tuple(content["windows"]),
        }
    )


def spread(records: list[Record], metric: str) -> Spread:
    """A test metric over records that differ by their seed."""
    return _spread(records, lambda record: record.test[metric])


def spread_of_validation(records: list[Record], metric: str) -> Spread:
    """The same of a validation metric."""
    return _spread(records, lambda record: record.validation[metric])


def _spread(records: list[Record], value: Callable[[Record], float]) -> Spread:
    values = [value(record) for record in records]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.mean(values), deviation, len(values))


def hull(records: list[Record]) -> tuple[float, float]:
    """From the lowest limit of the records' intervals to the highest."""
    found = [record.interval for record in records if record.interval]
    return min(low for low, _ in found), max(high for _, high in found)

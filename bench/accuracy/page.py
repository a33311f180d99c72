"""docs/accuracy.md, written from the committed results: `python -m bench.accuracy.page`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.accuracy import prose
from bench.accuracy import results as stored
from bench.accuracy.bars import DEVELOPMENT, FURTHER, find_bars
from bench.accuracy.claims import compare_markets, judge_balancing
from bench.accuracy.jobs import Record
from bench.accuracy.markets import MARKET
from bench.accuracy.published import INCEPTION, MINI_ROCKET, PUBLISHED, RESNET
from bench.accuracy.reasons import REASONS
from bench.accuracy.results import Results, Spread, hull, spread, spread_of_validation
from bench.accuracy.series import ABLATION, LITERATURE

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"

_COLUMNS = {
    "mini_rocket": MINI_ROCKET,
    "inception_time": INCEPTION,
    "hybrid_cnn_lstm": RESNET,
}
"""Each of our models beside the published classifier it is held against."""


def write(results: Results) -> None:
    """Bring docs/accuracy.md up to date with the results."""
    PAGE.write_text(render(results), encoding="utf-8")


def render(results: Results) -> str:
    """The page, as Markdown."""
    parts = [prose.HEAD, "## Bars\n", _bars(results), _reasons(results)]
    parts += ["## Beside published figures\n", prose.SERIES, _literature(results)]
    parts += ["## Balancing\n", prose.BALANCING, *_ablations(results)]
    parts += ["## Markets\n", prose.MARKETS, *_markets(results), prose.CLAIMS]
    parts += ["## Settings\n", prose.CHOICE, _settings(results)]
    parts += ["## Sources\n", prose.SOURCES, "## Machine\n", _machine(results)]
    return "\n".join(parts)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _bars(results: Results) -> str:
    heads = ["demand", "development sets", "verdict", "further sets"]
    return _table(
        heads,
        ([bar.demand, bar.found, f"**{bar.verdict}**", bar.further] for bar in find_bars(results)),
    )


def _reasons(results: Results) -> str:
    failed = [bar.model for bar in find_bars(results) if bar.kept is False]
    return "".join(f"- Why `{name}` misses it: {REASONS[name]}\n" for name in failed)


# ------------------------------------------------------------------------ series


def _literature(results: Results) -> str:
    heads = ["set (training part / test)"]
    for model, classifier in _COLUMNS.items():
        heads += [f"`{model}`", f"published {classifier}"]
    rows = [_set_row(results, name) for name in DEVELOPMENT]
    further = [_set_row(results, name) for name in FURTHER]
    empty = [""] * (len(heads) - 1)
    return _table(heads, [*rows, ["*further sets*", *empty], *further])


def _set_row(results: Results, name: str) -> list[str]:
    records = results.select(part=LITERATURE, data=name)
    cells = [f"{name} ({_archive_sizes(records[0])})" if records else name]
    for model, classifier in _COLUMNS.items():
        ours = results.select(part=LITERATURE, data=name, model=model)
        published = PUBLISHED[name].get(classifier)
        cells += [
            _percent(spread(ours, "accuracy")) if ours else "",
            f"{published:.1f}" if published else "",
        ]
    return cells


def _sizes(record: Record) -> str:
    train, validation, test = record.windows
    return f"{train} + {validation} / {test}"


def _archive_sizes(record: Record) -> str:
    train, validation, test = record.windows
    return f"{train + validation} / {test}"


def _percent(value: Spread) -> str:
    text = f"{100 * value.mean:.1f}"
    return f"{text} ± {100 * value.deviation:.1f}" if value.count > 1 else text


# ------------------------------------------------------------------------ balancing


def _ablations(results: Results) -> list[str]:
    parts = []
    for data in results.names("data", part=ABLATION):
        for model in results.names("model", part=ABLATION, data=data):
            parts += [f"### {data}, {model}\n", _ablation(results, data, model)]
            parts.append(f"{judge_balancing(results, data, model)}\n")
    return parts


def _ablation(results: Results, data: str, model: str) -> str:
    heads = ["balancing", "macro F1", "balanced accuracy", "accuracy", "macro F1 on validation"]
    rows = []
    for variant in results.names("variant", part=ABLATION, data=data, model=model):
        records = results.select(part=ABLATION, data=data, model=model, variant=variant)
        test = [spread(records, metric) for metric in ("macro_f1", "balanced_accuracy", "accuracy")]
        chosen_by = spread_of_validation(records, "macro_f1")
        rows.append([variant, *map(_percent, [*test, chosen_by])])
    return _table(heads, rows)


# ------------------------------------------------------------------------ markets


def _markets(results: Results) -> list[str]:
    parts = []
    for name in results.names("data", part=MARKET):
        sizes = _sizes(results.select(part=MARKET, data=name)[0])
        parts += [f"### {name} ({sizes} windows)\n", _market(results, name)]
        parts.append(f"{compare_markets(results, name)}\n")
    return parts


def _market(results: Results, name: str) -> str:
    heads = ["model", "seeds", "macro F1", "interval", "balanced accuracy"]
    rows = []
    for model in results.names("model", part=MARKET, data=name):
        records = results.select(part=MARKET, data=name, model=model)
        low, high = hull(records)
        macro_f1, balanced = spread(records, "macro_f1"), spread(records, "balanced_accuracy")
        seeds = str(macro_f1.count)
        rows.append([model, seeds, _share(macro_f1), f"{low:.3f} to {high:.3f}", _share(balanced)])
    return _table(heads, rows)


def _share(value: Spread) -> str:
    text = f"{value.mean:.3f}"
    return f"{text} ± {value.deviation:.3f}" if value.count > 1 else text


# ------------------------------------------------------------------------ settings


def _settings(results: Results) -> str:
    return "".join(
        f"- {name}: {', '.join(f'`{path}={value}`' for path, value in settings.items())}\n"
        for name, settings in results.settings.items()
    )


def _machine(results: Results) -> str:
    return "".join(f"- {name}: {fact}\n" for name, fact in results.facts.items())


if __name__ == "__main__":
    write(stored.read())

"""The page of results, written from the committed JSON files: `python -m bench.page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import figures
from bench.figures import Figure, Result
from bench.gpu import LOOP, REPLAY
from bench.reasons import REASONS
from bench.task import LOSS_DEVIATION, LOSS_MEAN, OUR_LOSS_DEVIATION, OUR_LOSS_MEAN

RESULTS = Path(__file__).with_name("results")
DOCS = Path(__file__).parent.parent / "docs"
PAGE, PLOT = DOCS / "benchmarks.md", DOCS / "benchmarks.png"

_HEAD = """\
# Benchmarks

Generated from `bench/results/*.json` by `make bench` and `make bench-page`; do not edit.

Each figure is the median of its rounds, held against a bar that was set before anything was
measured. Both sides of a ratio run in turns on the same machine, with the same threads, data, batch
size, precision and epochs; the first epoch of a run does not count. What training is held against
uses a network of its own, made of plain `torch.nn` modules (a test checks that it gives the same
logits from the same weights), with all extras of its toolkit switched off.

![Each figure as a multiple of its bar, on a logarithmic axis](benchmarks.png)

In the plot, right of the line is better than the bar; the thin line spans all rounds.
"""

_NOTES = f"""\
## What "the same result" means

Everybody draws other shuffles and dropout, so losses differ even where nothing is wrong. Each row
that trains on both sides also compares the final validation loss, as the mean over the rounds (each
of another seed), and fails if the two differ by more than the tolerance shown. Eight seeds of the
idiomatic loop alone gave a mean of {LOSS_MEAN} with a standard deviation of {LOSS_DEVIATION},
eight of ours {OUR_LOSS_MEAN} with {OUR_LOSS_DEVIATION}; the tolerance is two of the larger one.
Without any learning the loss would be 1.1. Against `fit()` in-process the tolerance is 0: the same
seed must give the same loss.

## Toolkits

tsai 1.0.1 installs beside torch 2.13.0 and asks for scikit-learn below 1.8, so `make bench` has an
environment of its own (`.venv-bench`). It needs torchvision, and the only one on PyPI is built for
torch with CUDA: with the CPU build its import fails ("operator torchvision::nms does not exist"),
and with it that of Lightning's torchmetrics. The bench declares the two operators that the import
asks for; nothing that is measured uses them.
"""


def read_results(folder: Path = RESULTS) -> list[Result]:
    """All results, the CPU's first."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "cpu", path.stem))
    return [figures.read(path) for path in paths]


def all_figures(results: Sequence[Result]) -> list[Figure]:
    """All rows, those of a GPU without values where none was measured."""
    rows = [figure for result in results for figure in result.figures]
    names = {figure.name for figure in rows}
    return rows + [figure for figure in (LOOP, REPLAY) if figure.name not in names]


def render(results: Sequence[Result]) -> str:
    """The page, as Markdown."""
    rows = all_figures(results)
    parts = [_HEAD, "## Figures\n", _table(rows), _reasons(rows), "## How they are measured\n"]
    parts += [_methods(rows), _NOTES, "## Machines\n", *map(_machine, results)]
    return "\n".join(part for part in parts if part)


def write() -> None:
    """Bring docs/benchmarks.md up to date with the results."""
    PAGE.write_text(render(read_results()), encoding="utf-8")


def _table(rows: Iterable[Figure]) -> str:
    head = "| figure | median | rounds | bar | verdict |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join(f"| {' | '.join(_cells(figure))} |\n" for figure in rows)


def _cells(figure: Figure) -> list[str]:
    name, median, spread, bar, verdict = figure.cells()
    check = f"; {figure.check.describe()}" if figure.check else ""
    return [name, median, spread, bar, f"**{verdict}**{check}"]


def _reasons(rows: Iterable[Figure]) -> str:
    failed = [figure for figure in rows if figure.verdict == "FAIL"]
    lines = [f"- **{f.name}**: {REASONS.get(f.name, 'not looked into yet.')}\n" for f in failed]
    return "## Why bars are missed\n\n" + "".join(lines) if lines else ""


def _methods(rows: Iterable[Figure]) -> str:
    return "".join(f"- **{figure.name}**: {figure.how}\n" for figure in rows)


def _machine(result: Result) -> str:
    facts = "".join(f"- {name}: {fact}\n" for name, fact in result.facts.items())
    return f"### {result.device}\n\n{facts}"


if __name__ == "__main__":
    from bench.plot import draw

    draw(read_results())
    write()

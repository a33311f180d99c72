"""The results as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from bench.figures import Figure, Result
from bench.page import PLOT, all_figures

# No screen is needed.
matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib import ticker

# Blue and orange are told apart by everybody; the shapes and words say it once more.
_STYLES = {"PASS": ("o", "#1f6fb4"), "FAIL": ("X", "#d1600b")}


def draw(results: Sequence[Result]) -> None:
    """Each figure as a multiple of its bar, into docs/benchmarks.png."""
    rows = all_figures(results)
    figure, axes = plt.subplots(figsize=(11, 0.48 * len(rows) + 1.4), dpi=130)
    widest = max((row.margins[1] for row in rows if row.values), default=1.0)
    smallest = min((row.margins[0] for row in rows if row.values), default=1.0)
    axes.set_xscale("log")
    axes.set_xlim(min(0.4, smallest / 1.2), widest * 8)
    axes.axvline(1, color="#444444", linewidth=1.2)
    for place, row in enumerate(rows):
        _draw_row(axes, place, row)
    axes.set_yticks(range(len(rows)), [row.name.replace("`", "") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("times as good as the bar (right of the line: the bar is kept)")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(PLOT, bbox_inches="tight", metadata={"Software": ""})
    plt.close(figure)


def _draw_row(axes: Any, place: int, row: Figure) -> None:
    _, median, _, bar, verdict = row.cells()
    if not row.values:
        axes.text(
            1.08, place, f"{verdict} (bar {bar})", va="center", color="#777777", style="italic"
        )
        return
    marker, colour = _STYLES[verdict]
    axes.plot(row.margins, [place, place], color=colour, linewidth=1.5, alpha=0.6)
    axes.plot([row.margin], [place], marker, color=colour, markersize=9)
    text = f"{verdict}  {median}  (bar {bar})"
    right = max(row.margins[1], 1)
    axes.text(right * 1.15, place, text, va="center", color=colour, fontsize=9)

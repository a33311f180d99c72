"""The chronological split against a slow reference, and promise 9: no leakage."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwire_server.data import labels, samples, splits, windows

NAMES = {splits.TRAIN: "train", splits.VALIDATION: "validation", splits.TEST: "test"}


@dataclass(frozen=True)
class Case:
    """Series as their rows' times, how rows of the series mix in the table, and a split."""

    times: list[list[int]]
    owners: list[int]
    timed: bool
    length: int
    horizon: int
    fractions: splits.Fractions
    embargo: int
    by_return: bool


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    length = draw(st.integers(2, 4))
    count = draw(st.integers(1, 4))
    # Different starts, lengths and gaps; times are shared between series, as bars of a market are.
    span = st.sets(st.integers(0, 60), min_size=12, max_size=40)
    times = [sorted(draw(span)) for _ in range(count)]
    owners = [group for group, rows in enumerate(times) for _ in rows]
    train = draw(st.floats(0.1, 0.8))
    return Case(
        times=times,
        owners=draw(st.permutations(owners)),
        timed=draw(st.booleans()),
        length=length,
        horizon=draw(st.integers(0, 6)),
        fractions=splits.Fractions(train, draw(st.floats(0.05, 0.95 - train))),
        embargo=draw(st.sampled_from([0, 1, 2, 5, 40])),
        by_return=draw(st.booleans()),
    )


def _arrange(case: Case) -> windows.Series:
    """The table's rows come mixed, and without a time column each series in its own order."""
    queues = [iter(rows) for rows in case.times]
    times = np.array([next(queues[owner]) for owner in case.owners])
    names = [str(group) for group in range(len(case.times))]
    return windows.arrange(np.array(case.owners), names, times if case.timed else None, len(times))


def _take(case: Case, series: windows.Series) -> samples.Samples:
    blocks = splits.assign_rows(series, case.fractions, case.embargo)
    rows = series.row_count
    if case.by_return:
        horizon = max(1, case.horizon)
        priced = labels.price_rows(series, np.ones(rows), horizon)
        labelled = labels.label_by_return(priced, -0.1, 0.1)
    else:
        codes = np.zeros(rows, dtype=np.int64)
        labelled = labels.label_by_column(series, codes, ["only"], case.horizon)
    places = samples.place_samples(series, labelled.spans, blocks, case.length)
    return samples.take_samples(places, labelled)


@dataclass(frozen=True)
class Span:
    """A sample of the reference: positions within its series, and the times there."""

    group: int
    positions: range
    times: list[int]


def _reference_spans(case: Case) -> tuple[list[Span], int]:
    """Every labelled window's span, series by series, and the number of unlabelled windows."""
    spans, unlabelled = [], 0
    for group, rows in enumerate(case.times):
        for first in range(len(rows) - case.length + 1):
            horizon = max(1, case.horizon) if case.by_return else case.horizon
            last = first + case.length - 1 + horizon
            if case.by_return and last >= len(rows):
                unlabelled += 1
                continue
            positions = range(first, min(last, len(rows) - 1) + 1)
            spans.append(Span(group, positions, [rows[i] for i in positions]))
    return spans, unlabelled


def _reference_blocks(case: Case) -> list[list[int]]:
    """The block of each row of each series by the definition, row by row."""
    shares = (case.fractions.train, case.fractions.train + case.fractions.validation)
    every = sorted(itertools.chain(*case.times))
    blocks = []
    for rows in case.times:
        if case.timed:
            cuts = [every[math.floor(share * len(every))] for share in shares]
            block = [sum(time >= cut for cut in cuts) for time in rows]
        else:
            cuts = [math.floor(share * len(rows)) for share in shares]
            block = [sum(i >= cut for cut in cuts) for i in range(len(rows))]
        blocks.append(_reference_embargo(block, case.embargo))
    return blocks


def _reference_embargo(block: list[int], embargo: int) -> list[int]:
    return [
        splits.LEFT_OUT if which != block[0] and i - block.index(which) < embargo else which
        for i, which in enumerate(block)
    ]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(_cases())
def test_splits_match_the_reference_and_every_window_is_counted_once(case: Case) -> None:
    series = _arrange(case)
    taken = _take(case, series)
    blocks = _reference_blocks(case)
    assert splits.assign_rows(series, case.fractions, case.embargo).tolist() == [
        which for block in blocks for which in block
    ]
    spans, unlabelled = _reference_spans(case)
    expected = []
    for span in spans:
        found = {blocks[span.group][i] for i in span.positions}
        expected.append(found.pop() if len(found) == 1 else splits.LEFT_OUT)
    assert taken.splits.tolist() == expected
    assert taken.unlabelled == unlabelled
    counts = [taken.count(which) for which in (*NAMES, splits.LEFT_OUT)]
    assert sum(counts) == len(taken.starts) == len(spans)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(_cases())
def test_spans_of_different_splits_never_meet(case: Case) -> None:
    """Promise 9: as instants over all series with a time column, as rows of a series without."""
    taken = _take(case, _arrange(case))
    spans, _ = _reference_spans(case)
    for (one, split), (other, its_split) in itertools.combinations(
        zip(spans, taken.splits.tolist(), strict=True), 2
    ):
        if splits.LEFT_OUT in (split, its_split) or split == its_split:
            continue
        early, late = (one, other) if split < its_split else (other, one)
        if case.timed:
            assert early.times[-1] < late.times[0]
        elif one.group == other.group:
            assert early.positions[-1] < late.positions[0]


def _one_series(rows: int) -> windows.Series:
    return windows.arrange(None, [], None, rows)


def test_the_embargo_is_the_beginning_of_the_later_blocks() -> None:
    blocks = splits.assign_rows(_one_series(10), splits.Fractions(0.5, 0.3), 1)
    assert blocks.tolist() == [0, 0, 0, 0, 0, -1, 1, 1, -1, 2]


def test_a_series_that_begins_in_the_test_block_needs_no_embargo() -> None:
    groups, times = np.array([0] * 8 + [1] * 2), np.array([*range(8), 6, 7])
    series = windows.arrange(groups, ["old", "new"], times, 10)
    blocks = splits.assign_rows(series, splits.Fractions(0.4, 0.2), 1)
    assert blocks.tolist() == [0, 0, 0, 0, -1, 1, -1, 2, 2, 2]


def test_fractions_that_round_to_all_rows_leave_the_last_block_empty() -> None:
    share = np.nextafter(1, 0)
    for timed in (True, False):
        times = np.arange(5) if timed else None
        series = windows.arrange(None, [], times, 5)
        blocks = splits.assign_rows(series, splits.Fractions(0.5, share - 0.5), 0)
        assert splits.TEST not in blocks[:-1]


@pytest.mark.parametrize("timed", [True, False])
def test_no_rows_have_no_blocks(timed: bool) -> None:
    series = windows.arrange(None, [], np.array([], dtype=np.int64) if timed else None, 0)
    assert splits.assign_rows(series, splits.Fractions(0.7, 0.15), 60).tolist() == []


# ------------------------------------------------------------------------ the last ones


@settings(derandomize=True, deadline=None, max_examples=200)
@given(_cases(), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_the_last_ones_are_taken_by_time_or_in_each_series(
    case: Case, share: float, seed: int
) -> None:
    series = _arrange(case)
    chosen = np.random.default_rng(seed).random(series.row_count) < 0.6
    found = splits.take_last(series, chosen, share)
    times = [time for rows in case.times for time in rows]
    expected = []
    for first, last in itertools.pairwise(series.bounds.tolist()):
        rows = [row for row in range(first, last) if chosen[row]]
        expected += rows[math.floor((1 - share) * len(rows)) :]
    if case.timed:
        every = sorted(time for time, is_chosen in zip(times, chosen, strict=True) if is_chosen)
        cut = every[math.floor((1 - share) * len(every))] if every else 0
        expected = [row for row, time in enumerate(times) if chosen[row] and time >= cut]
    assert np.flatnonzero(found).tolist() == expected

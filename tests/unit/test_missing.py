"""Missing values: what is refused, filled or left out, and that filling looks back only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire import contract, gaps
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import profile, suitability
from trainwire_server.data.prepare import Prepared, prepare
from trainwire_server.errors import JobFailure

ROWS, LENGTH = 120, 4
NAN = float("nan")


def columns_of(rows: int = ROWS) -> dict[str, Any]:
    """Two series one after the other, in time order; every value is told apart."""
    random = np.random.default_rng(3)
    return {
        "a": np.arange(rows) + 1000.0,
        "n": np.arange(rows) * 10,
        "price": np.exp(random.normal(0, 0.1, rows)),
        "side": np.arange(rows) % 2,
        "name": ["one"] * (rows // 2) + ["two"] * (rows // 2),
        "time": [*range(rows // 2)] * 2,
    }


def without(values: Any, *rows: int) -> list[Any]:
    """The column with nulls in these rows."""
    return [None if row in rows else value for row, value in enumerate(np.asarray(values).tolist())]


def store(folder: Path, columns: Mapping[str, Any]) -> tuple[Path, dataset_pb2.Dataset]:
    table = pa.table(dict(columns))
    source, stored = folder / "source", folder / "table.arrow"
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return stored, profile.ingest(source, stored, dataset_pb2.DATASET_FORMAT_ARROW)


def request_of(policy: str = "", **chosen: str) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest()
    settings = {"column__name": "side", "scaling": "NONE", **chosen}
    if any(path.startswith(("threshold", "triple_barrier")) for path in chosen):
        del settings["column__name"]
    if policy:
        settings["missing_values"] = policy
    if not any(path.startswith("samples") for path in chosen):
        settings["windows__sequence_length"] = str(LENGTH)
        settings.setdefault("windows__feature_columns", "a,n")
    for path, text in settings.items():
        contract.assign(request, "data." + path.replace("__", "."), text)
    assert not contract.violations(request) or not request.dataset
    return contract.resolve(request)


GROUPED = {"windows__group_column": "name", "windows__time_column": "time"}


def prepared_of(folder: Path, columns: Mapping[str, Any], policy: str, **chosen: str) -> Prepared:
    return prepare(request_of(policy, **chosen), store(folder, columns)[0])


def failure_of(folder: Path, columns: Mapping[str, Any], policy: str, **chosen: str) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        prepared_of(folder, columns, policy, **chosen)
    return caught.value


def fields_of(failure: JobFailure) -> list[str]:
    return [each.field for each in failure.fields]


# ------------------------------------------------------------------------ windows


def test_forward_fill_takes_the_last_value_of_the_same_series(tmp_path: Path) -> None:
    columns = columns_of()
    # Row 60 begins the second series: the last value of the first is not its own.
    columns["a"] = without(columns["a"], 0, 1, 20, 21, 22, 60)
    columns["n"] = without(columns["n"], 0, 30)
    found = prepared_of(tmp_path, columns, "FORWARD_FILL", **GROUPED)
    assert (found.dropped_rows, found.filled_values) == (3, 4)
    kept = np.r_[2:60, 61:120]
    a, n = np.arange(ROWS) + 1000.0, np.arange(ROWS) * 10.0
    a[20:23], n[30] = a[19], n[29]
    assert np.array_equal(found.features, np.stack([a[kept], n[kept]], axis=1).astype(np.float32))
    starts = np.concatenate([found.train.starts, found.validation.starts, found.test.starts])
    assert not any(start < 58 < start + LENGTH - 1 for start in starts)


def test_not_a_number_is_missing_and_infinity_is_not(tmp_path: Path) -> None:
    columns = columns_of()
    columns["a"][[20, 21]] = NAN
    filled = prepared_of(tmp_path, columns, "FORWARD_FILL")
    assert filled.filled_values == 2
    assert filled.features[18:23, 0].tolist() == [1018, 1019, 1019, 1019, 1022]
    assert prepared_of(tmp_path, columns, "DROP").dropped_rows == 2
    columns["a"][50] = np.inf
    # A row that is left out for another reason; the rows of the table are in another order.
    columns["n"] = without(columns["n"], 50)
    columns["time"] = np.arange(ROWS)[::-1]
    for policy in ("FORWARD_FILL", "DROP"):
        for scaling in ("STANDARD", "NONE", "ROLLING"):
            chosen = {"scaling": scaling, "scaling_window": "5", "windows__time_column": "time"}
            failure = failure_of(tmp_path, columns, policy, **chosen)
            assert failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA
            assert "column 'a' has infinite values in 1 rows, the first in row 50 of" in (
                failure.message
            )
            assert fields_of(failure) == ["data.windows.feature_columns"]


def test_drop_makes_neighbours_of_the_rows_around(tmp_path: Path) -> None:
    columns = columns_of()
    columns["a"] = without(columns["a"], 10)
    columns["n"] = without(columns["n"], 11, 70)
    columns["side"] = without(columns["side"], 11, 40)
    found = prepared_of(tmp_path, columns, "DROP", **GROUPED)
    assert (found.dropped_rows, found.filled_values, found.unlabelled_windows) == (3, 0, 1)
    kept = [row for row in range(ROWS) if row not in (10, 11, 70)]
    assert found.features[:, 0].tolist() == [row + 1000 for row in kept]
    assert found.class_names == ["0", "1"]
    sides = np.arange(ROWS)[kept] % 2
    for split in (found.train, found.validation, found.test):
        ends = split.starts + LENGTH - 1
        assert split.labels.tolist() == sides[ends].tolist()
        assert kept.index(40) not in ends


@pytest.mark.parametrize("policy", ["FORWARD_FILL", "DROP"])
def test_a_missing_label_takes_no_row_away(policy: str, tmp_path: Path) -> None:
    columns = columns_of()
    columns["side"] = [row // 10 % 2 if row % 10 == 0 else None for row in range(ROWS)]
    found = prepared_of(tmp_path, columns, policy)
    assert found.features[:, 0].tolist() == columns["a"].tolist()
    assert (found.dropped_rows, found.filled_values) == (0, 0)
    parts = (found.train, found.validation, found.test)
    ends = np.sort(np.concatenate([part.starts + LENGTH - 1 for part in parts]))
    assert len(ends) + found.purged_windows == 11
    assert not (ends % 10).any()
    assert found.unlabelled_windows == ROWS - LENGTH + 1 - 11


@pytest.mark.parametrize("policy", ["FORWARD_FILL", "DROP"])
def test_a_missing_price_takes_the_labels_that_need_it(policy: str, tmp_path: Path) -> None:
    columns = columns_of()
    complete = prices_of(tmp_path, columns, policy)
    whole = ends_of(complete)
    columns["price"] = without(columns["price"], 30)
    found = prices_of(tmp_path, columns, policy)
    assert (found.dropped_rows, found.filled_values) == (0, 0)
    assert whole - ends_of(found) == {28, 30}
    assert found.unlabelled_windows == complete.unlabelled_windows + 2
    barriers = {"target": "triple_barrier", "volatility_window": "3"}
    assert whole - ends_of(prices_of(tmp_path, columns, policy, **barriers)) == {*range(28, 34)}
    columns["price"][50] = 0.0
    with pytest.raises(JobFailure, match="the price in row 50 of the table"):
        prices_of(tmp_path, columns, policy)


def prices_of(
    folder: Path,
    columns: Mapping[str, Any],
    policy: str,
    target: str = "threshold",
    **chosen: str,
) -> Prepared:
    settings = {"price_column": "price", "horizon": "2", **chosen}
    named = {f"{target}__{name}": text for name, text in settings.items()}
    return prepared_of(folder, columns, policy, chronological__embargo_rows="0", **named)


def ends_of(found: Prepared) -> set[int]:
    parts = (found.train, found.validation, found.test)
    return {int(start) + LENGTH - 1 for part in parts for start in part.starts}


def test_a_price_that_is_a_feature_is_filled_as_a_feature_alone(tmp_path: Path) -> None:
    columns = columns_of()
    columns["price"] = without(columns["price"], 30)
    chosen = {"windows__feature_columns": "a,price"}
    request = request_of(
        "FORWARD_FILL", threshold__price_column="price", threshold__horizon="2", **chosen
    )
    found = prepare(request, store(tmp_path, columns)[0])
    assert found.features[30, 1] == found.features[29, 1]
    assert not ends_of(found) & {28, 30}


@pytest.mark.parametrize(
    ("policy", "column", "target"),
    [
        ("", "a", {}),
        ("", "n", {}),
        ("", "side", {}),
        ("", "price", {"threshold__price_column": "price"}),
        ("FORWARD_FILL", "time", GROUPED),
        ("DROP", "name", GROUPED),
    ],
)
def test_what_is_not_to_be_made_up_is_refused(
    policy: str, column: str, target: dict[str, str], tmp_path: Path
) -> None:
    columns = columns_of()
    columns[column] = without(columns[column], 7)
    failure = failure_of(tmp_path, columns, policy, **target)
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_DATA
    assert f"column '{column}' has 1 missing values" in failure.message
    _, dataset = store(tmp_path, columns)
    (found, *_) = suitability.check(request_of(policy, **target), dataset)
    assert f"column '{column}' has 1 missing values, the first in row 7" in found.description


def test_not_a_number_is_refused_unless_asked_for(tmp_path: Path) -> None:
    columns = columns_of()
    columns["a"][20] = NAN
    assert "column 'a'" in failure_of(tmp_path, columns, "").message
    _, dataset = store(tmp_path, columns)
    (found,) = suitability.check(request_of(), dataset)
    assert "'a' has 1 NaN or infinite values" in found.description
    assert "let data.missing_values fill or drop missing ones" in found.description
    for policy in ("FORWARD_FILL", "DROP"):
        assert not suitability.check(request_of(policy), dataset)


def test_a_request_without_gaps_goes_the_same_way(tmp_path: Path) -> None:
    columns = columns_of()
    expected = prepared_of(tmp_path, columns, "", scaling="STANDARD", **GROUPED)
    for policy in ("FORWARD_FILL", "DROP"):
        found = prepared_of(tmp_path, columns, policy, scaling="STANDARD", **GROUPED)
        assert np.array_equal(found.features, expected.features)
        assert np.array_equal(found.test.starts, expected.test.starts)
        assert (found.dropped_rows, found.filled_values) == (0, 0)


def test_nothing_left_says_which_columns(tmp_path: Path) -> None:
    columns = columns_of()
    columns["a"] = pa.nulls(ROWS, pa.float64())
    for policy in ("FORWARD_FILL", "DROP"):
        failure = failure_of(tmp_path, columns, policy)
        assert "leaves out all 120 rows" in failure.message
        assert fields_of(failure) == ["data.missing_values"]
        assert failure.message.endswith("'a' 120; leave out such a column or fill it before")


def test_a_series_of_which_too_little_is_left_is_named(tmp_path: Path) -> None:
    columns = columns_of()
    columns["a"] = without(columns["a"], *range(63, 120))
    failure = failure_of(tmp_path, columns, "DROP", **GROUPED)
    assert failure.reason == training_pb2.FAILURE_REASON_GROUP_TOO_SHORT
    assert "series 'two' has 3 rows (57 rows are left out, because values of 'a' are missing)" in (
        failure.message
    )
    assert fields_of(failure) == ["data.windows.sequence_length", "data.missing_values"]


@pytest.mark.parametrize(
    ("gaps", "chosen", "text", "field"),
    [
        (
            {},
            {"scaling": "ROLLING", "scaling_window": "60"},
            "59 windows have no history of scaling_window (60) rows",
            "data.scaling_window",
        ),
        (
            {"a": range(70)},
            {"windows__sequence_length": "30"},
            "70 rows are left out, because values of 'a' are missing",
            "data.missing_values",
        ),
        (
            {"side": range(72)},
            {},
            "69 windows have no label, because it is missing",
            "data.column.name",
        ),
    ],
    ids=["rolling", "left_out", "unlabelled"],
)
def test_an_empty_split_names_its_cause(
    gaps: dict[str, range], chosen: dict[str, str], text: str, field: str, tmp_path: Path
) -> None:
    columns = columns_of()
    for name, rows in gaps.items():
        columns[name] = without(columns[name], *rows)
    chosen["chronological__train_fraction"] = "0.5"
    failure = failure_of(tmp_path, columns, "DROP", **chosen)
    assert failure.reason == training_pb2.FAILURE_REASON_EMPTY_SPLIT
    assert text in failure.message
    assert fields_of(failure)[0] == field


# ------------------------------------------------------------------------ labelled series


def series_columns() -> dict[str, Any]:
    random = np.random.default_rng(4)
    return {
        "x": [row.tolist() for row in random.normal(size=(40, 5))],
        "y": [row.tolist() for row in random.normal(size=(40, 5))],
        "side": [0, 1] * 20,
    }


SAMPLES = {"samples__feature_columns": "x,y", "stratified": ""}


def test_series_are_filled_along_their_steps(tmp_path: Path) -> None:
    columns = series_columns()
    columns["x"][3][2:4] = [None, NAN]
    columns["y"][3][4] = None
    columns["x"][5][0] = None
    columns["y"][7] = None
    columns["y"][9][0] = NAN
    found = prepared_of(tmp_path, columns, "FORWARD_FILL", **SAMPLES)
    assert (found.dropped_rows, found.filled_values) == (3, 3)
    assert found.features.shape == (37 * 5, 2)
    x, y = found.features[15:20].T
    assert x.tolist() == pytest.approx(
        [*columns["x"][3][:2], *[columns["x"][3][1]] * 2, columns["x"][3][4]]
    )
    assert y[4] == y[3] == pytest.approx(columns["y"][3][3])
    starts = np.sort(
        np.concatenate([s.starts for s in (found.train, found.validation, found.test)])
    )
    assert starts.tolist() == list(range(0, 37 * 5, 5))


def test_series_that_lack_a_value_are_dropped(tmp_path: Path) -> None:
    columns = series_columns()
    columns["x"][3][4] = None
    columns["y"][7] = None
    columns["side"][9] = None
    found = prepared_of(tmp_path, columns, "DROP", **SAMPLES)
    assert (found.dropped_rows, found.filled_values, found.unlabelled_windows) == (2, 0, 1)
    assert found.features.shape == (38 * 5, 2)
    assert sum(len(s.starts) for s in (found.train, found.validation, found.test)) == 37
    kept = [row for row in range(40) if row not in (3, 7)]
    assert found.features[::5, 0] == pytest.approx([columns["x"][row][0] for row in kept])
    # Chance deals out the classes here too, of which none at all is no class.
    columns["split"] = ["train"] * 30 + ["test"] * 10
    chosen = {"samples__feature_columns": "x,y", "split_column__name": "split"}
    found = prepared_of(tmp_path, columns, "DROP", **chosen)
    assert (found.unlabelled_windows, found.warnings) == (1, [])
    columns["side"][9] = 0
    assert "'x' has 1 missing values" in failure_of(tmp_path, columns, "", **SAMPLES).message


# ------------------------------------------------------------------------ no leakage


def slow_fill(values: list[float]) -> list[float]:
    found: list[float] = []
    for value in values:
        found.append(found[-1] if np.isnan(value) else value)
    return found


def filled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    copy = values.copy()
    assert gaps.fill(copy) == np.isnan(values).sum()
    return copy


@given(st.data())
def test_a_filled_row_depends_on_the_past_of_its_series_alone(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    one, other = (
        np.array(data.draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, NAN]), min_size=n, max_size=n)))
        for n in (sum(lengths), sum(lengths))
    )
    series = data.draw(st.integers(0, len(lengths) - 1))
    starts = np.concatenate(([0], np.cumsum(lengths)))
    first, last = starts[series], data.draw(st.integers(starts[series], starts[series + 1] - 1))
    other[first : last + 1] = one[first : last + 1]
    begins = np.repeat(starts[:-1], lengths)
    leading = gaps.leading(np.isnan(one), begins)[first : last + 1]
    assert np.array_equal(leading, gaps.leading(np.isnan(other), begins)[first : last + 1])
    assert leading.sum() == next(
        (i for i, value in enumerate(one[first : last + 1]) if not np.isnan(value)),
        last + 1 - first,
    )
    # What `fill` asks for: every series begins with a value.
    one[starts[:-1]], other[starts[:-1]] = 5.0, 5.0
    before, after = filled(one), filled(other)
    assert np.array_equal(before[first : last + 1], after[first : last + 1])
    assert before[first : last + 1].tolist() == slow_fill(one[first : last + 1].tolist())

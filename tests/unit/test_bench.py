"""The bench: its peers train the same network, its verdicts are right, its page is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench import page
from bench.figures import Check, Figure, Result, read
from bench.network import HybridCnnLstm
from bench.reasons import REASONS
from hypothesis import given
from hypothesis import strategies as st

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.v1 import training_pb2

EQUAL = Check("loss", [0.3, 0.5], [0.45, 0.45], 0.06)
DIFFERENT = Check("loss", [0.3, 0.5], [0.5, 0.5], 0.06)


def test_the_plain_network_gives_the_logits_of_ours_from_the_same_weights() -> None:
    model = contract.resolve(training_pb2.TrainingRequest(dataset="d")).model
    torch.manual_seed(0)
    ours, plain = build(model, 7, 3, 60).eval(), HybridCnnLstm(model, 7, 3).eval()
    plain.load_state_dict(ours.state_dict())
    windows = torch.randn(5, 7, 60)
    with torch.inference_mode():
        torch.testing.assert_close(plain(windows), ours(windows), rtol=1e-5, atol=1e-6)


def test_the_plain_network_is_made_of_torch_alone() -> None:
    model = contract.resolve(training_pb2.TrainingRequest(dataset="d")).model
    kinds = {type(module).__module__ for module in HybridCnnLstm(model, 7, 3).modules()}
    assert {kind.split(".")[0] for kind in kinds} == {"torch", "bench"}


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("f", [1, 3, 2], 2), "PASS"),
        (Figure("f", [1, 3, 1.9], 2), "FAIL"),
        (Figure("f", [1, 3, 2], 2, at_least=False), "PASS"),
        (Figure("f", [1, 3, 2.1], 2, at_least=False), "FAIL"),
        (Figure("f", [3], 2, check=EQUAL), "PASS"),
        (Figure("f", [3], 2, check=DIFFERENT), "FAIL"),
        (Figure("f", [3], 2, check=Check("loss", [float("nan")], [0.5], 0.06)), "FAIL"),
        (Figure("f", [], 2), "no GPU here"),
    ],
)
def test_a_verdict_follows_from_median_bar_and_check(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict
    assert figure.row().splitlines()[0].endswith(verdict)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.booleans())
def test_a_margin_of_one_or_more_is_a_pass(values: list[float], at_least: bool) -> None:
    figure = Figure("f", values, 1.5, at_least=at_least)
    assert (figure.margin >= 1) == (figure.verdict == "PASS")
    assert figure.margins[0] <= figure.margin <= figure.margins[1]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    figures = [Figure("a", [1.0, 2.0], 1.5, unit="s", how="So."), Figure("b", [], 2, check=EQUAL)]
    result = Result("some machine", {"threads": "2"}, figures)
    result.write(tmp_path / "r.json")
    assert read(tmp_path / "r.json") == result


def test_the_page_gives_reasons_for_what_fails_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(REASONS, "slow", "It waits for the disk.")
    monkeypatch.setitem(REASONS, "fast", "This reason is out of date.")
    figures = [
        Figure("slow", [1], 2),
        Figure("fast", [3], 2),
        Figure("odd", [3], 2, check=DIFFERENT),
    ]
    text = page.render([Result("some machine", {}, figures)])
    assert "- **slow**: It waits for the disk." in text
    assert "out of date" not in text
    assert "- **odd**: not looked into yet." in text
    assert "NOT EQUAL" in text


def test_a_row_that_needs_a_gpu_stays_empty_without_one() -> None:
    rows = [line for line in page.render([]).splitlines() if line.startswith("| GPU")]
    assert len(rows) == 2
    assert all(line.endswith("**no GPU here** |") for line in rows)


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.read_results())


def test_every_reason_is_of_a_figure_that_exists() -> None:
    assert REASONS.keys() <= {figure.name for figure in page.all_figures(page.read_results())}

"""What docs/operations.md says of settings, statuses and reasons is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from trainwire.v1 import training_pb2
from trainwire_server import errors
from trainwire_server.service import status
from trainwire_server.settings import Settings, read_settings

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its own heading left out."""
    section = PAGE.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_flag_is_there_with_its_default() -> None:
    settings = read_settings([], {})
    said = {row[0].strip("`"): row[1] for row in rows("## Settings")}
    defaults = {
        f"--{name.replace('_', '-')}": getattr(settings, name)
        for name in Settings.__dataclass_fields__
    }
    assert set(said) == set(defaults)
    assert said.pop("--threads") == "none"  # it depends on the machine
    for flag, text in said.items():
        value = defaults[flag]
        assert text == (f"{value:g}" if isinstance(value, float) else str(value).lower()), flag


@pytest.mark.parametrize("kind", status.CODES, ids=lambda kind: kind.__name__)
def test_every_refusal_is_there_with_its_code(kind: type[errors.RequestError]) -> None:
    said = [row[:2] for row in rows("### A call fails")]
    # That of a dry run is a failure of the job there would be.
    reason = "a failure reason, below" if kind is errors.Untrainable else kind.reason
    assert [status.CODES[kind].name, reason] in said


def test_no_other_refusal_is_there() -> None:
    reasons = {kind.reason for kind in status.CODES} | {errors.RequestError.reason}
    for code, reason, *_ in rows("### A call fails"):
        assert reason in reasons | {"none", "a failure reason, below"}
        assert code in grpc.StatusCode.__members__


def names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"[A-Z]+(?:_[A-Z]+)+|INTERNAL", cell)}


def test_every_failure_and_warning_is_there() -> None:
    failures = {
        name.removeprefix("FAILURE_REASON_") for name in training_pb2.FailureReason.keys()[1:]
    }
    assert names([row[0] for row in rows("### A job ends in FAILED")]) == failures
    warnings = {
        name.removeprefix("WARNING_REASON_") for name in training_pb2.WarningReason.keys()[1:]
    }
    assert names([row[0] for row in rows("### A job goes on, but")]) == warnings


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors

"""The programs in `examples/` run, and what the documentation shows is what they are."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXCERPT = re.compile(r"<!-- from (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
EXCERPTS = EXCERPT.findall((ROOT / "docs/clients.md").read_text())


def run(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / program), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_python_example_trains_and_downloads(
    server: Any, csv_file: Path, tmp_path: Path
) -> None:
    done = run("train.py", str(csv_file), "y", server.address, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^epoch \d+/10: loss \d", done.stdout, re.MULTILINE)) == 10
    assert (tmp_path / "model/model.safetensors").stat().st_size > 0


def test_the_asyncio_example_trains(server: Any, csv_file: Path, tmp_path: Path) -> None:
    done = run("train_async.py", str(csv_file), "y", server.address, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^models/\S+: accuracy 0\.\d{3}$", done.stdout, re.MULTILINE)


def test_the_python_example_shows_violations(server: Any, csv_file: Path, tmp_path: Path) -> None:
    done = run("train.py", str(csv_file), "y" * 300, server.address, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "data.column.name: 300 characters; allowed: at most 256\n"


@pytest.mark.parametrize(("path", "excerpt"), EXCERPTS)
def test_an_excerpt_is_what_the_tested_file_says(path: str, excerpt: str) -> None:
    file = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    shown = [line.strip() for line in textwrap.dedent(excerpt).splitlines()]
    starts = range(len(file) - len(shown) + 1)
    assert any(file[start : start + len(shown)] == shown for start in starts)


def test_every_tested_language_has_an_excerpt() -> None:
    assert {path.rpartition(".")[2] for path, _ in EXCERPTS} == {"py", "ts"}

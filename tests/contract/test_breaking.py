"""`buf breaking` with the rules of buf.yaml catches what would break a generated client."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sysconfig.get_path("scripts")) / "buf"
TRAINING = "proto/trainwire/v1/training.proto"


def run_buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BUF), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the contract, frozen as it is."""
    folder = tmp_path_factory.mktemp("contract")
    shutil.copy(ROOT / "buf.yaml", folder)
    files = shutil.ignore_patterns("*.py", "*.pyi", "__pycache__", "architectures")
    shutil.copytree(ROOT / "proto", folder / "proto", ignore=files)
    built = run_buf(folder, "build", "-o", "proto/baseline.binpb")
    assert built.returncode == 0, built.stderr
    return folder


def breaking(frozen: Path, pattern: str, replacement: str) -> str:
    """What `buf breaking` says to a change of training.proto; empty if it breaks nothing."""
    file = frozen / TRAINING
    before = file.read_text()
    changed, count = re.subn(pattern, replacement, before, count=1, flags=re.DOTALL)
    assert count == 1
    file.write_text(changed)
    try:
        found = run_buf(frozen, "breaking", "--against", "proto/baseline.binpb")
    finally:
        file.write_text(before)
    assert (found.returncode == 0) == (not found.stdout), found.stderr
    return found.stdout


FIELD = r"  optional double weight_decay = 4 .*?\}\];\n"


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        (FIELD, "", 'field "4" with name "weight_decay" on message "TrainerParams" was deleted'),
        (FIELD, '  reserved 4;\n  reserved "weight_decay";\n', '"weight_decay" on message'),
        (r"weight_decay = 4 ", "weight_decay = 77 ", 'field "4" with name "weight_decay"'),
        (r"double weight_decay = 4 ", "double decay = 4 ", "changed name"),
        (r"double weight_decay = 4 ", "float weight_decay = 4 ", "changed type"),
        (r"optional double weight_decay = 4 ", "double weight_decay = 4 ", "changed cardinality"),
        (r"  SCHEDULER_TYPE_CONSTANT = 1;\n", "", 'value "1" on enum "SchedulerType" was deleted'),
        (r"  rpc GetTraining\(.*?;\n", "", 'RPC "GetTraining" on service'),
        (r"returns \(stream TrainingEvent\)", "returns (TrainingEvent)", "streaming"),
    ],
)
def test_what_breaks_a_client_is_found(
    pattern: str, replacement: str, said: str, frozen: Path
) -> None:
    assert said in breaking(frozen, pattern, replacement)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"message TrainerParams \{\n", "message TrainerParams {\n  optional double knob = 90;\n"),
        (r"  SCHEDULER_TYPE_CONSTANT = 1;\n", "  SCHEDULER_TYPE_CONSTANT = 1;\n  NEWER = 90;\n"),
        (r"  rpc GetTraining\(", "  rpc Newer(GetTrainingRequest) returns (TrainingJob);\n\\g<0>"),
    ],
)
def test_what_is_only_more_is_allowed(pattern: str, replacement: str, frozen: Path) -> None:
    assert breaking(frozen, pattern, replacement) == ""


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"default: \{number_value: 150\}", "default: {number_value: 151}"),
        (r"maximum: 65536", "maximum: 128"),
    ],
)
def test_defaults_and_ranges_are_beyond_it(pattern: str, replacement: str, frozen: Path) -> None:
    """Why docs/contract.md is generated and compared: these changes show there alone."""
    assert breaking(frozen, pattern, replacement) == ""

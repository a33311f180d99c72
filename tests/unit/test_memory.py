"""What the server's process does about memory it has freed, and about garbage."""

from __future__ import annotations

import subprocess
import sys

import pytest

COPIES = """
import resource
from trainwire_server.memory import keep_freed_memory

if {keeping}:
    keep_freed_memory()

def copy(data, times):
    for _ in range(times):
        copies = [bytes(bytearray(data)) for _ in range(3)]
        del copies

data = bytes(2**20)
copy(data, 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
copy(data, 50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GARBAGE = """
import gc
from trainwire_server.memory import collect_seldom

collect_seldom()
print(gc.get_freeze_count() > 1_000, gc.isenabled(), gc.get_threshold()[0] > 700)
"""


def output_of(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True).strip()


@pytest.mark.skipif(sys.platform != "linux", reason="options of glibc")
def test_copies_of_chunks_meet_no_fresh_memory() -> None:
    faults = {keeping: int(output_of(COPIES.format(keeping=keeping))) for keeping in (False, True)}
    assert faults[True] < 1_000 < faults[False]


def test_garbage_is_not_searched_for_in_what_was_there_at_the_start() -> None:
    assert output_of(GARBAGE) == "True True True"

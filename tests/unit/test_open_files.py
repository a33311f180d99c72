"""How many files a server may have open."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
from trainwire_server.memory import open_many_files
open_many_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
"""


def test_as_many_as_the_system_allows() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)

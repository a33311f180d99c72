"""The server's log: JSON lines, and no harm when nobody reads them."""

from __future__ import annotations

import json
import subprocess
import sys

LOG = """
import sys, structlog
from trainwire_server.logs import configure_logs
configure_logs("json", "info")
log = structlog.get_logger().bind(job="jobs/one")
log.debug("left out")
log.info("job.epoch", epoch=1)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("job.error")
print("went on")
"""


def test_records_are_json_lines_with_what_was_bound() -> None:
    done = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["event"], first["job"], first["epoch"]) == ("job.epoch", "jobs/one", 1)
    assert first["level"] == "info"
    assert "ZeroDivisionError" in second["exception"]


def test_a_reader_that_is_gone_does_no_harm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline()\n" + LOG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    output, _ = process.communicate("go\n")
    assert output == "went on\n"

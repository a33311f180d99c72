"""The server's clock is wrong by an hour, either way, while jobs run: nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import Work
from tests.faults.recorder import Recorder, problems

from trainwire.v1 import training_pb2

HOUR = 3600
SUCCEEDED = training_pb2.JOB_STATE_SUCCEEDED


@pytest.mark.timeout(240)
@pytest.mark.parametrize("jumps", [(-HOUR, HOUR), (HOUR, -HOUR)], ids=["back", "forth"])
def test_a_clock_that_jumps_disturbs_nothing(
    jumps: tuple[int, int], start_failing: Callable[..., Any], work: Work, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    # A lease and heartbeats that an hour is far beyond.
    server = start_failing("--lease", "20", "--heartbeat", "5", "--retain-days", "30", clock=clock)
    with Recorder(server.address) as recorder:
        names = []
        for request, jump in zip(work.named(1), [0, *jumps], strict=True):
            clock.write_text(str(jump))
            names.append(recorder.submit(request).name)
        for count, jump in enumerate(jumps * 2, start=1):
            assert recorder.wait_for_epochs(5 * count)
            clock.write_text(str(jump))
        history = recorder.finish()
        assert problems(history) == []
        jobs = [history.found[name] for name in names]
        assert {(job.state, job.attempt) for job in jobs} == {(SUCCEEDED, 1)}
        # First come, first served; listed by what happened last, whatever the clock said.
        begun = [record["job"] for record in server.records if record["event"] == "job.started"]
        assert begun == names
        assert [job.name for job in recorder.client.list(page_size=2)] == names[::-1]
        events = [event for name in names for event in history.watched[name]["late"]]
        times = [event.time.seconds for event in events]
        assert max(times) - min(times) > HOUR, "the clock has not jumped"
        seconds = [event.epoch.seconds for event in events if event.HasField("epoch")]
        assert (min(seconds) >= 0, max(seconds) < HOUR / 2) == (True, True)
        for job in jobs:
            assert work.differences(recorder.client, job, tmp_path) == []

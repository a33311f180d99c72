"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container with cgroups v2 sees of its limit."""


def count_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may run on, at least 1: its affinity, and a container's CPU limit.

    A part of a core counts as a whole one. A limit that cannot be read is none.

    Args:
        quota: file with microseconds of CPU, or "max", and the microseconds in which they may be
            used, as Linux documents cpu.max of control groups, version 2.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        used, _, period = quota.read_text().partition(" ")
        return max(1, min(cores, math.ceil(int(used) / int(period))))
    except (OSError, ValueError):
        return cores

"""How many cores this process may use."""

import math
import os
from pathlib import Path

__all__ = ["THREADS", "core_limit", "server_cores", "usable_cores"]

THREADS = "OMP_NUM_THREADS"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of each period, or "max"


def usable_cores() -> int:
    """At least 1."""
    return core_limit() or _cores()


def server_cores() -> int:
    """That the workers of a server share, whatever OMP_NUM_THREADS says of each of them."""
    return min(_quota() or _cores(), _cores())


def core_limit() -> int | None:
    """OMP_NUM_THREADS, or else a container's quota of CPUs, rounded up; no more than it may run on.

    None if this is no less than the machine has, which is what engines take when they aren't told.
    """
    told = os.environ.get(THREADS, "")
    said = int(told) if told.isdecimal() else 0
    limit = min(said, _cores()) or server_cores()
    return limit if limit < (os.cpu_count() or 1) else None


def _cores() -> int:
    """That the system lets this process run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # a system that has none
        return os.cpu_count() or 1


def _quota() -> int | None:
    try:
        quota, period = QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroups, or no quota
        return None

"""Keeps processors awake: spinners.py CPU..., one loop a processor, until the program that started it is gone.

The loops have the policy SCHED_IDLE, which counts inside one scheduling group only. Where the kernel makes a group of
every session (`sched_autogroup_enabled`), a loop beside the bench would take a whole share from a daemon, which has a
session of its own. So: start this as a session leader, and it gives its group the least weight there is.
"""

from __future__ import annotations

import contextlib
import os
import sys

LEAST = 19
LOOPS = 1_000_000


def spin(cpu: int) -> None:
    """Take what nobody else wants of one processor, for as long as the parent lives."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(LOOPS):
            pass


def main() -> None:
    """One process a processor; this one takes the first."""
    # A kernel without such groups has no such file: there the policy alone is enough.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
        group.write(str(LEAST))
    first, *others = map(int, sys.argv[1:])
    for cpu in others:
        if os.fork() == 0:
            spin(cpu)
            os._exit(0)
    spin(first)


if __name__ == "__main__":
    main()

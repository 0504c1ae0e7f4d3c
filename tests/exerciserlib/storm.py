"""A storm of ttmfs commands on the exercised files, from a process of its own.

Promise: writes only to objects/NAME/* of the names it is given and to the device's shrinker, and only commands that may
not change a byte. Full regions, busy objects and timeouts are expected; any other errno is counted as unexpected.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

from .model import monotonic_ns

COMMANDS: list[tuple[str, list[str]]] = [
    (
        "validate",
        [
            "vram",
            "gtt",
            "system",
            "vram gtt",
            "vram:topdown",
            "vram:contiguous gtt",
            "gtt no_wait_gpu",
            "vram no_wait_gpu",
        ],
    ),
    ("evict", ["", "no_wait_gpu"]),
    ("unmap", [""]),
    ("defrag", ["", "no_wait_gpu"]),
    ("backup", ["", "writeback"]),
    ("restore", [""]),
    ("swapout", [""]),
    ("wait", ["kernel 5"]),
]
CTL_COMMANDS: list[tuple[str, list[str]]] = [
    ("shrink", ["4K", "256K", "4M no_wait_gpu", "all no_wait_gpu", "1M writeback"]),
]
"""For the device as a whole: nothing here is advised `dontneed`, so the shrinker drops no content."""
EXPECTED = frozenset({errno.EBUSY, errno.ENOMEM, errno.ENOSPC, errno.ETIME, errno.EINTR})


def run_storm(mount: Path, names: list[str], seed: int, result: Path, words: list[str] | None = None) -> int:
    """Body of the storm process: writes commands until SIGTERM, then leaves its counts (JSON) in `result`."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    rng = random.Random(f"storm {seed}")
    offered = set(os.listdir(mount / "objects" / names[0]))
    commands = [c for c in COMMANDS if c[0] in offered and (words is None or c[0] in words)]
    of_device = {c[0] for c in CTL_COMMANDS if (mount / "ctl" / c[0]).exists() and (words is None or c[0] in words)}
    commands += [c for c in CTL_COMMANDS if c[0] in of_device]
    counts: Counter[str] = Counter()
    unexpected: list[str] = []
    longest = 0
    while not stopped:
        command, arguments = rng.choice(commands)
        folder = mount / "ctl" if command in of_device else mount / "objects" / rng.choice(names)
        target = folder / command
        started = monotonic_ns()
        outcome = write_command(target, rng.choice(arguments))
        longest = max(longest, monotonic_ns() - started)
        counts["ok" if not outcome else errno.errorcode.get(outcome, str(outcome))] += 1
        if outcome and outcome not in EXPECTED:
            line = f"{target.relative_to(mount)}: {errno.errorcode.get(outcome, outcome)}"
            if line not in unexpected and len(unexpected) < 20:
                unexpected.append(line)
    result.write_text(json.dumps({"counts": counts, "unexpected": unexpected, "max_ms": round(longest / 1e6, 1)}))
    return 0


def write_command(target: Path, argument: str) -> int:
    """Write one command line; returns 0 or the errno."""
    try:
        fd = os.open(target, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, argument.encode() + b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0

"""The clock of this process: whatever is measured, stamped or paced reads the time here, and nowhere else.

Call as `clock.monotonic_ns()`: the functions are looked up at each call, so that `replaced` can give a run a time of
its own. Deadlines, sleeps and timeouts are trio's, whose clock is given to `trio.run`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

monotonic_ns: Callable[[], int] = time.monotonic_ns
"""Nanoseconds since some moment, never backwards."""

wall_ns: Callable[[], int] = time.time_ns
"""Nanoseconds since 1970: the times of files."""


def monotonic() -> float:
    """Seconds since that moment."""
    return monotonic_ns() / 1e9


def local(wall: int) -> str:
    """Nanoseconds since 1970 as people read them where this process runs: 2026-01-31T12:00:00."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(wall // 1_000_000_000))


@contextlib.contextmanager
def replaced(monotonic: Callable[[], int], wall: Callable[[], int]) -> Iterator[None]:
    """Other sources of nanoseconds within the block, for all that runs in this process."""
    global monotonic_ns, wall_ns
    before = monotonic_ns, wall_ns
    monotonic_ns, wall_ns = monotonic, wall
    try:
        yield
    finally:
        monotonic_ns, wall_ns = before

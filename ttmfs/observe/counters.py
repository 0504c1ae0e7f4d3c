"""Counters: what happened since the mount, in plain integers that `stats` and `metrics` print."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, Protocol

from ttmfs import clock

LATENCY_BUCKETS: Final = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.1, 0.5, 1.0, 5.0, 15.0)
"""Upper bounds in seconds."""
SIZE_BUCKETS: Final = tuple(float(1 << shift) for shift in range(12, 33, 2))
"""Upper bounds in bytes: 4 KiB to 4 GiB."""


class Histogram:
    """How many observations were at most each of `bounds`, and their sum: `counts` has one more, for those beyond."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> "Histogram":
        """One that stays as it is now."""
        other = Histogram(self.bounds)
        other.counts, other.sum = self.counts.copy(), self.sum
        return other


class FaultCounters:
    """Faults by BO files. `max_ns` is the longest from request to reply."""

    __slots__ = ("count", "errors", "max_ns", "pages", "prefault_pages", "retries", "window_moves")

    def __init__(self) -> None:
        self.count = self.pages = self.prefault_pages = self.retries = self.errors = self.max_ns = 0
        self.window_moves = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "pages": self.pages,
            "prefault_pages": self.prefault_pages,
            "retries": self.retries,
            "errors": self.errors,
            "max_ms": round(self.max_ns / 1e6, 3),
            "window_moves": self.window_moves,
        }


class MoveCounters:
    """Moves that TTM made; `bytes` as `ctx.done.bytes_moved` counts them, `exchanged` those that no one had to copy."""

    __slots__ = ("bytes", "cleared", "count", "evictions", "exchanged", "failed", "promotions", "unmaps")

    def __init__(self) -> None:
        self.count = self.bytes = self.cleared = self.evictions = self.exchanged = self.failed = self.unmaps = 0
        self.promotions = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Parked(Protocol):
    """A request that may wait."""

    hurried: bool

    def hurry(self) -> None:
        """Wait no longer."""


class RequestCounters:
    """FUSE requests on BO files: how many, how much, and which are waiting now."""

    __slots__ = (
        "handler_errors",
        "parked",
        "read",
        "read_bytes",
        "write",
        "write_bytes",
        "write_errors",
    )

    def __init__(self) -> None:
        self.read = self.write = self.read_bytes = self.write_bytes = 0
        self.handler_errors = self.write_errors = 0
        self.parked: dict[Parked, int] = {}
        """Requests that could not be answered at once, by a token, with their start in ns."""

    def as_dict(self) -> dict[str, Any]:
        oldest = min(self.parked.values(), default=None)
        age = 0.0 if oldest is None else (clock.monotonic_ns() - oldest) / 1e6
        return {
            "read": self.read,
            "write": self.write,
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "handler_errors": self.handler_errors,
            "write_errors": self.write_errors,
            "waiting": len(self.parked),
            "oldest_ms": round(age, 3),
        }


class Lull:
    """For work in steps: does a client want anything just now?"""

    __slots__ = ("_requests", "_seen")

    def __init__(self, requests: RequestCounters) -> None:
        self._requests = requests
        self._seen = -1

    def __call__(self) -> bool:
        """No request was answered since this was last asked, and none waits. Never when it is asked first."""
        requests = self._requests
        before, self._seen = self._seen, requests.read + requests.write
        return before == self._seen and not requests.parked


class SwapCounters:
    """BOs that were swapped out, and how often that failed."""

    __slots__ = ("failed", "out")

    def __init__(self) -> None:
        self.out = self.failed = 0


class BackupCounters:
    """Pages that went to the swap store and came back, pages whose content was dropped, and what failed."""

    __slots__ = ("failed", "pages_in", "pages_out", "purged_pages", "shrinks")

    def __init__(self) -> None:
        self.pages_out = self.pages_in = self.purged_pages = self.failed = self.shrinks = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Counters:
    """All counters of one device."""

    __slots__ = ("backup", "fault_seconds", "faults", "gate_seconds", "move_bytes", "moves", "requests", "swap")

    def __init__(self) -> None:
        self.backup = BackupCounters()
        self.faults = FaultCounters()
        self.moves = MoveCounters()
        self.swap = SwapCounters()
        self.requests = RequestCounters()
        self.fault_seconds = Histogram(LATENCY_BUCKETS)
        """READs and WRITEs that could not be answered at once, from request to answer: those that can are not timed."""
        self.gate_seconds = Histogram(LATENCY_BUCKETS)
        """How long requests were parked on their BO, each time."""
        self.move_bytes = Histogram(SIZE_BUCKETS)
        """Bytes of each move that TTM made."""

"""Counters: what happened since the mount, in plain integers that `stats` and `metrics` print."""

import time
from typing import Any


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
    """Moves that TTM made; `bytes` as `ctx.bytes_moved` counts them."""

    __slots__ = ("bytes", "count", "evictions", "failed", "unmaps")

    def __init__(self) -> None:
        self.count = self.bytes = self.evictions = self.failed = self.unmaps = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


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
        self.parked: dict[object, int] = {}
        """Requests that could not be answered at once, by a token, with their start in ns."""

    def as_dict(self) -> dict[str, Any]:
        oldest = min(self.parked.values(), default=None)
        age = 0.0 if oldest is None else (time.monotonic_ns() - oldest) / 1e6
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


class SwapCounters:
    """BOs that were swapped out, and how often that failed."""

    __slots__ = ("failed", "out")

    def __init__(self) -> None:
        self.out = self.failed = 0


class Counters:
    """All counters of one device."""

    __slots__ = ("faults", "moves", "requests", "swap")

    def __init__(self) -> None:
        self.faults = FaultCounters()
        self.moves = MoveCounters()
        self.swap = SwapCounters()
        self.requests = RequestCounters()

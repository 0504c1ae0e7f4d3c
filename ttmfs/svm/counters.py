"""Counters of SVM: of all spaces together, and per space under the names that xe's gt stats use."""

import functools
from types import TracebackType
from typing import Any, Final, Self

from ttmfs import clock
from ttmfs.units import PAGE_SHIFT, format_size

_SIZES: Final = ("2M", "64K", "4K")
"""Those that xe has; another one has counters once there was a range of it."""

_PER_SIZE: Final = (
    "pagefault_count",
    "valid_pagefault_count",
    "pagefault_us",
    "migrate_count",
    "migrate_us",
    "device_copy_us",
    "cpu_copy_us",
    "device_copy_kb",
    "cpu_copy_kb",
    "get_pages_us",
    "bind_us",
)
_GENERAL: Final = ("svm_pagefault_count", "svm_tlb_inval_count", "svm_tlb_inval_us")


@functools.cache
def label_of(pages: int) -> str:
    """What counters and tables call a range of so many pages."""
    return format_size(pages << PAGE_SHIFT)


class SvmCounters:
    """What happened in all spaces of a device since it was made. Bytes where it says bytes."""

    __slots__ = (
        "alloc_failures",
        "alloc_retries",
        "bytes_in",
        "bytes_out",
        "cpu_fault_pages",
        "cpu_faults",
        "evictions",
        "gpu_faults",
        "gpu_jobs",
        "gpu_restarts",
        "invalidations",
        "migrations_busy",
        "migrations_failed",
        "migrations_in",
        "migrations_out",
        "mixed",
        "served_in_place",
        "unmaps",
        "writes",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    alloc_failures: int
    alloc_retries: int
    bytes_in: int
    bytes_out: int
    cpu_fault_pages: int
    cpu_faults: int
    evictions: int
    gpu_faults: int
    gpu_jobs: int
    gpu_restarts: int
    invalidations: int
    migrations_busy: int
    migrations_failed: int
    migrations_in: int
    migrations_out: int
    mixed: int
    served_in_place: int
    unmaps: int
    writes: int

    def as_dict(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class SpaceStats:
    """xe_gt_stats of one space: "name: value" lines (names as xe's debugfs prints them)."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, int] = dict.fromkeys(_GENERAL, 0)
        for label in _SIZES:
            self.values.update((f"svm_{label}_{name}", 0) for name in _PER_SIZE)

    def add(self, name: str, value: int = 1) -> None:
        """Add to a counter that has no size in its name."""
        self.values[name] += value

    def add_sized(self, pages: int, name: str, value: int = 1) -> None:
        """Add to the counter of ranges of `pages` pages."""
        key = f"svm_{label_of(pages)}_{name}"
        self.values[key] = self.values.get(key, 0) + value

    def timed(self, pages: int, name: str) -> "_Timed":
        """A block whose microseconds are added to a counter of a size."""
        return _Timed(self, pages, name)

    def text(self) -> str:
        """One line each."""
        return "".join(f"{name}: {value}\n" for name, value in self.values.items())


class _Timed:
    __slots__ = ("_name", "_pages", "_started", "_stats")

    def __init__(self, stats: SpaceStats, pages: int, name: str) -> None:
        self._stats = stats
        self._pages = pages
        self._name = name
        self._started = 0

    def __enter__(self) -> Self:
        self._started = clock.monotonic_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> Any:
        self._stats.add_sized(self._pages, self._name, (clock.monotonic_ns() - self._started) // 1000)

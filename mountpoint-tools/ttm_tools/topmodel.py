"""What ttm-top shows, as values: regions, rates, and BOs whose details are read only where they are looked at.

A refresh reads stats, the names below bo/ and the LRU of each region: a few reads, however many BOs there are. The
status.json of a BO is read while it is on the screen, when its place is not known (a pinned BO is on no LRU), and by
and by for all when the order of the list depends on it.
"""

import fnmatch
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ttm_tools.device import Device
from ttm_tools.ls import PAGE, orders_text
from ttm_tools.words import count_text, shown, size_text

SWEEP: Final = 500
"""BOs whose details are read at one refresh, besides those on the screen."""

HISTORY: Final = 60


@dataclass(slots=True)
class Row:
    """A BO. `status` is its status.json when that was read, at `read_at` (monotonic seconds; 0: never)."""

    name: str
    size: int | None = None
    place: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    read_at: float = 0.0

    def count(self, key: str) -> int:
        """A number of its status; 0 while it is not known."""
        value = self.status.get(key, 0)
        return len(value) if isinstance(value, list) else int(value)

    @property
    def populated(self) -> float:
        """The populated part, 0..1."""
        pages = max(1, -(-(self.size or 0) // PAGE))
        return min(1.0, self.count("populated_pages") / pages)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list. `key` is what the rows are sorted by, `shift` the key that asks for it."""

    name: str
    shift: str
    width: int
    key: Callable[[Row], Any]
    text: Callable[[Row], str]
    needs_status: bool = False
    descending: bool = True
    left: bool = False


def _known(text: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: text(row) if row.status else "·"


def _counted(name: str, shift: str, width: int, key: str) -> Column:
    return Column(name, shift, width, lambda r: r.count(key), _known(lambda r: count_text(r.count(key))), True)


COLUMNS: Final = (
    Column("NAME", "N", 0, lambda row: row.name, lambda row: shown(row.name), descending=False, left=True),
    Column("SIZE", "Z", 7, lambda r: r.size or 0, lambda r: "·" if r.size is None else size_text(r.size)),
    Column("PLACE", "L", 8, lambda row: row.place, lambda row: row.place or "·", descending=False, left=True),
    Column("POP", "P", 5, lambda r: r.populated, _known(lambda r: f"{100 * r.populated:.0f}%"), True),
    Column(
        "ORDERS",
        "O",
        16,
        lambda row: max(map(int, row.status.get("page_orders") or ("-1",))),
        _known(lambda row: orders_text(row.status.get("page_orders", {}))),
        True,
        left=True,
    ),
    _counted("PINS", "I", 5, "pin_count"),
    _counted("FENCES", "C", 7, "fences"),
    _counted("MOVES", "M", 7, "moves"),
    _counted("EVICT", "E", 6, "evictions"),
    _counted("FAULTS", "F", 8, "faults"),
    Column(
        "GROUP",
        "R",
        14,
        lambda row: row.status.get("group", ""),
        _known(lambda row: shown(row.status.get("group", ""))),
        True,
        descending=False,
        left=True,
    ),
)
GROUP: Final = COLUMNS[-1]
"""Shown where there are groups."""


@dataclass(slots=True)
class Rate:
    """A counter of stats as a rate a second, with its last values."""

    name: str
    path: tuple[str, str]
    text: Callable[[float], str] = count_text
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _before: tuple[float, float] | None = None

    @property
    def now(self) -> float:
        """The last value."""
        return self.history[-1] if self.history else 0.0

    def feed(self, when: float, stats: dict[str, Any]) -> None:
        """The next stats."""
        value = float(stats.get(self.path[0], {}).get(self.path[1], 0))
        if self._before is not None and when > self._before[0]:
            # A counter that went back is a new device at the same mount point.
            self.history.append(max(0.0, (value - self._before[1]) / (when - self._before[0])))
        self._before = when, value


def rates() -> list[Rate]:
    """The rates that are shown."""
    return [
        Rate("faults", ("faults", "count")),
        Rate("moves", ("moves", "count")),
        Rate("moved", ("moves", "bytes"), lambda value: f"{size_text(value)}"),
        Rate("evictions", ("moves", "evictions")),
        Rate("reads", ("requests", "read")),
        Rate("writes", ("requests", "write")),
    ]


class Model:
    """The state of one screen. `refresh` runs in a thread; everything else on the screen's own."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.regions = device.regions()
        self.stats: dict[str, Any] = {}
        self.rates = rates()
        self.rows: dict[str, Row] = {}
        self.samples = 0

    def read(self, wanted: list[str], sweep: bool) -> "Reading":
        """Everything a refresh needs, from the mount: `wanted` BOs with details; with `sweep` the stalest ones too.

        MountError when the mount cannot be read.
        """
        started = time.monotonic()
        stats = self.device.stats()
        placed: dict[str, tuple[str, int]] = {}
        for region in self.regions:
            for _priority, name, size in self.device.lru(region):
                placed[name] = region, size
        names = [self._shown(same, placed) for same in self.device.names_of_each()]
        asked = dict.fromkeys(name for name in wanted if name in self.rows or name in placed)
        rest = [name for name in names if name not in asked and self._wants_details(name, name in placed, sweep)]
        rest.sort(key=lambda name: self.rows[name].read_at if name in self.rows else 0.0)
        statuses = self.device.statuses([*asked, *rest[:SWEEP]])
        return Reading(started, stats, names, placed, statuses)

    def _shown(self, names: list[str], placed: dict[str, tuple[str, int]]) -> str:
        """Under which of its names a BO has its row: the one that the mount calls it by, or that it had until now."""
        for known in (placed, self.rows):
            for name in names:
                if name in known:
                    return name
        return names[0]

    def _wants_details(self, name: str, placed: bool, sweep: bool) -> bool:
        row = self.rows.get(name)
        return sweep or (not placed and (row is None or time.monotonic() - row.read_at > 5))

    def take(self, reading: "Reading") -> None:
        """Show a reading from now on."""
        self.stats = reading.stats
        self.samples += 1
        for rate in self.rates:
            rate.feed(reading.when, reading.stats)
        rows = {}
        for name in reading.names:
            row = self.rows.get(name) or Row(name)
            if name in reading.placed:
                row.place, row.size = reading.placed[name]
            status = reading.statuses.get(name)
            if status is not None:
                row.status, row.read_at = status, reading.when
                row.size, row.place = status["size"], status["mem_type"]
            rows[name] = row
        self.rows = rows

    def ordered(self, column: Column, descending: bool, pattern: str) -> list[Row]:
        """The rows that fit a filter (wildcards, or part of a name), sorted; equal ones by name."""
        rows = [row for row in self.rows.values() if fits(row.name, pattern)]
        rows.sort(key=lambda row: row.name)
        rows.sort(key=column.key, reverse=descending)
        return rows


@dataclass(frozen=True, slots=True)
class Reading:
    """What one refresh has read."""

    when: float
    stats: dict[str, Any]
    names: list[str]
    placed: dict[str, tuple[str, int]]
    statuses: dict[str, dict[str, Any]]


def fits(name: str, pattern: str) -> bool:
    """Whether a name contains a text, or fits it where it has wildcards."""
    if any(char in pattern for char in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern in name

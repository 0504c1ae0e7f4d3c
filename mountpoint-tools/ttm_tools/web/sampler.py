"""The thread that reads the mount while pages are open, and puts what it read into the state.

It is to be a small load. A round reads `stats`, and the histogram of `metrics`. Maps and names are read when counters
say that they can have changed, and each source at most for a share of the time: one whose reading takes long is read
less often. While no page is open nothing is read, and nothing is traced.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.pagemap import parse_map
from ttm_tools.web.events import EventSource
from ttm_tools.web.settings import Settings, vms
from ttm_tools.web.state import State, map_json

_T = TypeVar("_T")

SHARE: Final = 0.05
"""The part of the time that one source may take."""

STALE_SECONDS: Final = 5.0
"""What no counter tells of is found after so long, or later:"""

STALE_SHARE: Final = 0.01
"""the part of the time that one source may take when no counter has changed."""

LRU_BOS: Final = 1000
"""The text of an LRU has a line for each of its BOs: of a longer one it is not asked for, to show the first few."""


class Paced:
    """A source and when it was read: `due` keeps it to its share of the time."""

    def __init__(self, least: float) -> None:
        self.least = least
        self._mark: object = None
        self._read_at = float("-inf")
        self._took = 0.0

    def due(self, mark: object) -> bool:
        """Whether to read now: something changed (`mark` is another value) and its pause is over, or it is stale."""
        since = time.monotonic() - self._read_at
        if since < max(self.least, self._took / SHARE):
            return False
        return mark != self._mark or since > max(STALE_SECONDS, self._took / STALE_SHARE)

    def read(self, mark: object, action: Callable[[], _T]) -> _T:
        """Read it."""
        started = time.monotonic()
        value = action()
        self._read_at = time.monotonic()
        self._took = self._read_at - started
        self._mark = mark
        return value


def counters(stats: dict[str, Any]) -> tuple[object, ...]:
    """What changes whenever pages can have changed hands."""
    regions = stats.get("regions", {})
    keys = (
        ("moves", "count"),
        ("pool", "in_use_pages"),
        ("pool", "pooled_pages"),
        ("bos", "count"),
        ("bos", "ghosts"),
        ("backup", "pages_out"),
        ("backup", "pages_in"),
        ("backup", "purged_pages"),
        ("defrag", "moved"),
        ("svm", "migrations_in"),
        ("svm", "migrations_out"),
    )
    values = [stats.get(part, {}).get(key) for part, key in keys]
    return (*values, *(region.get("used") for region in regions.values()))


def histogram(metrics: str, name: str) -> list[list[float]]:
    """(upper bound in seconds, count) of each bucket of a histogram in OpenMetrics text; the last bound is 0: none."""
    found: list[list[float]] = []
    before = 0.0
    for line in metrics.splitlines():
        if line.startswith(f"{name}_bucket{{"):
            bound = line.split('le="', 1)[1].split('"', 1)[0]
            count = float(line.rsplit("} ", 1)[1].split(" ")[0])
            found.append([0.0 if bound == "+Inf" else float(bound), count - before])
            before = count
    return found


class Sampler:
    """The thread. `changed` is called after each round, from it."""

    def __init__(self, device: Device, state: State, changed: Callable[[], None], interval: float, events: str) -> None:
        self.device = device
        self.state = state
        self.interval = interval
        self.rounds = 0
        self._reads = False
        self._changed = changed
        self._watched = threading.Event()
        self._stop = threading.Event()
        self._names = Paced(1.0)
        self._maps = {name: Paced(interval) for name in device.regions()}
        self._slow = Paced(1.0)
        self._lrus = {name: Paced(1.0) for name in self._maps}
        self._settings = Settings(device)
        self._events = EventSource(device, events)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def reads(self) -> bool:
        """Whether a page is open, or was a moment ago: whether it reads."""
        return self._reads

    def watch(self, pages: int) -> None:
        """So many pages are open."""
        if pages:
            self._watched.set()
        else:
            self._watched.clear()

    def stop(self) -> None:
        """End: what was traced for the page is not any more. A mount that does not answer is not waited for."""
        self._stop.set()
        self._watched.set()
        if self._thread.is_alive():
            self._thread.join(2 * self.device.read_seconds)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.state.ended:
            if not self._watched.is_set():
                self._guarded(self._events.end)
                self._reads = False
                self._watched.wait()
                continue
            self._reads = True
            started = time.monotonic()
            self._guarded(self._round)
            self._changed()
            self._stop.wait(max(0.05, self.interval - (time.monotonic() - started)))
        self._guarded(self._events.end)

    def _guarded(self, action: Callable[[], None]) -> None:
        """What goes wrong is said on the page; a mount that is gone ends it all."""
        try:
            action()
        except MountError as error:
            if error.hung:
                self.state.put("trouble", json.dumps(error.message))
                self._stop.wait(0.5)
            else:
                self.state.ended = error.message
        except (OSError, ValueError) as error:
            self.state.put("trouble", json.dumps(str(error)))
        else:
            self.state.put("trouble", '""')

    def _round(self) -> None:
        stats = self.device.stats()
        now = round(time.time(), 3)
        self.state.put("now", json.dumps({"t": now, "stats": stats}))
        self.state.put("latency", json.dumps(histogram(self.device.text("metrics"), "ttmfs_fault_latency_seconds")))
        mark = counters(stats)
        for name, paced in self._maps.items():
            region = stats["regions"].get(name, {})
            if region.get("size") and paced.due(mark):
                paced.read(mark, lambda name=name, region=region: self._read_map(name, region))  # type: ignore[misc]
        count = stats.get("bos", {}).get("count")
        if self._names.due(count):
            self.state.put("bos", json.dumps(self._names.read(count, self.device.names)))
        for name, paced in self._lrus.items():
            if stats["regions"].get(name, {}).get("bos", 0) > LRU_BOS:
                self.state.put(f"lru {name}", "null")
            elif paced.due(mark):
                paced.read(mark, lambda name=name: self._read_lru(name))  # type: ignore[misc]
        if self._slow.due(self.rounds):
            self._slow.read(self.rounds, self._read_settings)
        self._events.collect(self.state)
        self.rounds += 1

    def _read_map(self, name: str, region: dict[str, int]) -> None:
        try:
            lines = self.device.text(f"regions/{name}/map").splitlines()
        except OSError as error:
            self.state.put(f"map {name}", json.dumps({"why": error.strerror}))
            return
        self.state.put(f"map {name}", map_json(parse_map(name, lines, region["size"], region["visible_size"], 0)))

    def _read_lru(self, name: str) -> None:
        """Who goes next: the first of the LRU of a region."""
        try:
            first = self.device.lru(name)[:20]
        except OSError:
            first = []
        self.state.put(f"lru {name}", json.dumps([[bo, priority, size] for priority, bo, size in first]))

    def _read_settings(self) -> None:
        self.state.put("policies", json.dumps(self._settings.read()))
        self.state.put("vms", json.dumps(vms(self.device)))

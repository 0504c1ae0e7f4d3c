"""Recorder: the last 1,000 things that somebody will ask about afterwards, kept whether the trace is on or not.

Evictions, moves, failures for want of memory or room, requests that were parked for more than 10 ms, injected failures.
Only paths that are slow anyway feed it, and it is bounded, so it is always on. An entry says in words what happened to
a BO, and knows who had asked for what.
"""

import json
from collections import deque
from functools import lru_cache
from typing import Final, NamedTuple

from ttmfs import clock
from ttmfs.observe.asker import WHY, asker_name

ENTRIES: Final = 1000
SLOW_WAIT: Final = 0.010
"""Seconds that a request must have been parked."""


class Entry(NamedTuple):
    """`when` is nanoseconds since 1970, `kind` one of evict, move, error, wait, inject, `bo` a name or "", `says` a
    sentence about it, `task` who asked ("": the device itself), `why` what for, `other` the BO it was done for."""

    when: int
    kind: str
    bo: str
    says: str
    task: str
    why: str
    other: str

    def sentence(self) -> str:
        """What happened, when, and who had asked for what."""
        return _sentence(self.when, self.says, self.task, self.why)

    def json_line(self) -> str:
        """As one JSON object: when (seconds since 1970), kind, bo, says, task, why, other, sentence."""
        return json.dumps({**self._asdict(), "when": self.when / 1e9, "sentence": self.sentence()}) + "\n"


class LastMove(NamedTuple):
    """A BO's own note of how it came where it is: `way` says it without the name. Many share one: it has no time."""

    way: str
    task: str
    why: str

    def sentence(self, bo: str, when: int) -> str:
        """As the entry of the recorder says it, with the name that the BO has now."""
        return _sentence(when, f"{bo!r} {self.way}", self.task, self.why)


_shared = lru_cache(maxsize=ENTRIES)(LastMove)


def _sentence(when: int, says: str, task: str, why: str) -> str:
    asked = ": ".join(filter(None, (task, why))) or "the device itself"
    return f"{clock.local(when)[11:]} {says} ({asked})"


class Recorder:
    """That of one device."""

    def __init__(self, size: int = ENTRIES) -> None:
        self.entries: deque[Entry] = deque(maxlen=size)

    def note(self, kind: str, bo: str, says: str, other: str = "") -> Entry:
        """Something has happened just now, on behalf of whom the running task works for."""
        entry = Entry(clock.wall_ns(), kind, bo, says, asker_name(), WHY.get(), other)
        self.entries.append(entry)
        return entry

    def moved(self, bo: str, way: str) -> tuple[int, LastMove]:
        """A BO has moved; when, and its note."""
        entry = self.note("move", bo, f"{bo!r} {way}")
        return entry.when, _shared(way, entry.task, entry.why)

    def struck(self, place: str, bo: str) -> None:
        """A failure was injected at a place, for the BO of that name."""
        self.note("inject", bo, f"debug/fail_{place} made it fail" + (f" for {bo!r}" if bo else ""))

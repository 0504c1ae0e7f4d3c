"""Trace: a bounded ring of events, and its lines in the text format of ftrace.

Off by default. What happens is told by the functions in points.py, which look at `on` first; a path for which even that
call is too much looks itself, or is told by `watch` when tracing is switched. Everything happens on the loop's thread.

A line is `TASK-PID [CPU] flags seconds.micros: event: bo=NAME key=value …`, seconds on the monotonic clock. A value
that is empty or holds a blank, a quote, a backslash or an unprintable character stands in double quotes, within which
`\\ooo` is a byte; shlex splits such a line. `bo=-` is an event of no BO.
"""

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ttmfs import clock
from ttmfs.observe.asker import asker_name

RING_EVENTS: Final = 16384
_PLAIN: Final = re.compile(r"[!-~]+")
_QUOTED: Final = frozenset("\"'\\")
_TASK: Final = "ttmfs"


class Event(NamedTuple):
    """One thing that happened: seconds on the monotonic clock, the event's name, the BO's name or "", its facts, and
    `COMM-PID` of the process that had asked for what led to it ("": the device itself)."""

    when: float
    name: str
    bo: str
    facts: dict[str, object]
    task: str = ""

    def line(self, pid: int) -> str:
        """As ftrace prints it, with the newline; `pid` is the device's own."""
        comm, _, number = (self.task or f"{_TASK}-{pid}").rpartition("-")
        micros = int(self.when * 1e6)
        facts = "".join(f" {key}={word(value)}" for key, value in self.facts.items())
        return (
            f"{comm:>16}-{number:<7} [000] ..... {micros // 1000000:5d}.{micros % 1000000:06d}: "
            f"{self.name}: bo={bo_word(self.bo)}{facts}\n"
        )

    def json_line(self) -> str:
        """As one JSON object: ts (seconds), event, bo, task ("" for the device), and the facts by their names."""
        head = {"ts": round(self.when, 6), "event": self.name, "bo": self.bo, "task": self.task}
        return json.dumps({**head, **self.facts}) + "\n"


def word(value: object) -> str:
    """A fact as one word of a line."""
    text = str(value)
    if _PLAIN.fullmatch(text) and _QUOTED.isdisjoint(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def bo_word(name: str) -> str:
    """A BO's name as one word; `-` for none."""
    if not name:
        return "-"
    return '"-"' if name == "-" else word(name)


def _escaped(char: str) -> str:
    if char.isprintable() and char not in '"\\':
        return char
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))


class Trace:
    """The ring of one device. `events` empty means all, `bos` (names) empty means all.

    `emitted` counts what was recorded, `dropped` what fell out of the full ring before anybody consumed it.
    """

    __slots__ = ("_lost", "_ready", "_watchers", "bos", "dropped", "emitted", "events", "faults", "on", "ring")

    def __init__(self, size: int = RING_EVENTS) -> None:
        self.on = False
        self.faults = False
        """Whether it records what is told of each fault, `fault` or `use`: who serves them need not look else."""
        self.events: frozenset[str] = frozenset()
        self.bos: frozenset[str] = frozenset()
        self.ring: deque[Event] = deque(maxlen=size)
        self.emitted = self.dropped = 0
        self._lost = 0
        self._ready: Callable[[], None] | None = None
        self._watchers: list[Callable[[], None]] = []

    # -- recording -----------------------------------------------------------------------------------------------

    def emit(self, name: str, bo: str = "", /, **facts: object) -> None:
        """Record one event if it is asked for; the oldest falls out of a full ring and is counted.

        Called by points.py, which has a function for each name. `facts` are plain values, formatted when they are read.
        """
        self.record(clock.monotonic(), name, bo, facts)

    def record(self, when: float, name: str, bo: str, facts: dict[str, object]) -> None:
        """As `emit`, for one that has the time and the facts at hand; `facts` becomes the trace's own."""
        if (self.events and name not in self.events) or (self.bos and bo not in self.bos):
            return
        ring = self.ring
        if len(ring) == ring.maxlen:
            self.dropped += 1
            self._lost += 1
        # Not `Event(…)`, which takes twice as long: faults wait for this.
        ring.append(tuple.__new__(Event, (when, name, bo, facts, asker_name())))
        self.emitted += 1
        ready = self._ready
        if ready is not None:
            self._ready = None
            ready()

    def wants(self, name: str) -> bool:
        """Is this event recorded now, of some BO at least?"""
        return self.on and (not self.events or name in self.events)

    def start(self, events: Iterable[str] = (), bos: Iterable[str] = ()) -> None:
        """Record these events (none: all) of these BOs (none: all) from now on; what is in the ring stays."""
        self.events = frozenset(events)
        self.bos = frozenset(bos)
        self.on = True
        self._switched()

    def stop(self) -> None:
        """Record nothing more."""
        self.on = False
        self._switched()

    def watch(self, switched: Callable[[], None]) -> None:
        """Have `switched` called after every start and stop."""
        self._watchers.append(switched)

    def _switched(self) -> None:
        self.faults = self.wants("fault") or self.wants("use")
        for switched in self._watchers:
            switched()

    # -- reading -------------------------------------------------------------------------------------------------

    def header(self) -> str:
        """What `trace` begins with."""
        return (
            "# tracer: ttmfs\n#\n"
            f"# entries-in-buffer/entries-written: {len(self.ring)}/{self.emitted}   #P:1\n"
            f"# dropped: {self.dropped}\n#\n"
            "#           TASK-PID     CPU#  |||||  TIMESTAMP  EVENT\n"
        )

    def text(self) -> str:
        """The ring as text, oldest first; consumes nothing."""
        pid = os.getpid()
        return self.header() + "".join([event.line(pid) for event in self.ring])

    def when_ready(self, ready: Callable[[], None] | None) -> None:
        """Have `ready` called once, at the next event; None takes that back."""
        self._ready = ready

    def consume(self, max_bytes: int) -> bytes:
        """The oldest lines, whole, at most `max_bytes` but at least one, taken out of the ring; b"" when it is empty.

        Where events were dropped since the last call the first line says how many, as ftrace's trace_pipe does.
        """
        ring, pid = self.ring, os.getpid()
        if not ring:
            return b""
        taken: list[bytes] = []
        room = max_bytes
        if self._lost:
            taken.append(b"CPU:0 [LOST %d EVENTS]\n" % self._lost)
            room -= len(taken[0])
            self._lost = 0
        while ring:
            line = ring[0].line(pid).encode()
            if len(line) > room and taken:
                break
            taken.append(line)
            room -= len(line)
            ring.popleft()
        return b"".join(taken)

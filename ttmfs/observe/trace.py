"""Trace: a bounded ring of events in ftrace-like lines.

Off by default. A call site asks `if trace.on:` first, so that tracing that is off costs one attribute read.
"""

import time
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: seconds on the monotonic clock, the event's name, the BO's name or "", and its facts."""

    when: float
    name: str
    bo: str
    facts: dict[str, object]

    def __str__(self) -> str:
        facts = " ".join(f"{key}={value}" for key, value in self.facts.items())
        return f"{self.when:14.6f}: {self.name}: bo={self.bo or '-'} {facts}".rstrip()


@dataclass(slots=True)
class Trace:
    """The ring. `events` empty means all; `only_bo` narrows to one BO by name."""

    on: bool = False
    events: frozenset[str] = frozenset()
    only_bo: str = ""
    ring: deque[Event] = field(default_factory=lambda: deque(maxlen=16384))
    dropped: int = 0

    def emit(self, name: str, bo: str = "", /, **facts: object) -> None:
        """Record one event if it is asked for; the oldest falls out of a full ring and is counted."""
        if (self.events and name not in self.events) or (self.only_bo and bo != self.only_bo):
            return
        if len(self.ring) == self.ring.maxlen:
            self.dropped += 1
        self.ring.append(Event(time.monotonic(), name, bo, facts))

    def text(self) -> str:
        """The ring as text, oldest first."""
        head = f"# tracer: ttmfs\n# entries: {len(self.ring)} dropped: {self.dropped}\n"
        return head + "".join(f"{event}\n" for event in self.ring)

"""What the page shows, between the thread that reads the mount and the pages that are open.

Every part has a version. A page says which versions it has and gets what is newer, so that one that is slow misses
moments and nothing else. Large parts are made into JSON once, however many pages there are.
"""

import base64
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ttm_tools.pagemap import Region, fragmentation

EVENTS_KEPT: Final = 2000
EVENTS_A_MESSAGE: Final = 300


@dataclass(slots=True)
class Seen:
    """The versions that one page has, by part; `events` is the number of the last event."""

    parts: dict[str, int] = field(default_factory=dict)
    events: int = 0


def map_json(region: Region) -> str:
    """A region's map: its owners, and runs as base64 of little-endian int32 (n, 4): first, pages, order, owner."""
    runs = np.stack((region.first, region.count, region.order, region.owner), axis=1).astype("<i4")
    broken = fragmentation(region)
    return json.dumps(
        {
            "pages": region.pages,
            "visible": region.visible,
            "blocks": region.has_blocks,
            "owners": region.owners,
            "runs": base64.b64encode(runs.tobytes()).decode("ascii"),
            "free_runs": broken.runs,
            "unusable": round(broken.unusable, 4),
        }
    )


class State:
    """The parts, as JSON, and the events. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[int, str]] = {}
        self._serial = 0
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=EVENTS_KEPT)
        self._event_number = 0
        self.ended = ""
        """Why there is nothing more to see; "" while there is."""

    def put(self, name: str, text: str) -> bool:
        """A part's JSON; whether it is another one than before."""
        with self._lock:
            before = self._parts.get(name)
            if before is not None and before[1] == text:
                return False
            self._serial += 1
            self._parts[name] = self._serial, text
            return True

    def drop(self, name: str) -> None:
        """A part that is not there any more."""
        self.put(name, "null")

    def add_events(self, events: list[dict[str, Any]]) -> None:
        """Events, oldest first."""
        with self._lock:
            for event in events:
                self._event_number += 1
                self._events.append((self._event_number, event))

    def message(self, seen: Seen) -> str:
        """A JSON object of what a page has not seen, which it then has."""
        with self._lock:
            new = {name: part for name, part in self._parts.items() if part[0] > seen.parts.get(name, 0)}
            fresh = [event for number, event in self._events if number > seen.events]
            missed = self._event_number - seen.events
            seen.events = self._event_number
        seen.parts.update((name, version) for name, (version, _text) in new.items())
        fields = [f"{json.dumps(name)}: {text}" for name, (_version, text) in new.items()]
        if missed:
            sent = fresh[-EVENTS_A_MESSAGE:]
            fields.append(f'"events": {json.dumps({"missed": missed - len(sent), "list": sent})}')
        return "{" + ", ".join(fields) + "}"

"""The events that the page shows: switched on while it is open, unless somebody else records.

Readers of one trace_pipe share its events. So the page records only what nobody records: when `ctl/trace` is not as it
was left, it is somebody else's until it is off again.
"""

import json
import select
import time
from typing import Any, Final

from ttm_tools.access import Stream
from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.trace import state_of
from ttm_tools.traceformat import Event, parse_line
from ttm_tools.web.state import State

DEFAULT: Final = "evict move_end defrag backup restore purge swapout suspend resume unplug error"
"""What is seldom enough to be looked at, and says who had to go."""

LOOK_SECONDS: Final = 1.0
_MOST: Final = 4 << 20


def as_json(event: Event) -> dict[str, Any]:
    """An event for the page: seconds, its name, its BO, the rest as text."""
    facts = " ".join(f"{key}={value}" for key, value in event.facts.items())
    return {"when": event.when, "name": event.name, "bo": event.bo, "facts": facts}


class EventSource:
    """Events `words` of ctl/trace; "" for none at all. Used by one thread."""

    def __init__(self, device: Device, words: str) -> None:
        self.device = device
        self.words = " ".join(words.split())
        self.why = "" if self.words else "ttm-web was started without events"
        self._stream: Stream | None = None
        self._rest = b""
        self._looked = 0.0
        self._ours = ""

    def collect(self, state: State) -> None:
        """What has happened since the last call. MountError when the mount does not answer."""
        if self.words and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
            self._looked = time.monotonic()
            state.put("recording", json.dumps({"why": self.why, "words": self.words}))
        if self._stream is not None:
            found = [event for line in self._lines(self._stream) if (event := parse_line(line)) is not None]
            state.add_events([as_json(event) for event in found])

    def end(self) -> None:
        """Record nothing any more; what somebody else records meanwhile stays."""
        stream, self._stream, self._looked = self._stream, None, 0.0
        if stream is not None:
            stream.close()
            if state_of(self.device.text("ctl/trace")) == self._ours:
                self.device.write("ctl/trace", "off")

    def _look(self) -> None:
        """Begin when nobody records, stop when somebody else does."""
        try:
            now = state_of(self.device.text("ctl/trace"))
            if now == "off":
                self._close()
                self.device.write("ctl/trace", self.words)
                self._ours = state_of(self.device.text("ctl/trace"))
                self._stream = self.device.stream("trace_pipe")
                self.why = ""
            elif self._stream is None or now != self._ours:
                self._close()
                self.why = "somebody else records events now: ctl/trace is not off"
        except OSError:
            self._close()
            self.why = "ctl/trace and trace_pipe are for the owner of the mount, and take only the events they list"
        except MountError as error:
            self._close()
            if error.hung:
                raise
            self.why = "events are for the owner of the mount"

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _lines(self, stream: Stream) -> list[str]:
        """Whole lines that are there by now, without waiting."""
        data = bytearray(self._rest)
        while len(data) < _MOST and select.select([stream], [], [], 0)[0]:
            piece = stream.read()
            if not piece:
                self._close()
                break
            data += piece
        *lines, self._rest = bytes(data).split(b"\n")
        return [line.decode("utf-8", "surrogateescape") for line in lines]

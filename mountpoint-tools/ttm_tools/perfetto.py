"""Events as Chrome's trace event format (JSON), which ui.perfetto.dev and chrome://tracing open.

Tracks: one per engine (its copies and jobs), one per BO (faults, moves, waits as slices, all else as instants), the
fences as asynchronous slices, and counters per region. A flow goes from a move of a BO to the copy that it started.
Slices of one track nest: where two overlap, the later one goes to a further track of the same name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ttm_tools.traceformat import Event, Parsed

ENGINES: Final = 1
BOS: Final = 2
FENCES: Final = 3
REGIONS: Final = 4
PROCESSES: Final = {ENGINES: "engines", BOS: "BOs", FENCES: "fences", REGIONS: "regions"}

_LENGTHS: Final = ("latency_us", "wait_us", "unmap_us", "us", "duration_us")
"""A fact that says how long the thing took that ended at the event's time."""

_PAIRS: Final = {
    "copy_start": "copy_end",
    "job_start": "job_end",
    "move_start": "move_end",
}
_ENDS: Final = {end: start for start, end in _PAIRS.items()}


@dataclass(slots=True)
class _Slice:
    track: tuple[int, str]
    name: str
    begin: float
    end: float
    arguments: dict[str, Any]
    fence: str = ""


@dataclass(slots=True)
class _Lane:
    tid: int
    ends: list[float] = field(default_factory=list)

    def fits(self, begin: float, end: float) -> bool:
        """Whether a slice nests here; slices come by begin, longest first."""
        while self.ends and self.ends[-1] <= begin:
            self.ends.pop()
        return not self.ends or end <= self.ends[-1]


class _Builder:
    def __init__(self, parsed: Parsed) -> None:
        self.zero = first_moment(parsed)
        self.last = max([event.when for event in parsed.events] + [when for when, _ in parsed.samples], default=0.0)
        self.slices: list[_Slice] = []
        self.instants: list[tuple[tuple[int, str], Event]] = []
        self.rows: list[dict[str, Any]] = []
        self.lanes: dict[tuple[int, str], list[_Lane]] = {}
        self.pending: dict[str, Event] = {}
        self.tids = 0

    # -- events to slices ------------------------------------------------------------------------------------------

    def take(self, events: list[Event]) -> None:
        """Pair starts with ends; what has a length is a slice; the rest are instants."""
        open_: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            if event.name in _PAIRS:
                open_.setdefault(_pair_key(event.name, event), []).append(event)
            elif event.name in _ENDS:
                started = open_.get(_pair_key(_ENDS[event.name], event))
                self._slice(started.pop() if started else None, event)
            elif event.name in ("fence_emit", "fence_signal"):
                self._fence(event)
            elif (length := _length(event)) > 0:
                arguments = _arguments(event)
                self.slices.append(_Slice(_track(event), event.name, event.when - length, event.when, arguments))
            else:
                self.instants.append((_track(event), event))
        for left in open_.values():
            for event in left:
                self._slice(event, None)
        for fence, event in self.pending.items():
            self._span("e", event, fence, self.last)

    def _slice(self, start: Event | None, end: Event | None) -> None:
        """A slice of a pair; one whose other half was not recorded reaches to the edge of the recording."""
        event = start or end
        assert event is not None
        facts: dict[str, Any] = {}
        for half in (start, end):
            facts |= _arguments(half) if half is not None else {}
        if start is None or end is None:
            facts["incomplete"] = True
        begin = start.when if start is not None else self.zero
        name = event.name.removesuffix("_start").removesuffix("_end")
        kind = event.fact("kind", "what")
        title = f"{name} {kind}" if kind else name
        if name == "move":
            title = f"move {event.fact('src') or '-'} to {event.fact('dst') or '-'}"
        stop = end.when if end is not None else self.last
        fence = (end or event).fact("fence") or event.fact("fence")
        self.slices.append(_Slice(_track(event), title, begin, max(begin, stop), facts, fence))

    def _fence(self, event: Event) -> None:
        """A span from emit to signal; one whose other half was not recorded reaches to the edge of the recording."""
        fence = event.fact("fence", "name") or "?"
        emitted = event.name == "fence_emit"
        before = self.pending.pop(fence, None)
        if emitted and before is not None:
            self._span("e", before, fence, event.when)
        if not emitted and before is None:
            self._span("b", event, fence, self.zero)
        if emitted:
            self.pending[fence] = event
        self._span("b" if emitted else "e", event, fence, event.when)

    def _span(self, phase: str, event: Event, fence: str, when: float) -> None:
        self.rows.append(
            {
                "ph": phase,
                "cat": "fence",
                "id": fence,
                "name": event.fact("what", "timeline") or "fence",
                "ts": self.us(when),
                "pid": FENCES,
                "tid": 0,
                "args": _arguments(event),
            }
        )

    # -- slices to rows --------------------------------------------------------------------------------------------

    def us(self, when: float) -> float:
        return round((when - self.zero) * 1e6, 3)

    def finish(self, samples: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
        """All rows, tracks named."""
        moves: dict[str, tuple[_Slice, int]] = {}
        copies: dict[str, tuple[_Slice, int]] = {}
        for piece in sorted(self.slices, key=lambda piece: (piece.begin, -piece.end)):
            lane = self._lane(piece)
            self.rows.append(
                {
                    "ph": "X",
                    "cat": PROCESSES[piece.track[0]],
                    "name": piece.name,
                    "ts": self.us(piece.begin),
                    # Of the rounded times, so that what nests still does.
                    "dur": max(0.0, round(self.us(piece.end) - self.us(piece.begin), 3)),
                    "pid": piece.track[0],
                    "tid": lane.tid,
                    "args": piece.arguments,
                }
            )
            if piece.fence and piece.fence != "-":
                (copies if piece.track[0] == ENGINES else moves)[piece.fence] = (piece, lane.tid)
        for number, fence in enumerate(sorted(moves.keys() & copies.keys()), 1):
            self._flow(number, fence, moves[fence], copies[fence])
        for track, event in self.instants:
            lanes = self.lanes.setdefault(track, [])
            if not lanes:
                lanes.append(self._new_lane())
            self.rows.append(
                {
                    "ph": "i",
                    "s": "t",
                    "cat": PROCESSES[track[0]],
                    "name": event.name,
                    "ts": self.us(event.when),
                    "pid": track[0],
                    "tid": lanes[0].tid,
                    "args": _arguments(event),
                }
            )
        self._counters(samples)
        self.rows.sort(key=lambda row: float(row["ts"]))
        return self._names() + self.rows

    def _lane(self, piece: _Slice) -> _Lane:
        lanes = self.lanes.setdefault(piece.track, [])
        lane = next((lane for lane in lanes if lane.fits(piece.begin, piece.end)), None)
        if lane is None:
            lane = self._new_lane()
            lanes.append(lane)
        lane.ends.append(piece.end)
        return lane

    def _new_lane(self) -> _Lane:
        self.tids += 1
        return _Lane(self.tids)

    def _flow(self, number: int, fence: str, move: tuple[_Slice, int], copy: tuple[_Slice, int]) -> None:
        common = {"cat": "fence", "name": f"fence {fence}", "id": number}
        begin = min(move[0].end, copy[0].begin)
        begin = max(begin, move[0].begin)
        self.rows.append({"ph": "s", **common, "ts": self.us(begin), "pid": move[0].track[0], "tid": move[1]})
        arrives = {"ts": self.us(max(copy[0].begin, begin)), "pid": copy[0].track[0], "tid": copy[1]}
        self.rows.append({"ph": "f", "bp": "e", **common, **arrives})

    def _counters(self, samples: list[tuple[float, dict[str, Any]]]) -> None:
        before: tuple[float, dict[str, Any]] | None = None
        for when, values in samples:
            for region, used in values.get("regions", {}).items():
                self._counter(f"{region} used", when, {"MiB": round(used / (1 << 20), 3)})
            for rate, unit, scale in (("faults", "per s", 1.0), ("moves", "per s", 1.0), ("moved", "MiB/s", 1 << 20)):
                if before is not None and when > before[0] and rate in values and rate in before[1]:
                    value = (values[rate] - before[1][rate]) / (when - before[0]) / scale
                    self._counter(rate, when, {unit: round(value, 3)})
            if "pending" in values:
                self._counter("fences pending", when, {"fences": values["pending"]})
            before = (when, values)

    def _counter(self, name: str, when: float, values: dict[str, float]) -> None:
        self.rows.append({"ph": "C", "name": name, "ts": self.us(when), "pid": REGIONS, "tid": 0, "args": values})

    def _names(self) -> list[dict[str, Any]]:
        rows = []

        def metadata(what: str, pid: int, tid: int, **arguments: object) -> None:
            rows.append({"ph": "M", "name": what, "ts": 0, "pid": pid, "tid": tid, "args": arguments})

        for pid, name in PROCESSES.items():
            metadata("process_name", pid, 0, name=name)
            metadata("process_sort_index", pid, 0, sort_index=pid)
        for place, ((pid, name), lanes) in enumerate(sorted(self.lanes.items())):
            for number, lane in enumerate(lanes, 1):
                metadata("thread_name", pid, lane.tid, name=name if number == 1 else f"{name} ({number})")
                metadata("thread_sort_index", pid, lane.tid, sort_index=place * 1000 + number)
        return rows


def first_moment(parsed: Parsed) -> float:
    """Where the rows' times begin: the first sample, event, or begin of what an event ends. 0 where there is none."""
    begins = [event.when - _length(event) for event in parsed.events]
    return min(begins + [when for when, _ in parsed.samples], default=0.0)


def _length(event: Event) -> float:
    """Seconds that a thing took which ended at its event; 0 for an instant."""
    return max(0.0, (event.number(*_LENGTHS) or 0.0) / 1e6)


def _track(event: Event) -> tuple[int, str]:
    if event.name.startswith(("copy_", "job_")) and event.fact("engine"):
        return ENGINES, event.fact("engine")
    return BOS, event.bo or "(device)"


def _pair_key(start: str, event: Event) -> tuple[str, str]:
    if start == "move_start":
        return start, event.bo
    return start, f"{event.fact('engine')} {event.fact('fence')}"


_PLAIN: Final[tuple[Callable[[str], Any], ...]] = (int, float)


def _arguments(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {"bo": event.bo} if event.bo else {}
    for key, text in event.facts.items():
        value: Any = text
        for kind in _PLAIN:
            try:
                value = kind(text)
                break
            except ValueError:
                continue
        # JSON has no infinities, and the viewers take none.
        found[key] = value if not isinstance(value, float) or abs(value) < 1e308 else text
    return found


def trace_events(parsed: Parsed) -> dict[str, Any]:
    """The object to be written as JSON: `traceEvents`, times in microseconds from the first event."""
    builder = _Builder(parsed)
    builder.take(parsed.events)
    rows = builder.finish(parsed.samples)
    return {"traceEvents": rows, "displayTimeUnit": "ns", "otherData": {"lost_events": parsed.dropped}}


def write_json(parsed: Parsed, path: str) -> int:
    """Write it; the number of events in it. OSError when the file cannot be written."""
    value = trace_events(parsed)
    # Names may hold bytes that are no UTF-8: escaped, they stay valid JSON.
    with open(path, "w", encoding="ascii") as file:
        json.dump(value, file, separators=(",", ":"), allow_nan=False)
    return len(value["traceEvents"])

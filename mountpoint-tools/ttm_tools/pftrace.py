"""Events as Perfetto's own trace (protobuf), by the builder of the `perfetto` package.

The same tracks, slices and counters as the JSON (perfetto.py), and what that cannot say: which clock the times are of.
A recording has a snapshot of the clocks, so a viewer lays it beside a trace of the kernel, opened together with it.
Tracks are no processes here: none is taken for a process of the kernel's trace that has the same number.
"""

import importlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final

from ttm_tools.extras import needed
from ttm_tools.perfetto import PROCESSES, first_moment, trace_events
from ttm_tools.traceformat import Parsed

_SEQUENCE: Final = 0x74746D66
"""Of all packets: far from the small numbers of the tracing service."""
_UUIDS: Final = 0x74746D66 << 32
_THREADS: Final = _UUIDS + (1 << 8)
_COUNTERS: Final = _UUIDS + (1 << 30)
_FENCES: Final = _UUIDS + (1 << 31)
_CLOCKS: Final = {"realtime": 1, "monotonic": 3, "boottime": 6}
"""BuiltinClock of Perfetto by the name that a recording has for it."""
_INT64: Final = 1 << 63
_ORDER: Final = {"end": 0, "instant": 1, "begin": 2}
"""At one moment, on a track of slices."""

Flows = dict[int, list[tuple[str, int]]]
"""By the id of a slice's row: which ends of flows lie in it ("s" or "f"), and their numbers."""


def package() -> Any:
    """The package's builders. MountError, with what to do, when it is not installed."""
    with needed("--perfetto", "Perfetto's package", "perfetto", "say a name that ends in .json"):
        return importlib.import_module("perfetto.trace_builder.proto_builder")


def write_pftrace(parsed: Parsed, path: str) -> int:
    """Write it; the number of packets. MountError without the package, OSError when the file cannot be written."""
    builders = package()
    with open(path, "wb") as file:
        return _Writer(builders.StreamingTraceProtoBuilder(file), parsed).write()


class _Writer:
    def __init__(self, builder: Any, parsed: Parsed) -> None:
        self.builder = builder
        self.clocks = parsed.clocks
        self.zero = round(first_moment(parsed) * 1e9)
        self.rows: list[dict[str, Any]] = trace_events(parsed)["traceEvents"]
        self.counters: dict[str, int] = {}
        self.fences: dict[int, int] = {}
        self.count = 0

    def write(self) -> int:
        """All packets: the clocks, the tracks, the events by their time."""
        if self.clocks:
            packet = self._packet()
            for name, clock in _CLOCKS.items():
                if name in self.clocks:
                    packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=self.clocks[name])
            self._put(packet)
        self._tracks()
        for _, _, packet in sorted(self._events(), key=lambda found: found[:2]):
            self._put(packet)
        return self.count

    def _packet(self) -> Any:
        packet = self.builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _put(self, packet: Any) -> None:
        self.builder.write_packet(packet)
        self.count += 1

    # -- tracks ----------------------------------------------------------------------------------------------------

    def _tracks(self) -> None:
        told = [row for row in self.rows if row["ph"] == "M"]
        ranks = {row["tid"]: row["args"]["sort_index"] for row in told if row["name"] == "thread_sort_index"}
        for pid, name in PROCESSES.items():
            self._track(_UUIDS + pid, name, 0, pid)
        for row in told:
            if row["name"] == "thread_name":
                parent = _UUIDS + row["pid"]
                self._track(_THREADS + row["tid"], row["args"]["name"], parent, ranks[row["tid"]])
        for row in self.rows:
            if row["ph"] == "C" and row["name"] not in self.counters:
                self.counters[row["name"]] = uuid = _COUNTERS + len(self.counters)
                self._track(uuid, row["name"], _UUIDS + row["pid"], len(self.counters), "".join(row["args"]))
        self._fence_tracks()

    def _fence_tracks(self) -> None:
        """By row of a fence's begin or end: its track. Those of one name are shown as one; a fence has its own while it
        is pending."""
        free: dict[str, list[int]] = {}
        pending: dict[str, list[tuple[str, int]]] = {}
        count = 0
        for row in self.rows:
            if row["ph"] == "b":
                idle = free.setdefault(row["name"], [])
                if not idle:
                    idle.append(_FENCES + count)
                    count += 1
                    self._track(idle[0], row["name"], _UUIDS + row["pid"], count)
                self.fences[id(row)] = idle.pop()
                pending.setdefault(row["id"], []).append((row["name"], self.fences[id(row)]))
            elif row["ph"] == "e":
                name, self.fences[id(row)] = pending[row["id"]].pop(0)
                free[name].append(self.fences[id(row)])

    def _track(self, uuid: int, name: str, parent: int, rank: int, unit: str = "") -> None:
        packet = self._packet()
        track = packet.track_descriptor
        track.uuid, track.name, track.sibling_order_rank = uuid, _text(name), rank
        track.child_ordering = track.EXPLICIT
        if parent:
            track.parent_uuid = parent
        if unit:
            track.counter.unit_name = unit
        self._put(packet)

    # -- events ----------------------------------------------------------------------------------------------------

    def _events(self) -> Iterator[tuple[int, int, Any]]:
        """(nanoseconds, order within them, packet) of each; slices of a track come by begin, longest first."""
        flows = self._flows()
        for row in self.rows:
            if row["ph"] == "X":
                begin, end = self._ns(row["ts"]), self._ns(row["ts"] + row["dur"])
                yield self._event(row, begin, "begin" if end > begin else "instant", _THREADS + row["tid"], flows)
                if end > begin:
                    yield self._event(row, end, "end", _THREADS + row["tid"])
            elif row["ph"] == "i":
                yield self._event(row, self._ns(row["ts"]), "instant", _THREADS + row["tid"])
            elif row["ph"] in ("b", "e"):
                kind = "begin" if row["ph"] == "b" else "end"
                named = row | {"name": f"{row['name']} {row['id']}"}
                found = self._event(named, self._ns(row["ts"]), kind, self.fences[id(row)])
                # They come in their order, and a fence may be signalled at once.
                yield found[0], _ORDER["instant"], found[2]
            elif row["ph"] == "C":
                for value in row["args"].values():
                    packet = self._at(self._ns(row["ts"]), self.counters[row["name"]])
                    packet.track_event.type = packet.track_event.TYPE_COUNTER
                    packet.track_event.double_counter_value = value
                    yield self._ns(row["ts"]), _ORDER["instant"], packet

    def _ns(self, us: float) -> int:
        return min(max(0, self.zero + round(us * 1000)), _INT64 - 1)

    def _at(self, when: int, uuid: int) -> Any:
        packet = self._packet()
        packet.timestamp = when
        if self.clocks:
            packet.timestamp_clock_id = _CLOCKS["monotonic"]
        packet.track_event.track_uuid = uuid
        return packet

    def _event(
        self, row: dict[str, Any], when: int, kind: str, uuid: int, flows: "Flows | None" = None
    ) -> tuple[int, int, Any]:
        packet = self._at(when, uuid)
        event = packet.track_event
        event.type = {"begin": event.TYPE_SLICE_BEGIN, "end": event.TYPE_SLICE_END}.get(kind, event.TYPE_INSTANT)
        if kind != "end":
            event.name = _text(row["name"])
            event.categories.append(row["cat"])
            for key, value in row["args"].items():
                _annotate(event.debug_annotations.add(name=_text(key)), value)
            for phase, number in (flows or {}).get(id(row), ()):
                (event.flow_ids if phase == "s" else event.terminating_flow_ids).append(number)
        return when, _ORDER[kind], packet

    def _flows(self) -> "Flows":
        """Where each flow begins and ends: the innermost slice of its track at that time."""
        slices: dict[int, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["ph"] == "X":
                slices.setdefault(row["tid"], []).append(row)
        found: Flows = {}
        for row in self.rows:
            if row["ph"] in ("s", "f"):
                mine = slices[row["tid"]]
                place = bisect_right(mine, row["ts"], key=lambda piece: piece["ts"]) - 1
                while place > 0 and mine[place]["ts"] + mine[place]["dur"] < row["ts"]:
                    place -= 1
                found.setdefault(id(mine[place]), []).append((row["ph"], _UUIDS + row["id"]))
        return found


def _annotate(annotation: Any, value: object) -> None:
    if isinstance(value, bool):
        annotation.bool_value = value
    elif isinstance(value, int) and -_INT64 <= value < _INT64:
        annotation.int_value = value
    elif isinstance(value, float):
        annotation.double_value = value
    else:
        annotation.string_value = _text(str(value))


def _text(name: str) -> str:
    r"""What protobuf takes: bytes that are no UTF-8 as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""Perfetto's own trace: read back with the messages of the package, and what its packets say."""

import importlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tools.test_tools_perfetto import TEXT, events
from ttm_tools.errors import MountError
from ttm_tools.perfetto import first_moment, trace_events
from ttm_tools.pftrace import write_pftrace
from ttm_tools.traceformat import Event, Parsed, clocks_line, parse

pytest.importorskip("perfetto", reason="perfetto is not installed: pip install 'ttmfs[perfetto]'")

CLOCKS = '# clocks: {"monotonic": 9000000000, "boottime": 19000000000, "realtime": 1700000009000000000}\n'
MONOTONIC, BOOTTIME = 3, 6


def packets(parsed: Parsed, path: Path) -> list[Any]:
    messages: Any = importlib.import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    count = write_pftrace(parsed, str(path))
    found = list(messages.Trace.FromString(path.read_bytes()).packet)
    assert len(found) == count
    return found


def slices(found: list[Any], but: str = "") -> list[tuple[str, str, int, int]]:
    """Name, track, begin and end in ns, as a viewer takes them: an end is that of the track's innermost slice.
    Without those of the tracks below the one called `but`."""
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in found if p.HasField("track_descriptor")}
    names = {uuid: track.name for uuid, track in tracks.items()}
    left_out = [uuid for uuid, track in tracks.items() if but and names.get(track.parent_uuid) == but]
    open_: dict[int, list[tuple[str, int]]] = defaultdict(list)
    whole = []
    before = 0
    for packet in found:
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        assert packet.timestamp >= before
        before = packet.timestamp
        if event.type == event.TYPE_SLICE_BEGIN:
            open_[event.track_uuid].append((event.name, packet.timestamp))
        elif event.type == event.TYPE_SLICE_END:
            name, begin = open_[event.track_uuid].pop()
            if event.track_uuid not in left_out:
                whole.append((name, names[event.track_uuid], begin, packet.timestamp))
    assert not any(open_.values())
    return sorted(whole)


def test_slices_have_the_times_of_the_monotonic_clock(tmp_path: Path) -> None:
    found = packets(parse([CLOCKS, *TEXT.splitlines()]), tmp_path / "a.pftrace")
    assert [(c.clock_id, c.timestamp) for c in found[0].clock_snapshot.clocks] == [
        (1, 1700000009000000000),
        (MONOTONIC, 9000000000),
        (6, 19000000000),
    ]
    assert {p.timestamp_clock_id for p in found if p.HasField("track_event")} == {MONOTONIC}
    assert {p.trusted_packet_sequence_id for p in found} == {found[0].trusted_packet_sequence_id}
    assert slices(found) == [
        ("copy", "copy0", 10_000_400_000, 10_001_400_000),
        ("fault", "tex0", 10_000_000_000, 10_000_100_000),
        ("job fill", "compute0", 10_003_000_000, 10_900_000_000),
        ("move 5:1", "move", 10_000_210_000, 10_001_410_000),
        ("move gtt to vram", "tex0", 10_000_200_000, 10_000_300_000),
        ("unmap", "tex0", 10_000_220_000, 10_000_260_000),
    ]


def test_tracks_counters_arguments_and_flows(tmp_path: Path) -> None:
    found = packets(parse(TEXT.splitlines()), tmp_path / "a.pftrace")
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in found if p.HasField("track_descriptor")}
    parents = {track.name: tracks[track.parent_uuid].name for track in tracks.values() if track.parent_uuid}
    assert (parents["tex0"], parents["copy0"], parents["vram used"]) == ("BOs", "engines", "regions")
    # No process of the kernel's trace is taken for one of these.
    assert not any(track.HasField("process") or track.HasField("thread") for track in tracks.values())
    happened = [(p.timestamp, p.track_event) for p in found if p.HasField("track_event")]
    used = [
        (when, event.double_counter_value)
        for when, event in happened
        if tracks[event.track_uuid].name == "vram used" and event.type == event.TYPE_COUNTER
    ]
    assert used == [(9_900_000_000, 0), (10_900_000_000, 4)]
    named = {event.name: event for _, event in happened}
    assert {note.name: note.int_value for note in named["copy"].debug_annotations}["pages"] == 1024
    assert list(named["move gtt to vram"].flow_ids) == list(named["copy"].terminating_flow_ids) != []
    assert (named["evict"].type, tracks[named["evict"].track_uuid].name) == (named["evict"].TYPE_INSTANT, "frame 1")


def test_fences_share_tracks_unless_they_are_pending_at_a_time(tmp_path: Path) -> None:
    found = [
        Event(when, name, "", {"fence": fence, "what": "copy"})
        for when, name, fence in (
            *((1.0, "fence_emit", "1:1"), (1.5, "fence_emit", "1:2"), (2.0, "fence_signal", "1:1")),
            *((2.0, "fence_emit", "1:3"), (3.0, "fence_signal", "1:3"), (3.0, "fence_signal", "1:2")),
            *((4.0, "fence_emit", "1:4"), (4.0, "fence_signal", "1:4")),
        )
    ]
    seen = packets(Parsed(found), tmp_path / "a.pftrace")
    assert [(name, begin // 10**8, end // 10**8) for name, _, begin, end in slices(seen)] == [
        ("copy 1:1", 10, 20),
        ("copy 1:2", 15, 30),
        ("copy 1:3", 20, 30),
        ("copy 1:4", 40, 40),
    ]
    assert [p.track_descriptor.name for p in seen if p.HasField("track_descriptor")].count("copy") == 2


def test_without_a_snapshot_times_are_of_the_traces_own_clock(tmp_path: Path) -> None:
    found = packets(parse(["# clocks: [1]", "# clocks: nonsense", *TEXT.splitlines()]), tmp_path / "a.pftrace")
    assert not any(packet.HasField("clock_snapshot") or packet.timestamp_clock_id for packet in found)


def test_behind_a_trace_of_the_kernel_each_stands_at_its_time(tmp_path: Path) -> None:
    """One file of two, as the documents say: the kernel's is of the boot clock; the client sleeps in its fault."""
    builders: Any = importlib.import_module("perfetto.trace_builder.proto_builder")
    messages: Any = importlib.import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    with open(tmp_path / "kernel.pftrace", "wb") as file:
        kernel = builders.StreamingTraceProtoBuilder(file)
        packet = kernel.create_packet()
        for clock, now in ((MONOTONIC, 8_000_000_000), (BOOTTIME, 18_000_000_000)):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=now)
        kernel.write_packet(packet)
        packet = kernel.create_packet()
        for when, before, after in ((19_999_999_000, 4242, 0), (20_000_101_000, 0, 4242)):
            switch = packet.ftrace_events.event.add(timestamp=when, pid=before).sched_switch
            switch.prev_pid, switch.next_pid = before, after
        kernel.write_packet(packet)
    packets(parse([CLOCKS, *TEXT.splitlines()]), tmp_path / "ttmfs.pftrace")
    both = (tmp_path / "kernel.pftrace").read_bytes() + (tmp_path / "ttmfs.pftrace").read_bytes()
    found = list(messages.Trace.FromString(both).packet)
    clocks = [{c.clock_id: c.timestamp for c in p.clock_snapshot.clocks} for p in found if p.HasField("clock_snapshot")]
    (ahead,) = {snapshot[BOOTTIME] - snapshot[MONOTONIC] for snapshot in clocks}
    assert len(clocks) == 2
    (fault,) = (piece for piece in slices(found) if piece[:2] == ("fault", "tex0"))
    asleep, awake = (event.timestamp for p in found for event in p.ftrace_events.event)
    assert asleep < fault[2] + ahead < fault[3] + ahead < awake


def test_a_snapshot_is_of_this_moment() -> None:
    first, second = parse([clocks_line()]).clocks, parse([clocks_line()]).clocks
    assert set(first) == {"monotonic", "boottime", "realtime"}
    assert first["monotonic"] < second["monotonic"] < first["monotonic"] + 60 * 10**9


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events, max_size=30))
@example([Event(1.0, "thread_name"), Event(1.0, "thread_sort_index", "a")])
def test_any_events_make_slices_that_nest(tmp_path: Path, found: list[Event]) -> None:
    parsed = Parsed(sorted(found, key=lambda event: event.when))
    rows = trace_events(parsed)["traceEvents"]
    tracks = {row["tid"]: row["args"]["name"] for row in rows if row["ph"] == "M" and row["name"] == "thread_name"}
    zero = round(first_moment(parsed) * 1e9)
    wanted = [
        (
            row["name"],
            tracks[row["tid"]],
            *(max(0, zero + round(us * 1000)) for us in (row["ts"], row["ts"] + row["dur"])),
        )
        for row in rows
        if row["ph"] == "X"
    ]
    seen = slices(packets(parsed, tmp_path / "a.pftrace"), but="fences")
    assert seen == sorted(
        (
            name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
            track.replace("\udcff", "\\xff"),
            *times,
        )
        for name, track, *times in wanted
        if times[0] < times[1]
    )


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    with pytest.raises(MountError, match=r"pip install 'ttmfs\[perfetto\]', or say a name that ends in .json"):
        write_pftrace(Parsed(), str(tmp_path / "a.pftrace"))
    assert not list(tmp_path.iterdir())

"""The JSON for Perfetto, checked against the trace event format, and what its tracks say."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ttm_tools.perfetto import trace_events, write_json
from ttm_tools.traceformat import Event, Parsed, parse

TEXT = """\
# tracer: ttmfs
# sample: 9.900000 {"regions": {"vram": 0, "gtt": 4194304}, "faults": 0, "moves": 0, "moved": 0, "pending": 0}
  10.000100: fault: bo=tex0 op=read offset=0 pages=4 prefault=0 retries=0 waits=- latency_us=100
  10.000200: move_start: bo=tex0 src=gtt dst=vram bytes=4194304 evict=0
  10.000210: fence_emit: bo=- fence=5:1 timeline=copy0 what=move
  10.000260: unmap: bo=tex0 first=0 pages=0 unmap_us=40
  10.000300: move_end: bo=tex0 src=gtt dst=vram bytes=4194304 evict=0 fence=5:1 errno=0
  10.000400: copy_start: bo=tex0 engine=copy0 fence=5:1 pages=1024
  10.001400: copy_end: bo=tex0 engine=copy0 fence=5:1 pages=1024 errno=0
  10.001410: fence_signal: bo=- fence=5:1 timeline=copy0 what=move errno=0
  10.002000: evict: bo="frame 1" region=vram dst=gtt for_bo=tex0
  10.003000: job_start: bo=- engine=compute0 fence=9:1 kind=fill
# sample: 10.900000 {"regions": {"vram": 4194304, "gtt": 0}, "faults": 1, "moves": 1, "moved": 4194304, "pending": 1}
"""

PHASES = {
    "X": {"ts", "dur", "pid", "tid", "name"},
    "i": {"ts", "pid", "tid", "name", "s"},
    "b": {"ts", "pid", "tid", "name", "cat", "id"},
    "e": {"ts", "pid", "tid", "name", "cat", "id"},
    "s": {"ts", "pid", "tid", "name", "cat", "id"},
    "f": {"ts", "pid", "tid", "name", "cat", "id", "bp"},
    "C": {"ts", "pid", "name", "args"},
    "M": {"name", "pid", "args"},
}
"""Phase → keys that the trace event format asks for."""


def check_format(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rule of the format that a viewer depends on."""
    rows: list[dict[str, Any]] = value["traceEvents"]
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        assert row["ph"] in PHASES, row
        assert PHASES[row["ph"]] <= row.keys(), row
        assert isinstance(row["pid"], int)
        assert isinstance(row.get("tid", 0), int)
        assert isinstance(row["name"], str)
        assert row["name"]
        if row["ph"] != "M":
            assert isinstance(row["ts"], int | float)
            assert row["ts"] >= 0
        if row["ph"] == "X":
            assert row["dur"] >= 0
            slices[row["pid"], row["tid"]].append((row["ts"], row["ts"] + row["dur"]))
        if row["ph"] == "C":
            assert all(isinstance(number, int | float) for number in row["args"].values())
        if row["ph"] == "M":
            assert row["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
    for found in slices.values():
        ends: list[float] = []
        for begin, end in sorted(found, key=lambda piece: (piece[0], -piece[1])):
            # Times are rounded to nanoseconds: so much may they seem to overlap.
            while ends and ends[-1] <= begin + 0.0021:
                ends.pop()
            assert not ends or end <= ends[-1] + 0.0021, "slices of one track must nest"
            ends.append(end)
    return rows


def named_tracks(rows: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    return {(row["pid"], row["tid"]): row["args"]["name"] for row in rows if row["name"] == "thread_name"}


def test_tracks_slices_and_counters() -> None:
    rows = check_format(trace_events(parse(TEXT.splitlines())))
    tracks = named_tracks(rows)
    slices = {row["name"]: row for row in rows if row["ph"] == "X"}
    assert {name: tracks[row["pid"], row["tid"]] for name, row in slices.items()} == {
        "fault": "tex0",
        "move gtt to vram": "tex0",
        "unmap": "tex0",
        "copy": "copy0",
        "job fill": "compute0",
    }
    # The recording begins with the first sample, 9.9 s.
    assert abs(slices["fault"]["ts"] - 100_000) < 0.01
    assert abs(slices["fault"]["dur"] - 100) < 0.01
    assert abs(slices["copy"]["dur"] - 1000) < 0.01
    assert slices["copy"]["args"]["pages"] == 1024
    assert slices["job fill"]["args"]["incomplete"] is True
    (instant,) = [row for row in rows if row["ph"] == "i"]
    assert (instant["name"], tracks[instant["pid"], instant["tid"]]) == ("evict", "frame 1")
    counters = {(row["name"], row["ts"]): row["args"] for row in rows if row["ph"] == "C"}
    assert counters["vram used", 0] == {"MiB": 0}
    assert counters["vram used", 1_000_000] == {"MiB": 4}
    assert counters["moved", 1_000_000] == {"MiB/s": 4}


def test_a_flow_leads_from_the_move_to_its_copy() -> None:
    rows = trace_events(parse(TEXT.splitlines()))["traceEvents"]
    start = next(row for row in rows if row["ph"] == "s")
    end = next(row for row in rows if row["ph"] == "f")
    assert start["id"] == end["id"]
    for row, name in ((start, "move gtt to vram"), (end, "copy")):
        piece = next(other for other in rows if other["ph"] == "X" and other["name"] == name)
        assert (row["pid"], row["tid"]) == (piece["pid"], piece["tid"])
        assert piece["ts"] <= row["ts"] <= piece["ts"] + piece["dur"]
    spans = [row for row in rows if row["ph"] in "be"]
    assert [(row["ph"], row["id"]) for row in spans] == [("b", "5:1"), ("e", "5:1")]


def test_faults_that_overlap_get_tracks_of_their_own() -> None:
    events = [
        Event(1.0010, "fault", "a", {"latency_us": "1000"}),
        Event(1.0015, "fault", "a", {"latency_us": "1000"}),
        Event(1.0030, "fault", "a", {"latency_us": "100"}),
    ]
    rows = check_format(trace_events(Parsed(events)))
    assert sorted(named_tracks(rows).values()) == ["a", "a (2)"]


events = st.builds(
    Event,
    st.floats(0, 1000).map(lambda when: round(when, 6)),
    st.sampled_from(
        ["fault", "move_start", "move_end", "copy_start", "copy_end", "fence_emit", "fence_signal", "unmap", "what"]
    ),
    st.sampled_from(["", "a", "b", "\udcff"]),
    st.dictionaries(
        st.sampled_from(["latency_us", "unmap_us", "fence", "engine", "what", "bytes"]),
        st.sampled_from(["0", "1", "250000", "-4", "inf", "nan", "1e400", "copy0", "3:4", "", "-"]),
    ),
)


@settings(deadline=None)
@given(st.lists(events, max_size=30))
def test_any_events_make_a_file_that_opens(found: list[Event]) -> None:
    value = trace_events(Parsed(sorted(found, key=lambda event: event.when)))
    check_format(value)
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    count = write_json(parse(TEXT.splitlines()), str(path))
    assert len(json.loads(path.read_text("ascii"))["traceEvents"]) == count > 15

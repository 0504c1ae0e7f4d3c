"""ttm-trace report: a recording in numbers: how often, how long, who, and why not."""

import errno
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Final

from ttm_tools.traceformat import Event, Parsed


def percentile(values: list[float], part: float) -> float:
    """The nearest-rank percentile (`part` in 0..1) of a list that is not empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the report: a title, column names, rows of plain values."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def report(parsed: Parsed, top: int = 15) -> list[Section]:
    """All tables that have rows; the longest ones cut to `top`."""
    events = parsed.events
    found = [
        _overview(parsed),
        Section(
            "events",
            ("event", "count"),
            [(name, count) for name, count in Counter(e.name for e in events).most_common()],
        ),
        _times(events),
        _bos(events, top),
        _evictions(events, top),
        _moves(events),
        _engines(events),
        _reasons(events, top),
    ]
    return [section for section in found if section.rows]


def _overview(parsed: Parsed) -> Section:
    events = parsed.events
    span = events[-1].when - events[0].when if events else 0.0
    rows: list[tuple[Any, ...]] = [
        ("seconds", round(span, 6)),
        ("events", len(events)),
        ("lost_events", parsed.dropped),
        ("odd_lines", parsed.odd_lines),
        ("bos", len({event.bo for event in events if event.bo})),
    ]
    return Section("recording", ("what", "value"), rows)


def _times(events: list[Event]) -> Section:
    """Latency by event, microseconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        for key in event.facts:
            if key.endswith("_us") and (value := event.number(key)) is not None:
                times[f"{event.name} {key.removesuffix('_us')}"].append(value)
    rows = [
        (name, len(values), percentile(values, 0.5), percentile(values, 0.95), percentile(values, 0.99), max(values))
        for name, values in sorted(times.items())
    ]
    return Section("times", ("what", "count", "p50_us", "p95_us", "p99_us", "max_us"), rows)


def _bos(events: list[Event], top: int) -> Section:
    """Who faults, moves and is evicted most."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        if not event.bo:
            continue
        mine = counts[event.bo]
        mine["all"] += 1
        mine[event.name] += 1
        if event.name == "fault":
            mine["pages"] += int(event.number("pages") or 0)
        elif event.name == "move_end":
            mine["bytes"] += int(event.number("bytes") or 0)
    ranked = sorted(counts.items(), key=lambda item: (-item[1]["all"], item[0]))[:top]
    columns = ("bo", "events", "faults", "fault_pages", "moves", "bytes_moved", "evictions", "errors")
    rows = [
        (bo, c["all"], c["fault"], c["pages"], c["move_end"], c["bytes"], c["evict"], c["error"]) for bo, c in ranked
    ]
    return Section("bos", columns, rows)


def _evictions(events: list[Event], top: int) -> Section:
    """Who was evicted for whom, how often, and what had been tried for the latter before that."""
    found: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    tried: dict[str, str] = {}
    for event in events:
        if event.name == "place_tried":
            tried[event.bo] = f"{event.fact('place') or '-'} {event.fact('why') or '-'}"
        elif event.name == "evict":
            gets = event.facts.get("for_bo", "-")
            way = found[event.bo or "-", gets, tried.get(gets, "-")]
            way["count"] += 1
            way["pages"] += int(event.number("pages") or 0)
    ranked = sorted(found.items(), key=lambda item: (-item[1]["count"], item[0]))[:top]
    rows = [(*who, way["count"], way["pages"]) for who, way in ranked]
    return Section("evictions", ("evicted", "for", "tried", "count", "pages"), rows)


_OUTCOMES: Final = {"": "moves", "0": "moves", "multihop": "multihop"}
"""A move that goes by way of another region is refused first, and then made in two."""


def errno_text(code: str) -> str:
    """`ENOMEM` for `12`; other words as they are."""
    return errno.errorcode.get(int(code), code) if code.isdecimal() else code


def _moves(events: list[Event]) -> Section:
    """Moves by where from and where to."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for event in events:
        if event.name == "move_end":
            way = found[event.fact("src") or "-", event.fact("dst") or "-"]
            outcome = _OUTCOMES.get(event.fact("errno"), "failed")
            way[outcome] += 1
            if outcome == "moves":
                way["bytes"] += int(event.number("bytes") or 0)
                way["evictions"] += int(event.number("evict") or 0)
    columns = ("moves", "bytes", "evictions", "multihop", "failed")
    rows = [(src, dst, *(way[column] for column in columns)) for (src, dst), way in sorted(found.items())]
    return Section("moves", ("from", "to", *columns), rows)


def _engines(events: list[Event]) -> Section:
    """What engines did, and how much of the recording they were busy."""
    open_: dict[tuple[str, str], Event] = {}
    busy: Counter[str] = Counter()
    work: dict[str, Counter[str]] = defaultdict(Counter)
    span = (events[-1].when - events[0].when) if events else 0.0
    for event in events:
        engine = event.fact("engine")
        key = engine, event.fact("fence")
        if event.name in ("copy_start", "job_start"):
            open_[key] = event
        elif event.name in ("copy_end", "job_end") and (start := open_.pop(key, None)) is not None:
            work[engine][event.name.removesuffix("_end")] += 1
            work[engine]["pages"] += int(start.number("pages") or event.number("pages") or 0)
            busy[engine] += round((event.when - start.when) * 1e6)
    rows = [
        (engine, c["copy"], c["job"], c["pages"], busy[engine], round(busy[engine] / 1e4 / span, 1) if span else 0.0)
        for engine, c in sorted(work.items())
    ]
    return Section("engines", ("engine", "copies", "jobs", "pages", "busy_us", "busy_%"), rows)


def _reasons(events: list[Event], top: int) -> Section:
    """Why things waited, were refused or failed."""
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        why = event.fact("why", "waits", "result")
        if event.name == "populate" or why in ("", "ok", "moved", "compatible"):
            why = ""
        code = errno_text(event.fact("errno"))
        if code not in ("", "0", "multihop"):
            why = f"{why} ({code})" if why else code
        if why:
            found[event.name, why] += 1
    rows = [(name, why, count) for (name, why), count in found.most_common(top)]
    return Section("why", ("event", "why", "count"), rows)

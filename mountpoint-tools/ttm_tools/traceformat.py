r"""The text of `trace` and `trace_pipe`: lines of ftrace's layout, read leniently.

    TASK-PID   [CPU] flags  SECONDS: event: bo=NAME key=value key="with \"spaces\"" ...

A line of `trace.json` is read too: `{"ts": SECONDS, "event": …, "bo": …, "task": "TASK-PID", key: value …}`.

Lines that begin with `#` are comments, the part before the time may be missing. Events and keys are not checked: what
a later version adds is kept. A line that is no event is counted, never an error.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_LINE: Final = re.compile(
    r"\s*(?:(?P<task>\S.*?)-(?P<pid>\d+)\s+(?:\[(?P<cpu>\d+)\]\s+)?(?:[^\s\d]\S*\s+)?)?"
    r"(?P<when>\d+\.\d+):\s+(?P<event>[A-Za-z_][\w.-]*):?(?:\s+(?P<facts>.*))?"
)
_FACT: Final = re.compile(r'([A-Za-z_][\w.-]*)=("(?:[^"\\]|\\.)*"|\S*)')
_NO_BO: Final = re.compile(r"(?:^|\s)bo=-(?:\s|$)")
_ESCAPE: Final = re.compile(r"\\([0-7]{3}|x[0-9a-fA-F]{2}|.)")
_DROPPED: Final = re.compile(r"(?:# dropped:\s+|CPU:\d+ \[LOST )(\d+)")
_SAMPLE: Final = "# sample: "
_CLOCKS: Final = "# clocks: "
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r"}
_OCTAL_RUN: Final = re.compile(r"(?:\\[0-3][0-7]{2})+")


@dataclass(frozen=True, slots=True)
class Event:
    """One line: seconds on the device's monotonic clock, the event, its BO ("" when it has none), all other facts."""

    when: float
    name: str
    bo: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    task: str = ""
    pid: int = 0

    def number(self, *keys: str) -> float | None:
        """The first of these facts that is a finite number."""
        for key in keys:
            with contextlib.suppress(KeyError, ValueError):
                value = float(self.facts[key])
                if math.isfinite(value):
                    return value
        return None

    def fact(self, *keys: str) -> str:
        """The first of these facts that is there and says something; "" otherwise."""
        for key in keys:
            value = self.facts.get(key, "")
            if value not in ("", "-", "None"):
                return value
        return ""


@dataclass(slots=True)
class Parsed:
    """A whole text: its events in order, how many lines were none (comments are not counted), and how many events the
    device dropped because nobody read them in time."""

    events: list[Event] = field(default_factory=list)
    odd_lines: int = 0
    dropped: int = 0
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    clocks: dict[str, int] = field(default_factory=dict)
    """Nanoseconds of the clocks at one moment, where the recording has them: monotonic (the events'), boottime, …"""


def unquote(text: str) -> str:
    """A value without its quotes and backslashes; a plain word with only its octal escapes replaced."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _escaped(text[1:-1])
    if "\\" not in text:
        return text
    return _OCTAL_RUN.sub(_octal_run, text)


def _octal_run(found: "re.Match[str]") -> str:
    data = bytes(int(digits, 8) for digits in found[0].split("\\")[1:])
    return data.decode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    def one(found: "re.Match[str]") -> str:
        what = found[1]
        if len(what) == 3:
            return chr(int(what, 8))
        if len(what) == 2 and what[0] == "x":
            return chr(int(what[1:], 16))
        return _LETTERS.get(what, what)

    # Runs of \ooo are the bytes of one UTF-8 text; what is not octal is taken one by one.
    parts = re.split(r"((?:\\[0-3][0-7]{2})+)", text)
    return "".join(
        _OCTAL_RUN.sub(_octal_run, part) if number % 2 else _ESCAPE.sub(one, part) for number, part in enumerate(parts)
    )


def parse_line(line: str) -> Event | None:
    """The event of a line; None for a comment or anything else."""
    if line.startswith("#"):
        return None
    if line.startswith("{"):
        return _of_json(line)
    found = _LINE.fullmatch(line.rstrip("\n"))
    if found is None:
        return None
    facts = {key: unquote(value) for key, value in _FACT.findall(found["facts"] or "")}
    # `bo=-` is no BO; one that is called so stands in quotes.
    bo = "" if _NO_BO.search(found["facts"] or "") else facts.get("bo", "")
    facts.pop("bo", None)
    return Event(
        float(found["when"]),
        found["event"].rstrip(":"),
        bo,
        facts,
        found["task"] or "",
        int(found["pid"] or 0),
    )


def _of_json(line: str) -> Event | None:
    """The event of a line of trace.json; None where it is no such object."""
    try:
        facts: dict[str, Any] = json.loads(line)
        head = [facts.pop(key) for key in ("ts", "event", "bo", "task")]
        when, (name, bo, task) = float(head[0]), map(str, head[1:])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not math.isfinite(when):
        return None
    comm, _, pid = task.rpartition("-")
    texts = {key: str(value) for key, value in facts.items()}
    return Event(when, name, bo, texts, comm, int(pid) if pid.isdecimal() and pid.isascii() and len(pid) < 20 else 0)


def sample_line(when: float, values: Mapping[str, object]) -> str:
    """A comment that carries counters of one moment (a recording has them between its events)."""
    return f"{_SAMPLE}{when:.6f} {json.dumps(values)}\n"


def clocks_line() -> str:
    """A comment that carries what the clocks say now, so that the events' can be laid beside others."""
    names = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME, "realtime": time.CLOCK_REALTIME}
    return f"{_CLOCKS}{json.dumps({name: time.clock_gettime_ns(clock) for name, clock in names.items()})}\n"


def _clocks(text: str) -> dict[str, int]:
    """What clocks_line wrote; nothing of a line that it did not write."""
    try:
        found: dict[str, int] = json.loads(text)
        good = found.keys() >= {"monotonic"} and all(type(ns) is int and 0 <= ns < 1 << 63 for ns in found.values())
    except (AttributeError, ValueError, RecursionError):
        return {}
    return found if good else {}


def parse(lines: Iterable[str]) -> Parsed:
    """Every event of a text, in order of time, and the samples of a recording."""
    parsed = Parsed()
    for line in lines:
        if line.startswith(_SAMPLE):
            when, _, text = line.removeprefix(_SAMPLE).partition(" ")
            with contextlib.suppress(ValueError):
                parsed.samples.append((float(when), json.loads(text)))
            continue
        if line.startswith(_CLOCKS):
            parsed.clocks = parsed.clocks or _clocks(line.removeprefix(_CLOCKS))
            continue
        found = _DROPPED.match(line)
        if found:
            parsed.dropped += int(found[1])
        if found or line.startswith("#") or not line.strip():
            continue
        event = parse_line(line)
        if event is None:
            parsed.odd_lines += 1
        else:
            parsed.events.append(event)
    parsed.events.sort(key=lambda event: event.when)
    return parsed


def complete_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream of pieces, without their ends; what is left at the end is a line too."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "surrogateescape")
    if rest:
        yield rest.decode("utf-8", "surrogateescape")

"""Events: what is recorded at each decision, how a line reads, what the ring keeps."""

import ast
import errno
import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import ttmfs
from tests.core.harness import MIB, PAGE, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.fs.commands.quoting import escape, split_words, unescape
from ttmfs.fs.commands.trace import set_trace, trace_state
from ttmfs.observe import points
from ttmfs.observe.points import EVENTS
from ttmfs.observe.trace import Event, Trace
from ttmfs.ttm import access, lifetime, request
from ttmfs.ttm.context import OperationContext

FACT = inspect.Parameter.KEYWORD_ONLY
LINE = re.compile(
    # The layout that ftrace's own readers take apart: comm-pid, processor, flags, seconds.micros, name, the rest.
    r"^\s*(?P<comm>\S+)-(?P<pid>\d+)\s+\[(?P<cpu>\d{3})\] (?P<flags>\S{5})\s+"
    r"(?P<ts>\d+\.\d{6}): (?P<name>\w+): (?P<rest>.*)$"
)


def unquote(word: str) -> str:
    raw = re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), word.encode())
    return raw.decode("utf-8", "surrogateescape")


def parse(line: str) -> tuple[str, dict[str, str]]:
    """(event, facts) of a line, by nothing but what the format promises."""
    match = LINE.match(line)
    assert match, line
    facts = dict(word.split("=", 1) for word in shlex.split(match["rest"]))
    return match["name"], {key: unquote(value) for key, value in facts.items()}


def found(vdev: VirtualDevice, name: str, bo: str | None = None) -> list[dict[str, Any]]:
    return [event.facts for event in vdev.ttm.trace.ring if event.name == name and bo in (None, event.bo)]


def names(vdev: VirtualDevice) -> list[str]:
    return [event.name for event in vdev.ttm.trace.ring]


# -- the text --------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(max_size=12))
@settings(deadline=None)
def test_any_name_and_value_comes_back_from_its_line(text: str, raw: bytes) -> None:
    name = raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    line = Event(12.5, "error", name, {"why": text, "pages": 3}).line(7)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    event, facts = parse(line[:-1])
    assert event == "error"
    assert facts["bo"] == (name or "-")
    assert (facts["why"], facts["pages"]) == (text, "3")


def test_a_bo_called_dash_is_not_no_bo() -> None:
    assert " bo=- " in Event(0.0, "fault", "", {"pages": 1}).line(1)
    assert ' bo="-" ' in Event(0.0, "fault", "-", {"pages": 1}).line(1)


def test_the_columns_are_where_ftrace_has_them() -> None:
    line = Event(123.456789, "fault", "tex 0", {"offset": 4096}).line(4711)
    assert line == '           ttmfs-4711    [000] .....   123.456789: fault: bo="tex 0" offset=4096\n'


def test_json_lines_hold_the_same_facts() -> None:
    event = Event(1.25, "fault", 'a "b"', {"offset": 4096, "waits": "-"})
    assert json.loads(event.json_line()) == {
        "ts": 1.25, "event": "fault", "bo": 'a "b"', "task": "", "offset": 4096, "waits": "-",
    }  # fmt: skip


def test_a_full_ring_drops_the_oldest_and_says_so() -> None:
    trace = Trace(4)
    trace.start()
    for number in range(6):
        trace.emit("fault", "a", number=number)
    assert [event.facts["number"] for event in trace.ring] == [2, 3, 4, 5]
    assert (trace.dropped, trace.emitted) == (2, 6)
    assert "# entries-in-buffer/entries-written: 4/6 " in trace.text()
    first, *rest = trace.consume(1 << 20).decode().splitlines()
    assert first == "CPU:0 [LOST 2 EVENTS]"
    assert [parse(line)[1]["number"] for line in rest] == ["2", "3", "4", "5"]
    assert trace.consume(1 << 20) == b""
    trace.emit("fault", "a", number=6)
    assert parse(trace.consume(1 << 20).decode().rstrip())[1]["number"] == "6", "what was lost is told once"


def test_consuming_takes_whole_lines_within_the_size() -> None:
    trace = Trace()
    trace.start()
    for number in range(3):
        trace.emit("fault", "a", number=number)
    one = len(trace.ring[0].line(1))
    assert trace.consume(2 * one + 20).count(b"\n") == 2
    assert trace.consume(1).count(b"\n") == 1, "at least one, however long"


def test_filters_by_event_and_bo() -> None:
    trace = Trace()
    set_trace(trace, f"fault evict bo=a bo={escape('b c')}")
    for event in ("fault", "evict", "unmap"):
        for bo in ("a", "b c", "d"):
            trace.emit(event, bo)
    assert [(event.name, event.bo) for event in trace.ring] == [
        ("fault", "a"), ("fault", "b c"), ("evict", "a"), ("evict", "b c"),
    ]  # fmt: skip
    state = trace_state(trace).splitlines()[0]
    assert state == r"evict fault bo=a bo=b\040c"
    other = Trace()
    set_trace(other, state)
    assert (other.events, other.bos) == (trace.events, trace.bos), "what it says can be written back"


@pytest.mark.parametrize("text", ["", "faults", "fault nonsense", "off fault", "bo=", "fault bo=", "'", "\0", "ALL"])
def test_what_is_not_understood_changes_nothing(text: str) -> None:
    trace = Trace()
    set_trace(trace, "fault bo=a")
    with pytest.raises(TtmError) as caught:
        set_trace(trace, text)
    assert caught.value.errno == errno.EINVAL
    assert (trace.on, trace.events, trace.bos) == (True, frozenset({"fault"}), frozenset({"a"}))


def test_an_unknown_event_is_answered_with_those_that_exist() -> None:
    with pytest.raises(TtmError, match="nonsense") as caught:
        set_trace(Trace(), "nonsense")
    assert all(name in caught.value.message for name in EVENTS)
    assert all(name in trace_state(Trace()) for name in EVENTS)


@given(st.text())
@settings(deadline=None)
def test_words_with_any_character_are_split_and_joined(text: str) -> None:
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape").replace("\0", "")
    assert [unescape(word) for word in split_words(f"x{escape(text)}")] == ["x" + text]
    assert unescape(split_words("a\U00100041\U00100fffb")[0]) == "a\U00100041\U00100fffb"


# -- the call sites --------------------------------------------------------------------------------------------------


class Something:
    name = "something"


def arguments(point: Callable[..., None]) -> dict[str, Any]:
    """By keyword, of any values that its types allow: those of other kinds than facts are what has a name."""
    given: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(point).parameters.items())[1:]:
        kind = str(parameter.annotation)
        values: dict[str, Any] = {"int": 7, "bool": True, "str": "a word"}
        if "Iterable" in kind:
            given[name] = [Something()] if "Named" in kind else ["b"]
        else:
            given[name] = next((value for key, value in values.items() if f"{key}'" in kind), Something())
    return given


@pytest.mark.parametrize("name", EVENTS)
def test_each_point_records_the_event_of_its_name_with_the_facts_of_its_row(name: str) -> None:
    point = getattr(points, name)
    trace = Trace()
    trace.start()
    point(trace, **arguments(point))
    (event,) = trace.ring
    facts = [fact for fact, parameter in inspect.signature(point).parameters.items() if parameter.kind is FACT]
    assert (event.name, list(event.facts)) == (name, facts)
    parse(event.line(1).rstrip())
    row = EVENTS[name]
    assert all(re.search(rf"\b{fact}\b", row) for fact in facts)
    assert row[0].isupper()
    trace.stop()
    if name != "fault":
        # The caller has looked: it takes the time.
        point(trace, **arguments(point))
        assert len(trace.ring) == 1


def test_nobody_records_an_event_but_a_point() -> None:
    """And every point is called by something."""
    called, past = set(), []
    for path in Path(ttmfs.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner == "points":
                    called.add(node.func.attr)
                if owner.endswith("trace") and node.func.attr in ("emit", "record") and path.name != "points.py":
                    past.append(f"{path.name}:{node.lineno}")
    assert past == []
    assert called == {*EVENTS, *(point.__name__ for point in points._OTHER_FORMS)}


async def test_off_records_nothing_and_wakes_nobody() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        await idle(bo)
        assert not vdev.ttm.trace.ring
        assert vdev.ttm.trace.emitted == 0


async def test_a_move_tells_its_places_its_copy_and_its_end() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", MIB)
        vdev.ttm.trace.start()
        result = await move(vdev, bo, "vram")
        await idle(bo)
        legs = [(e["src"], e["dst"], e["errno"]) for e in found(vdev, "move_end", "a")]
        assert legs == [("system", "vram", "multihop"), ("system", "gtt", 0), ("gtt", "vram", 0)]
        assert len(found(vdev, "move_start", "a")) == len(legs)
        fence = found(vdev, "move_end", "a")[-1]["fence"]
        assert fence == result["fence"]
        for event in ("fence_emit", "fence_signal", "copy_start", "copy_end"):
            assert [e["fence"] for e in found(vdev, event)] == [fence], event
        watched = ("validate", "move_start", "copy_start", "copy_end", "fence_signal")
        order = [name for name in names(vdev) if name in watched]
        assert order == ["validate", *["move_start"] * 3, "copy_start", "copy_end", "fence_signal"]
        assert [e["result"] for e in found(vdev, "validated", "a")] == ["moved"]
        assert found(vdev, "place_tried", "a")[0]["why"] == "ok"


async def test_an_eviction_tells_for_whom_and_why_this_one() -> None:
    async with device(vram=MIB) as vdev:
        for name in ("old", "new"):
            await make(vdev, name, MIB // 2, place="vram")
        vdev.ttm.trace.start()
        third = await make(vdev, "third", MIB // 2, place="vram")
        await idle(third)
        evicted = [(event.bo, event.facts) for event in vdev.ttm.trace.ring if event.name == "evict"]
        assert [bo for bo, _facts in evicted] == ["old"]
        facts = evicted[0][1]
        assert (facts["for_bo"], facts["region"], facts["position"], facts["priority"]) == ("third", "vram", 0, 1)
        assert str(facts["dst"]).startswith("gtt")
        tried = [(e["place"], e["why"], e["evicting"]) for e in found(vdev, "place_tried", "third")]
        assert ("vram", "full", 0) in tried
        assert ("vram", "full", 1) in tried


async def test_a_fault_tells_what_it_waited_for() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 64 * PAGE)
        vdev.ttm.trace.start()
        bytes(await access.read(bo, PAGE, 2 * PAGE))
        assert found(vdev, "fault")[-1].items() >= {
            "op": "read", "offset": PAGE, "pages": 2, "prefault": 0, "retries": 0, "waits": "-",
        }.items()  # fmt: skip
        bo.resv.trylock()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(access.read, bo, 0, PAGE)
            await trio.testing.wait_all_tasks_blocked()
            bo.unlock()
        fault = found(vdev, "fault")[-1]
        assert (fault["retries"], fault["waits"]) == (1, "reservation")
        assert [e["why"] for e in found(vdev, "gate_wait")] == ["reservation"]
        assert vdev.ttm.counters.gate_seconds.counts != [0] * len(vdev.ttm.counters.gate_seconds.counts)


async def test_faults_look_at_nothing_for_a_trace_of_other_events(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    for module in (access, request):
        monkeypatch.setattr(module, "trace_fault", lambda *facts: looked.append(facts))
    async with device() as vdev:
        bo = await make(vdev, "a", 64 * PAGE)
        sparse = vdev.create_bo("sparse")
        lifetime.set_size(sparse, 64 * PAGE)
        for page, (events, looks) in enumerate((("evict", 0), ("fault", 2), ("use", 2), (None, 2))):
            vdev.ttm.trace.start([events] if events else ())
            await access.read(bo, PAGE, 2 * PAGE)
            await access.read(sparse, 16 * page * PAGE, PAGE)
            assert len(looked) == looks
            looked.clear()


async def test_a_fault_of_a_hole_tells_what_it_populated() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("holes")
        lifetime.set_size(bo, 512 * PAGE)
        bo.prefault = 15
        vdev.ttm.trace.start()
        await access.read(bo, 3 * PAGE, PAGE)
        assert found(vdev, "fault")[-1]["prefault"] == 15
        assert found(vdev, "populate", "holes") == [{"pages": 16, "why": "fault"}]
        assert sum(vdev.ttm.counters.fault_seconds.counts) == 1


async def test_jobs_defrag_suspend_and_the_end_are_told() -> None:
    async with device() as vdev:
        vdev.ttm.trace.start()
        bo = await make(vdev, "a b", MIB, place="vram")
        queued = await submit_job(vdev, Job("fill", dst=bo, value=7), OperationContext())
        await queued.fence.wait()
        await idle(bo)
        for event in ("job", "job_start", "job_end"):
            assert [e["fence"] for e in found(vdev, event, "a b")] == [queued.fence.name], event
        await vdev.power.suspend(OperationContext())
        await vdev.power.resume(OperationContext())
        assert found(vdev, "suspend") == [{"moved": 1, "bytes": 2 * MIB, "errno": 0}]
        assert found(vdev, "resume")[0]["restored"] == 1
        await idle(bo)
        lifetime.release(bo)
        assert found(vdev, "bo_create", "a b")
        assert found(vdev, "bo_destroy", "a b") == [{"bytes": MIB, "region": "vram", "zombie": 0}]
        for line in vdev.ttm.trace.text().splitlines():
            assert line.startswith("#") or parse(line)[0] in EVENTS


async def test_a_move_that_fails_ends_with_its_errno() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", MIB)
        vdev.ttm.trace.start()
        vdev.ttm.inject["move"].set("probability", "100")
        with pytest.raises(TtmError):
            await calls.validate_bo(vdev, bo, vdev.parse_placement(["gtt"]), OperationContext())
        assert found(vdev, "move_end", "a")[-1]["errno"] == errno.EIO
        assert found(vdev, "validated", "a")[-1]["errno"] == errno.EIO

"""The trace text: what a line says, whatever is in it, and what is no event."""

from hypothesis import given
from hypothesis import strategies as st

from ttm_tools.traceformat import Event, parse, parse_line, sample_line
from ttmfs.observe.trace import Event as DeviceEvent

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: "\0" not in text)


def test_a_line_of_ftrace() -> None:
    line = '            ttmfs-812   [000] .....   123.456789: evict: bo="frame 1" region=vram for_bo=tex0 pages=1024'
    event = parse_line(line)
    assert event == Event(
        123.456789, "evict", "frame 1", {"region": "vram", "for_bo": "tex0", "pages": "1024"}, "ttmfs", 812
    )
    assert event.number("nothing", "pages") == 1024
    assert event.fact("nothing", "region") == "vram"


def test_a_line_without_its_task_and_one_without_facts() -> None:
    assert parse_line("  7.5: unplug: bo=-\n") == Event(7.5, "unplug")
    assert parse_line("7.5: some_new.event:") == Event(7.5, "some_new.event")


def test_no_bo_is_not_a_bo_of_that_name() -> None:
    assert parse_line("1.0: fault: bo=- pages=1").bo == ""  # type: ignore[union-attr]
    assert parse_line('1.0: fault: bo="-" pages=1').bo == "-"  # type: ignore[union-attr]


def test_quotes_and_backslashes() -> None:
    event = parse_line(r'1.0: error: bo=a\040b why="it says \"no\" \\ \303\244\n" odd=\040')
    assert event is not None
    assert event.bo == "a b"
    assert event.facts == {"why": 'it says "no" \\ ä\n', "odd": " "}


@given(names, st.dictionaries(st.sampled_from(["why", "what", "src"]), st.text(st.characters(codec="utf-8"))))
def test_whatever_the_device_writes_is_read_back(bo: str, facts: dict[str, object]) -> None:
    line = DeviceEvent(12.5, "fault", bo, facts).line(99)
    event = parse_line(line)
    assert event == Event(12.5, "fault", bo, {key: str(value) for key, value in facts.items()}, "ttmfs", 99)


@given(names, st.dictionaries(st.sampled_from(["why", "pages"]), st.one_of(st.text(), st.integers(), st.none())))
def test_a_line_of_trace_json_is_the_event_of_the_text(bo: str, facts: dict[str, object]) -> None:
    for task in ("a b-c-12", ""):
        written = DeviceEvent(12.5, "fault", bo, facts, task)
        comm, _, pid = task.rpartition("-")
        expected = Event(12.5, "fault", bo, {key: str(value) for key, value in facts.items()}, comm, int(pid or 0))
        assert parse_line(written.json_line()) == expected


def test_json_that_is_no_event_is_none() -> None:
    rest = '"event": "e", "bo": "", "task": ""}'
    for line in ("{", "{}", f'{{"ts": NaN, {rest}', f'{{"ts": [], {rest}'):
        assert parse_line(line) is None, line
    assert parse(["{}", "[1]"]).odd_lines == 2


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    parsed = parse(text.splitlines())
    assert len(parsed.events) + parsed.odd_lines <= len(text.splitlines())


def test_a_whole_text() -> None:
    text = "\n".join(
        [
            "# tracer: ttmfs",
            "# dropped: 3",
            "ttmfs-1 [000] .....  2.000000: fault: bo=b",
            "CPU:0 [LOST 4 EVENTS]",
            sample_line(1.5, {"regions": {"vram": 4096}}).rstrip(),
            "ttmfs-1 [000] .....  1.000000: fault: bo=a",
            "not an event at all",
        ]
    )
    parsed = parse(text.splitlines())
    assert [event.bo for event in parsed.events] == ["a", "b"]
    assert (parsed.odd_lines, parsed.dropped) == (1, 7)
    assert parsed.samples == [(1.5, {"regions": {"vram": 4096}})]

"""ttm-trace on a mount: what it records, what it leaves as it was, how it ends; and the report."""

import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device
from ttm_tools.report import percentile, report
from ttm_tools.traceformat import parse

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]
TOOL = str(Path(sys.executable).with_name("ttm-trace"))
WORK = 'for place in vram gtt vram system; do echo $place > "$TTMFS_MOUNT/objects/a b/validate"; done'


def state(device: Device) -> str:
    first: str = device.shell.do("slurp(path('ctl/trace'))").splitlines()[0]
    return first


@pytest.mark.mount
def test_a_command_is_recorded_whole_and_nothing_else(device: Device, run: Run, tmp_path: Path) -> None:
    device.make("a b", MIB, 7)
    device.make("other", MIB, 7)
    assert device.command("ctl/trace", "fault bo=other") == "ok"
    output, picture = tmp_path / "x.trace", tmp_path / "x.json"
    arguments = ("record", "-m", device.mountpoint, "-o", str(output), "--perfetto", str(picture))
    done = run("trace", *arguments, "--", "bash", "-c", WORK + "; exit 3")
    assert done.returncode == 3, done.stderr
    assert state(device) == "fault bo=other"
    assert device.command("ctl/trace", "off") == "ok"
    parsed = parse(output.read_text().splitlines())
    assert parsed.odd_lines == 0
    ends = [event for event in parsed.events if event.name == "validated"]
    assert [(event.bo, event.facts["region"]) for event in ends] == [
        ("a b", place) for place in ("vram", "gtt", "vram", "system")
    ]
    assert len(parsed.samples) >= 2
    rows = json.loads(picture.read_text())["traceEvents"]
    assert any(row["ph"] == "X" and row["name"].startswith("move ") for row in rows)
    assert any(row["ph"] == "C" and row["name"] == "vram used" for row in rows)
    # What happened before the recording is in the ring, and not in it.
    assert all(event.when >= parsed.samples[0][0] - 1 for event in parsed.events)
    assert not any(event.name == "bo_create" for event in parsed.events)


@pytest.mark.mount
def test_events_and_bos_are_narrowed(device: Device, run: Run, tmp_path: Path) -> None:
    device.make("a b", MIB, 7)
    device.make("other", MIB, 7)
    output = tmp_path / "x.trace"
    work = WORK + '; echo vram > "$TTMFS_MOUNT/objects/other/validate"'
    arguments = ("record", "validate", "move_end", "--bo", "a b", "-m", device.mountpoint, "-o", str(output))
    done = run("trace", *arguments, "--", "bash", "-c", work)
    assert done.returncode == 0, done.stderr
    events = parse(output.read_text().splitlines()).events
    assert {event.bo for event in events} == {"a b"}
    assert {event.name for event in events} == {"validate", "move_end"}
    assert state(device) == "off"


@pytest.mark.mount
def test_an_event_that_does_not_exist_changes_nothing(device: Device, run: Run, tmp_path: Path) -> None:
    assert device.command("ctl/trace", "evict") == "ok"
    done = run("trace", "record", "explosions", "-m", device.mountpoint, "-o", str(tmp_path / "x"))
    assert done.returncode == 2
    assert "explosions" in done.stderr
    assert state(device) == "evict"
    done = run("trace", "record", "-m", device.mountpoint, "-o", str(tmp_path / "x"), "--", "/nonexistent/program")
    assert done.returncode == 127
    assert state(device) == "evict"
    assert device.command("ctl/trace", "off") == "ok"


@pytest.mark.mount
def test_follow_prints_as_it_happens_and_ends_clean(device: Device) -> None:
    device.make("a b", MIB, 7)
    with subprocess.Popen(
        [TOOL, "follow", "validated", "-m", device.mountpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follow:
        device.until(lambda: state(device) == "validated", 20, "follow switched its event on")
        assert device.command("objects/a b/validate", "vram") == "ok"
        assert follow.stdout is not None
        assert select.select([follow.stdout], [], [], 20)[0], "nothing came"
        assert 'validated: bo="a b"' in follow.stdout.readline()
        follow.send_signal(signal.SIGINT)
        out, err = follow.communicate(timeout=20)
    assert (follow.returncode, out, err) == (0, "", "")
    assert state(device) == "off"


@pytest.mark.mount
def test_the_mount_goes_while_it_is_followed(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    with subprocess.Popen(
        [TOOL, "follow", "-m", device.mountpoint], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as follow:
        device.until(lambda: state(device) == "all", 20, "follow switched its events on")
        device.end_clients()
        device.daemon.popen.kill()
        _out, err = follow.communicate(timeout=30)
    assert follow.returncode in (1, 2)
    assert device.mountpoint in err
    assert "Traceback" not in err


@pytest.mark.mount
def test_report_reads_the_mounts_own_trace(device: Device, run: Run) -> None:
    device.make("a", MIB, 7)
    assert device.command("ctl/trace", "all") == "ok"
    assert device.command("objects/a/validate", "vram") == "ok"
    assert device.command("ctl/trace", "off") == "ok"
    done = run("trace", "report", f"{device.mountpoint}/trace", "--json")
    assert done.returncode == 0, done.stderr
    tables = json.loads(done.stdout)
    plain = run("trace", "report", f"{device.mountpoint}/trace", FORCE_COLOR="1", COLUMNS="20").stdout.splitlines()
    assert "\t".join(tables["moves"][0]) in plain, "columns for programs: this is no terminal"
    ways = {(row["from"], row["to"]): row["moves"] for row in tables["moves"]}
    assert ways["gtt", "vram"] >= 1
    assert {row["event"] for row in tables["events"]} >= {"validate", "validated", "move_start", "move_end"}


@pytest.mark.mount
def test_completion_knows_the_events(device: Device, run: Run) -> None:
    words = f"ttm-trace follow -m '{device.mountpoint}' move_"
    done = run("trace", _TTM_TRACE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="4")
    assert done.stdout.splitlines() == ["plain,move_start", "plain,move_end"]


def test_report_on_what_is_no_trace(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\nworld\n")
    done = run("trace", "report", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "is no trace" in done.stderr
    done = run("trace", "report", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_figures_of_a_report() -> None:
    text = "".join(
        f"  {when / 1000}: fault: bo=a op=read pages=4 retries=0 waits={'move' if when == 3 else '-'} "
        f"latency_us={10 * when}\n"
        for when in range(1, 101)
    )
    text += "  0.2: copy_start: bo=a engine=copy0 fence=1:1 pages=9\n"
    text += "  0.25: copy_end: bo=a engine=copy0 fence=1:1 errno=0\n"
    text += "  0.3: move_end: bo=a src=gtt dst=vram bytes=4096 evict=1 fence=1:1 errno=0\n"
    text += "  0.4: move_end: bo=a src=system dst=vram bytes=4096 evict=0 fence=- errno=multihop\n"
    text += "  0.401: move_end: bo=a src=gtt dst=vram bytes=4096 evict=0 fence=- errno=12\n"
    sections = {section.title: section.rows for section in report(parse(text.splitlines()))}
    assert sections["times"] == [("fault latency", 100, 500, 950, 990, 1000)]
    assert sections["moves"] == [("gtt", "vram", 1, 4096, 1, 0, 1), ("system", "vram", 0, 0, 0, 1, 0)]
    assert sections["engines"] == [("copy0", 1, 0, 9, 50000, 12.5)]
    assert sections["why"] == [("fault", "move", 1), ("move_end", "ENOMEM", 1)]
    assert sections["bos"][0][:4] == ("a", 105, 100, 400)


def test_who_was_evicted_for_whom_after_what_had_been_tried() -> None:
    tried = "  0.1: place_tried: bo=b place=vram pages=4 evicting={} why={}\n"
    lines = tried.format(0, "full") + tried.format(1, "full")
    lines += 2 * "  0.2: evict: bo=a from=vram pages=4 for_bo=b\n" + "  0.3: evict: bo=c from=vram pages=1\n"
    sections = {section.title: section for section in report(parse(lines.splitlines()))}
    assert sections["evictions"].columns == ("evicted", "for", "tried", "count", "pages")
    assert sections["evictions"].rows == [("a", "b", "vram full", 2, 8), ("c", "-", "-", 1, 1)]


def test_percentiles() -> None:
    assert percentile([5.0], 0.5) == 5
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.99) == 4

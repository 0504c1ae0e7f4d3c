"""trace and trace_pipe of a mount: lines of ftrace, blocking, polling, and ends that hang nobody."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device
from tests.mount.trace_reading import QUIET, drain, events, record, slurp

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("no_trace_left")]
MOUNT_OPTIONS = ("--vram", "32M", "--visible-vram", "16M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")


def test_a_trace_has_ftraces_lines_and_all_of_its_facts(device: Device) -> None:
    record(device, "all")
    device.make("a b", 2 * MIB, 1, "vram")
    device.shell.do(f"fd = opened('bo/a b'); m = mapped(fd, {2 * MIB}); m[5 * 4096]")
    text = slurp(device, "trace")
    found = events(text)
    assert text.startswith("# tracer: ttmfs\n")
    names = {match["name"] for match in found}
    assert names >= {"bo_create", "fault", "validate", "move_start", "move_end", "fence_emit", "fence_signal",
                     "copy_start", "copy_end", "place_tried", "populate"}  # fmt: skip
    # What the client's requests led to is the client's, what engines do on their own the device's.
    assert {match["pid"] for match in found} == {str(device.daemon.pid), str(device.shell.pid)}
    assert {match["pid"] for match in found if match["name"] == "fault"} == {str(device.shell.pid)}
    times = [float(match["ts"]) for match in found]
    assert times == sorted(times)
    fault = [match["rest"] for match in found if match["name"] == "fault" and 'bo="a b" op=read' in match["rest"]]
    assert any(" offset=20480 pages=1 " in rest and "latency_us=" in rest for rest in fault)
    rows = [json.loads(line) for line in slurp(device, "trace.json").splitlines()]
    assert [row["event"] for row in rows] == [match["name"] for match in events(slurp(device, "trace"))]
    assert len(rows) >= len(found), "reading it consumes nothing"


def test_faults_answered_from_a_view_are_recorded_while_that_is_asked_for(device: Device) -> None:
    device.make("a", 2 * MIB, 1, "vram:contiguous")
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {2 * MIB})")
    client.do("m[0]")
    record(device, "fault")
    client.do("[m[page * 4096] for page in range(1, 21)]")
    record(device, "off")
    client.do("[m[page * 4096] for page in range(21, 31)]")
    offsets = [int(re.search(r"offset=(\d+)", m["rest"])[1]) for m in events(drain(device).decode())]  # type: ignore[index]
    assert offsets == [page * PAGE for page in range(1, 21)]


def test_commands_that_fail_are_errors(device: Device) -> None:
    device.make("a", PAGE)
    record(device, "error")
    assert device.command("objects/a/unpin", "\n") == "EINVAL"
    found = events(drain(device).decode())
    assert [match["name"] for match in found] == ["error"]
    assert found[0]["rest"].startswith('bo=a request=unpin errno=22 why="')


def test_an_event_that_does_not_exist_is_refused(device: Device) -> None:
    assert device.command("ctl/trace", "fault nonsense") == "EINVAL"
    assert slurp(device, "ctl/trace").splitlines()[0] == "off"
    assert "'nonsense' is no event" in slurp(device, "error_log").splitlines()[-1]
    assert device.command("ctl/trace", "\n") == "EINVAL"
    assert "no event is named: say one of all off bo_create" in slurp(device, "error_log").splitlines()[-1]


def test_trace_pipe_blocks_until_there_is_an_event(device: Device) -> None:
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("os.read(fd, 65536)")
    with pytest.raises(Exception, match="no answer within"):
        reader.result(0.3)
    record(device, "off")
    record(device, "bo_create")
    device.make("a", PAGE)
    data = reader.result(5)
    assert [m["name"] for m in events(data.decode())] == ["bo_create"]
    assert b" bo=a " in data
    assert "bo_create" not in slurp(device, "trace").split("EVENT\n")[1], "consumed"


def test_a_pipe_opened_while_nothing_is_recorded_is_at_its_end_and_takes_nothing(device: Device) -> None:
    record(device, "bo_create")
    device.make("a", PAGE)
    record(device, "off")
    for flags in ("os.O_RDONLY", "os.O_RDONLY | os.O_NONBLOCK"):
        client = device.client(f"import select; fd = opened('trace_pipe', {flags})")
        assert client.do("os.read(fd, 65536)") == b""
        assert client.do("len(select.select([fd], [], [], 5)[0])") == 1
        record(device, QUIET)
        assert client.do("os.read(fd, 65536)") == b"", "whoever opened it then"
        record(device, "off")
    assert b"bo_create" in drain(device)


def test_o_nonblock_is_eagain(device: Device) -> None:
    record(device, QUIET)
    assert device.client().errno("os.read(opened('trace_pipe', os.O_RDONLY | os.O_NONBLOCK), 100)") == "EAGAIN"


@pytest.mark.parametrize("how", ["poll", "select", "epoll"])
def test_trace_pipe_can_be_polled(device: Device, how: str) -> None:
    code = (
        "import select\n"
        "fd = opened('trace_pipe', os.O_RDONLY)\n"
        "def ready(seconds):\n"
        "    if how == 'select': return bool(select.select([fd], [], [], seconds)[0])\n"
        "    poller = select.epoll() if how == 'epoll' else select.poll()\n"
        "    poller.register(fd, select.POLLIN)\n"
        "    found = poller.poll(seconds if how == 'epoll' else seconds * 1000)\n"
        "    return any(mask & select.POLLIN for _, mask in found)\n"
        f"how = {how!r}\n"
    )
    record(device, QUIET)
    client = device.client(code)
    assert client.do("ready(0.05)") is False
    client.begin("ready(60)")
    record(device, "bo_create")
    device.make("a", PAGE)
    assert client.result(10) is True
    assert b"bo_create" in client.do("os.read(fd, 65536)")
    assert client.do("ready(0.05)") is False
    device.make("b", PAGE)
    assert client.do("ready(60)") is True, "a second time, on the same file"


def test_other_files_are_always_ready(device: Device) -> None:
    device.make("a", PAGE)
    code = "import select; r, w, x = select.select([opened('bo/a'), opened('stats', 0)], [opened('bo/a')], [], 0)"
    client = device.client(code)
    assert client.do("[len(r), len(w)]") == [2, 1]


def test_readers_share_the_stream(device: Device) -> None:
    record(device, "bo_create")
    readers = [device.client("fd = opened('trace_pipe', os.O_RDONLY)") for _ in range(3)]
    for reader in readers:
        reader.begin("os.read(fd, 10)")
    device.make("only", PAGE)
    first = [reader for reader in readers if _answers(reader)]
    assert len(first) == 1, "one event is one reader's"


def _answers(reader: Client) -> bool:
    try:
        return bool(reader.result(0.5))
    except AssertionError:
        return False


def test_a_line_longer_than_the_read_comes_in_pieces(device: Device) -> None:
    record(device, "bo_create")
    client = device.client("fd = opened('trace_pipe', os.O_RDONLY)")
    device.make("a", PAGE)
    code = "def line():\n out = b''\n while not out.endswith(b'\\n'): out += os.read(fd, 7)\n return out"
    client.do(code)
    line = client.do("line()")
    assert len(line) > 70
    assert [match["name"] for match in events(line.decode())] == ["bo_create"]


@pytest.mark.parametrize("how", ["its own", "inherited"])
def test_a_reader_that_is_killed_dies(device: Device, how: str) -> None:
    """The kernel keeps it until its READ is answered, and the answer is an event that never comes."""
    device.allowed.append(r"fuse_reply")
    record(device, QUIET)
    path = os.path.join(device.mountpoint, "trace_pipe")
    command = ["cat", path] if how == "its own" else ["sh", "-c", 'exec 3<"$1"; cat <&3; true', "sh", path]
    group = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        device.until(lambda: "cat" in _names_of(group.pid), why="no cat")
        device.until(lambda: _waits_in_read(group.pid), why="cat does not read")
        os.killpg(group.pid, signal.SIGKILL)
        group.wait(10)
        device.until(lambda: not _names_of(group.pid), 10, why="a reader that was killed is still there")
    finally:
        record(device, "bo_create")
        device.make("release", PAGE)
        group.kill()
        group.wait(10)


def _members(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(name))
    return found


def _names_of(group: int) -> list[str]:
    names = []
    for pid in _members(group):
        try:
            names.append(Path(f"/proc/{pid}/comm").read_text(encoding="latin-1").strip())
        except OSError:
            continue
    return names


def _waits_in_read(group: int) -> bool:
    for pid in _members(group):
        try:
            if Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").startswith("0 "):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("how", ["SIGTERM", "umount -l", "abort"])
def test_readers_and_pollers_end_with_the_mount(mounted: Any, how: str) -> None:
    device: Device = mounted()
    device.allowed.append(r"fuse_reply|abort")
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("len(os.read(fd, 100))")
    poller = device.client(
        "import select; fd = opened('trace_pipe', os.O_RDONLY); p = select.poll(); p.register(fd, select.POLLIN)"
    ).begin("len(p.poll(20000))")
    assert reader.waits(0.2)
    assert poller.waits(0.2)
    if how == "umount -l":
        subprocess.run(["umount", "-l", device.mountpoint], check=True, timeout=10)
    if how == "abort":
        device.abort()
    else:
        assert device.stop() == 0
    if how == "abort":
        with pytest.raises(OSError, match=r"."):
            reader.result(10)
    else:
        assert reader.result(10) == 0, "end of file"
    poller.result(10)


def test_ttmfs_umount_is_not_held_up_by_a_reader(mounted: Any) -> None:
    device: Device = mounted()
    record(device, QUIET)
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("len(os.read(fd, 100))")
    assert reader.waits(0.2)
    started = time.monotonic()
    device.daemon.popen.send_signal(signal.SIGTERM)
    assert reader.result(10) == 0
    assert device.daemon.popen.wait(10) == 0
    assert time.monotonic() - started < 10

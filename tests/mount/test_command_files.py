"""The contract of control files: what they reject, what a rejected command changes (nothing), how results are read."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, Client, Device

pytestmark = pytest.mark.mount

LONG = "x" * 255


@pytest.fixture
def three(device: Device) -> Device:
    """BOs a, b in vram and system, and one with a name that needs escapes."""
    device.make("a", MIB, fill=1, place="vram")
    device.make("b", MIB, fill=2)
    device.shell.do("os.close(opened('bo/odd, \"name\\n', os.O_CREAT | os.O_RDWR))")
    return device


OBJECT_REJECTS: list[tuple[str, str, str]] = [
    ("validate", "nowhere", "EINVAL"),
    ("validate", "vram:sideways", "EINVAL"),
    ("validate", "vram@5-1", "EINVAL"),
    ("validate", "vram@-1-5", "EINVAL"),
    ("validate", "vram@0-99999999999999999999999999", "EINVAL"),
    ("validate", "vram 'gtt", "EINVAL"),
    ("validate", "vram\0gtt", "EINVAL"),
    ("validate", "none vram", "EINVAL"),
    ("validate", LONG, "EINVAL"),
    ("validate", "vram " * 5000 + "nowhere", "EINVAL"),
    ("evict", "now", "EINVAL"),
    ("pin", "3", "EINVAL"),
    ("unpin", "", "EINVAL"),
    ("unmap", "0", "EINVAL"),
    ("unmap", "-5 10", "EINVAL"),
    ("unmap", "0 99999999999999999999999", "EINVAL"),
    ("unmap", "0 0", "EINVAL"),
    ("wait", "kernel -1", "EINVAL"),
    ("wait", "kernel 1e99", "EINVAL"),
    ("wait", "kernel 99999999999999999999", "EINVAL"),
    ("wait", "forever", "EINVAL"),
    ("wait", "kernel nan", "EINVAL"),
    ("priority", "4", "EINVAL"),
    ("priority", "-1", "EINVAL"),
    ("priority", "9" * 1000, "EINVAL"),
    ("prefault", "0x10000000000", "EINVAL"),
    ("madvise", "later", "EINVAL"),
    ("caching", "warm", "EINVAL"),
    ("caching", "wc", "EINVAL"),
    ("placement", "nowhere", "EINVAL"),
]

CTL_REJECTS: list[tuple[str, str, str]] = [
    ("ctl/validate", "unknown vram", "ENOENT"),
    ("ctl/validate", "a,unknown vram", "ENOENT"),
    ("ctl/validate", "a/b vram", "ENOENT"),
    ("ctl/validate", "../bo/a vram", "ENOENT"),
    ("ctl/validate", "/a vram", "ENOENT"),
    ("ctl/validate", f"{LONG} vram", "ENOENT"),
    ("ctl/validate", f"{LONG * 20} vram", "ENOENT"),
    ("ctl/validate", r"a\012 vram", "ENOENT"),
    ("ctl/validate", "a,,b vram", "EINVAL"),
    ("ctl/validate", "a", "EINVAL"),
    ("ctl/validate", "a nowhere", "EINVAL"),
    ("ctl/validate", "a,b\0 vram", "EINVAL"),
    ("ctl/evict", "nowhere", "EINVAL"),
    ("ctl/evict", "vram -1", "EINVAL"),
    ("ctl/evict", "vram 1X", "EINVAL"),
    ("ctl/evict", "vram 1 2 3", "EINVAL"),
    ("ctl/evict", "vram 99999999999999999999999999999999999999", "EINVAL"),
    ("ctl/config", "no_such_knob=1", "EINVAL"),
    ("ctl/config", "fault_timeout=-1", "EINVAL"),
    ("ctl/config", "fault_timeout", "EINVAL"),
    ("debug/pause_engine", "2", "EINVAL"),
]


def _comparable(state: dict[str, Any]) -> dict[str, Any]:
    for one in state["statuses"].values():
        # A validate that is refused later than by its grammar has been one.
        del one["validations"]
    del state["stats"]["faults"]["max_ms"]
    return state


@pytest.mark.parametrize(("name", "text", "code"), OBJECT_REJECTS)
def test_an_object_command_rejects_and_changes_nothing(three: Device, name: str, text: str, code: str) -> None:
    before = _comparable(three.control("state"))
    assert three.command(f"objects/a/{name}", text + "\n") in (code, "EBUSY" if text == "wc" else code)
    assert _comparable(three.control("state")) == before


@pytest.mark.parametrize(("name", "text", "code"), CTL_REJECTS)
def test_a_device_command_rejects_and_changes_nothing(three: Device, name: str, text: str, code: str) -> None:
    before = _comparable(three.control("state"))
    assert three.command(name, text + "\n") == code
    assert _comparable(three.control("state")) == before


COMMAND_FILES = ("objects/a/validate", "objects/a/wait", "objects/a/priority", "ctl/validate", "ctl/evict", "ctl/trace")


@pytest.mark.parametrize("name", COMMAND_FILES)
def test_random_bytes_are_rejected_whole(three: Device, name: str) -> None:
    before = _comparable(three.control("state"))
    client = three.shell
    rng = random.Random(5)
    for size in (1, 7, 255, 4096, 65536):
        data = bytes(rng.randrange(128, 256) for _ in range(size))
        assert client.do(f"command({name!r}, {data!r})") not in (0, 5), size
    assert client.do(f"command({name!r}, os.urandom(1 << 20))") == 7, "E2BIG before anything runs"
    assert _comparable(three.control("state")) == before


def test_an_unknown_region_is_named_and_goes_into_the_error_log(three: Device) -> None:
    code, lines = three.transact("objects/a/validate", "vram nowhere\n")
    assert code == "EINVAL"
    assert lines == [{"ok": False, "errno": "EINVAL", "error": lines[0]["error"]}]
    assert "nowhere" in lines[0]["error"]
    last = three.shell.do("slurp('error_log')").splitlines()[-1]
    assert "EINVAL" in last
    assert "nowhere" in last


def test_an_unknown_bo_has_no_directory_and_is_no_argument(three: Device) -> None:
    assert three.shell.errno("opened('objects/unknown/validate')") == "ENOENT"
    code, lines = three.transact("ctl/validate", "a,unknown vram")
    assert code == "ENOENT"
    assert "unknown" in lines[0]["error"]


def test_odd_names_are_reached_by_octal_escapes(three: Device) -> None:
    words = r"odd\054\040\042name\012 gtt" + "\n"
    code, lines = three.transact("ctl/validate", words)
    assert (code, lines[0]["ok"]) == ("ok", True)
    assert three.status('odd, "name\n')["mem_type"] == "gtt"
    assert three.command('objects/odd, "name\n/validate', "system\n") == "ok"


def test_several_lines_run_in_order_and_stop_at_the_first_failure(three: Device) -> None:
    code, lines = three.transact("objects/a/validate", "gtt\nsystem\nnowhere\nvram\n")
    assert code == "EINVAL"
    assert [(line["ok"], line["line"]) for line in lines] == [(True, 1), (True, 2), (False, 3)]
    assert three.status("a")["mem_type"] == "system"


def test_a_last_line_without_newline_is_complete(three: Device) -> None:
    code, lines = three.transact("objects/a/validate", "system\ngtt")
    assert (code, [line["line"] for line in lines]) == ("ok", [1, 2])
    assert three.status("a")["mem_type"] == "gtt"


def test_empty_lines_are_commands_without_words(three: Device) -> None:
    assert three.command("objects/a/evict", "\n") == "ok"
    assert three.status("a")["mem_type"] == "gtt"
    assert three.command("objects/a/evict", "\n\n") == "ok"
    assert three.command("ctl/evict", "\n") == "EINVAL"


def test_the_result_is_read_from_the_start_and_then_ends(three: Device) -> None:
    client = three.client("fd = opened('objects/a/validate')")
    assert client.do("os.read(fd, 99999)").startswith(b"validate ")
    client.do("os.write(fd, b'gtt\\n')")
    result = client.do("os.read(fd, 10)") + client.do("os.read(fd, 99999)")
    assert json.loads(result)["mem_type"] == "gtt"
    assert client.do("os.read(fd, 99999)") == b""
    # Offsets mean nothing: pread at 0 and at any place starts the newest result.
    client.do("os.write(fd, b'system\\n')")
    assert json.loads(client.do("os.pread(fd, 99999, 0)"))["mem_type"] == "system"
    client.do("os.write(fd, b'gtt\\n')")
    assert json.loads(client.do("os.pread(fd, 99999, 4000)"))["mem_type"] == "gtt"


SHELL = """
exec 3<>"$M/objects/a/validate"
echo gtt >&3 && head -1 <&3
echo nowhere >&3 || echo failed
cat <&3
exec 3>&-
printf 'system\\ngtt\\n' > "$M/objects/a/validate" && cat "$M/objects/a/status" | grep mem_type
echo vram >> "$M/objects/a/validate" && grep mem_type "$M/objects/a/status"
echo nowhere > "$M/objects/a/validate" || echo no
"""


def test_a_shell_does_all_of_it(three: Device) -> None:
    done = subprocess.run(
        ["bash", "-c", SHELL],
        env={"M": three.mountpoint, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=20,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert json.loads(lines[0])["mem_type"] == "gtt"
    assert lines[1] == "failed"
    assert json.loads(lines[2])["errno"] == "EINVAL"
    assert lines[3:] == ["mem_type:\tgtt", "mem_type:\tvram", "no"]


def _waiting(device: Device, words: str = "kernel 50") -> Client:
    """A client in a command that waits for a paused engine."""
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/a/validate", "gtt") == "ok"
    client = device.client("signal = __import__('signal'); signal.signal(signal.SIGINT, lambda *_: None)")
    return client.begin(f"transact('objects/a/wait', {words!r})")


def test_a_waiting_command_ends_with_eintr_on_sigint(three: Device) -> None:
    # Python would go on after EINTR: this client dies of the signal instead.
    assert three.command("debug/pause_engine", "1") == "ok"
    assert three.command("objects/a/validate", "gtt") == "ok"
    client = three.client("__import__('signal').signal(2, 0)")
    client.begin("command('objects/a/wait', 'kernel 50')")
    three.until(lambda: three.control("commands") == 1, why="the command waits")
    client.popen.send_signal(signal.SIGINT)
    assert client.died(2) == -signal.SIGINT
    three.until(lambda: "EINTR" in three.shell.do("slurp('error_log')"), why="EINTR in the error log")


def test_a_command_that_takes_too_long_ends_with_etime(three: Device) -> None:
    assert three.command("ctl/config", "command_timeout=0.5") == "ok"
    started = time.monotonic()
    try:
        code, lines = _waiting(three).result(5)
    finally:
        assert three.command("ctl/config", "command_timeout=60") == "ok"
    assert 0.4 < time.monotonic() - started < 4
    assert code == 62
    assert lines[0]["errno"] == "ETIME"
    assert "command_timeout" in lines[0]["error"]


def test_the_files_explain_themselves(three: Device) -> None:
    for name in three.shell.do("[n for n in os.listdir(path('ctl'))]"):
        assert three.shell.do(f"slurp('ctl/{name}')"), name
    assert "validate" in three.shell.do("slurp('README')")


@pytest.mark.parametrize("name", ["stats", "error_log", "objects/a/status", "regions/vram/used", "README"])
def test_what_cannot_be_written_says_so(three: Device, name: str) -> None:
    assert three.shell.errno(f"opened({name!r}, os.O_WRONLY)") == "EACCES"


def test_files_that_are_only_read_can_be_copied(device: Device, tmp_path: Path) -> None:
    """cp compares the inode that it has looked up with the one that it has opened."""
    device.make("a", 4096)
    for name in ("stats", "trace", "README", "regions/vram/lru", "objects/a/status"):
        target = tmp_path / "copy"
        command = ["cp", f"{device.mountpoint}/{name}", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert target.stat().st_size > 0, name

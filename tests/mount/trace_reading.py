"""What the tests of traces on a mount share: recording, draining, the lines of ftrace."""

import re

from tests.mount.mount_harness import Device

LINE = re.compile(
    r"^\s*(?P<comm>\S+)-(?P<pid>\d+)\s+\[(?P<cpu>\d{3})\] (?P<flags>\S{5})\s+"
    r"(?P<ts>\d+\.\d{6}): (?P<name>\w+): (?P<rest>.*)$"
)
QUIET = "svm_fault"
"""Recorded, and met by no test here: a trace_pipe that is opened while nothing is recorded is at its end."""


def slurp(device: Device, name: str, timeout: float = 10.0) -> str:
    text: str = device.shell.do(f"slurp({name!r})", timeout)
    return text


def record(device: Device, words: str) -> None:
    assert device.command("ctl/trace", words) == "ok"


def drain(device: Device) -> bytes:
    """All events that there are; nothing is recorded afterwards."""
    record(device, QUIET)
    code = (
        "def drain():\n"
        "    fd = os.open(path('trace_pipe'), os.O_RDONLY | os.O_NONBLOCK)\n"
        "    out = b''\n"
        "    try:\n"
        "        while True: out += os.read(fd, 1 << 16)\n"
        "    except BlockingIOError: return out\n"
        "    finally: os.close(fd)\n"
    )
    device.shell.do(code)
    data: bytes = device.shell.do("drain()")
    record(device, "off")
    return data


def events(text: str) -> list[re.Match[str]]:
    """The events of a trace; every other line must be a comment."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        assert match or line.startswith(("#", "CPU:")), line
        found += [match] if match else []
    return found

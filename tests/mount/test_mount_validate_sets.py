"""ctl/validate through a mount: all or none, and two shells with overlapping sets in opposite order."""

import os

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "64M", "--memory", "128M")

VALIDATE_LOOP = """
def validate_loop(names, rounds):
    counts = {}
    fd = os.open(path('ctl/validate'), os.O_WRONLY)
    for number in range(rounds):
        place = 'vram' if number % 2 else 'gtt'
        try:
            os.write(fd, (names + ' ' + place).encode())
            code = 'ok'
        except OSError as error:
            code = errno.errorcode[error.errno]
        counts[code] = counts.get(code, 0) + 1
    os.close(fd)
    return counts
"""


def test_all_or_none(device: Device) -> None:
    for name in "abc":
        device.make(name, 6 * MIB, 0x41, "gtt")
    before = device.stats()["moves"]["count"]
    assert device.command("ctl/validate", "a,b,c vram") == "ENOMEM"
    assert [device.status(name)["mem_type"] for name in "abc"] == ["gtt"] * 3
    assert device.stats()["moves"]["count"] == before, "nothing has moved"
    assert device.command("ctl/validate", "a,b vram") == "ok"
    assert [device.status(name)["mem_type"] for name in "abc"] == ["vram", "vram", "gtt"]
    assert device.command("ctl/validate", "c,nope vram") == "ENOENT"
    assert device.status("c")["mem_type"] == "gtt"


def test_two_shells_in_opposite_order_neither_deadlock_nor_see_edeadlk(device: Device) -> None:
    """TTMFS_LONG=1 in the environment makes it the full 10 000 rounds of each."""
    rounds = 10_000 if os.environ.get("TTMFS_LONG") else 1_000
    for name in "abcd":
        device.make(name, 64 * 1024, 0x41)
    # Something for INVAL to wait for, so that reservations are held across awaits.
    readers = [device.client(f"fd = opened('bo/{name}')\nstop = []\n") for name in "bc"]
    for reader in readers:
        reader.begin("[os.pread(fd, 4096, (n % 16) << 12)[:1] for n in range(3000)] and None")
    shells = [device.client(VALIDATE_LOOP).begin(f"validate_loop({names!r}, {rounds})") for names in ("a,b,c", "d,c,b")]
    for shell in shells:
        counts = shell.result(100)
        assert set(counts) <= {"ok", "EBUSY", "ENOMEM"}, counts
        assert counts["ok"] > rounds * 9 // 10
    for reader in readers:
        reader.result(20)
    reservations = device.stats()["reservations"]
    assert reservations["edeadlk"] > 0
    assert reservations["slow_locks"] > 0
    assert reservations["ticketed_waits"] > 0
    for name in "abcd":
        assert device.shell.do(f"set(open(path('bo/{name}'), 'rb').read()) == {{0x41}}") is True


def test_priorities_and_pins_decide_who_is_evicted(device: Device) -> None:
    for name, priority in (("low", 0), ("high", 3), ("pinned", 0)):
        device.make(name, 5 * MIB, 0x41, "vram")
        assert device.command(f"objects/{name}/priority", str(priority)) == "ok"
    assert device.command("objects/pinned/pin", "\n") == "ok"
    device.make("fresh", 5 * MIB, 0x42, "vram")
    places = {name: device.status(name)["mem_type"] for name in ("low", "high", "pinned", "fresh")}
    assert places == {"low": "gtt", "high": "vram", "pinned": "vram", "fresh": "vram"}
    assert device.status("low")["evictions"] == 1

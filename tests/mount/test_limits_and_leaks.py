"""Less memory than content, other BOs' bytes, and what is left when all is gone."""

import random
import signal
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--memory", "128M", "--vram", "32M", "--gtt", "64M", "--swap", "0")
GIB = 1 << 30


@pytest.fixture
def bystander(device: Device) -> Device:
    """Another BO, whose bytes must survive."""
    device.make("by", 2 * MIB, fill=0x5A, place="vram")
    return device


def _bystander_intact(device: Device) -> None:
    assert device.command("objects/by/unmap", "\n") == "ok"
    assert device.shell.do("open(path('bo/by'), 'rb').read() == b'\\x5a' * (2 << 20)")


def test_a_sparse_gigabyte_serves_any_small_read(bystander: Device) -> None:
    bystander.make("big", GIB)
    before = bystander.rss()
    client = bystander.client("fd = opened('bo/big')")
    offsets = [random.Random(3).randrange(0, GIB - 8192) for _ in range(400)]
    for start in range(0, 400, 50):
        assert client.do(f"all(os.pread(fd, 8192, o) == bytes(8192) for o in {offsets[start : start + 50]})", 20)
    assert bystander.rss() - before < 192 * MIB
    _bystander_intact(bystander)


FILL_BY_PWRITE = """
wrote = 0
try:
    while wrote < 1 << 30:
        wrote += os.pwrite(fd, b'F' * (1 << 20), wrote)
except OSError as error:
    failed = error.errno
"""


def test_filling_it_by_pwrite_fails_there_and_never_later(bystander: Device) -> None:
    bystander.make("big", GIB)
    client = bystander.client("fd = opened('bo/big')")
    client.do(FILL_BY_PWRITE, 60)
    assert client.do("failed") in (12, 28)
    wrote = client.do("wrote")
    assert 64 * MIB <= wrote < 128 * MIB
    client.do("os.fsync(fd)")
    assert client.do(f"all(os.pread(fd, 1 << 20, n << 20).strip(b'F') == b'' for n in range({wrote >> 20}))", 30)
    client.do("os.close(fd)")
    _bystander_intact(bystander)
    assert bystander.stats()["requests"]["write_errors"] > 0
    bystander.shell.do("os.unlink(path('bo/big'))")
    bystander.until(lambda: bystander.stats()["bos"]["count"] == 1)
    bystander.make("after", MIB, fill=3, place="vram")


def _fill_by_mmap(device: Device, name: str) -> Client:
    return device.client(f"fd = opened('bo/{name}'); m = mapped(fd, 1 << 30, advice=mmap.MADV_NORMAL)").begin(
        "for n in range(0, 1 << 30, 4096): m[n] = 70"
    )


def test_filling_it_by_mmap_is_sigbus_at_the_fault_and_loses_nothing(bystander: Device) -> None:
    bystander.make("big", GIB)
    errors = bystander.stats()["requests"]["write_errors"]
    filler = _fill_by_mmap(bystander, "big")
    assert filler.died(60) == -signal.SIGBUS
    assert bystander.stats()["requests"]["write_errors"] == errors, "writeback never fails"
    client = bystander.client("fd = opened('bo/big')")
    client.do("os.fsync(fd); os.close(fd); fd = opened('bo/big')")
    filled = client.do("sum(os.pread(fd, 1, n) == b'F' for n in range(0, 64 << 20, 4096))", 30)
    assert filled == (64 * MIB) // PAGE
    _bystander_intact(bystander)


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
def test_a_new_bo_never_shows_the_bytes_of_an_old_one(device: Device, place: str) -> None:
    for number in range(3):
        device.make("old", 24 * MIB, fill=0xA0 + number, place=place)
        device.shell.do("os.unlink(path('bo/old'))")
        device.make("new", 24 * MIB, place=place)
        assert device.shell.do("open(path('bo/new'), 'rb').read().strip(b'\\0') == b''", 20)
        device.shell.do(
            "fd = opened('bo/new'); os.pwrite(fd, b'N' * 5000, 100000)\n"
            "os.ftruncate(fd, 102000); os.ftruncate(fd, 20 << 20)\n"
        )
        assert device.command("objects/new/validate", "vram") == "ok"
        data = "os.pread(fd, 20 << 20, 0)"
        assert device.shell.do(f"{data} == bytes(100000) + b'N' * 2000 + bytes((20 << 20) - 102000)", 20)
        device.shell.do("os.close(fd); os.unlink(path('bo/new'))")


WORK = """
for round in range(6):
    for n in range(12):
        make('bo/f%d' % n, 3 << 20, n)
    command('ctl/validate', 'f0,f1,f2,f3 vram')
    for n in range(12):
        command('objects/f%d/validate' % n, ('vram gtt', 'gtt', 'system', 'vram')[(n + round) % 4])
        fd = opened('bo/f%d' % n); m = mapped(fd, 3 << 20); m[n * 5000] = 1; os.close(fd)
        if n % 3: m.close()
    command('ctl/evict', 'vram all')
    for n in range(12):
        os.unlink(path('bo/f%d' % n))
m = None
"""


def _nothing_left(device: Device) -> bool:
    stats = device.stats()
    return (
        all(region["usage"] == 0 and region["bos"] == 0 for region in stats["regions"].values())
        and stats["pool"]["in_use_pages"] == 0
        and stats["fences"]["pending"] == 0
        and stats["bos"] == {"count": 0, "ghosts": 0, "zombies": 0}
        and device.control("handles") == 0
    )


def test_after_the_last_unlink_nothing_is_left(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    device.make("warm", MIB, fill=1, place="vram")
    device.remove_all()
    device.until(lambda: _nothing_left(device), why="nothing left at the start")
    before = device.rss()
    device.client().do(WORK, 60)
    device.end_clients()
    try:
        device.until(lambda: _nothing_left(device), why="nothing left")
    except AssertionError:
        raise AssertionError(device.stats()) from None
    device.control("trim_pool")
    assert device.rss() - before < 32 * MIB
    assert device.control("selfcheck") == []

"""Bytes through the device loop, and through pyfuse3 alone: every way in and out, and the end of a mount meanwhile."""

import time
from collections.abc import Callable
from itertools import cycle

import pytest

from tests.mount.mount_harness import HERE, STANDARD, Device
from ttmfs.fs.kernel import tuning

pytestmark = pytest.mark.mount

LOOPS = pytest.mark.parametrize("options", [STANDARD, (*STANDARD, "--stock-loop")], ids=["device", "stock"])

WRITES = '''
import random
SIZE = 6 << 20

def writes(name, seed, count):
    """Random writes of every kind, and reads, against bytes of our own; True if all agree."""
    r, model = random.Random(seed), bytearray(SIZE)
    fd, straight = opened(name), opened(name, os.O_RDWR | os.O_DIRECT)
    area = mapped(fd, SIZE)
    block = mmap.mmap(-1, 2 << 20)
    for number in range(count):
        size = r.choice((1, 100, 4096, 4097, 70_000, 1 << 20, 1_500_000))
        at = r.randrange(SIZE - size + 1)
        how = r.choice(("pwrite", "direct", "mapped", "direct_read", "pread"))
        data = r.randbytes(size)
        if how == "pwrite":
            assert os.pwrite(fd, data, at) == size
        elif how == "direct":
            at, size = at & ~4095, (size + 4095 & ~4095)
            data = r.randbytes(size)
            block[:size] = data
            assert os.pwritev(straight, [memoryview(block)[:size]], at) == size
        elif how == "mapped":
            area[at : at + size] = data
            area.flush()
        elif how == "direct_read":
            at, size = at & ~4095, (size + 4095 & ~4095)
            assert os.preadv(straight, [memoryview(block)[:size]], at) == size
            assert block[:size] == model[at : at + size], (number, how, at, size)
            continue
        else:
            assert os.pread(fd, size, at) == model[at : at + size], (number, how, at, size)
            continue
        model[at : at + size] = data
    return os.pread(fd, SIZE, 0) == model and bytes(area[:]) == model
'''

STREAM = """
def stream(name, seconds):
    # Passes of large pwrites, some with pages of a mapping and small ones between; each pass is read again.
    fd, straight, passes = opened(name), opened(name, os.O_RDWR | os.O_DIRECT), 0
    area, block, end = mapped(fd, SIZE), mmap.mmap(-1, 1 << 20), time.monotonic() + seconds
    while time.monotonic() < end or passes < 3:
        passes += 1
        for at in range(0, SIZE, 1 << 20):
            block[:] = bytes([passes % 251 + 1, at >> 20]) * (1 << 19)
            assert (os.pwrite(fd, block[:], at) if passes % 3 else os.pwritev(straight, [block], at)) == 1 << 20
            assert area[at + 2 : at + 4] == block[:2]
        os.pwrite(fd, b'end', SIZE - 3)
        for at in range(0, SIZE, 1 << 20):
            found = os.pread(fd, (1 << 20) - 3, at)
            assert found == (bytes([passes % 251 + 1, at >> 20]) * (1 << 19))[:-3], (passes, at)
    return passes
"""

BUSY = """
import threading
fd = opened('bo/busy'); straight = opened('bo/busy', os.O_RDWR | os.O_DIRECT); block = mmap.mmap(-1, 1 << 20)
def write():
    number = 0
    while True:
        os.pwrite(fd, block[:], number % 4 << 20); os.pwritev(straight, [block], number % 4 << 20); number += 1
def touch():
    while True:
        area = mapped(opened('bo/busy'), 4 << 20)
        for at in range(0, 4 << 20, 4096): area[at]
def look():
    while True: os.listdir(path('bo')); os.stat(path('bo/busy')); slurp('stats')
for what in (write, write, touch, touch, look): threading.Thread(target=what, daemon=True).start()
time.sleep(3600)
"""


def loop_counts(device: Device) -> dict[str, str]:
    """debug/loop."""
    return dict(line.split("\t", 1) for line in device.shell.do("slurp('debug/loop')").splitlines())


@LOOPS
def test_what_is_written_in_any_way_is_read_in_any_way(
    mounted: Callable[..., Device], options: tuple[str, ...]
) -> None:
    device = mounted(*options)
    client = device.client((HERE / "names_client.py").read_text() + WRITES)
    device.make("one_run", 6 << 20, place="vram")
    device.make("in_pieces", 6 << 20)
    assert client.do("writes('bo/one_run', 1, 80)", 30)
    assert client.do("writes('bo/in_pieces', 2, 80)", 30)
    device.shell.do("os.truncate(opened('svm/heap', os.O_CREAT | os.O_RDWR), 6 << 20)")
    assert client.do("writes('svm/heap', 3, 40)", 30)
    counts = loop_counts(device)
    tried = counts["streams"] != "0" and counts["answered"] != "0" and counts["handed_over"] != "0"
    assert tried == (options == STANDARD), counts


@LOOPS
@pytest.mark.parametrize("seconds", [2, pytest.param(40, marks=pytest.mark.stress)])
def test_streams_into_what_moves(mounted: Callable[..., Device], options: tuple[str, ...], seconds: int) -> None:
    device = mounted(*options)
    client = device.client("SIZE = 6 << 20\n" + STREAM)
    device.make("a", 6 << 20, fill=1, place="vram")
    client.begin(f"stream('bo/a', {seconds})")
    moves, end = 0, time.monotonic() + seconds
    for place in cycle(["gtt", "vram", "system", "vram:contiguous"]):
        moves += device.command("objects/a/validate", place) == "ok"
        time.sleep(0.02)
        if time.monotonic() > end and moves > 3:
            break
    assert client.result(30) > 2
    assert (loop_counts(device)["streams"] != "0") == (options == STANDARD)
    assert device.control("selfcheck") == []


@LOOPS
def test_faults_that_are_traced_are_in_the_trace(mounted: Callable[..., Device], options: tuple[str, ...]) -> None:
    device = mounted(*options)
    device.make("a", 1 << 20, fill=7, place="vram")
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 1 << 20); m[0]")
    assert device.command("ctl/trace", "fault") == "ok"
    assert client.do("m[4096 * 9] + m[4096 * 99]") == 14
    assert device.command("ctl/trace", "off") == "ok"
    assert client.do("m[4096 * 200]") == 7
    pages = [line for line in device.shell.do("slurp('trace')").splitlines() if " fault:" in line]
    assert len(pages) == 2, pages


def test_a_request_that_is_not_there_blocks_nobody(mounted: Callable[..., Device]) -> None:
    """H9: a client was killed between poll and read."""
    device = mounted(*STANDARD)
    device.make("a", 1 << 20, fill=7)
    for _ in range(3):
        device.until(lambda: device.control("take_from_device") is False)
    assert device.shell.do("os.pread(opened('bo/a'), 5, 4094)") == b"\7" * 5


@pytest.mark.parametrize("end", ["stop", "umount", "abort"])
def test_a_mount_ends_under_load(mounted: Callable[..., Device], end: str) -> None:
    device = mounted(*STANDARD)
    device.make("busy", 4 << 20, fill=1, place="vram")
    client = device.client()
    client.begin(BUSY)
    device.until(lambda: int(loop_counts(device)["answered"]) > 100, 20)
    if end == "stop":
        assert device.stop() == 0
    elif end == "umount":
        assert tuning.lazy_unmount(device.mountpoint) is None
        client.popen.kill()
        device.end_clients()
    else:
        tuning.abort_connection(device.connection)
    device.until(lambda: not device.alive, 20)
    assert device.daemon.popen.wait(1.0) == 0

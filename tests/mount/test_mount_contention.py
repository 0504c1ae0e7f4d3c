"""Four writers fill 1.5 times the vram while all processors compute: none of it may fail."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.mount.mount_harness import Device

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]

WRITERS, EACH = 4, 1
SIZE = 768 << 10
OPTIONS = ("--vram", "2M", "--gtt", "8M", "--memory", "64M", "--placement", "vram")
"""The BOs of all writers are 3 MiB, and two of them fill the vram: a victim is often one that somebody works on."""

FILLS = """
def fills(own, size, begin, end, by):
    failed, wrong = [], []
    for number in range(begin, end):
        name, value = own[number % len(own)], number % 251 + 1
        fd = os.open(path('bo/' + name), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            if by == 'submit':
                code = command('ctl/submit', f'fill dst={name} value={value} wait')
                if code:
                    failed.append([number, code])
            elif number % 2:
                with mmap.mmap(fd, size) as area:
                    area[:] = bytes([value]) * size
            else:
                os.pwrite(fd, bytes([value]) * size, 0)
            if number % 16 == 0 and os.pread(fd, size, 0) != bytes([value]) * size:
                wrong.append(number)
        except OSError as error:
            failed.append([number, error.errno])
        finally:
            os.close(fd)
    return [failed, wrong]
"""


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """All processors have something else to do."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
        for hog in hogs:
            hog.wait()


@pytest.mark.parametrize("by", ["write", "submit"])
@pytest.mark.parametrize("each", [30, pytest.param(25_000, marks=pytest.mark.stress)])
def test_no_fill_fails(mounted: Callable[..., Device], by: str, each: int) -> None:
    """Half of the writes through a mapping, where a failure would be SIGBUS."""
    device = mounted(*OPTIONS)
    # A part of the rounds at a time, so that a hang is found soon.
    part = 60
    with computing():
        writers = [device.client(FILLS) for _ in range(WRITERS)]
        for begin in range(0, each, part):
            for who, writer in enumerate(writers):
                own = [f"w{who}.{number}" for number in range(EACH)]
                writer.begin(f"fills({own!r}, {SIZE}, {begin}, {min(begin + part, each)}, {by!r})")
            for writer in writers:
                assert writer.result(60) == [[], []]
    assert device.stats()["moves"]["evictions"] > each
    assert device.control("selfcheck") == []

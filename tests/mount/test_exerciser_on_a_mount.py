"""The model-checked exerciser on small devices, under a storm of commands: no wrong byte, nobody hangs."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.mount.exercising import exercise
from tests.mount.mount_harness import Device

pytestmark = pytest.mark.mount

SMALL_VRAM = ("--vram", "12M", "--gtt", "32M", "--memory", "256M", "--placement", "vram gtt system")


def moved(stats: dict[str, Any]) -> bool:
    count: int = stats["moves"]["count"]
    return count > 20


def moved_into_the_window(stats: dict[str, Any]) -> bool:
    return moved(stats) and stats["faults"]["window_moves"] > 0


CASES = [
    pytest.param((), (), moved, id="storm"),
    pytest.param(("--visible-vram", "3M"), (), moved_into_the_window, id="visible-vram"),
    pytest.param((), ("--kill",), moved, id="kill"),
]
"""A write that makes a file longer is preceded by an fsync if its last page is partial: see the last test here."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seconds", "max_size"), [(4, "4M"), pytest.param(60, "8M", marks=pytest.mark.stress)])
@pytest.mark.parametrize(("mount", "options", "met"), CASES)
def test_no_byte_is_wrong(
    mounted: Callable[..., Device],
    mount: tuple[str, ...],
    options: tuple[str, ...],
    met: Callable[[dict[str, Any]], bool],
    seconds: int,
    max_size: str,
) -> None:
    device = mounted(*SMALL_VRAM, *mount)
    exercise(device, 4, "--max-op-seconds", "10", "--max-size", max_size, *options, seconds=seconds, met=met)


@pytest.mark.xfail(reason="Linux 6.17 and later, any FUSE file system", strict=False)
def test_the_kernel_keeps_what_a_write_puts_behind_the_old_end(mounted: Callable[..., Device]) -> None:
    """What this kernel does by itself: a writeback that starts after write(2) has put its bytes into a page at the old
    end of the file that was dirty through a mapping, and before the daemon has taken the WRITE, zeroes them from the
    old end on (the size in the inode moves only with the reply). The daemon can neither see nor prevent it.
    """
    device = mounted("--vram", "12M", "--memory", "64M", "--watchdog", "0", patches=("stall_before_write",))
    device.make("stall", 0)
    device.shell.do("os.ftruncate(opened('bo/stall'), 888)")
    device.client("fd = opened('bo/stall'); m = mapped(fd, 888); m[5] = 9")
    writeback = device.client("fd = opened('bo/stall'); flush = _libc.sync_file_range")
    writer = device.client("fd = opened('bo/stall')").begin("os.pwrite(fd, b'W' * 2597, 0)")
    time.sleep(0.3)  # the loop stands still, so there is nobody to ask whether the bytes are in the page
    writeback.do("flush(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)")
    writer.result(5)
    assert device.command("objects/stall/unmap", "\n") == "ok"
    assert device.shell.do("open(path('bo/stall'), 'rb').read() == b'W' * 2597")

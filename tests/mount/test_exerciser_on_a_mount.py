"""The model-checked exerciser on small devices, under a storm of commands: no wrong byte, nobody hangs."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import REPOSITORY, Device

pytestmark = pytest.mark.mount

SMALL_VRAM = ("--vram", "12M", "--gtt", "32M", "--memory", "256M", "--placement", "vram gtt system")


def _exercise(device: Device, *options: str, seconds: int) -> None:
    device.shell.do("[os.close(opened('bo/e%d' % n, os.O_CREAT | os.O_RDWR)) for n in range(4)] and None")
    files = [f"{device.mountpoint}/bo/e{n}" for n in range(4)]
    command = [
        sys.executable,
        str(REPOSITORY / "tests" / "exerciser.py"),
        *files,
        "--ctl", device.mountpoint,
        "--seconds", str(seconds),
        "--max-op-seconds", "10",
        *options,
    ]  # fmt: skip
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, _ = runner.communicate(timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        device.abort()
        runner.kill()
        raise
    assert runner.returncode == 0, out[-6000:]
    stats = device.stats()
    assert stats["moves"]["count"] > 20
    assert stats["requests"]["write_errors"] == 0
    assert stats["requests"]["handler_errors"] == 0


CASES = [
    pytest.param((), (), id="storm"),
    pytest.param(("--visible-vram", "3M"), (), id="visible-vram"),
    pytest.param((), ("--kill",), id="kill"),
]
"""A write that makes a file longer is preceded by an fsync if its last page is partial: see the last test here."""


@pytest.mark.parametrize(("mount", "options"), CASES)
def test_no_byte_is_wrong(mounted: Callable[..., Device], mount: tuple[str, ...], options: tuple[str, ...]) -> None:
    device = mounted(*SMALL_VRAM, *mount)
    _exercise(device, *options, "--max-size", "4M", seconds=10)
    if mount:
        assert device.stats()["faults"]["window_moves"] > 0


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mount", "options"), CASES)
def test_no_byte_is_wrong_for_long(
    mounted: Callable[..., Device], mount: tuple[str, ...], options: tuple[str, ...]
) -> None:
    device = mounted(*SMALL_VRAM, *mount)
    _exercise(device, *options, "--max-size", "8M", seconds=60)


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

"""How it ends while everything is in use: unmount, unplug, suspend, a daemon that is killed, two devices side by side.

Files are mapped and dirty, address spaces have ranges in VRAM, BOs are backed up in part, jobs and commands run. Every
client must get an answer, or a signal, in bounded time, and nobody may stay behind.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, Client, Device

pytestmark = pytest.mark.mount

OPTIONS = (
    "--vram", "8M", "--gtt", "16M", "--memory", "48M", "--swap", "64M", "--pages-limit", "20M", "--placement",
    "vram gtt system", "--copy-engines", "2", "--copy-latency", "0.0005", "--fault-timeout", "10", "--watchdog", "5",
)  # fmt: skip

FILE_CLIENT = """
fd = opened('bo/%(name)s'); m = mapped(fd, 2 << 20)
def work():
    import random
    rng, n = random.Random(%(seed)d), 0
    while True:
        n += 1
        at = rng.randrange(1 << 19) * 4
        if m[at:at + 4] not in (b'\\0' * 4, at.to_bytes(4, 'little')): return 'wrong at %%#x: %%r' %% (at, m[at:at + 4])
        m[at:at + 4] = at.to_bytes(4, 'little')
        if n %% 50 == 0:
            at &= -4096
            if len(os.pread(fd, 4096, at)) != 4096: return 'short'
        if os.path.exists(%(stop)r): return n
"""
SPACE_CLIENT = """
fd = opened('svm/heap'); m = mapped(fd, 4 << 20, advice=mmap.MADV_NORMAL)
def work():
    import random
    rng, n = random.Random(3), 0
    while True:
        n += 1
        at = rng.randrange(1 << 17) * 16
        m[at:at + 4] = b'abcd'
        if m[at:at + 4] != b'abcd': return 'wrong'
        if os.path.exists(%(stop)r): return n
"""
COMMANDS = """
def work():
    import random
    rng, n = random.Random(%(seed)d), 0
    lines = [('objects/f0/validate', 'vram'), ('objects/f1/validate', 'vram'), ('objects/f2/validate', 'gtt'),
             ('objects/f0/backup', '\\n'), ('objects/f1/defrag', '\\n'), ('objects/f2/evict', '\\n'),
             ('ctl/shrink', '2M'), ('svm_objects/heap/prefetch', '0 4M vram'),
             ('svm_objects/heap/gpu', 'fill 3M 64K 9'),
             ('svm_objects/heap/gpu', 'atomic_add 4194296 1'), ('ctl/evict', 'vram'), ('ctl/defrag', 'all'),
             ('ctl/submit', 'checksum src=f0 wait'), ('ctl/submit', 'busy bo=f1,f2 seconds=0.01')]
    allowed = (0, errno.EBUSY, errno.ENOMEM, errno.ENOSPC, errno.ETIME, errno.EINTR, errno.ENODATA, %(more)s)
    while True:
        n += 1
        name, text = rng.choice(lines)
        code = command(name, text)
        if code not in allowed: return '%%s %%s: %%s' %% (name, text, errno.errorcode[code])
        if os.path.exists(%(stop)r): return n
"""


GONE = ("ENOTCONN", "ECONNABORTED", "ESHUTDOWN", "EIO", "ENODEV", "ENOENT", "EINTR")
"""What a call says whose mount goes, or is gone."""


class Crowd:
    """Clients of all kinds at work on one device."""

    def __init__(self, device: Device, stop: str, more: str = "0") -> None:
        for number in range(3):
            device.make(f"f{number}", 2 * MIB)
        device.shell.do("make('svm/heap', 4 << 20)")
        # Into VRAM while nobody touches it.
        assert device.command("svm_objects/heap/prefetch", "0 4M vram", 20) == "ok"
        assert device.stats()["svm"]["migrations_in"] > 0
        bodies = [FILE_CLIENT % {"name": f"f{n}", "seed": n, "stop": stop} for n in range(3)]
        bodies += [SPACE_CLIENT % {"stop": stop}, *(COMMANDS % {"seed": n, "stop": stop, "more": more} for n in (7, 8))]
        self.clients = [device.client() for _ in bodies]
        for client, body in zip(self.clients, bodies, strict=True):
            client.do(body)
        for client in self.clients:
            client.begin("work()")
        # At work: enough of everything has happened.
        device.until(lambda: device.stats()["moves"]["count"] > 10, 40, "nothing moves")

    def results(self, timeout: float) -> list[object]:
        """What each came to: a number of turns, a complaint, an errno's name, or minus the signal that ended it."""
        end = time.monotonic() + timeout
        return [self._result(client, max(0.1, end - time.monotonic())) for client in self.clients]

    @staticmethod
    def _result(client: Client, timeout: float) -> object:
        try:
            return client.result(timeout)
        except EOFError:
            return client.died(5)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0)


def _left(device: Device) -> dict[str, int]:
    stats = device.stats()
    left = {name: region["usage"] for name, region in stats["regions"].items()}
    left |= {"pages": stats["pool"]["in_use_pages"], "swap": stats["swap"]["pages"]}
    left |= {"pending": stats["fences"]["pending"], "waiting": stats["requests"]["waiting"]}
    left["bos"] = stats["bos"]["count"]
    return {name: value for name, value in left.items() if value}


def test_sigterm_while_everything_runs(mounted: Callable[..., Device], tmp_path: Path) -> None:
    device = mounted(*OPTIONS)
    stop = tmp_path / "stop"
    crowd = Crowd(device, str(stop))
    assert device.stop(20) == 0
    # Who has everything it wants in the page cache would not notice.
    stop.touch()
    for result in crowd.results(10):
        # A mapping is a SIGBUS, a call an errno; nobody saw a wrong byte and nobody hangs.
        assert isinstance(result, str | int), result
        assert result == -7 or (isinstance(result, int) and result > 0) or str(result).endswith(GONE), result


def test_a_killed_daemon_leaves_nobody_hanging(mounted: Callable[..., Device], tmp_path: Path) -> None:
    device = mounted(*OPTIONS)
    device.allowed.append("")
    stop = tmp_path / "stop"
    crowd = Crowd(device, str(stop))
    device.daemon.popen.kill()
    device.daemon.popen.wait(10)
    stop.touch()
    for result in crowd.results(20):
        assert result == -7 or (isinstance(result, int) and result > 0) or str(result).endswith(GONE), result


def test_suspend_and_resume_while_everything_runs(mounted: Callable[..., Device], tmp_path: Path) -> None:
    device = mounted(*OPTIONS)
    stop = tmp_path / "stop"
    crowd = Crowd(device, str(stop), "errno.ENODEV")
    suspended = 0
    for _ in range(8):
        code = device.command("ctl/suspend", "\n", 40)
        assert code in ("ok", "ENOMEM", "EBUSY"), code
        if code == "ok":
            suspended += 1
            assert device.stats()["regions"]["vram"]["used"] == 0
            assert device.command("ctl/resume", "\n", 40) == "ok"
    stop.touch()
    results = crowd.results(30)
    assert all(isinstance(result, int) and result > 0 for result in results), results
    assert suspended
    assert device.control("selfcheck") == []
    device.remove_all()
    device.until(lambda: not _left(device), 20, "something is left")
    assert device.stop(20) == 0


def test_unplug_while_everything_runs(mounted: Callable[..., Device], tmp_path: Path) -> None:
    device = mounted(*OPTIONS)
    stop = tmp_path / "stop"
    crowd = Crowd(device, str(stop), "errno.ENODEV")
    assert device.command("ctl/unplug", "\n", 40) == "ok"
    # READs are zeros and WRITEs are dropped from here on, so a client of a mapping may meet its stores gone.
    stop.touch()
    results = crowd.results(30)
    assert all((isinstance(result, int) and result > 0) or "wrong" in str(result) for result in results), results
    assert all(isinstance(result, int) for result in results[4:]), results
    device.remove_all()
    device.until(lambda: not _left(device), 20, f"something is left: {_left(device)}")
    assert device.stop(20) == 0


def test_two_devices_know_nothing_of_each_other(mounted: Callable[..., Device], tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    devices = [mounted(*OPTIONS), mounted(*OPTIONS, "--swap-store", "zstd")]
    other = tmp_path / "stop too"
    crowds = [Crowd(device, str(path)) for device, path in zip(devices, (stop, other), strict=True)]
    devices[1].daemon.popen.kill()
    devices[1].allowed.append("")
    other.touch()
    for result in crowds[1].results(20):
        assert result == -7 or (isinstance(result, int) and result > 0) or str(result).endswith(GONE), result
    stop.touch()
    results = crowds[0].results(30)
    assert all(isinstance(result, int) and result > 0 for result in results), results
    devices[0].remove_all()
    devices[0].until(lambda: not _left(devices[0]), 20, "something is left")
    assert devices[0].stop(20) == 0


def test_run_unmounts_what_its_command_leaves_in_use(tmp_path: Path) -> None:
    """`ttmfs run`: the command ends while its child has a BO mapped and dirty."""
    code = (
        "import mmap, os, sys, time\n"
        "bo = os.environ['TTMFS_MOUNT'] + '/bo/a'\n"
        "fd = os.open(bo, os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 1 << 20)\n"
        "m = mmap.mmap(fd, 1 << 20); m[5] = 9\n"
        "if not os.fork():\n"
        "    print('child', os.getpid(), flush=True)\n"
        "    os.close(1); os.close(2)\n"
        "    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end: m[4096] = 1; os.pread(fd, 10, 8192); time.sleep(0.001)\n"
        "sys.exit(7)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "ttmfs", "run", "--vram", "8M", "--memory", "32M", "--", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = run.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            run.kill()
    child = re.search(r"child (\d+)", out)
    assert child is not None, err
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(child[1]), signal.SIGKILL)  # what it has cached it goes on using for ever
    assert run.returncode == 7, err

"""Imported BOs: whose they are; a file that is truncated behind the device's back is an error, and the daemon lives."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, STANDARD, Device

pytestmark = pytest.mark.mount

JOBS = ("fill dst=cam value=1", "checksum src=cam", "copy src=cam dst=other", "copy src=other dst=cam")


@pytest.fixture
def exporter(tmp_path: Path) -> str:
    path = tmp_path / "exporter"
    path.write_bytes(bytes(range(1, 251)) * (4 * MIB // 250))
    return str(path)


def ready(device: Device, exporter: str) -> None:
    device.make("other", 4 * MIB, 7)
    assert device.command("ctl/import", f"cam {exporter} mappable") == "ok"


def alive(device: Device) -> None:
    assert device.shell.do("os.pread(opened('bo/other'), 3, 0)") == b"\x07" * 3
    assert device.shell.do("slurp('ctl/selfcheck')") == "ok\n"


@pytest.mark.parametrize("size", [0, MIB])
@pytest.mark.parametrize("job", JOBS)
def test_a_job_over_a_truncated_file_is_eio(device: Device, exporter: str, job: str, size: int) -> None:
    ready(device, exporter)
    os.truncate(exporter, size)
    code, lines = device.transact("ctl/submit", job + " wait")
    assert code == "EIO"
    assert "truncated" in lines[0]["error"]
    assert device.shell.errno("os.pread(opened('bo/cam'), 10, 2 << 20)") == "EIO"
    assert device.shell.errno("os.pwrite(opened('bo/cam'), b'x', 2 << 20)") == "EIO"
    alive(device)


@pytest.mark.parametrize("part", ["bytes=64K", ""])
@pytest.mark.parametrize("job", JOBS)
def test_a_file_truncated_under_a_queued_job_is_the_fences_error(
    device: Device, exporter: str, job: str, part: str
) -> None:
    ready(device, exporter)
    device.make("busy", 4096)
    assert device.command("ctl/submit", "busy seconds=1 bo=busy") == "ok"
    code, lines = device.transact("ctl/submit", f"{job} {part}")
    assert code == "ok"
    os.truncate(exporter, 0)
    assert device.command("ctl/wait", f"{lines[0]['fence']} 10") == "EIO"
    alive(device)


def test_an_owner_who_cuts_the_file_all_the_time_harms_nobody(device: Device, exporter: str) -> None:
    ready(device, exporter)
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            os.truncate(exporter, 4096)
            os.truncate(exporter, 4 * MIB)

    owner = threading.Thread(target=cut)
    owner.start()
    try:
        device.shell.do(
            "found = set()\n"
            "fd = os.open(path('bo/cam'), os.O_RDWR | os.O_DIRECT)\n"
            "buffer = mmap.mmap(-1, 1 << 20)\n"
            "for _ in range(100):\n"
            "    for call in (os.preadv, os.pwritev):\n"
            "        try: call(fd, [buffer], 2 << 20)\n"
            "        except OSError as error: found.add(error.errno)\n"
            "    found.add(command('ctl/submit', 'checksum src=cam wait'))\n"
            "    found.add(command('ctl/submit', 'fill dst=cam value=3 wait'))\n"
            "os.close(fd)",
            60,
        )
    finally:
        stop.set()
        owner.join()
    assert set(device.shell.do("list(found - {0})")) <= {errno.EIO}
    alive(device)


def test_an_imported_bo_belongs_to_whose_the_file_is(mounted: Callable[..., Device], exporter: str) -> None:
    device = mounted(*STANDARD, "--allow-other")
    os.chmod(exporter, 0o600)
    assert device.command("ctl/import", f"secret {exporter} mappable") == "ok"
    os.chown(exporter, 4001, 4001)
    os.chmod(exporter, 0o640)
    assert device.command("ctl/import", f"theirs {exporter} mappable") == "ok"
    owner = device.client("os.setgroups([]); os.setgid(4001); os.setuid(4001)")
    other = device.client("os.setgroups([]); os.setgid(4002); os.setuid(4002)")
    read = "os.pread(opened('bo/%s', os.O_RDONLY), 3, 0)"
    assert owner.do(read % "theirs") == b"\1\2\3"
    assert owner.errno(read % "secret") == "EACCES"
    assert other.errno(read % "theirs") == "EACCES"
    assert owner.do("os.stat(path('bo/theirs')).st_mode & 0o777") == 0o640


def test_files_of_this_mount_cannot_be_imported(device: Device) -> None:
    device.make("other", 4 * MIB, 7)
    assert device.command("ctl/import", f"loop '{device.mountpoint}/bo/other' mappable") == "ENODEV"

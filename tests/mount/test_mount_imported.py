"""Imported BOs whose file is truncated behind the device's back: every use is an error, and the daemon lives."""

import os
from pathlib import Path

import pytest
from mount_harness import MIB, Device

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

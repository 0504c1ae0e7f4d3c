"""The harness itself, on a mount: a device comes up, serves a client, is asked over its control channel."""

import pytest

from tests.mount.mount_harness import Device

pytestmark = pytest.mark.mount


def test_a_device_serves_and_its_control_channel_answers(device: Device) -> None:
    device.make("a", 1 << 20, fill=7, place="vram")
    assert device.status("a")["mem_type"] == "vram"
    assert device.shell.do("os.pread(opened('bo/a'), 5, 4094)") == b"\7" * 5
    assert device.command("objects/a/validate", "nowhere") == "EINVAL"
    code, lines = device.transact("objects/a/evict", "\n")
    assert code == "ok"
    assert lines[0]["ok"] is True
    assert lines[0]["mem_type"] == "gtt"


def test_nothing_that_a_daemon_has_from_the_process_that_forks_closes_what_it_opened(device: Device) -> None:
    """When all its garbage is collected, as it is after a minute: the numbers are those of its session by then."""
    device.make("a", 1 << 20, fill=7)
    device.control("look_at_all")
    assert device.command("objects/a/validate", "vram") == "ok"
    assert device.shell.do("os.pread(opened('bo/a'), 5, 4094)") == b"\7" * 5

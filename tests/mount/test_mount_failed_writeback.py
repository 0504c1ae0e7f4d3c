"""Writeback that fails: the kernel says so once, to whoever closes the file first. That is never the daemon, whose own
descriptors write back what an INVAL or a time needs."""

import pytest

from tests.mount.mount_harness import MIB, Client, Device

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "8M", "--memory", "16M", "--fault-timeout", "1")


def dirty_over_lost(device: Device) -> Client:
    """A client with a dirty page of a BO whose content was lost in a copy: it was served meanwhile, from the source."""
    device.make("x", MIB, 7)
    client = device.client(f"fd = opened('bo/x'); area = mapped(fd, {MIB})")
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/x/validate", "vram") == "ok"
    client.do("area[0] = area[0] + 1")
    for name, value in (("fail_engine/probability", 100), ("fail_engine/times", -1), ("ban_memcpy", 1)):
        assert device.command(f"debug/{name}", str(value)) == "ok"
    assert device.command("debug/pause_engine", "0") == "ok"
    device.until(lambda: "content is lost" in device.shell.do("slurp('objects/x/status')"), why="the copy fails")
    for name in ("fail_engine/probability", "ban_memcpy"):
        assert device.command(f"debug/{name}", "0") == "ok"
    return client


FLUSHED_BY = {
    "nobody": "None",
    "an INVAL": "command('objects/x/unmap', '\\n')",
    "a time": "os.utime(path('bo/x'))",
    "both": "command('objects/x/unmap', '\\n'); os.utime(path('bo/x'))",
}


@pytest.mark.parametrize("who", FLUSHED_BY)
def test_whoever_wrote_back_a_client_that_closes_is_told_of_the_failure_once(device: Device, who: str) -> None:
    client = dirty_over_lost(device)
    client.do("other = os.dup(fd); reader = opened('bo/x', os.O_RDONLY)")
    assert client.do(FLUSHED_BY[who]) in (None, 0)
    if who != "nobody":
        device.until(lambda: device.stats()["requests"]["write_errors"], why="the WRITE comes, and fails")
        assert client.errno("os.close(reader)") == "ok", "it has written nothing"
    assert client.errno("os.close(fd)") == "EIO"
    assert client.errno("os.close(other)") == "ok"


def test_who_was_told_of_a_failure_is_not_told_again(device: Device) -> None:
    client = dirty_over_lost(device)
    client.do("area.close()")
    assert client.errno("os.fsync(fd)") == "EIO"
    assert client.errno("os.close(fd)") == "ok"
    client.do("fd = opened('bo/x')")
    assert client.errno("os.pwrite(fd, bytes(4096), 8192)") == "EIO"
    assert client.errno("os.close(fd)") == "ok"

"""Files that grow, on a mount: what a client sees of WRITEs that fail, and of sizes that nothing can hold."""

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--memory", "16M", "--vram", "8M", "--gtt", "16M", "--swap", "0")
FOLDERS = ("bo", "svm")


FILL_MEMORY = """
hog = opened('svm/hog', os.O_CREAT | os.O_RDWR)
try:
    while os.write(hog, b'f' * 4096): pass
except OSError: pass
"""
"""To the last page, the reserve for write-back included."""


def precious(device: Device, folder: str) -> Client:
    client = device.client(f"fd = opened('{folder}/x', os.O_CREAT | os.O_RDWR)")
    client.do("os.pwrite(fd, b'precious', 0)")
    return client


def still_precious(client: Client, folder: str) -> None:
    assert client.do(f"(os.fstat(fd).st_size, os.stat(path('{folder}/x')).st_size)") == [8, 8]
    assert client.do("os.pread(fd, 100, 0)") == b"precious"
    assert client.do(f"open(path('{folder}/x'), 'rb').read()") == b"precious"


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("offset", [1 << 47, 1 << 50, (1 << 63) - 10])
def test_a_write_far_beyond_is_efbig_and_says_why(device: Device, folder: str, offset: int) -> None:
    client = precious(device, folder)
    before = len(device.shell.do("open(path('error_log')).read()"))
    assert client.errno(f"os.pwrite(fd, b'xy', {offset})") == "EFBIG"
    still_precious(client, folder)
    assert client.errno("os.ftruncate(fd, (1 << 47) + 1)") == "EFBIG"
    still_precious(client, folder)
    said = device.shell.do("open(path('error_log')).read()")[before:].splitlines()
    assert len(said) == 2
    assert all("EFBIG" in line and "at most" in line and "TiB" in line for line in said)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_write_without_memory_leaves_the_file_as_it_was(device: Device, folder: str) -> None:
    client = precious(device, folder)
    client.do(FILL_MEMORY, 30)
    for offset in (PAGE, 2 * PAGE + 1, 3 * MIB):
        assert client.errno(f"os.pwrite(fd, b'x' * 3 * 4096, {offset})") in ("ENOMEM", "ENOSPC")
        still_precious(client, folder)
    client.do("os.ftruncate(hog, 0); os.pwrite(fd, b'y', 4096)")
    assert client.do("os.pread(fd, 5000, 0)") == b"precious" + bytes(4088) + b"y"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_write_that_runs_out_of_memory_ends_where_its_bytes_end(device: Device, folder: str) -> None:
    # A space waits that long for memory that never comes.
    assert device.command("ctl/config", "fault_timeout=1") == "ok"
    client = precious(device, folder)
    wrote = client.do("os.pwrite(fd, bytes(range(256)) * (128 << 10), 8)", 30)
    assert 0 < wrote < 32 * MIB
    assert client.do("os.fstat(fd).st_size") == 8 + wrote
    assert client.errno("os.pwrite(fd, b'x' * (8 << 20), os.fstat(fd).st_size)", 30) in ("ENOMEM", "ENOSPC")
    assert client.do("os.fstat(fd).st_size") == 8 + wrote
    client.do(f"wanted = b'precious' + (bytes(range(256)) * (128 << 10))[:{wrote}]")
    assert client.do(f"open(path('{folder}/x'), 'rb').read() == wanted", 30)


HUGE = 64 << 40


def test_a_file_of_64_tib_costs_what_is_in_it(device: Device) -> None:
    """Append to it, cut it, look at it, move it, back it up: whatever went by the page of its size would not end."""
    client = device.client("fd = opened('bo/db', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'head', 0)")
    before = device.rss()
    client.do(f"os.ftruncate(fd, {HUGE})")
    for step in range(3):
        client.do(f"os.pwrite(fd, b'tail', {HUGE + step * MIB})")
        assert client.do(f"os.fstat(fd).st_size == {HUGE + step * MIB + 4}")
        assert client.do(f"os.pread(fd, 100, {HUGE + step * MIB})") == b"tail"
        client.do(f"os.ftruncate(fd, {HUGE})")
        assert client.do(f"os.pread(fd, 8, {HUGE - 8})") == bytes(8)
    assert device.status("db")["size"] == HUGE
    client.do("snap = opened('objects/db/snapshot', os.O_RDONLY)")
    assert client.do("os.pread(snap, 1, 0)") == b"s"
    assert client.do(f"os.pread(snap, 100, {HUGE // PAGE - 2})")[-3:] in (b"..\n", b"s.\n", b".s\n", b"ss\n")
    for command, text in (("defrag", ""), ("swapout", ""), ("backup", ""), ("unmap", ""), ("backup", "purge")):
        assert device.command(f"objects/db/{command}", text + "\n") in ("ok", "EBUSY", "ENOSPC"), command
    for command, text in (("validate", "vram"), ("validate", "gtt"), ("restore", "")):
        assert device.command(f"objects/db/{command}", text + "\n") == "ENOMEM", command
    client.do("os.pwrite(fd, b'head', 0); os.ftruncate(fd, 4096)")
    assert client.do("os.pread(fd, 100, 0)")[:4] == b"head"
    assert device.rss() - before < 16 * MIB
    assert device.control("selfcheck") == []

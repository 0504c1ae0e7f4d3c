"""Files that grow, on a mount: what a client sees of WRITEs that fail, and of sizes that nothing can hold."""

import pytest
from mount_harness import MIB, PAGE, Client, Device

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
    client = precious(device, folder)
    wrote = client.do("os.pwrite(fd, bytes(range(256)) * (128 << 10), 8)", 30)
    assert 0 < wrote < 32 * MIB
    assert client.do("os.fstat(fd).st_size") == 8 + wrote
    assert client.errno("os.pwrite(fd, b'x' * (8 << 20), os.fstat(fd).st_size)", 30) in ("ENOMEM", "ENOSPC")
    assert client.do("os.fstat(fd).st_size") == 8 + wrote
    client.do(f"wanted = b'precious' + (bytes(range(256)) * (128 << 10))[:{wrote}]")
    assert client.do(f"open(path('{folder}/x'), 'rb').read() == wanted", 30)

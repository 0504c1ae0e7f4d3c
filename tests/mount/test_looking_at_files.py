"""Looking takes nothing, on a mount: programs that only read, and the first who opens for writing after them."""

import signal

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--memory", "16M", "--vram", "8M", "--gtt", "16M", "--swap", "0", "--placement", "vram gtt system")
FOLDERS = ("bo", "svm")
FILL_MEMORY = """
hog = opened('svm/hog', os.O_CREAT | os.O_RDWR)
try:
    while os.write(hog, b'f' * 4096): pass
except OSError: pass
"""


def in_use(device: Device) -> int:
    pages: int = device.stats()["pool"]["in_use_pages"]
    return pages


def sparse(device: Device, folder: str, size: int = 64 * MIB) -> Client:
    """A file of holes, closed, and a client that only reads it."""
    device.shell.do(f"fd = opened('{folder}/x', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {size}); os.close(fd)")
    return device.client(f"fd = opened('{folder}/x', os.O_RDONLY)")


@pytest.mark.parametrize("folder", FOLDERS)
def test_cat_grep_and_a_mapping_of_holes_take_nothing(device: Device, folder: str) -> None:
    reader = sparse(device, folder)
    before = in_use(device)
    assert reader.do(f"open(path('{folder}/x'), 'rb').read() == bytes(64 << 20)", 30)
    reader.do("m = mmap.mmap(fd, 64 << 20, prot=mmap.PROT_READ)")
    assert reader.do("sum(m[n] for n in range(0, 64 << 20, 1 << 16))", 30) == 0
    assert in_use(device) == before
    assert reader.do("os.fstat(fd).st_blocks") == 0
    if folder == "bo":
        assert device.status("x")["mem_type"] == "system"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_store_after_looking_has_memory_or_fails_at_the_store(device: Device, folder: str) -> None:
    """At full memory: a store into a page that was cached without memory would be lost when it is written back."""
    size = 2 * MIB
    reader = sparse(device, folder, size)
    assert reader.do(f"os.pread(fd, {size}, 0) == bytes({size})")
    reader.do(f"m = mmap.mmap(fd, {size}, prot=mmap.PROT_READ); seen = sum(m[:])")
    if folder == "bo":
        assert device.command("objects/x/placement", "system") == "ok"
    device.client().do(FILL_MEMORY, 30)
    errors = device.stats()["requests"]["write_errors"]
    writer = device.client(f"fd = opened('{folder}/x', os.O_RDWR); m = mmap.mmap(fd, {size})")
    writer.begin(f"for n in range(0, {size}, 4096): m[n] = 7")
    assert writer.died(30) == -signal.SIGBUS
    assert device.stats()["requests"]["write_errors"] == errors, "no store was taken and then lost"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_store_after_looking_is_there(device: Device, folder: str) -> None:
    reader = sparse(device, folder, 4 * MIB)
    reader.do("m = mmap.mmap(fd, 4 << 20, prot=mmap.PROT_READ)")
    assert reader.do("sum(m[:])") == 0
    writer = device.client(f"fd = opened('{folder}/x', os.O_RDWR); m = mmap.mmap(fd, 4 << 20)")
    writer.do("for n in range(0, 4 << 20, 65536): m[n] = 9")
    assert reader.do("sum(m[:])") == 9 * 64, "both see one page cache"
    writer.do("m.flush(); m.close(); os.close(fd)")
    if folder == "bo":
        assert device.command("objects/x/unmap", "\n") == "ok"
    assert reader.do("sum(os.pread(fd, 4 << 20, 0))") == 9 * 64


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_mapping_counts_until_it_is_gone(device: Device, folder: str) -> None:
    reader = sparse(device, folder)
    writer = device.client(f"fd = opened('{folder}/x', os.O_RDWR); m = mmap.mmap(fd, 64 << 20); os.close(fd)")
    before = in_use(device)
    assert reader.do("os.pread(fd, 4096, 1 << 20)") == bytes(PAGE)
    with_a_writer = in_use(device) if folder == "svm" else device.status("x")["populated_pages"]
    assert with_a_writer > (before if folder == "svm" else 0), "the mapping may store into it"
    writer.do("m[1 << 20] = 5; m.close()")
    assert reader.do("os.pread(fd, 1, 1 << 20)") == b"\5"
    held = in_use(device)
    assert reader.do("os.pread(fd, 4 << 20, 32 << 20) == bytes(4 << 20)")
    assert device.until(lambda: in_use(device) == held)


def test_a_read_on_its_way_when_somebody_opens_for_writing(device: Device) -> None:
    """Again and again: no zeros may stay cached without memory behind them once the writer is there."""
    reader = sparse(device, "bo", 2 * MIB)
    writer = device.client()
    errors = device.stats()["requests"]["write_errors"]
    for _ in range(20):
        reader.begin("n = len(os.pread(fd, 2 << 20, 0))")
        writer.do("fd = opened('bo/x', os.O_RDWR); m = mmap.mmap(fd, 2 << 20)")
        reader.result()
        writer.do("for n in range(0, 2 << 20, 4096): m[n] = 3")
        assert writer.do("sum(m[::4096])") == 3 * 512
        writer.do("m.close(); os.ftruncate(fd, 0); os.ftruncate(fd, 2 << 20); os.close(fd)")
    assert device.stats()["requests"]["write_errors"] == errors


def test_links_and_new_names_are_one_file(device: Device) -> None:
    reader = sparse(device, "bo", MIB)
    assert reader.do("os.pread(fd, 1 << 20, 0) == bytes(1 << 20)")
    device.shell.do("os.link(path('bo/x'), path('bo/y')); os.rename(path('bo/x'), path('bo/z'))")
    before = in_use(device)
    writer = device.client("fd = opened('bo/y', os.O_RDWR); m = mmap.mmap(fd, 1 << 20)")
    assert reader.do("os.pread(fd, 4096, 0)") == bytes(PAGE)
    writer.do("m[0] = 1; m.flush()")
    assert reader.do("os.pread(fd, 1, 0)") == b"\1"
    assert in_use(device) >= before

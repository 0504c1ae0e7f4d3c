"""stat of BO files: times and st_blocks as on other file systems, whoever changed them, clients or the device."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--swap", "64M", "--fault-timeout", "20")

STATX = """
libc = ctypes.CDLL(None, use_errno=True)
def statx_blocks(name):
    '''st_blocks of a statx that asks for nothing else: the kernel may answer it although atime is not valid.'''
    buffer = ctypes.create_string_buffer(256)
    assert libc.statx(-100, os.fsencode(path(name)), 0, 0x400, buffer) == 0
    return int.from_bytes(buffer[48:56], 'little')
def look(name):
    st = os.stat(path(name))
    return {'size': st.st_size, 'blocks': st.st_blocks, 'mtime': st.st_mtime_ns, 'ctime': st.st_ctime_ns,
            'statx': statx_blocks(name)}
"""
FULL = MIB // 512


def make(device: Device, name: str, size: int, written: int = 0) -> None:
    """A sparse BO whose first `written` bytes are content."""
    device.shell.do(f"fd = opened('bo/{name}', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {size})")
    device.shell.do(f"os.pwrite(fd, b'x' * {written}, 0); os.close(fd)")


@pytest.fixture
def client(device: Device) -> Client:
    return device.client(STATX)


# -- what the device changes -------------------------------------------------------------------------------------------

JOB = "ctl/submit"
CHANGES: list[tuple[str, int, list[tuple[str, str]], int, bool]] = [
    ("a job fills holes", 0, [(JOB, "fill dst=a value=65 wait")], FULL, True),
    ("a job writes", MIB, [(JOB, "fill dst=a value=65 bytes=4096 wait")], FULL, True),
    ("a copy is waited for later", 0, [("ctl/copy", "b a"), ("objects/a/wait", "bookkeep 10")], FULL, True),
    ("a job reads", 0, [(JOB, "checksum src=a wait")], FULL, False),
    ("validate gives memory", 0, [("objects/a/validate", "vram")], FULL, False),
    ("validate of several", 0, [("ctl/validate", "a,b gtt")], FULL, False),
    ("backup keeps content", MIB, [("objects/a/backup", "\n")], FULL, False),
    ("swapout keeps content", MIB, [("objects/a/swapout", "\n")], FULL, False),
    ("restore fills holes", 0, [("objects/a/restore", "\n")], FULL, False),
    ("eviction keeps content", MIB, [("objects/a/validate", "vram"), ("ctl/evict", "vram all")], FULL, False),
    ("gutting drops content", MIB, [("objects/a/validate", "none")], 0, True),
    ("a purge drops content", MIB, [("objects/a/backup", "purge")], 0, True),
    ("the shrinker drops content", MIB, [("objects/a/madvise", "dontneed"), ("ctl/shrink", "all purge")], 0, True),
    ("defrag changes nothing", MIB, [("objects/a/defrag", "\n")], FULL, False),
]  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("written", "commands", "blocks", "moved"), [change[1:] for change in CHANGES],
                         ids=[change[0] for change in CHANGES])  # fmt: skip
def test_stat_shows_what_the_device_changed(
    device: Device, client: Client, cached: bool,
    written: int, commands: list[tuple[str, str]], blocks: int, moved: bool,
) -> None:  # fmt: skip
    make(device, "a", MIB, written)
    make(device, "b", MIB, MIB)
    client.do("fd = opened('bo/a', os.O_RDONLY)")
    if cached and written:
        client.do(f"m = mmap.mmap(fd, {MIB}, mmap.MAP_SHARED, mmap.PROT_READ); sum(m[:: 4096])")
    before = client.do("look('bo/a')")
    assert before["blocks"] == before["statx"] == written // 512
    for name, words in commands:
        assert device.command(name, words) == "ok"
    after = client.do("look('bo/a')")
    assert (after["blocks"], after["statx"]) == (blocks, blocks)
    assert (after["mtime"] > before["mtime"], after["ctime"] > before["ctime"]) == (moved, moved)


def test_a_stat_that_comes_while_a_job_is_under_way_is_not_the_last_word(device: Device, client: Client) -> None:
    make(device, "a", MIB, MIB)
    before = client.do("look('bo/a')")
    device.command("debug/pause_engine", "1")
    assert device.command("objects/a/validate", "vram") == "ok"
    code, lines = device.transact(JOB, "fill dst=a value=1")
    assert code == "ok"
    assert client.do("look('bo/a')")["mtime"] == before["mtime"], "the job has not begun"
    device.command("debug/pause_engine", "0")
    assert device.command("ctl/wait", f"{lines[0]['fence']} 10", 15) == "ok"
    assert client.do("look('bo/a')")["mtime"] > before["mtime"]


def test_an_import_moves_the_times_of_its_folder(device: Device, client: Client, tmp_path: Path) -> None:
    (tmp_path / "frame").write_bytes(b"f" * 3 * PAGE)
    client.do("os.mkdir(path('bo/folder'))")
    before = client.do("look('bo/folder')")
    assert device.command("ctl/import", f"folder/cam {tmp_path}/frame mappable") == "ok"
    after = client.do("look('bo/folder')")
    assert (after["mtime"] > before["mtime"], after["ctime"] > before["ctime"]) == (True, True)
    assert client.do("look('bo/folder/cam')")["blocks"] == 3 * PAGE // 512
    client.do("os.unlink(path('bo/folder/cam'))")


def test_a_fault_that_fills_holes_shows_in_st_blocks(device: Device, client: Client) -> None:
    make(device, "a", MIB)
    client.do("fd = opened('bo/a')")
    assert client.do("statx_blocks('bo/a')") == 0
    client.do(f"m = mapped(fd, {MIB}); m[0] = 1; sync_mapping(m)")
    device.until(lambda: client.do("statx_blocks('bo/a')") >= PAGE // 512, why="the kernel was told")


@pytest.mark.parametrize(
    ("command", "words"),
    [("gpu", "fill 0 64K 7"), ("gpu", "fill 0 2M 7 nowait"), ("gpu_read", "checksum 0 64K"), ("prefetch", "0 2M vram")],
)
def test_what_the_device_does_in_an_address_space_shows(
    device: Device, client: Client, command: str, words: str
) -> None:
    client.do(f"fd = opened('svm/s', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {64 * MIB}); os.close(fd)")
    before = client.do("look('svm/s')")
    code, lines = device.transact(f"svm_objects/s/{command}", words)
    assert code == "ok"
    if "nowait" in words:
        assert device.command("ctl/wait", f"{lines[0]['fence']} 10") == "ok"
    after = client.do("look('svm/s')")
    assert after["blocks"] == 4096, "the range has migrated"
    assert (after["mtime"] > before["mtime"], after["ctime"] > before["ctime"]) == ("fill" in words, "fill" in words)
    assert device.command("svm_objects/s/unmap", "0 64M") == "ok"
    assert client.do("look('svm/s')")["blocks"] == 0


def test_looking_at_attributes_drops_no_cached_page_when_only_a_place_has_changed(
    device: Device, client: Client
) -> None:
    """Only what has changed is taken from the kernel's cache: pages that nobody moved stay there."""
    make(device, "a", MIB, MIB)
    client.do(f"fd = opened('bo/a', os.O_RDONLY); m = mmap.mmap(fd, {MIB}, mmap.MAP_SHARED, mmap.PROT_READ)")
    client.do("[sum(m[:: 4096]), look('bo/a')]")
    for _ in range(3):
        assert device.command("objects/a/validate", "system") == "ok"
        device.shell.do("os.utime(path('bo/a'), ns=(1, os.stat(path('bo/a')).st_mtime_ns))")
        read = device.stats()["requests"]["read"]
        client.do("[look('bo/a'), sum(m[:: 4096])]")
        assert device.stats()["requests"]["read"] == read


# -- what clients set --------------------------------------------------------------------------------------------------

OLD = 1_000_000_000_000_000_001


def test_a_time_that_was_set_after_writing_survives_close(device: Device, client: Client) -> None:
    make(device, "a", 4 * PAGE)
    client.do(f"fd = opened('bo/a'); os.pwrite(fd, b'x' * 9000, 0); os.utime(fd, ns=(7, {OLD})); os.close(fd)")
    assert client.do("look('bo/a')")["mtime"] == OLD


def test_a_time_that_was_set_after_storing_into_a_mapping_survives_close_and_writeback(
    device: Device, client: Client
) -> None:
    make(device, "a", 64 * PAGE, 64 * PAGE)
    client.do(f"fd = opened('bo/a'); m = mapped(fd, {64 * PAGE}); m[0] = 1; m[{40 * PAGE}] = 2")
    client.do(f"os.utime(fd, ns=(7, {OLD})); m.close(); os.close(fd)")
    assert client.do("look('bo/a')")["mtime"] == OLD
    assert device.shell.do(f"os.pread(opened('bo/a'), 1, {40 * PAGE})") == b"\2"


def test_what_is_written_after_a_time_was_set_moves_it_at_close(device: Device, client: Client) -> None:
    make(device, "a", 4 * PAGE)
    for write in ("os.pwrite(fd, b'x', 0)", f"m = mapped(fd, {4 * PAGE}); m[0] = 1; m.close()"):
        client.do(f"fd = opened('bo/a'); os.utime(fd, ns=(7, {OLD}))")
        client.do(write + "; os.close(fd)")
        assert client.do("look('bo/a')")["mtime"] > OLD, write


def test_a_stat_right_after_close_shows_that_it_was_written(device: Device, client: Client) -> None:
    make(device, "a", PAGE)
    client.do(
        "for turn in range(300):\n"
        "    fd = opened('bo/a'); os.pwrite(fd, b'x', 0); before = look('bo/a'); os.close(fd)\n"
        "    assert look('bo/a')['mtime'] > before['mtime'], turn"
    )


TRUNCATES = (
    "os.close(opened('bo/a', os.O_RDWR | os.O_TRUNC))",
    "fd = opened('bo/a'); os.ftruncate(fd, os.fstat(fd).st_size); os.close(fd)",
    "os.truncate(path('bo/a'), os.stat(path('bo/a')).st_size)",
    "fd = opened('bo/a'); os.ftruncate(fd, 100); os.close(fd)",
)


@pytest.mark.parametrize("how", TRUNCATES)
@pytest.mark.parametrize("size", [0, 5000])
@pytest.mark.parametrize("folder", ["bo", "svm"])
def test_a_truncate_moves_the_times_also_when_the_size_stays(
    device: Device, client: Client, folder: str, size: int, how: str
) -> None:
    client.do(f"fd = opened('{folder}/a', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, {size}); os.close(fd)")
    client.do(f"os.utime(path('{folder}/a'), ns=({OLD}, {OLD}))")
    before = client.do(f"look('{folder}/a')")
    assert before["mtime"] == OLD
    client.do(how.replace("bo/a", f"{folder}/a"))
    after = client.do(f"look('{folder}/a')")
    assert (after["mtime"] > OLD, after["ctime"] > before["ctime"]) == (True, True)


CTIME = {
    "chmod": "os.chmod(path('bo/a'), 0o600)",
    "chown": "os.chown(path('bo/a'), os.getuid(), os.getgid())",
    "utimens": f"os.utime(path('bo/a'), ns=({OLD}, {OLD}))",
    "setxattr": "os.setxattr(path('bo/a'), 'user.ttm.priority', b'2')",
    "truncate": "os.truncate(path('bo/a'), 100)",
    "write": "fd = opened('bo/a'); os.write(fd, b'x'); os.close(fd)",
    "rename": "os.rename(path('bo/a'), path('bo/x')); os.rename(path('bo/x'), path('bo/a'))",
}


@pytest.mark.parametrize("what", CTIME)
def test_ctime_moves(device: Device, client: Client, what: str) -> None:
    make(device, "a", 5000)
    before = client.do("look('bo/a')")
    client.do(CTIME[what])
    after = client.do("look('bo/a')")
    assert after["ctime"] > before["ctime"]
    assert (after["mtime"] != before["mtime"]) == (what in ("utimens", "truncate", "write"))


# -- programs ----------------------------------------------------------------------------------------------------------


def run(*command: object, cwd: object = "/") -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=str(cwd), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def _python_copy(source: Path, target: Path) -> None:
    run("python3", "-c", "import shutil, sys; shutil.copy2(*sys.argv[1:])", source, target)


def _tar(source: Path, target: Path) -> None:
    run("bash", "-c", 'tar --format=posix -cC "$1" a | tar -xC "$2"', "-", source.parent, target.parent)


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "cp": lambda source, target: run("cp", "-p", source, target),
    "tar": _tar,
    "rsync": lambda source, target: run("rsync", "-t", source, target),
    "install": lambda source, target: run("install", "-p", source, target),
    "python3": _python_copy,
}


@pytest.mark.parametrize("program", COPIES)
def test_programs_that_keep_times_keep_them_both_ways(device: Device, tmp_path: Path, program: str) -> None:
    needs(program)
    (tmp_path / "out").mkdir()
    source, inside, back = tmp_path / "a", Path(device.mountpoint, "bo", "a"), tmp_path / "out" / "a"
    source.write_bytes(os.urandom(3 * MIB + 77))
    os.utime(source, ns=(OLD, OLD))
    COPIES[program](source, inside)
    COPIES[program](inside, back)
    times = [run("stat", "-c", "%.9Y", file) for file in (source, inside, back)]
    assert times == [times[0]] * 3
    assert back.read_bytes() == source.read_bytes()


SPARSE = {
    "tar": ("bash", "-c", 'tar -cSC "$1" a | tar -xC "$2"'),
    "cp": ("bash", "-c", 'cp --sparse=always "$1/a" "$2/a"'),
    "rsync": ("bash", "-c", 'rsync -S "$1/a" "$2/a"'),
}


@pytest.mark.parametrize("program", SPARSE)
@pytest.mark.parametrize(
    "commands",
    [
        [("objects/a/unmap", "\n"), ("objects/a/backup", "\n")],
        [("objects/a/validate", "vram")],
        [("objects/a/swapout", "\n")],
        [(JOB, "xor src=b dst=a wait")],
    ],
    ids=["backup", "vram", "swapout", "job"],
)
def test_programs_that_look_for_holes_lose_no_content(
    device: Device, tmp_path: Path, program: str, commands: list[tuple[str, str]]
) -> None:
    needs(program)
    make(device, "a", 2 * MIB, 2 * MIB)
    make(device, "b", 2 * MIB, PAGE)
    bo = Path(device.mountpoint, "bo")
    run("stat", bo / "a")
    for name, words in commands:
        assert device.command(name, words) == "ok"
    run(*SPARSE[program], "-", bo, tmp_path)
    start = b"\0" * PAGE if commands[0][0] == JOB else b"x" * PAGE
    assert (tmp_path / "a").read_bytes() == start + b"x" * (2 * MIB - PAGE)

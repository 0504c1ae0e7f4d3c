"""Files of others: every kind that is refused, and an owner who cuts the file while it is used."""

import errno
import os
import threading
from pathlib import Path

import pytest

from ttmfs.errors import TtmError
from ttmfs.memory import foreign_file
from ttmfs.memory.foreign_file import ForeignFile

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.write_bytes(bytes(range(256)) * 64 + b"tail")
    return path


def code(call: object, *arguments: object) -> int:
    with pytest.raises(TtmError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.errno or 0


def test_it_reads_and_writes_in_place(path: Path) -> None:
    file = ForeignFile(str(path))
    before = path.read_bytes()
    assert file.size == len(before)
    assert file.read(100, 5000) == before[100:5100]
    assert file.read(file.size - 4, 4) == b"tail"
    file.write(4094, b"abcd")
    assert path.read_bytes() == before[:4094] + b"abcd" + before[4098:]
    file.check_whole()
    file.close()
    assert code(file.read, 0, 1) == errno.EIO


def test_what_was_cut_is_an_error_and_nothing_else(path: Path) -> None:
    file = ForeignFile(str(path))
    os.truncate(path, PAGE)
    assert file.read(0, PAGE) == path.read_bytes()
    assert code(file.read, PAGE - 1, 2) == errno.EIO
    assert code(file.read, 2 * PAGE, 1) == errno.EIO
    assert code(file.write, 2 * PAGE, b"x") == errno.EIO
    assert code(file.check_whole) == errno.EIO
    assert path.stat().st_size == PAGE, "a refused write must not make it grow"
    file.close()


def test_an_owner_who_cuts_it_all_the_time_costs_errors_only(path: Path) -> None:
    size = 1 << 20
    os.truncate(path, size)
    file = ForeignFile(str(path))
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            os.truncate(path, PAGE)
            os.truncate(path, size)

    codes: set[int | None] = set()
    owner = threading.Thread(target=cut)
    owner.start()
    try:
        for _ in range(300):
            for access in (lambda: file.read(0, size), lambda: file.write(size // 2, b"x" * PAGE)):
                try:
                    access()
                except TtmError as error:
                    codes.add(error.errno)
    finally:
        stop.set()
        owner.join()
        file.close()
    assert codes <= {errno.EIO}


def test_the_descriptor_stays_while_a_thread_uses_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ForeignFile(str(path))
    reading, go_on = threading.Event(), threading.Event()
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        reading.set()
        assert go_on.wait(10)
        return real(fd, buffers, offset)

    monkeypatch.setattr(foreign_file.os, "preadv", preadv)  # type: ignore[attr-defined]
    found: list[bytearray] = []
    reader = threading.Thread(target=lambda: found.append(file.read(0, 10)))
    reader.start()
    assert reading.wait(10)
    file.close()
    other = os.open(path.parent, os.O_RDONLY)  # would get the number if it were free already
    go_on.set()
    reader.join()
    os.close(other)
    assert found == [bytearray(range(10))]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._fd)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("fifo", errno.EINVAL),
        ("folder", errno.EISDIR),
        ("link", errno.ELOOP),
        ("empty", errno.EINVAL),
        ("missing", errno.ENOENT),
        ("/dev/null", errno.EINVAL),
        ("/proc/self/mem", errno.EINVAL),
    ],
)
def test_kinds_that_are_refused(path: Path, what: str, expected: int) -> None:
    folder = path.parent
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(path)
    (folder / "empty").touch()
    descriptors = len(os.listdir("/proc/self/fd"))
    assert code(ForeignFile, str(folder / what)) == expected
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_file_without_memory_behind_it_is_refused() -> None:
    attribute = "/sys/kernel/mm/transparent_hugepage/enabled"
    if not os.access(attribute, os.R_OK | os.W_OK):
        pytest.skip("needs root, and sysfs")
    assert code(ForeignFile, attribute) == errno.EINVAL


def test_more_than_a_bo_can_have_is_refused(path: Path) -> None:
    try:
        os.truncate(path, foreign_file.MAX_SIZE + 1)
    except OSError:
        path = Path("/dev/shm", f"ttmfs-test-{os.getpid()}")
        path.touch()
    try:
        os.truncate(path, foreign_file.MAX_SIZE + 1)
        assert code(ForeignFile, str(path)) == errno.EFBIG
        os.truncate(path, foreign_file.MAX_SIZE)
        ForeignFile(str(path)).close()
    finally:
        path.unlink()

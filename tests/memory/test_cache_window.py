"""The cache window: what is written stays, what is older is on its way to the disk, what is oldest leaves the cache."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ttmfs.memory.stores import cache_window
from ttmfs.memory.stores.cache_window import CacheWindow

MIB = 1 << 20
WINDOW = 64 * MIB
BEGIN, WAIT = 0x2, 0x1 | 0x2 | 0x4


class Host:
    """What the window asks the host for, in order: (what, offset, size)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def sync_file_range(self, _fd: int, offset: int, size: int, flags: int) -> int:
        self.asked.append(({BEGIN: "begin", WAIT: "wait"}[flags], offset, size))
        return 0

    def drop(self, _fd: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        assert self.asked[-1] == ("wait", offset, size), "only what is on the disk can leave the cache"
        self.asked.append(("drop", offset, size))

    def bytes_of(self, what: str) -> int:
        return sum(size for name, _offset, size in self.asked if name == what)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    found = Host()
    with monkeypatch.context() as patch:
        patch.setattr(cache_window, "_libc", found)
        patch.setattr(cache_window.os, "posix_fadvise", found.drop)  # type: ignore[attr-defined]
        yield found


def test_what_fits_in_half_of_the_window_is_left_alone(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for offset in range(0, WINDOW // 2, MIB):
        window.went_through(offset, MIB, dirty=True)
    assert host.asked == []


def test_the_oldest_begins_first_and_leaves_first(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for offset in range(0, 2 * WINDOW, MIB):
        window.went_through(offset, MIB, dirty=True)
    assert host.bytes_of("begin") == 2 * WINDOW - WINDOW // 2
    assert host.bytes_of("drop") == WINDOW
    dropped = [offset for what, offset, _size in host.asked if what == "drop"]
    assert dropped == sorted(dropped)
    assert dropped[0] == 0


def test_what_was_read_needs_no_writing_but_leaves_too(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for offset in range(0, WINDOW, MIB):
        window.went_through(offset, MIB, dirty=False)
    assert host.bytes_of("begin") == 0
    assert host.bytes_of("drop") == WINDOW // 2


def test_an_empty_file_begins_anew(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    window.went_through(0, WINDOW // 2, dirty=True)
    window.cleared()
    window.went_through(0, WINDOW // 2, dirty=True)
    assert host.asked == []


def test_what_is_read_beside_what_was_written_counts_too(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for offset in range(0, WINDOW, 8 * MIB):
        window.went_through(offset, 4096, dirty=True)
        window.went_through(offset + 4096, 8 * MIB - 4096, dirty=False)
    assert window._dirty.size == window._old.size == WINDOW // 2


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(1, 12), st.booleans()), max_size=60))
@example([(0, 1, True), (0, 8, False), (16, 12, False), (27, 23, False), (46, 24, True), (12, 12, False)])
def test_no_more_than_the_window_is_ever_cached(writes: list[tuple[int, int, bool]]) -> None:
    host = Host()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_window, "_libc", host)
        patch.setattr(cache_window.os, "posix_fadvise", host.drop)  # type: ignore[attr-defined]
        window = CacheWindow(-1, WINDOW)
        cached: set[int] = set()
        for first, length, dirty in writes:
            del host.asked[:]
            cached.update(range(first, first + length))
            window.went_through(first * MIB, length * MIB, dirty=dirty)
            for what, offset, size in host.asked:
                if what == "drop":
                    cached.difference_update(range(offset // MIB, (offset + size) // MIB))
            assert len(cached) * MIB <= WINDOW


def test_what_is_rewritten_counts_once_and_is_young_again(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for _ in range(10):
        for offset in range(0, WINDOW // 2, MIB):
            window.went_through(offset, MIB, dirty=True)
        for offset in range(0, WINDOW // 2, MIB):
            window.went_through(offset, MIB, dirty=False)
    assert host.asked == []


def test_what_was_punched_counts_no_more(host: Host) -> None:
    window = CacheWindow(-1, WINDOW)
    for _ in range(10):
        window.went_through(0, WINDOW // 4, dirty=True)
        window.went_through(WINDOW, WINDOW // 4, dirty=False)
        window.punched(0, WINDOW // 4)
        for offset in range(WINDOW, WINDOW + WINDOW // 4, MIB):
            window.punched(offset, MIB)
        window.punched(0, 4 * WINDOW)
    assert host.asked == []
    assert window._dirty.size == window._old.size == 0
    assert not window._dirty._bytes
    assert not window._old._bytes


def test_threads_lose_no_byte_of_the_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    fd = os.open(path, os.O_RDWR)
    window = CacheWindow(fd, 1 << 40)

    def write(start: int) -> None:
        for number in range(500):
            window.went_through(start + number * 16 * MIB, 4096, dirty=bool(number % 2))

    threads = [threading.Thread(target=write, args=(n << 32,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    os.close(fd)
    assert window._dirty.size == window._old.size == 4 * 250 * 4096

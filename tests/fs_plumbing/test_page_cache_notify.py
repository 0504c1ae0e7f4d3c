"""INVAL by raw message: what it drops, what it writes back first, what is no error, what never blocks the loop."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.fs_plumbing.plumbing_harness import Server, cat
from ttmfs.errors import TtmError
from ttmfs.fs.kernel import tuning
from ttmfs.fs.kernel.inval import PageCache, SessionFd


@pytest.mark.mount
def test_mapped_pages_are_dropped_and_fetched_anew(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    reader = client("bo")
    assert reader.ask("load", 0) == 0
    server.do("fill", value=7)
    assert reader.ask("load", 0) == 0  # cached: publishing alone changes nothing
    assert server.do("inval", ino=2)["known"] is True
    assert reader.ask("load", 0) == 7


@pytest.mark.mount
def test_a_range_is_rounded_outwards_to_pages_and_spares_the_rest(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    reader = client("bo")
    pages = range(8)
    assert [reader.ask("load", page * 4096) for page in pages] == [0] * 8
    server.do("fill", value=9)
    server.do("inval", ino=2, first_byte=2 * 4096 + 4095, num_bytes=2, flush=False)
    assert [reader.ask("load", page * 4096) for page in pages] == [0, 0, 9, 9, 0, 0, 0, 0]


@pytest.mark.mount
def test_attributes_only_keeps_the_pages(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    reader = client("bo")
    assert reader.ask("load", 0) == 0
    server.do("fill", value=5)
    opens = server.do("status")["counts"]["open"]
    assert server.do("inval", ino=2, first_byte=-1)["flushes"] == 0
    assert reader.ask("load", 0) == 0
    assert server.do("status")["counts"]["open"] == opens


@pytest.mark.mount
@pytest.mark.parametrize("flush", [True, False])
def test_dirty_pages_reach_the_daemon_before_it_returns(serve: Callable[..., Server], client: Any, flush: Any) -> None:
    server = serve(size=4 << 20, bdi=128)
    writer = client("bo")
    assert writer.ask("store", 0, 4 << 20, 0x33)
    before = server.do("status")["counts"]["write"]
    answer = server.do("inval", ino=2, flush=flush)
    assert answer["flushes"] == int(flush)
    status = server.do("status")
    assert status["first"] == 0x33
    writes = status["counts"]["write"] - before
    if flush:
        assert writes <= 16
        assert status["max_write"] == 1 << 20
    elif before == 0:  # the kernel's flusher may have been faster
        assert writes == 1024
    server.do("fill", value=1)
    server.do("inval", ino=2)
    assert writer.ask("load", 100) == 1


@pytest.mark.mount
def test_an_alias_that_does_not_open_is_no_error(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    writer = client("bo")
    server.do("aliases", on=False)
    writer.ask("store", 0, 10, 4)
    answer = server.do("inval", ino=2)
    assert answer["known"]
    assert answer["flush_failures"] == 1
    assert server.do("status")["first"] == 4


@pytest.mark.mount
def test_an_inode_that_nobody_has_is_no_error(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.do("inval", ino=77)["known"] is False
    answer = server.do("inval", ino=2**63)
    assert (answer["known"], answer["not_cached"]) == (False, 2)
    for arguments in ({"ino": 0}, {"ino": 2, "first_byte": -2}, {"ino": 2, "num_bytes": -1}):
        assert server.do("inval", **arguments)["errno"] == errno.EINVAL


@pytest.mark.mount
def test_requests_are_served_while_an_inval_waits_for_a_parked_read(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    client("park", "1")
    server.until(lambda status: status["parked"] == 1)
    blocked = [server.begin("inval", ino=3, flush=False) for _ in range(10)]  # more than the limiter has threads
    assert server.do("inval_on_loop")["refused"]
    assert cat(server.mountpoint, "bo") == bytes(16)
    assert not set(blocked) & set(server.answers)
    server.do("release", for_good=True)  # a READ whose page is dropped under it is sent again
    for number in blocked:
        assert server.result(number)["errno"] is None


@pytest.mark.mount
def test_after_an_abort_it_returns(serve: Callable[..., Server], client: Any) -> None:
    server = serve()
    client("park", "1")
    server.until(lambda status: status["parked"] == 1)
    blocked = server.begin("inval", ino=3, flush=False)
    server.do("status")
    assert tuning.abort_connection(server.connection) is None
    assert server.result(blocked)["errno"] is None
    answer = server.do("inval", ino=2)
    assert (answer["errno"], answer["known"], answer["flush_failures"]) == (None, False, 0)
    assert server.do("status")["connected"] is False


def test_a_mount_of_another_process_is_refused(serve: Callable[..., Server]) -> None:
    server = serve()
    with pytest.raises(TtmError, match="no descriptor of this process") as caught:
        SessionFd(server.mountpoint)
    assert caught.value.errno == errno.ENOENT


def test_a_closed_session_writes_nowhere() -> None:
    """The descriptor's number may belong to any file by then."""
    session = SessionFd.__new__(SessionFd)
    read_end, write_end = os.pipe()
    session.device, session._rdev, session._closed = os.dup(write_end), os.makedev(10, 229), False
    try:
        assert session.invalidate_inode(2) is False
        session.close()
        assert not session.connected
        os.set_blocking(read_end, False)
        with pytest.raises(BlockingIOError):
            os.read(read_end, 1)
    finally:
        os.close(read_end)
        os.close(write_end)


class Session:
    """Stands for a SessionFd whose INVALs last until told otherwise."""

    connected = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: set[int] = set()
        self.calls: list[tuple[int, int, int]] = []

    def invalidate_inode(self, ino: int, offset: int, length: int) -> bool:
        self.threads.add(threading.get_ident())
        self.calls.append((ino, offset, length))
        assert self.go.wait(10)
        return True


async def test_outstanding_invals_do_not_use_up_other_threads() -> None:
    session = Session()
    cache = PageCache(session)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        for ino in range(1, 61):
            nursery.start_soon(cache.invalidate, ino)
        with trio.fail_after(5):
            await trio.to_thread.run_sync(lambda: None)
            while len(session.calls) < 8:
                await trio.sleep(0.001)
        assert cache.statistics().outstanding == 60
        assert len(session.calls) == 8
        session.go.set()
    statistics = cache.statistics()
    assert (statistics.invals, statistics.outstanding) == (60, 0)
    assert threading.get_ident() not in session.threads


async def test_a_begun_inval_is_over_when_it_returns_even_if_cancelled() -> None:
    session = Session()
    cache = PageCache(session)  # type: ignore[arg-type]
    timer = threading.Timer(0.1, session.go.set)
    timer.start()
    with trio.move_on_after(0.01):
        await cache.invalidate(5)
    assert session.go.is_set()
    assert cache.statistics().outstanding == 0
    timer.join()


async def test_counts_by_inode_are_bounded() -> None:
    session = Session()
    session.go.set()
    cache = PageCache(session)  # type: ignore[arg-type]
    cache._by_inode.update(dict.fromkeys(range(10, 10 + 4096), 1))
    await cache.invalidate(3, 4096, 8192)
    await cache.invalidate(3)
    assert session.calls == [(3, 4096, 8192), (3, 0, 0)]
    assert cache.invalidations(3) == 2
    assert cache.invalidations(10) == 0
    assert len(cache._by_inode) == 4096
    cache.forget(3)
    assert cache.invalidations(3) == 0


class _NobodyHere:
    """A session in which nobody has anything cached."""

    connected = True

    def invalidate_inode(self, *_what: object) -> bool:
        return False

    def invalidate_entry(self, *_what: object) -> bool:
        return False


async def test_descriptors_that_do_not_close_are_few_and_hold_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close(2) may wait for a client's lock (H17) for as long as that client likes."""
    for ino in (1, 2):
        (tmp_path / str(ino)).write_bytes(b"x")
    released, real_close = threading.Event(), os.close

    def open_ones(ino: int) -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += os.readlink(f"/proc/self/fd/{name}") == str(tmp_path / str(ino))
        return found

    def close(fd: int) -> None:
        if threading.current_thread().name == "ttmfs-closer" and os.readlink(f"/proc/self/fd/{fd}").endswith("/1"):
            released.wait(60)
        real_close(fd)

    monkeypatch.setattr(os, "close", close)
    cache = PageCache(cast(SessionFd, _NobodyHere()), lambda ino: str(tmp_path / str(ino)))
    try:
        for _ in range(10):
            for ino in (1, 2):
                await cache.invalidate(ino)
        with trio.fail_after(20):
            while open_ones(2):
                await trio.sleep(0.001)
        assert open_ones(1) == 4
        assert cache.statistics().invals == 20, "the others wrote back page by page"
    finally:
        released.set()
    with trio.fail_after(20):
        while open_ones(1):
            await trio.sleep(0.001)

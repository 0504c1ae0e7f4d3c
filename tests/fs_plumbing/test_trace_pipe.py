"""Readers of trace_pipe: what one costs does not grow with how many wait, and no event is lost among them."""

import errno
import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ttmfs.errors import TtmError
from ttmfs.fs.tree import trace_pipe
from ttmfs.fs.tree.trace_pipe import MAX_READERS, PipeHandle, TracePipe
from ttmfs.observe.trace import Trace


def make() -> tuple[Trace, TracePipe]:
    trace = Trace()
    trace.start()
    return trace, TracePipe(trace)


class Readers:
    """`count` blocked readers; `got` is what each read returned, or the name of its errno."""

    def __init__(self, pipe: TracePipe, count: int, nursery: trio.Nursery) -> None:
        self.got: list[bytes | str] = []
        self.pipe = pipe
        for pid in range(count):
            nursery.start_soon(self._read, pid)

    async def _read(self, pid: int) -> None:
        try:
            self.got.append(await PipeHandle(self.pipe, pid, blocking=True).read(0, 4096))
        except TtmError as error:
            self.got.append(error.name)


async def test_an_event_wakes_one_reader() -> None:
    trace, pipe = make()
    looks: list[int] = []
    real = trace.consume
    async with trio.open_nursery() as nursery:
        readers = Readers(pipe, 200, nursery)
        await wait_all_tasks_blocked()

        def consume(size: int) -> bytes:
            looks.append(1)
            return real(size)

        pipe.trace = CountingTrace(trace, consume)  # type: ignore[assignment]
        for number in range(50):
            trace.emit("evict", f"bo{number}")
            await wait_all_tasks_blocked()
        assert len(readers.got) == 50
        assert len(looks) <= 100, "each event was looked at by those who wait in vain"
        assert b"".join(map(bytes, readers.got)).count(b"evict") == 50  # type: ignore[arg-type]
        pipe.close()
    assert readers.got[50:] == [b""] * 150


class CountingTrace:
    def __init__(self, trace: Trace, consume: object) -> None:
        self._trace = trace
        self.consume = consume

    def __getattr__(self, name: str) -> object:
        return getattr(self._trace, name)


async def test_events_that_come_at_once_reach_as_many_readers_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, pipe = make()
    monkeypatch.setattr(trace_pipe, "_READ_BYTES", 1)  # one line a read
    async with trio.open_nursery() as nursery:
        readers = Readers(pipe, 10, nursery)
        await wait_all_tasks_blocked()
        for number in range(7):
            trace.emit("evict", f"bo{number}")
        await wait_all_tasks_blocked()
        assert len(readers.got) == 7
        assert not trace.ring
        pipe.close()


async def test_a_signaled_reader_passes_its_event_on(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, pipe = make()
    signaled = {3, 4}
    monkeypatch.setattr(trace_pipe, "signal_pending", lambda pid: pid in signaled)
    monkeypatch.setattr(trace_pipe, "_signaled_holder", lambda: False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.watch_signals)
        readers = Readers(pipe, 6, nursery)
        while len(readers.got) < 2:
            await trio.sleep(0.05)
        assert readers.got == ["EINTR", "EINTR"]
        for number in range(4):
            trace.emit("evict", f"bo{number}")
            await trio.sleep(0.01)
        assert len(readers.got) == 6
        nursery.cancel_scope.cancel()


async def test_a_reader_that_is_signaled_and_woken_at_once_loses_no_event() -> None:
    trace, pipe = make()
    async with trio.open_nursery() as nursery:
        readers = Readers(pipe, 2, nursery)
        await wait_all_tasks_blocked()
        first = next(iter(pipe._readers))
        trace.emit("evict", "bo")  # wakes the first
        first.signaled = True
        first.scope.cancel()
        await wait_all_tasks_blocked()
        assert sorted(map(str, readers.got))[0] == "EINTR"
        assert len(readers.got) == 2, "the other one got the event"


async def test_too_many_readers_are_told_so() -> None:
    trace, pipe = make()
    async with trio.open_nursery() as nursery:
        readers = Readers(pipe, MAX_READERS + 3, nursery)
        await wait_all_tasks_blocked()
        assert readers.got == ["EAGAIN"] * 3
        handle = PipeHandle(pipe, os.getpid(), blocking=False)
        with pytest.raises(TtmError) as caught:
            await handle.read(0, 100)
        assert caught.value.errno == errno.EAGAIN
        trace.emit("evict", "bo")
        await wait_all_tasks_blocked()
        assert len(readers.got) == 4
        pipe.close()


async def test_a_line_longer_than_a_read_comes_in_pieces() -> None:
    trace, pipe = make()
    trace.emit("evict", "bo" * 100)
    expected = trace.ring[0].line(os.getpid()).encode()
    handle = PipeHandle(pipe, 0, blocking=True)
    parts = [await handle.read(0, 50)]
    while len(parts[-1]) == 50:
        parts.append(await handle.read(0, 50))
    assert b"".join(parts) == expected

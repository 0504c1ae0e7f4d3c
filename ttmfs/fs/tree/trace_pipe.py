"""trace_pipe: the trace as a stream that is consumed by being read, as ftrace's.

A read blocks until there is an event; readers share the stream, each event goes to one of them. An event wakes one
reader, which wakes the next if there is more: what a reader costs does not grow with how many wait. O_NONBLOCK at open
gives EAGAIN instead of waiting; poll, select and epoll work. A reader that is signaled gets EINTR, which matters most
when it is killed: the kernel does not let go of it before its READ is answered. Requests tell no process, so it is the
openers that are looked at, and, now and then, whoever else has a trace_pipe open. When the mount goes down, reads end
with end of file. What is opened while nothing is recorded is at its end at once, and takes nothing: `grep -r` ends.
"""

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.kernel.processes import signal_pending
from ttmfs.fs.kernel.rights import Rights
from ttmfs.fs.tree.nodes import VirtualFile
from ttmfs.observe.trace import Trace
from ttmfs.sync.bell import Bell

NAME: Final = "trace_pipe"
MAX_READERS: Final = 256
"""Reads that may wait at once: each takes one of the requests that a mount can have waiting (H8)."""
_LOOK_SECONDS: Final = 0.05
_SCAN_LOOKS: Final = 20
"""Every so many looks at the openers one at everybody who has the file open."""
_READ_BYTES: Final = 64 << 10
"""Bytes of one read: making so many lines takes a few milliseconds."""

READABLE: Final = select.POLLIN | select.POLLRDNORM


class Wakeup(Protocol):
    """What the kernel gave to announce that a polled file has become readable (pyfuse3.PollHandle)."""

    def notify(self) -> None:
        """Announce it, once."""


class _Reader:
    """A read that waits: who opened the file, and how to end the wait."""

    __slots__ = ("pid", "scope", "signaled")

    def __init__(self, pid: int, scope: trio.CancelScope) -> None:
        self.pid = pid
        self.scope = scope
        self.signaled = False


class TracePipe:
    """The stream of one mount and everybody who waits for it; `watch_signals` is its task."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.closed = False
        self._readers: dict[_Reader, None] = {}
        self._came = Bell()
        """For who looks at the signals of those who wait."""
        self._lot = trio.lowlevel.ParkingLot()
        self._polls: dict[PipeHandle, Wakeup] = {}

    async def read(self, pid: int, size: int) -> bytes:
        """Lines, `size` bytes at most but at least one line, as soon as there are any; b"" at the end.

        TtmError: EINTR the process `pid` was signaled, EAGAIN too many wait.
        """
        while not (data := self.trace.consume(size)) and not self.closed:
            with self._waiting(pid) as reader:
                self._next()
                await self._lot.park()
            if reader.signaled:
                # It may have been woken for an event at the same time.
                self._next()
                raise TtmError(errno.EINTR, "a process that reads trace_pipe was signaled")
        self._next()
        return data

    @contextmanager
    def _waiting(self, pid: int) -> Iterator[_Reader]:
        if len(self._readers) >= MAX_READERS:
            raise TtmError(errno.EAGAIN, f"{MAX_READERS} reads of trace_pipe wait already")
        with trio.CancelScope() as scope:
            reader = _Reader(pid, scope)
            self._readers[reader] = None
            self._came.ring()
            try:
                yield reader
            finally:
                del self._readers[reader]

    def _next(self) -> None:
        """Let one reader look if there is something to see, all at the end; else be told of the next event."""
        if self.closed:
            self._lot.unpark_all()
        elif self.trace.ring:
            self._lot.unpark()
        elif self._readers or self._polls:
            self.trace.when_ready(self._wake)

    def _wake(self) -> None:
        """An event came, or the end. Called wherever an event is emitted, so it never raises."""
        self._next()
        polls, self._polls = self._polls, {}
        for wakeup in polls.values():
            try:
                wakeup.notify()
            except Exception:  # the connection is gone: nobody waits there any more
                self.closed = True

    def watch(self, handle: "PipeHandle", wakeup: Wakeup) -> None:
        """Notify a poller at the next event; a newer request of the same open file takes the place of the older."""
        self._polls[handle] = wakeup
        self.trace.when_ready(self._wake)

    def unwatch(self, handle: "PipeHandle") -> None:
        """The file was closed."""
        self._polls.pop(handle, None)

    async def watch_signals(self) -> None:
        """Background: end reads whose process has a signal pending. One look at all of them, in a thread."""
        pause, looks = _LOOK_SECONDS, 0
        while True:
            while not self._readers:
                await self._came.heard()
            await trio.sleep(pause)
            looks += 1
            waiting = tuple(self._readers)
            started = trio.current_time()
            try:
                found = await trio.to_thread.run_sync(
                    _signaled, waiting, looks % _SCAN_LOOKS == 0, abandon_on_cancel=True
                )
            except RuntimeError:
                # No thread is to be had just now.
                found = ()
            for reader in found:
                reader.signaled = True
                reader.scope.cancel()
            pause = max(_LOOK_SECONDS, 10 * (trio.current_time() - started))

    def close(self) -> None:
        """The mount goes down: reads end, and so do polls."""
        self.closed = True
        self._wake()


class PipeHandle:
    """One open trace_pipe. `rest` is what did not fit into the last read: less than a line."""

    def __init__(self, pipe: TracePipe, pid: int, *, blocking: bool) -> None:
        self._pipe = pipe
        self._ended = not pipe.trace.on
        self._pid = pid
        self._blocking = blocking
        self._rest = b""

    size: Final = 0

    def told(self) -> None:
        """It is read where it is: nobody is given an older one."""

    async def take(self) -> None:
        """Nothing is kept."""

    async def read(self, offset: int, size: int) -> bytes:
        """The next lines; offsets mean nothing. TtmError: EAGAIN would block, EINTR a reader was signaled."""
        del offset
        pipe = self._pipe
        if self._ended:
            return b""
        if not (self._blocking or self._rest or pipe.trace.ring or pipe.closed):
            raise TtmError(errno.EAGAIN, "no event yet, and trace_pipe was opened with O_NONBLOCK")
        data = self._rest or await pipe.read(self._pid, min(size, _READ_BYTES))
        self._rest = data[size:]
        return data[:size]

    async def write(self, offset: int, data: bytes) -> int:
        """It is a file to read."""
        raise TtmError(errno.EACCES, "trace_pipe is read-only; ctl/trace says what is recorded")

    def poll(self, wakeup: Wakeup | None) -> int:
        """Events that are ready now (POLLIN, POLLHUP); else 0, and `wakeup` is notified when that changes."""
        pipe = self._pipe
        if pipe.closed or self._ended:
            return READABLE | select.POLLHUP
        if self._rest or pipe.trace.ring:
            return READABLE
        if wakeup is not None:
            pipe.watch(self, wakeup)
        return 0

    def close(self) -> None:
        """The last descriptor is gone."""
        self._pipe.unwatch(self)


class PipeFile(VirtualFile):
    """The node of trace_pipe."""

    def __init__(self, pipe: TracePipe, rights: Rights) -> None:
        super().__init__(
            lambda opening: PipeHandle(pipe, opening.pid, blocking=not opening.flags & os.O_NONBLOCK), rights
        )


def _signaled(waiting: tuple[_Reader, ...], scan: bool) -> tuple[_Reader, ...]:
    """Reads whose opener has a signal pending; at a `scan` all, if anybody who may be the reader has."""
    if scan and _signaled_holder():
        return waiting
    return tuple(reader for reader in waiting if signal_pending(reader.pid))


def _signaled_holder() -> bool:
    """Has a process with a trace_pipe open a signal pending? Runs in a thread: it looks at all processes.

    False too while the daemon has no descriptor left to look with: the next scan finds it.
    """
    try:
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return False
    return any(signal_pending(int(pid)) and _holds_pipe(pid) for pid in pids)


def _holds_pipe(pid: str) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            return any(os.readlink(entry.path).endswith(f"/{NAME}") for entry in descriptors)
    except OSError:
        return False

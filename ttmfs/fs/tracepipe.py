"""trace_pipe: the trace as a stream that is consumed by being read, as ftrace's.

A read blocks until there is an event, however many readers there are: they share the stream, each event goes to one of
them. O_NONBLOCK at open gives EAGAIN instead; poll, select and epoll work. A reader that is signaled gets EINTR, which
matters most when it is killed: the kernel does not let go of it before its READ is answered. Requests tell no process,
so it is the opener that is looked at, and, now and then, whoever else has a trace_pipe open. When the mount goes down,
reads end with end of file.
"""

import errno
import os
import select
from typing import Final, Protocol

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.nodes import Handle, VirtualFile
from ttmfs.fs.signals import signal_pending
from ttmfs.observe.trace import Trace

NAME: Final = "trace_pipe"
_LOOK_SECONDS: Final = 0.05
_SCAN_LOOKS: Final = 20
"""Every so many looks at the opener one at everybody who has the file open."""

READABLE: Final = select.POLLIN | select.POLLRDNORM


class Wakeup(Protocol):
    """What the kernel gave to announce that a polled file has become readable (pyfuse3.PollHandle)."""

    def notify(self) -> None:
        """Announce it, once."""


class TracePipe:
    """The stream of one mount and everybody who waits for it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.closed = False
        self._arrived = trio.Event()
        self._polls: dict[PipeHandle, Wakeup] = {}

    def _wake(self) -> None:
        """An event came, or the end: everybody looks again. Called wherever an event is emitted, so it never raises."""
        self._arrived.set()
        self._arrived = trio.Event()
        polls, self._polls = self._polls, {}
        for wakeup in polls.values():
            try:
                wakeup.notify()
            except Exception:  # the connection is gone: nobody waits there any more
                self.closed = True

    async def arrival(self) -> None:
        """Until an event is emitted or the pipe is closed."""
        self.trace.when_ready(self._wake)
        await self._arrived.wait()

    def watch(self, handle: "PipeHandle", wakeup: Wakeup) -> None:
        """Notify a poller at the next event; a newer request of the same open file takes the place of the older."""
        self._polls[handle] = wakeup
        self.trace.when_ready(self._wake)

    def unwatch(self, handle: "PipeHandle") -> None:
        """The file was closed."""
        self._polls.pop(handle, None)

    def close(self) -> None:
        """The mount goes down: reads end, and so do polls."""
        self.closed = True
        self._wake()


class PipeHandle:
    """One open trace_pipe. `rest` is what did not fit into the last read: less than a line."""

    def __init__(self, pipe: TracePipe, pid: int, *, blocking: bool) -> None:
        self._pipe = pipe
        self._pid = pid
        self._blocking = blocking
        self._rest = b""

    async def read(self, offset: int, size: int) -> bytes:
        """The next lines; offsets mean nothing. TtmError: EAGAIN would block, EINTR a reader was signaled."""
        del offset
        pipe = self._pipe
        looks = 0
        while not (data := self._rest or pipe.trace.consume(size)):
            if pipe.closed:
                return b""
            if not self._blocking:
                raise TtmError(errno.EAGAIN, "no event yet, and trace_pipe was opened with O_NONBLOCK")
            with trio.move_on_after(_LOOK_SECONDS) as scope:
                await pipe.arrival()
            if scope.cancelled_caught:
                looks += 1
                await self._look(scan=looks % _SCAN_LOOKS == 0)
        self._rest = data[size:]
        return data[:size]

    async def _look(self, *, scan: bool) -> None:
        """TtmError(EINTR) when the opener, or at a `scan` anybody who may be the reader, has a signal pending."""
        signaled = signal_pending(self._pid)
        if scan and not signaled:
            signaled = await trio.to_thread.run_sync(_signaled_holder, abandon_on_cancel=True)
        if signaled:
            raise TtmError(errno.EINTR, "a process that reads trace_pipe was signaled")

    async def write(self, offset: int, data: bytes) -> int:
        """It is a file to read."""
        raise TtmError(errno.EACCES, "trace_pipe is read-only; ctl/trace says what is recorded")

    def poll(self, wakeup: Wakeup | None) -> int:
        """Events that are ready now (POLLIN, POLLHUP); else 0, and `wakeup` is notified when that changes."""
        pipe = self._pipe
        if pipe.closed:
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

    def __init__(self, pipe: TracePipe, *, uid: int, gid: int) -> None:
        super().__init__(lambda pid: PipeHandle(pipe, pid, blocking=True), 0o444, uid=uid, gid=gid)
        self._pipe = pipe

    def open(self, pid: int, flags: int) -> Handle:
        """A handle of its own; the stream is shared."""
        return PipeHandle(self._pipe, pid, blocking=not flags & os.O_NONBLOCK)


def _signaled_holder() -> bool:
    """Has a process with a trace_pipe open a signal pending? Runs in a thread: it looks at all processes."""
    pids = filter(str.isdecimal, os.listdir("/proc"))
    return any(signal_pending(int(pid)) and _holds_pipe(pid) for pid in pids)


def _holds_pipe(pid: str) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            return any(os.readlink(entry.path).endswith(f"/{NAME}") for entry in descriptors)
    except OSError:
        return False

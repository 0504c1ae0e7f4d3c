"""DeviceLoop: while large WRITEs follow each other, requests are read from /dev/fuse here, and what only moves bytes is
answered here as well.

pyfuse3 takes a WRITE's bytes through a buffer of libfuse's into an object of Python's before a handler sees them. Here
they are copied from the buffer to where they belong. So some WRITEs that were large, and waited for nothing, begin a
stream: from then on the session loop's wait (session_loop.py) has `take` read the device, and READs and WRITEs that
wait for nothing are answered at once. The first request that is something else, or would have to wait, goes to pyfuse3
as it came (StandIn), which answers it as if it had read the device, and the stream has ended: for anything but WRITEs
pyfuse3's way is as short, and to hand over costs several microseconds, and two more copies of what a WRITE brings.

`take` neither awaits nor blocks: in a stream reads of the device do not block, so a request that is withdrawn between
poll and read (H9) is one that is not there. Nothing of a request is kept from one call to the next.
"""

import errno
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import pyfuse3

from ttmfs.fs.kernel import wire
from ttmfs.fs.kernel.session_loop import Source
from ttmfs.fs.kernel.stand_in import Buffer, StandIn

log = logging.getLogger(__name__)

_LINGER_S: Final = 3e-10
"""Seconds a byte that a client needs to copy what it writes next: as long as it cannot have come back sooner."""
STREAM_BEGINS: Final = 4
"""Large WRITEs before it: so few streams end at once that what their ends cost is nothing beside."""
_WITHDRAWN: Final = (errno.EAGAIN, errno.ENOENT, errno.EINTR)
_NOBODY_WAITS: Final = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED)
"""A reply to a request whose client was killed, or of a mount that has ended."""


class Answers(Protocol):
    """Who answers requests. The first two do not await; a FUSEError of theirs is answered as such."""

    def read_at_once(self, fh: int, off: int, size: int) -> Buffer | None:
        """What to answer; None: it would have to wait, or is not a file's bytes."""

    def write_at_once(self, fh: int, off: int, data: Buffer) -> bool:
        """Has it been written?"""

    def before_next(self, call: Callable[[], None]) -> None:
        """The first thing that happens when pyfuse3 next asks for an answer is `call`."""


@dataclass
class DeviceStatistics:
    """`streams` that have begun; in them, requests `answered` here, `handed_over` to pyfuse3, and `refused` (ENOSYS) as
    nobody here knows them.
    """

    streams: int = 0
    answered: int = 0
    handed_over: int = 0
    refused: int = 0


class DeviceLoop:
    """The streams of one session. `device` is its /dev/fuse, `max_write` as INIT has agreed; `take_over` says who reads
    from now on (None: pyfuse3).
    """

    def __init__(
        self,
        device: int,
        stand_in: StandIn,
        answers: Answers,
        max_write: int,
        take_over: Callable[[Source | None], None],
    ) -> None:
        self._device = device
        self._stand_in = stand_in
        self._answers = answers
        self._take_over = take_over
        self.statistics = DeviceStatistics()
        self.linger_s = 0.0
        """How long the client that was answered last is busy before it can ask again, at least."""
        self._head = bytearray(wire.DATA_REQUEST.size)
        # Aligned to pages, or the kernel would copy each page of a WRITE in two pieces.
        self._body = memoryview(mmap.mmap(-1, max_write + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._buffers = (self._head, self._body)
        self._out = bytearray(wire.OUT_HEADER.size)
        self._streaming = False
        self._seen = 0
        """Large WRITEs since the last stream."""

    def large_write(self) -> None:
        """One has come through pyfuse3 and waited for nothing: after some of them the next may, too."""
        self._seen += 1
        if self._seen >= STREAM_BEGINS:
            self.begin()

    def begin(self) -> None:
        """A stream."""
        if not self._streaming:
            self._streaming = True
            self.statistics.streams += 1
            os.set_blocking(self._device, False)
            self._take_over(self)

    def _end(self) -> None:
        """pyfuse3 reads again; to it a read that would block is an error."""
        self._streaming = False
        self._seen = 0
        self.linger_s = 0.0
        os.set_blocking(self._device, True)
        self._stand_in.back()
        self._take_over(None)

    def take(self) -> bool:
        """Is pyfuse3 to read a request? If not, one has been answered, or there was none."""
        if self._stand_in.length:
            return self._pass_on_reply()
        try:
            length = os.readv(self._device, self._buffers)
        except OSError as error:
            if error.errno in _WITHDRAWN:
                return False
            # The end of the mount: pyfuse3 finds the same, and knows what to do.
            self._end()
            return True
        _, opcode, unique, _, _, _, _, _, fh, off, size = wire.DATA_REQUEST.unpack_from(self._head)
        self.linger_s = 0.0
        try:
            if opcode == wire.READ:
                done = self._read(unique, fh, off, size)
            elif opcode == wire.WRITE:
                done = self._write(unique, fh, off, self._body[: length - len(self._head)])
            elif opcode in wire.WITH_HANDLER:
                done = False
            else:
                # INTERRUPT among them: nothing here acts on one, and after this the kernel sends no more.
                self.statistics.refused += 1
                return self._refuse(unique, errno.ENOSYS)
        except pyfuse3.FUSEError as error:
            return self._refuse(unique, error.errno)
        if done:
            self.statistics.answered += 1
            return False
        return self._hand_over(opcode, unique, length)

    def _read(self, unique: int, fh: int, off: int, size: int) -> bool:
        data = self._answers.read_at_once(fh, off, size)
        if data is None:
            return False
        wire.OUT_HEADER.pack_into(self._out, 0, len(self._out) + len(data), 0, unique)
        self._send(self._out, data)
        return True

    def _write(self, unique: int, fh: int, off: int, data: Buffer) -> bool:
        if not self._answers.write_at_once(fh, off, data):
            return False
        self._send(wire.WRITE_REPLY.pack(wire.WRITE_REPLY.size, 0, unique, len(data), 0))
        self.linger_s = len(data) * _LINGER_S
        return True

    def _hand_over(self, opcode: int, unique: int, length: int) -> bool:
        head = len(self._head)
        try:
            self._stand_in.put((memoryview(self._head)[:length], self._body[: max(length - head, 0)]))
        except (OSError, MemoryError) as error:
            log.error("request %d (opcode %d) could not be handed over: %s", unique, opcode, error)
            if opcode not in (wire.FORGET, wire.BATCH_FORGET):  # these have no answer
                self._refuse(unique, errno.ENOMEM)
            return False
        self.statistics.handed_over += 1
        self._answers.before_next(self._end)
        return True

    def _refuse(self, unique: int, number: int) -> bool:
        """Answer with this errno; False, as there is nothing for pyfuse3 to read."""
        self._send(wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -number, unique))
        return False

    def _pass_on_reply(self) -> bool:
        """No handler was called: libfuse has answered by itself, if it had to. False: there may be no request."""
        reply = self._stand_in.reply()
        self._end()
        if reply:
            self._send(reply)
        return False

    def _send(self, *reply: Buffer) -> None:
        try:
            os.writev(self._device, reply)
        except OSError as error:
            if error.errno not in _NOBODY_WAITS:
                # The kernel has ended the request with EIO.
                log.error("a reply was not taken: %s", error)

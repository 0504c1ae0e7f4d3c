"""StandIn: a file in the session descriptor's place, from which libfuse reads a request that somebody else has taken
off the device.

`put` swaps it in, and the next read of libfuse finds that request; `back` swaps the device in again. Between the two
there is no await, so nobody but the task that called `put` reads or writes the descriptor meanwhile: it goes on in
pyfuse3, which reads the request and calls the handler for it, and the first thing of that is `back`
(Operations.before_next). Replies therefore go straight to the kernel, as ever. What libfuse answers without a handler
is in the file behind the request (`reply`).

A file and no socket or pipe: it holds a request of any length and refuses none for want of room, whoever mounts.
"""

import os
from collections.abc import Sequence
from typing import Final

_READ_BYTES: Final = 1 << 17

Buffer = bytes | bytearray | memoryview


class StandIn:
    """For the descriptor `session_fd`; `device` is another descriptor of the same open /dev/fuse."""

    def __init__(self, session_fd: int, device: int) -> None:
        self._session_fd = session_fd
        self._device = device
        self._file = os.memfd_create("ttmfs-request")
        self.length = 0
        """Bytes of the request that it shows; 0: the device is in its place."""

    def put(self, request: Sequence[Buffer]) -> None:
        """Let libfuse read this request, which is in pieces. OSError (no memory): nothing has happened."""
        length = sum(map(len, request))
        os.ftruncate(self._file, length)
        if os.pwritev(self._file, request, 0) != length:
            raise MemoryError("a request was not taken over whole")
        os.lseek(self._file, 0, os.SEEK_SET)
        os.dup2(self._file, self._session_fd, inheritable=False)
        self.length = length

    def back(self) -> None:
        """The device is in its place again (nothing happens if it is)."""
        if self.length:
            os.dup2(self._device, self._session_fd, inheritable=False)
            self.length = 0

    def reply(self) -> bytes:
        """What libfuse has written since `put`; the device is in its place again."""
        length = self.length
        self.back()
        return os.pread(self._file, _READ_BYTES, length) if length else b""

    def close(self) -> None:
        """The device is in its place, for good."""
        self.back()
        os.close(self._file)

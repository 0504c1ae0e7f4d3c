"""Handshake: what INIT agrees on, where libfuse has no word for it.

Two fields of the INIT reply matter here, and neither pyfuse3 nor the libfuse of today's distributions can set them:

* FUSE_HANDLE_KILLPRIV_V2. Without it the kernel asks for `security.capability` before each write(2), one more round
  trip for every pwrite of a page. With it the file system promises to clear set-user-ID bits itself: files here never
  have any (see `Entry.set_mode`), so there is nothing to clear.
* max_background and congestion_threshold. Without them twelve READs that wait stop all others; root can raise them
  afterwards through fusectl, a mount without root only here (the kernel caps them at its own limit for users).

`Handshake.wait` stands in for the readiness wait of pyfuse3's session loop until INIT is answered: it takes the request
off the session descriptor, lets libfuse answer it into a socket in the descriptor's place, changes the reply and hands
it to the kernel. All of it happens between two waits of one task, without an await, so nobody else sees the socket.
What it does not understand it passes on as it is.
"""

import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import pyfuse3

_WAIT: Final = "_wait_fuse_readable"
_REQUEST_BYTES: Final = 1 << 17
_FUSE_INIT: Final = 26
_HANDLE_KILLPRIV_V2: Final = 1 << 28
BACKGROUND: Final = 65535
"""Requests that may wait at once."""
_IN_HEADER: Final = struct.Struct("=IIQQIIII")
_INIT_IN: Final = struct.Struct("=IIII")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_OUT: Final = struct.Struct("=IIIIHH")
"""major, minor, max_readahead, flags, max_background, congestion_threshold; more follows."""


def patched_reply(request: bytes, reply: bytes) -> bytes:
    """The INIT `reply` with what this module adds; as it is when either is not what it should be."""
    if len(request) < _IN_HEADER.size + _INIT_IN.size or len(reply) < _OUT_HEADER.size + _INIT_OUT.size:
        return reply
    opcode = _IN_HEADER.unpack_from(request)[1]
    offered = _INIT_IN.unpack_from(request, _IN_HEADER.size)[3]
    length, error, _unique = _OUT_HEADER.unpack_from(reply)
    if opcode != _FUSE_INIT or error or length != len(reply):
        return reply
    major, minor, readahead, flags, _background, _congestion = _INIT_OUT.unpack_from(reply, _OUT_HEADER.size)
    flags |= offered & _HANDLE_KILLPRIV_V2
    changed = bytearray(reply)
    _INIT_OUT.pack_into(changed, _OUT_HEADER.size, major, minor, readahead, flags, BACKGROUND, BACKGROUND)
    return bytes(changed)


class Handshake:
    """One INIT. `install` between `pyfuse3.init()` and `pyfuse3.main()`, after any other wait was installed."""

    def __init__(self, session_fd: int) -> None:
        self._fd = session_fd
        self._then: Callable[[], Awaitable[bool]] = getattr(pyfuse3, _WAIT)
        self._device = -1
        self._ours: socket.socket | None = None
        self._request = b""
        self.done = False
        """INIT was answered with what this module adds."""

    def install(self) -> None:
        """From now on `wait` is what the session loop calls, until INIT is answered."""
        setattr(pyfuse3, _WAIT, self.wait)

    async def wait(self) -> bool:
        """As the wait that it stands in for."""
        if self._ours is None:
            if not self._begin():
                return await self._go_on()
            return True
        if not select.select([self._ours], [], [], 0)[0]:
            # The read was interrupted: INIT is still there.
            return True
        self._finish()
        return await self._go_on()

    async def _go_on(self) -> bool:
        setattr(pyfuse3, _WAIT, self._then)
        return await self._then()

    def _begin(self) -> bool:
        """Put a socket with the INIT request in the descriptor's place; False when there is no request yet."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if not poller.poll(0):
            return False
        self._request = os.read(self._fd, _REQUEST_BYTES)
        self._device = os.dup(self._fd)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), self._fd)
        self._ours.send(self._request)
        return True

    def _finish(self) -> None:
        """Hand the kernel libfuse's answer, and libfuse its descriptor back."""
        assert self._ours is not None
        try:
            reply = self._ours.recv(_REQUEST_BYTES)
        finally:
            self._ours.close()
            os.dup2(self._device, self._fd, inheritable=False)
            os.close(self._device)
        patched = patched_reply(self._request, reply)
        os.write(self._fd, patched)
        self.done = patched != reply

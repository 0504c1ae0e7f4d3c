"""Handshake: what INIT agrees on, where libfuse has no word for it.

Two fields of the INIT reply matter here, and neither pyfuse3 nor the libfuse of today's distributions can set them:

* FUSE_HANDLE_KILLPRIV_V2. Without it the kernel asks for `security.capability` before each write(2), one more round
  trip for every pwrite of a page. With it the file system promises to clear set-user-ID bits itself: files here never
  have any (see `Entry.set_mode`), so there is nothing to clear.
* max_background and congestion_threshold. Without them twelve READs that wait stop all others; root can raise them
  afterwards through fusectl, a mount without root only here (the kernel caps them at its own limit for users).

`Handshake.wait` stands in for the readiness wait of pyfuse3's session loop until INIT is answered: it takes the request
off the device, lets libfuse answer it into a StandIn, changes the reply and hands it to the kernel. All of it happens
between two waits of one task, without an await. What it does not understand it passes on as it is.
"""

import os
import select
from collections.abc import Awaitable, Callable
from typing import Final

import pyfuse3

from ttmfs.fs.kernel import wire
from ttmfs.fs.kernel.stand_in import StandIn

_WAIT: Final = "_wait_fuse_readable"
_REQUEST_BYTES: Final = 1 << 17
_HANDLE_KILLPRIV_V2: Final = 1 << 28
BACKGROUND: Final = 65535
"""Requests that may wait at once."""


def patched_reply(request: bytes, reply: bytes) -> bytes:
    """The INIT `reply` with what this module adds; as it is when either is not what it should be."""
    agreed = _agreed(request, reply)
    if agreed is None:
        return reply
    major, minor, readahead, flags, _background, _congestion, max_write = agreed
    flags |= wire.INIT_IN.unpack_from(request, wire.IN_HEADER.size)[3] & _HANDLE_KILLPRIV_V2
    changed = bytearray(reply)
    wire.INIT_OUT.pack_into(
        changed, wire.OUT_HEADER.size, major, minor, readahead, flags, BACKGROUND, BACKGROUND, max_write
    )
    return bytes(changed)


def _agreed(request: bytes, reply: bytes) -> tuple[int, ...] | None:
    """What the reply to an INIT says (wire.INIT_OUT); None if they are no such two."""
    if len(request) < wire.IN_HEADER.size + wire.INIT_IN.size or len(reply) < wire.OUT_HEADER.size + wire.INIT_OUT.size:
        return None
    opcode = wire.IN_HEADER.unpack_from(request)[1]
    length, error, _unique = wire.OUT_HEADER.unpack_from(reply)
    if opcode != wire.INIT or error or length != len(reply):
        return None
    return wire.INIT_OUT.unpack_from(reply, wire.OUT_HEADER.size)


class Handshake:
    """One INIT, read from `device`. `agreed(max_write)` is called when it is answered with what this module adds.

    `install` between `pyfuse3.init()` and `pyfuse3.main()`, after any other wait was installed.
    """

    def __init__(self, device: int, stand_in: StandIn, agreed: Callable[[int], object]) -> None:
        self._device = device
        self._stand_in = stand_in
        self._agreed = agreed
        self._then: Callable[[], Awaitable[bool]] = getattr(pyfuse3, _WAIT)
        self._request = b""
        self.done = False
        """INIT was answered with what this module adds."""

    def install(self) -> None:
        """From now on `wait` is what the session loop calls, until INIT is answered."""
        setattr(pyfuse3, _WAIT, self.wait)

    async def wait(self) -> bool:
        """As the wait that it stands in for."""
        if self._begin():
            return True
        if self._request:
            self._finish()
        setattr(pyfuse3, _WAIT, self._then)
        return await self._then()

    def _begin(self) -> bool:
        """Let libfuse read INIT; False when it has, or there is no request yet."""
        poller = select.poll()
        poller.register(self._device, select.POLLIN)
        if self._request or not poller.poll(0):
            return False
        self._request = os.read(self._device, _REQUEST_BYTES)
        self._stand_in.put([self._request])
        return True

    def _finish(self) -> None:
        """Hand the kernel libfuse's answer."""
        reply = self._stand_in.reply()
        patched = patched_reply(self._request, reply)
        os.write(self._device, patched)
        agreed = _agreed(self._request, reply)
        if agreed is not None:
            self.done = True
            self._agreed(agreed[-1])

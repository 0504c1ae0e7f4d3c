"""ForeignTT: the pages of a file that is somebody else's, for imported BOs and for what VMs bind of other files.

Its bytes are read and written in worker threads, each time anew, and never mapped: who cuts the file costs whoever uses
it an EIO, and nobody anything else. What a file is waited for is bounded by the fault timeout; the thread goes its way.
"""

import errno
from collections.abc import Callable
from typing import TypeVar

import trio

from ttmfs.driver.hardware import Hardware
from ttmfs.errors import TtmError
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.sync.offload import Lane
from ttmfs.ttm.external import ExternalTT
from ttmfs.units import pages_of

T = TypeVar("T")
F = TypeVar("F", bound=ForeignFile)


class ForeignTT(ExternalTT):
    """`size` bytes of `file` from `base` on; `lane` has the threads that may wait for it."""

    __slots__ = ("_base", "_file", "_hw", "_lane")

    def __init__(
        self, hw: Hardware, file: ForeignFile, lane: Lane, *, base: int = 0, size: int, mappable: bool
    ) -> None:
        super().__init__(hw.pool, pages_of(size), mappable=mappable)
        self._hw = hw
        self._file = file
        self._lane = lane
        self._base = base

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        """See ExternalTT; a file that was cut is EIO."""
        file = self._file
        return await self._in_thread(lambda: file.read(self._base + offset, size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """See ExternalTT. `data` must stay as it is even when this has given up."""
        file = self._file
        await self._in_thread(lambda: file.write(self._base + offset, data))

    async def check_whole(self) -> None:
        """See ExternalTT."""
        await self._in_thread(self._file.check_whole)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        seconds = self._hw.config.fault_timeout
        with trio.move_on_after(seconds):
            return await self._lane.run(work)
        raise TtmError(errno.EIO, f"{self._file.path} did not answer within {seconds:g} s")

    def fini(self) -> None:
        """Let go of the file."""
        self._file.close()


async def open_in_thread(lane: Lane, opening: Callable[[], F]) -> F:
    """Open a file in a thread: that may wait for a disk, or for whoever serves that path.

    The caller's bound ends it; a file that is opened after that is closed at once.
    """
    given_up = False
    opened: list[F] = []

    def work() -> F:
        file = opening()
        opened.append(file)
        if given_up:
            file.close()
        return file

    try:
        return await lane.run(work)
    except trio.Cancelled:
        given_up = True
        for file in opened:
            file.close()
        raise

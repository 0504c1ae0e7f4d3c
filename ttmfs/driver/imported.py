"""Imported BOs: the memory of another file as a BO (the sg type, a dma-buf of another exporter).

The pages are the exporter's: such a BO is never evicted, swapped, backed up, moved or resized. The CPU may touch it
only if it was imported `mappable`; else a fault is SIGBUS (EIO), and only jobs of the device reach it. Its bytes are
read and written in worker threads, each time anew, and never mapped: an exporter that cuts its file costs whoever uses
the BO an EIO, and nobody anything else. The BO has the owner and the mode of the file.
"""

import errno
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.errors import TtmError
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.sync.offload import Lane
from ttmfs.ttm.external import ExternalTT
from ttmfs.units import pages_of

_THREADS: Final = 4
"""Threads that may wait for one exporter at a time: one that does not answer holds up no other."""

_OPENING: Final = Lane("import", 40, abandon=True)

T = TypeVar("T")


class ImportedTT(ExternalTT):
    """The pages of a ForeignFile."""

    __slots__ = ("_file", "_lane", "_vdev")

    def __init__(self, vdev: VirtualDevice, file: ForeignFile, *, mappable: bool) -> None:
        super().__init__(vdev.pool, pages_of(file.size), mappable=mappable)
        self._vdev = vdev
        self._file = file
        self._lane = Lane("exporter", _THREADS, abandon=True)

    async def read(self, offset: int, size: int) -> bytes | bytearray:
        """See ExternalTT; a file that was cut is EIO."""
        return await self._in_thread(lambda: self._file.read(offset, size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """See ExternalTT. `data` must stay as it is even when this has given up."""
        await self._in_thread(lambda: self._file.write(offset, data))

    async def check_whole(self) -> None:
        """See ExternalTT."""
        await self._in_thread(self._file.check_whole)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        seconds = self._vdev.config.fault_timeout
        with trio.move_on_after(seconds):
            return await self._lane.run(work)
        raise TtmError(errno.EIO, f"{self._file.path} did not answer within {seconds:g} s")

    def fini(self) -> None:
        """Let go of the file."""
        self._file.close()


async def import_bo(vdev: VirtualDevice, names: Namespace, name: str, path: str, *, mappable: bool) -> BoFile:
    """A new BO `name` over the file at `path`, with the file's owner and mode.

    TtmError: EEXIST, ENOENT no folder for the name, and what ForeignFile raises.
    """
    parent, leaf = names.place(name)
    file = await _open(path)
    try:
        bo_file = names.create(parent, leaf, file.mode, file.uid, file.gid)
    except BaseException:
        file.close()
        raise
    parent.attributes_changed()
    bo = bo_file.bo
    bo.size = file.size
    bo.set_tt(ImportedTT(vdev, file, mappable=mappable))
    bo.placed = True
    bo.placement = vdev.parse_placement(["system"])
    resource = bo.resource
    assert resource is not None
    resource.manager.trim(resource, bo.num_pages)
    return bo_file


async def _open(path: str) -> ForeignFile:
    """Open it in a thread: that may wait for a disk, or for whoever serves that path.

    The caller's bound ends it; a file that is opened after that is closed at once.
    """
    given_up = False
    opened: list[ForeignFile] = []

    def work() -> ForeignFile:
        file = ForeignFile(path)
        opened.append(file)
        if given_up:
            file.close()
        return file

    try:
        return await _OPENING.run(work)
    except trio.Cancelled:
        given_up = True
        for file in opened:
            file.close()
        raise

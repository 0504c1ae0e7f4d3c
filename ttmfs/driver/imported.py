"""Imported BOs: the memory of another file as a BO (the sg type, a dma-buf of another exporter).

The pages are the exporter's: such a BO is never evicted, swapped, backed up, moved or resized. The CPU may touch it
only if it was imported `mappable`; else a fault is SIGBUS (EIO), and only jobs of the device reach it. If the exporter
truncates the file, faults are SIGBUS from then on; a truncate in the very instant of a copy is not guarded against.
"""

import errno
import os
from typing import Final

import numpy as np

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import BoFile, Folder, Namespace
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.file_arena import FileArena
from ttmfs.sync.offload import Lane
from ttmfs.ttm.tt import TT, encode_pages

_OPENING: Final = Lane("import", 40)


class ImportedTT(TT):
    """A page vector over the pages of a FileArena: all populated, none of the device's pool."""

    __slots__ = ("_file",)

    def __init__(self, vdev: VirtualDevice, file: FileArena, *, mappable: bool) -> None:
        super().__init__(vdev.pool, file.num_pages)
        self._file = file
        self.external = True
        self.mappable = mappable
        self.vector[:] = encode_pages(np.arange(file.num_pages, dtype=np.uint32))
        self.populated_pages = file.num_pages

    @property
    def arena(self) -> Arena:
        """The exporter's file."""
        return self._file

    def usable(self) -> bool:
        """Has the exporter all of it still?"""
        return self._file.still_whole()

    def fini(self) -> None:
        """Unmap the file."""
        self._file.close()

    def page_orders(self) -> dict[int, int]:
        """The exporter's business."""
        return {}


async def import_bo(
    vdev: VirtualDevice, names: Namespace, name: str, path: str, *, mappable: bool, uid: int, gid: int
) -> BoFile:
    """A new BO `name` over the file at `path`.

    TtmError: EEXIST, ENOENT (no such file, or no such folder for the name), EACCES, EINVAL empty or no regular file.
    """
    parent, leaf = _parent(names, name)
    names.check_new(parent, leaf)
    # Opening may wait for a disk, or for whoever serves that path.
    file = await _OPENING.run(FileArena, path)
    try:
        bo_file = names.create(parent, leaf, 0o644, uid, gid)
    except BaseException:
        file.close()
        raise
    bo = bo_file.bo
    bo.size = file.size
    bo.tt = ImportedTT(vdev, file, mappable=mappable)
    bo.placed = True
    bo.placement = vdev.parse_placement(["system"])
    resource = bo.resource
    assert resource is not None
    resource.manager.trim(resource, bo.num_pages)
    bo.drop_view()
    return bo_file


def _parent(names: Namespace, name: str) -> tuple[Folder, bytes]:
    *folders, leaf = os.fsencode(name).split(b"/")
    parent = names.root
    for folder in folders:
        child = parent.children.get(folder)
        if not isinstance(child, Folder):
            raise TtmError(errno.ENOENT, f"there is no folder {os.fsdecode(folder)[:300]!r} for {name[:300]!r}")
        parent = child
    if leaf in (b"", b".", b"..") or b"\0" in leaf:
        raise TtmError(errno.EINVAL, f"{name[:300]!r} is no name for a BO")
    return parent, leaf

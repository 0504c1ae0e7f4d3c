"""Imported BOs: the memory of another file as a BO (the sg type, a dma-buf of another exporter).

The pages are the exporter's: such a BO is never evicted, swapped, backed up, moved or resized. The CPU may touch it
only if it was imported `mappable`; else a fault is SIGBUS (EIO), and only jobs of the device reach it. An exporter that
cuts its file costs whoever uses the BO an EIO. The BO has the owner and the mode of the file.
"""

from typing import Final

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.foreign_tt import ForeignTT, open_in_thread
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.sync.offload import Lane

_THREADS: Final = 4
"""Threads that may wait for one exporter at a time: one that does not answer holds up no other."""

_OPENING: Final = Lane("import", 40, abandon=True)


async def import_bo(vdev: VirtualDevice, names: Namespace, name: str, path: str, *, mappable: bool) -> BoFile:
    """A new BO `name` over the file at `path`, with the file's owner and mode.

    TtmError: EEXIST, ENOENT no folder for the name, and what ForeignFile raises.
    """
    parent, leaf = names.place(name)
    file = await open_in_thread(_OPENING, lambda: ForeignFile(path))
    try:
        bo_file = names.create(parent, leaf, file.mode, file.uid, file.gid)
    except BaseException:
        file.close()
        raise
    parent.attributes_changed()
    bo = bo_file.bo
    bo.size = file.size
    bo.set_tt(ForeignTT(vdev, file, Lane("exporter", _THREADS, abandon=True), size=file.size, mappable=mappable))
    bo.placed = True
    bo.placement = vdev.parse_placement(["system"])
    resource = bo.resource
    assert resource is not None
    resource.manager.trim(resource, bo.num_pages)
    return bo_file

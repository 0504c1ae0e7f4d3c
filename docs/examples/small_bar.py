"""A driver with a fault handler and a window of its own: a GPU behind a small BAR.

    ttmfs mount MNT --vram 32M --visible-vram 8M --driver docs/examples/small_bar.py:SmallBar
"""

import errno

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.fault import fault_reserved, vm_reserve
from ttmfs.ttm.funcs import FaultResult, Protection, VmFault
from ttmfs.ttm.placement import GTT, SYSTEM, VRAM, Place, PlaceFlag, Placement
from ttmfs.ttm.resource import Resource

SMALL = 1 << 20
"""Bytes up to which a BO is reached through the window; larger ones leave vram when the CPU wants them."""


class SmallBar(DefaultDriver):
    """Two BOs in vram are mapped at a time; nobody is evicted from the window for another."""

    def __init__(self, vdev: VirtualDevice) -> None:
        super().__init__(vdev)
        self.mappings = 2

    async def fault(self, vmf: VmFault) -> FaultResult:
        """ttm_bo_vm_fault, but nothing is read ahead through the BAR."""
        result = await vm_reserve(vmf)
        if result is not FaultResult.OK:
            return result
        try:
            ahead = 0 if vmf.bo.mem_type == VRAM else vmf.bo.prefault
            return await fault_reserved(vmf, Protection.READ | Protection.WRITE, ahead)
        finally:
            vmf.unreserve()

    def window_placement(self, bo: BufferObject) -> Placement:
        """The front of vram for a small one, while it has room; else gtt."""
        window = Place(VRAM, 0, self.vdev.visible_pages(VRAM), PlaceFlag.DESIRED)
        return (*((window,) if bo.size <= SMALL else ()), Place(GTT), Place(SYSTEM))

    def io_mem_reserve(self, resource: Resource) -> None:
        """EAGAIN: the mapping that faulted longest ago has to go first."""
        if not self.mappings:
            raise TtmError(errno.EAGAIN, "both mappings are in use")
        self.mappings -= 1

    def io_mem_free(self, resource: Resource) -> None:
        """One was unmapped."""
        self.mappings += 1

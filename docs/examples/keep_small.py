"""A driver of your own: small BOs stay in vram while a larger one can go, streams leave it for system at once.

    ttmfs mount MNT --driver docs/examples/keep_small.py:KeepSmall
"""

from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.fault import fault_reserved, vm_reserve
from ttmfs.ttm.funcs import FaultResult, Protection, VmFault
from ttmfs.ttm.placement import SYSTEM, VRAM, Place, Placement

SMALL = 1 << 20
"""Bytes below which a BO is not worth evicting."""


class KeepSmall(DefaultDriver):
    """What is not said here is as in the default driver."""

    def eviction_valuable(self, bo: BufferObject, place: Place | None) -> bool:
        """Asked for each victim of an allocation, not by `ctl/evict`, which empties a region whatever is in it."""
        return bo.size >= SMALL and super().eviction_valuable(bo, place)

    def evict_flags(self, bo: BufferObject) -> Placement:
        """A stream is not read again soon: it shall not fill gtt."""
        if bo.mem_type == VRAM and bo.madvise == "sequential":
            return (Place(SYSTEM),)
        return super().evict_flags(bo)

    async def fault(self, vmf: VmFault) -> FaultResult:
        """ttm_bo_vm_fault, with four times the prefault for streams."""
        result = await vm_reserve(vmf)
        if result is not FaultResult.OK:
            return result
        try:
            wide = 4 if vmf.bo.madvise == "sequential" else 1
            return await fault_reserved(vmf, Protection.READ | Protection.WRITE, wide * vmf.bo.prefault)
        finally:
            vmf.unreserve()

"""An amdgpu-like driver: its own fault handler and window, and jobs that move BOs no faster than the move rate.

What differs from the default driver:

- A fault serves 16 pages besides (amdgpu_gem_fault). A BO that the CPU cannot reach comes to the visible part of vram
  only while nothing has to be evicted for that, else to gtt (amdgpu_bo_fault_reserve_notify); from then on jobs too
  place it in the visible part, and BOs that no client has touched from the other end of vram.
- A job brings a BO to the regions that its placement prefers only as long as the move rate allows it
  (amdgpu_cs_bo_validate); beyond that, or when there is no room, gtt is as good as vram, so that a BO in gtt stays.
"""

import errno
from typing import Final

from ttmfs import clock
from ttmfs.driver.dirty import DirtyTracker
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.ttm.advice import want
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.fault import NUM_PREFAULT, fault_reserved, vm_reserve
from ttmfs.ttm.funcs import FaultResult, Protection, VmFault
from ttmfs.ttm.placement import GTT, VRAM, Place, PlaceFlag, Placement
from ttmfs.ttm.validate import validate

MOVE_RATE: Final = 8
"""MB/s, amdgpu.moverate; so also bytes a microsecond."""
_UPPER_BOUND: Final = 200_000
_MUCH_FREE: Final = 128 << 20


class MoveRate:
    """Microseconds of moving that jobs have saved up (amdgpu_device.mm_stats); negative: they are in debt."""

    def __init__(self, rate: int = MOVE_RATE) -> None:
        self.rate = rate
        self.saved = 0
        self._updated = clock.monotonic_ns() // 1000

    def threshold(self, free: int, total: int) -> int:
        """Bytes that may move now, of a region with so many bytes (amdgpu_cs_get_threshold_for_moves)."""
        now = clock.monotonic_ns() // 1000
        self.saved = min(self.saved + now - self._updated, _UPPER_BOUND)
        self._updated = now
        if free >= min(_MUCH_FREE, total >> 3):
            # While much is free, bring BOs home fast.
            self.saved = max(self.saved, free // 4 // self.rate)
        return max(0, self.saved * self.rate)

    def moved(self, size: int) -> None:
        """So many bytes did (amdgpu_cs_report_moved_bytes)."""
        self.saved -= size // self.rate


class AmdgpuTracker(DirtyTracker):
    """Dirty pages, and whether a client has ever needed the BO within the CPU's reach."""

    __slots__ = ("cpu_access",)

    def __init__(self) -> None:
        super().__init__()
        self.cpu_access = False


class AmdgpuDriver(DefaultDriver):
    """DriverFuncs of `--driver amdgpu`."""

    def __init__(self, vdev: Hardware) -> None:
        super().__init__(vdev)
        self.rate = MoveRate()

    def bo_created(self, bo: BufferObject) -> None:
        """Track it; the kernel's prefault."""
        bo.dirty = AmdgpuTracker()
        bo.prefault = NUM_PREFAULT

    async def fault(self, vmf: VmFault) -> FaultResult:
        """amdgpu_gem_fault."""
        result = await vm_reserve(vmf)
        if result is not FaultResult.OK:
            return result
        try:
            prefault = 1 if vmf.bo.madvise == "random" else NUM_PREFAULT
            return await fault_reserved(vmf, Protection.READ | Protection.WRITE, prefault)
        finally:
            vmf.unreserve()

    def window_placement(self, bo: BufferObject) -> Placement:
        """Avoid costly evictions: what would need one goes to gtt."""
        if isinstance(bo.dirty, AmdgpuTracker):
            bo.dirty.cpu_access = True
        first, *others = super().window_placement(bo)
        if first.end:
            first = Place(first.mem_type, first.first, first.end, PlaceFlag.DESIRED)
        return (first, *others)

    async def validate_for_job(self, bo: BufferObject, ctx: OperationContext) -> None:
        """amdgpu_cs_bo_validate."""
        preferred = tuple(self._narrow(bo, place) for place in bo.placement if place.mem_type == VRAM)
        if bo.pin_count or not preferred:
            await super().validate_for_job(bo, ctx)
            return
        allowed = bo.placement if any(place.mem_type == GTT for place in bo.placement) else (*bo.placement, Place(GTT))
        before = ctx.done.bytes_moved
        manager = self.vdev.ttm.managers[VRAM]
        try:
            if self.rate.threshold(max(0, manager.size - manager.usage), manager.size):
                try:
                    await validate(bo, preferred, ctx)
                except TtmError as error:
                    if not self._no_room(error):
                        raise
                    await validate(bo, allowed, ctx)
            else:
                await validate(bo, allowed, ctx)
        finally:
            self.rate.moved(ctx.done.bytes_moved - before)
        want(bo, bo.placement)

    def _narrow(self, bo: BufferObject, place: Place) -> Place:
        """amdgpu_bo_placement_from_domain: within the CPU's reach, or at the other end of vram."""
        visible = self.vdev.visible_pages(VRAM)
        if place.first or place.end or visible >= self.vdev.ttm.managers[VRAM].num_pages:
            return place
        if not (isinstance(bo.dirty, AmdgpuTracker) and bo.dirty.cpu_access):
            return Place(VRAM, flags=place.flags | PlaceFlag.TOPDOWN)
        return Place(VRAM, 0, visible, place.flags) if bo.num_pages <= visible else place

    @staticmethod
    def _no_room(error: TtmError) -> bool:
        """Is it that there is none? Who is only in the way for a moment is waited for by the caller."""
        if isinstance(error, NoRoom) and error.contended is not None:
            return False
        return error.errno in (errno.ENOMEM, errno.ENOSPC)

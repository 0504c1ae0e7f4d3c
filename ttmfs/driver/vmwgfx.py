"""A vmwgfx-like driver: its own fault handler, built from the public helpers, with dirty tracking in between.

What differs from the default driver: a fault prefaults 16 pages, one when the BO is advised random; with the LOG
method a page that is only read is mapped read-only (`prot`, recorded); and before the device takes a BO its dirty
pages are collected by the method in use (see ttmfs.driver.dirty).
"""

from ttmfs.driver.dirty import DirtyMethod, DirtyTracker, MethodSwitch
from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.fault import NUM_PREFAULT, fault_reserved, vm_reserve
from ttmfs.ttm.funcs import FaultFlag, FaultResult, Protection, VmFault
from ttmfs.ttm.unmap import unmap_virtual


class VmwgfxTracker(DirtyTracker):
    """Dirty pages, and the method by which this BO's are found; chosen at the first collection."""

    __slots__ = ("switch",)

    def __init__(self) -> None:
        super().__init__()
        self.switch: MethodSwitch | None = None

    def method(self, bo: BufferObject) -> DirtyMethod:
        """The method in use."""
        if self.switch is None:
            self.switch = MethodSwitch(bo.num_pages)
        return self.switch.method


class VmwgfxDriver(DefaultDriver):
    """DriverFuncs of `--driver vmwgfx`."""

    def bo_created(self, bo: BufferObject) -> None:
        """Track it; the kernel's prefault."""
        bo.dirty = VmwgfxTracker()
        bo.prefault = NUM_PREFAULT

    async def fault(self, vmf: VmFault) -> FaultResult:
        """vmw_bo_vm_fault."""
        result = await vm_reserve(vmf)
        if result is not FaultResult.OK:
            return result
        bo = vmf.bo
        try:
            prefault = 1 if bo.madvise == "random" else NUM_PREFAULT
            prot = Protection.READ | Protection.WRITE
            tracker = bo.dirty
            if isinstance(tracker, VmwgfxTracker) and tracker.method(bo) is DirtyMethod.LOG:
                prot = Protection.WRITE | Protection.READ if FaultFlag.WRITE in vmf.flags else Protection.READ
            return await fault_reserved(vmf, prot, prefault)
        finally:
            vmf.unreserve()

    async def take_dirty(self, bo: BufferObject) -> int:
        """vmw_bo_dirty_scan and vmw_bo_dirty_transfer_to_res on a reserved BO; returns the pages handed over."""
        tracker = bo.dirty
        if not isinstance(tracker, VmwgfxTracker):
            return 0
        if tracker.method(bo) is DirtyMethod.SCAN:
            await unmap_virtual(bo)
        pages = sum(end - first for first, end in tracker.take())
        assert tracker.switch is not None
        if tracker.switch.collected(pages, bo.num_pages) and tracker.method(bo) is DirtyMethod.SCAN:
            # Clean and write-protect: from here on dirty pages are found by the next scan.
            await unmap_virtual(bo)
        return pages

"""The default driver: where BOs go and how they get there (what xe_bo.c and amdgpu_ttm.c decide).

vram is reached through gtt only (EMULTIHOP, both legs counted). Evicted BOs go vram → gtt → system; a purgeable one
is dropped. A CPU fault on VRAM beyond the visible part moves the BO within reach first.
"""

import errno
from collections.abc import Sequence
from functools import partial

from ttmfs.driver.dirty import DirtyTracker
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.kernel_bo import create_kernel_bo
from ttmfs.errors import TtmError
from ttmfs.sync.containers import unwrap
from ttmfs.sync.deps import Deps
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import want
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.clear import Clear
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.fault import default_fault
from ttmfs.ttm.funcs import FaultResult, Multihop, VmFault
from ttmfs.ttm.move import IDLE_TIMEOUT, linger, move_accel_cleanup, move_null, wait_ctx
from ttmfs.ttm.placement import GTT, NOWHERE, SYSTEM, Place, PlaceFlag, Placement
from ttmfs.ttm.populate import populate_all, populate_overwritten
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.ttm.validate import validate

_HOP: Placement = (Place(GTT, flags=PlaceFlag.TEMPORARY),)


class DefaultDriver:
    """DriverFuncs of the virtual device."""

    def __init__(self, vdev: Hardware) -> None:
        self.vdev = vdev

    def bo_created(self, bo: BufferObject) -> None:
        """A new BO: what clients write to it is tracked."""
        bo.dirty = DirtyTracker()

    def create_kernel_bo(self, name: str, size: int, place: Place, *, pinned: bool = True) -> BufferObject:
        """A BO of the driver's own, which no client has: see `ttmfs.driver.kernel_bo`."""
        return create_kernel_bo(self.vdev.ttm, self, name, size, place, pinned=pinned)

    async def take_dirty(self, bo: BufferObject) -> int:
        """The device takes a reserved BO: its dirty pages are clean from now on. Returns how many there were."""
        tracker = bo.dirty
        return sum(end - first for first, end in tracker.take()) if isinstance(tracker, DirtyTracker) else 0

    async def fault(self, vmf: VmFault) -> FaultResult:
        """The default handler."""
        return await default_fault(vmf)

    async def fault_reserve_notify(self, bo: BufferObject) -> None:
        """amdgpu_bo_fault_reserve_notify: bring a BO that the CPU cannot reach to visible VRAM, else to gtt."""
        if bo.visible:
            return
        if self.vdev.ttm.suspended:
            raise TtmError(errno.EBUSY, f"{bo.name!r} is on its way out of, or back into, the suspended device")
        if bo.pin_count:
            raise TtmError(errno.EINVAL, f"{bo.name!r} is pinned where the CPU cannot reach it: unpin it")
        # It has its content already, and keeps as much.
        ctx = OperationContext(faulting=bo, unlimited=True)
        await validate(bo, self.window_placement(bo), ctx)
        self.vdev.ttm.counters.faults.window_moves += 1

    def window_placement(self, bo: BufferObject) -> Placement:
        """Where a reserved BO that the CPU cannot reach goes in a fault."""
        assert bo.resource is not None
        region = bo.resource.mem_type
        visible = self.vdev.visible_pages(region)
        places = (Place(region, 0, visible),) if 0 < bo.num_pages <= visible else ()
        return (*places, Place(GTT), Place(SYSTEM))

    async def validate_for_job(self, bo: BufferObject, ctx: OperationContext) -> None:
        """Bring a reserved BO to where a job is to find it. A placement of `system` only: wherever it is.

        TtmError as `ttmfs.ttm.validate.validate`.
        """
        if any(place.mem_type != SYSTEM for place in bo.placement):
            await validate(bo, bo.placement, ctx)
            want(bo, bo.placement)

    def evict_flags(self, bo: BufferObject) -> Placement:
        """xe_evict_flags: vram → gtt (or system when gtt can never hold it), gtt → system, purgeable → nowhere.

        What has a tail in the store goes to system: in gtt all of it would have to come back first.
        """
        if bo.purgeable:
            return NOWHERE
        if bo.mem_type not in (GTT, SYSTEM):
            if _is_partly_stored(bo):
                return (Place(SYSTEM),)
            return (Place(GTT), Place(SYSTEM, flags=PlaceFlag.FALLBACK))
        return (Place(SYSTEM),)

    def eviction_valuable(self, bo: BufferObject, place: Place | None) -> bool:
        """ttm_bo_eviction_valuable; imported BOs never."""
        del place
        return not bo.external

    def swap_notify(self, bo: BufferObject) -> None:
        """Nothing to prepare."""

    def delete_mem_notify(self, bo: BufferObject) -> None:
        """Nothing to undo."""

    async def move(
        self, bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool, source: TT | None = None
    ) -> None:
        """xe_bo_move."""
        old = bo.resource
        if source is not None:
            # Behind all that writes it, without Deps: growing a collection may wait, and nothing may before the copy.
            writers = tuple(bo.resv.get_fences(Usage.WRITE))
            await self._submit(bo, source, resource, writers, evict=evict, dst=bo.need_tt())
            return
        if old is None or old.mem_type == SYSTEM:
            if resource.manager.use_tt:
                move_null(bo, resource)
                return
            deps = await self._collect_deps(bo, ctx)
            if old is not None or (bo.tt is not None and bo.tt.has_content):
                raise Multihop(_HOP)
            await self._submit(bo, None, resource, deps, evict=evict)
        elif old.manager.use_tt:
            await self._from_gtt(bo, resource, ctx, evict=evict)
        elif self._hops(bo, resource):
            raise Multihop(_HOP)
        else:
            deps = await self._collect_deps(bo, ctx)
            dst: Backing = resource
            if resource.manager.use_tt:
                while not (tt := bo.need_tt()).has_memory(0, min(old.num_pages, tt.num_pages)):
                    # The file was cut short and grew again while this waited: all that is copied needs memory.
                    if resource.mem_type == SYSTEM:
                        # Holes are legal there, and what is longer than all memory can go nowhere else.
                        await populate_overwritten(bo, tt, old.num_pages, ctx)
                    else:
                        await populate_all(bo, tt, ctx, overwritten=old.num_pages)
                dst = tt
            await self._submit(bo, old, resource, deps, evict=evict, dst=dst)

    def _hops(self, bo: BufferObject, resource: Resource) -> bool:
        """Does a move out of a region with memory of its own go by way of gtt?

        What has grown beyond all of gtt goes straight to system: it could never be evicted otherwise.
        """
        if resource.mem_type == SYSTEM:
            return not _is_partly_stored(bo) and bo.num_pages <= self.vdev.ttm.managers[GTT].num_pages
        return not resource.manager.use_tt and self._has_tail(bo, resource)

    @staticmethod
    def _has_tail(bo: BufferObject, resource: Resource) -> bool:
        """Has the file grown beyond one of its VRAM resources, so that part of it is, or must stay, in the tt?"""
        return (bo.tt is not None and bo.tt.has_content) or resource.num_pages < bo.num_pages

    async def _from_gtt(self, bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool) -> None:
        if resource.mem_type == SYSTEM:
            await wait_ctx(bo, ctx)
            move_null(bo, resource)
        elif resource.manager.use_tt:
            move_null(bo, resource)
        else:
            deps = await self._collect_deps(bo, ctx)
            while True:
                tt = bo.need_tt()
                if tt.has_content:
                    await populate_all(bo, tt, ctx)
                if not bo.copies or resource.num_pages >= bo.num_pages:
                    break
                # What was appended since the space was allocated stays behind; nothing may be on its way into it.
                if not await bo.copies[-1].fence.wait(IDLE_TIMEOUT):
                    raise TtmError(errno.EBUSY, f"{bo.name!r} grew while it moved, and an earlier move goes on")
            await self._submit(bo, tt if tt.has_content else None, resource, deps, evict=evict)

    async def _submit(
        self,
        bo: BufferObject,
        src: Backing | None,
        resource: Resource,
        deps: Sequence[Fence],
        *,
        evict: bool,
        dst: Backing | None = None,
    ) -> None:
        """Hand the copy to an engine behind `deps`. No await before that: what was checked about the BO still holds."""
        dst = resource if dst is None else dst
        # The file may have shrunk or grown since the space was allocated; a tail that does not fit stays in the tt.
        if src is not None and dst is resource and resource.num_pages > src.num_pages:
            resource.manager.trim(resource, src.num_pages)
        pages = dst.num_pages if src is None else min(dst.num_pages, src.num_pages)
        reachable = bo.visible and resource.manager.visible(resource)
        make = partial(Clear, resource) if src is None else None
        fence = self.vdev.copy_engine().submit(bo, src, dst, pages, deps, cpu_reachable=reachable, make=make)
        await move_accel_cleanup(bo, fence, resource, evict=evict, pipeline=True)
        # Without the work item that would intercept an error, whose allocation may have failed, or in synchronous mode,
        # the move waits for the copy here. The BO has changed hands before, so that no WRITE goes to its old space.
        if self.vdev.sync_moves or self.vdev.ttm.inject["work_alloc"].should_fail(bo=bo.name):
            await linger(fence.wait(IDLE_TIMEOUT))

    async def _collect_deps(self, bo: BufferObject, ctx: OperationContext) -> tuple[Fence, ...]:
        """prev_fence of i915: the BO's moves and writers, coalesced; nothing when they were waited for here.

        Readers are left out: they may go on reading the source while it is copied.
        An earlier fence's error is not this move's: whoever waits for that fence hears of it.
        """
        inject = self.vdev.ttm.inject
        deps = Deps(
            fail_grow=partial(inject["deps_grow"].should_fail, bo=bo.name),
            fail_array=partial(inject["fence_array"].should_fail, bo=bo.name),
        )
        try:
            for fence in bo.resv.get_fences(Usage.WRITE):
                await deps.add_dependency(fence, ctx)
            fence_for_all = await deps.to_fence(ctx)
        except TtmError as error:
            if error.errno == errno.EBUSY and ctx.no_wait_gpu:
                raise
            await bo.resv.wait(Usage.WRITE, IDLE_TIMEOUT)
            return tuple(bo.resv.get_fences(Usage.WRITE))
        return () if fence_for_all is None else tuple(unwrap(fence_for_all))


def _is_partly_stored(bo: BufferObject) -> bool:
    """Has it pages in the swap store? Behind what a region has of it, that is where a tail may be."""
    return bo.tt is not None and bo.tt.backed_up_pages > 0

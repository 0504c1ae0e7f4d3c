"""VRAM of address spaces as the device's other parts see it: BOs with funcs of their own, copies in and out, eviction.

The BOs are allocated by the device's ordinary validate, so that they evict other BOs and are evicted by them. Eviction
brings all pages of one back to system pages and succeeds only if all have gone (drm_pagemap_evict_to_ram). What a chunk
knows of such a BO is its `DevMem`, in chunk.py.
"""

import errno
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.frames import can_exchange
from ttmfs.svm.chunk import DevMem, Move
from ttmfs.svm.pages import CHUNK_PAGES, free_pages, index_of
from ttmfs.svm.system_pages import alloc_pages
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.copy_frames import FrameRun
from ttmfs.ttm.funcs import FaultResult, VmFault
from ttmfs.ttm.move import IDLE_TIMEOUT, move_null
from ttmfs.ttm.placement import SYSTEM, Place, Placement
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice

EVICT_ATTEMPTS: Final = 3
"""drm_pagemap_evict_to_ram tries that often to get every page out."""


class SvmCopy(Copy):
    """The copy of a Move, as a copy engine runs it."""

    __slots__ = ("move",)

    def __init__(self, move: Move, fence: Fence) -> None:
        super().__init__(None, move.devmem.resource, move.devmem.num_pages, fence)
        self.move = move
        move.copy = self

    def look_for_frames(self, index: int) -> int:
        """A whole chunk, without a hole, that is a frame at both sides; where to look next: nowhere."""
        move, resource = self.move, self.move.devmem.resource
        if index == 0 and self.num_pages == CHUNK_PAGES and move.run >= 0:
            sides = (move.chunk.space.arena, move.run), (resource.arena, resource.start)
            whole = all(page & (CHUNK_PAGES - 1) == 0 for _arena, page in sides)
            if whole and can_exchange(sides[0][0], sides[1][0]):
                source, target = sides if move.into_vram else sides[::-1]
                self.frames = (FrameRun(0, 1, *source, *target),)
        return self.num_pages

    def step(self, index: int, count: int) -> None:
        """Copy some pages; synchronous."""
        self.move.step(index, count)

    def finish(self) -> None:
        """Cut off what a truncate took away meanwhile."""
        self.move.finish()
        self.state = CopyState.DONE


def submit_move(vdev: "VirtualDevice", move: Move, deps: tuple[Fence, ...]) -> Fence:
    """Hand the copy of a move to an engine; a fence slot of the (reserved) BO was reserved. From here on it counts."""
    devmem = move.devmem
    resource = devmem.resource
    fence = vdev.copy_engine().submit(
        devmem.bo,
        None,
        resource,
        devmem.num_pages,
        deps,
        cpu_reachable=resource.manager.visible(resource),
        make=lambda fence: SvmCopy(move, fence),
    )
    move.chunk.moves = (*move.chunk.moves, move)
    move.chunk.changed()
    fence.add_callback(move.done)
    devmem.bo.resv.add_fence(fence, Usage.KERNEL)
    return fence


async def evict_to_ram(vdev: "VirtualDevice", devmem: DevMem, ctx: OperationContext, why: str) -> None:
    """drm_pagemap_evict_to_ram: all pages of a reserved allocation back to system; it is dead then.

    Whether it worked is decided by nothing but that no page is left. TtmError: ENOMEM no system pages, with all as it
    was; EBUSY a wait that `ctx` forbids or that took too long; EIO the copy failed, and the bytes are still in VRAM.
    """
    bo = devmem.bo
    error = TtmError(errno.EBUSY, f"{bo.name!r} could not be emptied")
    for _attempt in range(EVICT_ATTEMPTS):
        if ctx.no_wait_gpu:
            raise TtmError(errno.EBUSY, f"{bo.name!r} comes back by a copy that is waited for: no_wait_gpu was asked")
        if not await _moves_ended(devmem):
            raise TtmError(errno.EBUSY, f"a copy of {bo.name!r} did not end within {IDLE_TIMEOUT:g} s")
        if not devmem.present:
            break
        failure = await _copy_out(vdev, devmem, ctx, why)
        if not devmem.present:
            break
        if failure is not None:
            error = failure
        await trio.lowlevel.checkpoint()
    else:
        devmem.chunk.space.counters.migrations_failed += 1
        raise error


async def _moves_ended(devmem: DevMem) -> bool:
    while move := next((move for move in devmem.chunk.moves if move.devmem is devmem), None):
        if not await move.copy.fence.wait(IDLE_TIMEOUT):
            return False
    return True


async def _copy_out(vdev: "VirtualDevice", devmem: DevMem, ctx: OperationContext, why: str) -> TtmError | None:
    """One attempt; the error of its copy, if any."""
    bo, chunk = devmem.bo, devmem.chunk
    space = chunk.space
    mask = devmem.present
    pages = await alloc_pages(vdev.ttm, space, mask.bit_count(), ctx, zero=False, but=bo, unlimited=True)
    live = mask & devmem.present
    try:
        if live and not devmem.dead:
            bo.resv.reserve_fences(1)
    except BaseException:
        free_pages(space, pages)
        raise
    if live != mask:
        # Some were unmapped while memory was sought.
        free_pages(space, pages[live.bit_count() :])
        pages = pages[: live.bit_count()]
        if not live:
            return None
    ram = np.zeros(devmem.num_pages, np.uint32)
    ram[index_of(live) - devmem.first] = pages + np.uint32(1)
    space.invalidate(chunk.first_page + devmem.first, chunk.first_page + devmem.first + devmem.num_pages, why)
    move = Move(devmem, live, ram, into_vram=False)
    fence = submit_move(vdev, move, tuple(bo.resv.get_fences(Usage.BOOKKEEP)))
    with space.stats.timed(devmem.num_pages, "cpu_copy_us"):
        done = await fence.wait(IDLE_TIMEOUT)
    if not done:
        return TtmError(errno.EBUSY, f"the copy of {bo.name!r} to system did not end within {IDLE_TIMEOUT:g} s")
    if fence.error:
        return TtmError(errno.EIO, f"the copy of {bo.name!r} to system failed; it is still in {bo.mem_type}")
    space.migrated(chunk.first_page + devmem.first, devmem.num_pages, live.bit_count(), why, into_vram=False)
    ctx.done.bytes_moved += live.bit_count() << PAGE_SHIFT
    return None


class DevMemFuncs:
    """DriverFuncs of the BOs of SVM: they live in VRAM or not at all."""

    def __init__(self, vdev: "VirtualDevice") -> None:
        self.vdev = vdev

    async def fault(self, vmf: VmFault) -> FaultResult:
        """It has no file."""
        return vmf.fail(FaultResult.SIGBUS, "it belongs to an address space")

    async def fault_reserve_notify(self, bo: BufferObject) -> None:
        """It has no file."""

    def evict_flags(self, bo: BufferObject) -> Placement:
        """Straight to system, as xe does with CPU_ADDR_MIRROR."""
        del bo
        return (Place(SYSTEM),)

    def eviction_valuable(self, bo: BufferObject, place: Place | None) -> bool:
        """Always."""
        del bo, place
        return True

    def swap_notify(self, bo: BufferObject) -> None:
        """It never has pages in system."""

    def delete_mem_notify(self, bo: BufferObject) -> None:
        """Its pages have gone before."""

    async def move(
        self, bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool, source: TT | None = None
    ) -> None:
        """Into VRAM: it is fresh, and what it had is not read before the copy into it. To system: evict_to_ram."""
        assert source is None, "it has no tt that could be backed anew"
        old = bo.resource
        if old is not None and resource.mem_type != SYSTEM:
            raise TtmError(errno.EINVAL, f"{bo.name!r} is memory of an address space: it stays in {bo.mem_type}")
        if old is not None:
            devmem = bo.private
            assert isinstance(devmem, DevMem)
            await evict_to_ram(self.vdev, devmem, ctx, "evict" if evict else "move")
            devmem.chunk.space.counters.evictions += 1
            devmem.release()
            # If its pages were unmapped instead of copied, jobs may still work on them.
            if not await bo.resv.wait(Usage.BOOKKEEP, IDLE_TIMEOUT):
                raise TtmError(errno.EBUSY, f"{bo.name!r} is in use by the device for {IDLE_TIMEOUT:g} s")
        move_null(bo, resource)

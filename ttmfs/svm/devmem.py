"""VRAM of address spaces as the device's other parts see it: BOs with funcs of their own, copies in and out, eviction.

The BOs are allocated by the device's ordinary validate, so that they evict other BOs and are evicted by them. Eviction
brings all pages of one back to system pages and succeeds only if all have gone (drm_pagemap_evict_to_ram). What a chunk
knows of such a BO is its `DevMem`, in chunk.py.
"""

import errno
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from ttmfs.errors import TtmError
from ttmfs.memory.frames import can_exchange, longest_run
from ttmfs.svm.chunk import DevMem, Move
from ttmfs.svm.pages import CHUNK_PAGES, Pages, free_pages
from ttmfs.svm.ram import Ram
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
    """The copy of Moves in one direction, one behind the other, as a copy engine runs it."""

    __slots__ = ("moves",)

    def __init__(self, moves: Sequence[Move], fence: Fence) -> None:
        super().__init__(None, moves[0].devmem.resource, sum(move.devmem.num_pages for move in moves), fence)
        self.moves = moves
        for move in moves:
            move.copy = self

    def look_for_frames(self, index: int) -> int:
        """Whole chunks, without a hole, that are frames at both sides; where to look next: nowhere."""
        runs: list[FrameRun] = []
        first = 0
        for move in self.moves if index == 0 else ():
            frame = _frame(move, first)
            if frame is not None and runs and (longer := _joined(runs[-1], frame)) is not None:
                runs[-1] = longer
            elif frame is not None:
                runs.append(frame)
            first += move.devmem.num_pages
        self.frames = tuple(runs)
        return self.num_pages

    def choose_frames(self) -> None:
        """All of them in the step in which the fence signals: until then requests go to the source."""

    def step(self, index: int, count: int) -> None:
        """Copy some pages; synchronous."""
        for move in self.moves:
            pages = min(count, move.devmem.num_pages - index)
            if pages > 0:
                move.step(index, pages)
                index += pages
                count -= pages
            if not count:
                return
            index -= move.devmem.num_pages

    def finish(self) -> None:
        """Cut off what a truncate took away meanwhile."""
        for move in self.moves:
            move.finish()
        self.state = CopyState.DONE


def _frame(move: Move, first: int) -> FrameRun | None:
    """The frame that a move is, from page `first` of its copy on; None for one that must be copied."""
    resource, run = move.devmem.resource, move.ram.run
    if move.devmem.num_pages < CHUNK_PAGES or run < 0 or (run | resource.start) & (CHUNK_PAGES - 1):
        return None
    sides = (move.chunk.space.arena, run), (resource.arena, resource.start)
    if not can_exchange(sides[0][0], sides[1][0]):
        return None
    source, target = sides if move.into_vram else sides[::-1]
    return FrameRun(first, 1, *source, *target)


def _joined(run: FrameRun, frame: FrameRun) -> FrameRun | None:
    """Both as one run, if they follow each other at both ends and it is not too long."""
    pages = run.frames * CHUNK_PAGES
    follows = FrameRun(run.first + pages, 1, run.source, run.src + pages, run.target, run.dst + pages)
    return run._replace(frames=run.frames + 1) if follows == frame and run.frames < longest_run() else None


def submit_moves(vdev: "VirtualDevice", moves: Sequence[Move], deps: tuple[Fence, ...]) -> Fence:
    """Hand the copy of some moves to an engine; a fence slot of each (reserved) BO was reserved. From here on they
    count, and all end with the one fence.
    """
    moves = sorted(moves, key=lambda move: move.devmem.resource.start)
    resources = [move.devmem.resource for move in moves]
    bos = [move.devmem.bo for move in moves]
    fence = vdev.copy_engine().submit(
        bos[0],
        None,
        resources[0],
        sum(move.devmem.num_pages for move in moves),
        deps,
        cpu_reachable=all(resource.manager.visible(resource) for resource in resources),
        make=partial(SvmCopy, moves),
        others=bos[1:],
    )
    for move in moves:
        move.chunk.moves = (*move.chunk.moves, move)
        move.chunk.changed()
        fence.add_callback(move.done)
        move.devmem.bo.resv.add_fence(fence, Usage.KERNEL)
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
    space.invalidate(devmem.first_page, devmem.first_page + devmem.num_pages, why)
    move = outgoing(devmem, live, pages)
    fence = submit_moves(vdev, [move], tuple(bo.resv.get_fences(Usage.BOOKKEEP)))
    with space.stats.timed(devmem.num_pages, "cpu_copy_us"):
        done = await fence.wait(IDLE_TIMEOUT)
    if not done:
        return TtmError(errno.EBUSY, f"the copy of {bo.name!r} to system did not end within {IDLE_TIMEOUT:g} s")
    if fence.error:
        return TtmError(errno.EIO, f"the copy of {bo.name!r} to system failed; it is still in {bo.mem_type}")
    came_back(devmem, live, why, ctx)
    return None


def outgoing(devmem: DevMem, live: int, pages: Pages) -> Move:
    """The move of these pages of an allocation out of it, to as many system pages."""
    return Move(devmem, live, Ram.of_pages(devmem.first, devmem.num_pages, live, pages), into_vram=False)


def came_back(devmem: DevMem, live: int, why: str, ctx: OperationContext) -> None:
    """Count that the copy of these pages to system has ended."""
    devmem.chunk.space.migrated(devmem.first_page, devmem.num_pages, live.bit_count(), why, into_vram=False)
    ctx.done.bytes_moved += live.bit_count() << PAGE_SHIFT


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

"""Exec: a job of a VM (DRM_IOCTL_XE_EXEC, with the rebind before it).

What the operation touches is reserved under one ticket and brought to where the driver wants it; so is, as far as there
is room, all else that is bound and was evicted since a job last could use it (xe's rebind list). Then the VM's local
BOs go to the end of the LRU as one, in their order, and the job is queued. Where the VM has `allow_res_evict`, those of
its local BOs that the operation does not touch may be evicted for those that it does.
"""

import contextlib
import errno
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Final

from ttmfs.driver.calls import check_device
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import INLINE_BYTES, BoWork, Span, capture, leave_fence
from ttmfs.driver.locking import reserved, with_all_reserved
from ttmfs.driver.operation import Operation
from ttmfs.driver.queues import DEFAULT
from ttmfs.driver.submit import Patience, check_content, check_exporter, prepare
from ttmfs.driver.vm import Piece, Vm
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import trace_use, used
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.unmap import unmap_virtual

_ATTEMPTS: Final = 8
"""How often an exec begins anew because what is bound has changed, or grown, while it waited."""

_AT_ONCE: Final = 64 << 20
"""Bytes that a thread is given at a time: what it has begun nobody can end."""

_Part = list[tuple[Piece, Span]]


@dataclass(slots=True)
class VmJob(BoWork):
    """An operation on what was bound when it was submitted. Its result is there once its fence has signaled."""

    operation: Operation
    pieces: list[Piece]
    spans: list[Span]
    """The memory of each piece's BO."""
    touched: tuple[BufferObject, ...]
    fence: Fence
    deps: tuple[Fence, ...]
    flush: Callable[[BufferObject], Awaitable[None]]
    point: int
    rebound: int
    """BOs that had to come back, or be found anew, for it."""

    @property
    def kind(self) -> str:
        """For the trace."""
        return "exec"

    @property
    def bos(self) -> tuple[BufferObject, ...]:
        """All that it touches."""
        return self.touched

    @property
    def writes(self) -> tuple[BufferObject, ...]:
        """All that it touches, if it writes."""
        return self.touched if self.operation.writes else ()

    async def work(self, lane: Lane) -> None:
        """As `BoWork.work`."""
        done = 0
        for imported, group in groupby(zip(self.pieces, self.spans, strict=True), lambda pair: bool(pair[1].exporter)):
            for part in _slices(group):
                size = sum(piece.size for piece, _ in part)
                if imported:
                    await self._execute_imported(part, done)
                elif size <= INLINE_BYTES:
                    self._execute(part, done)
                else:
                    await lane.run(self._execute, part, done)
                done += size

    def _execute(self, part: _Part, done: int) -> None:
        for piece, span in part:
            self.operation.execute(span, piece.offset, piece.size, done)
            done += piece.size

    async def _execute_imported(self, part: _Part, done: int) -> None:
        for piece, span in part:
            await self.operation.execute_imported(span, piece.offset, piece.size, done)
            done += piece.size


def _slices(pairs: Iterable[tuple[Piece, Span]]) -> Iterator[_Part]:
    """The same bytes in parts of at most _AT_ONCE, for which pieces are cut."""
    part: _Part = []
    room = _AT_ONCE
    for piece, span in pairs:
        at = 0
        while at < piece.size:
            size = min(piece.size - at, room)
            part.append((replace(piece, address=piece.address + at, offset=piece.offset + at, size=size), span))
            at += size
            room -= size
            if not room:
                yield part
                part, room = [], _AT_ONCE
    if part:
        yield part


class _Exec:
    """One call of `exec_vm`."""

    def __init__(
        self, vdev: VirtualDevice, vm: Vm, operation: Operation, address: int, length: int, ctx: OperationContext
    ) -> None:
        self.vdev = vdev
        self.vm = vm
        self.operation = operation
        self.address = address
        self.length = length
        self.ctx = ctx
        self.patience = Patience(vdev.config.fault_timeout)

    async def look_at_files(self, bos: Iterable[BufferObject]) -> None:
        """One that does not answer is found out here, where nothing else is reserved; what it is, once all are."""
        for bo in bos:
            if not bo.external:
                continue
            try:
                async with reserved(bo):
                    with contextlib.suppress(TtmError):
                        await check_exporter(bo, self.patience)
            except TtmError:
                if not bo.deleted:
                    raise

    def pieces(self) -> list[Piece]:
        """What it touches, as of now. TtmError as `Vm.pieces`, ENOENT when the VM was removed."""
        if self.vm.removed:
            raise TtmError(errno.ENOENT, f"the VM {self.vm.name} was removed")
        found = self.vm.pieces(self.address, self.length, write=self.operation.writes)
        for piece in found:
            check_content(piece.bo)
        return found

    @property
    def _holds_vm(self) -> bool:
        """Is the VM's reservation among those that are held?"""
        return self.ctx.ticket is not None and self.vm.resv.holder is self.ctx.ticket

    async def prepare(self, bos: tuple[BufferObject, ...], queue: str, uid: int) -> VmJob | None:
        """With `bos` reserved: all memory, then the job. None when something else is bound there by now."""
        check_device(self.vdev)
        vm, ctx = self.vm, self.ctx
        ctx.together = bos
        held = dict.fromkeys(bos)
        for _ in range(_ATTEMPTS):
            touched = _bos_of(self.pieces())
            if not touched.keys() <= held.keys():
                return None
            lost = dict.fromkeys(vm.evicted())
            ctx.allow_res_evict, ctx.keep = vm.allow_res_evict, touched
            for bo in (bo for bo in bos if bo in touched):
                # The VM's, where it is held: an external BO may have local ones evicted too.
                await prepare(self.vdev, bo, ctx, vm.resv if self._holds_vm else bo.resv, self.patience)
            # Whether other files are what they were is found out now.
            lost |= dict.fromkeys(bo for bo in vm.evicted() if bo in touched and bo.external)
            back = await self._bring_back([bo for bo in bos if bo in lost and bo not in touched])
            if self.vm.removed or _bos_of(self.pieces()) != touched:
                continue
            if all(bo.has_memory(0, bo.num_pages) for bo in touched):
                for bo in touched:
                    bo.resv.reserve_fences(1)
                return self._queue([*touched, *back], lost, queue, uid)
        raise TtmError(errno.EBUSY, "what is bound there changes all the time: say exec again when it does not")

    async def _bring_back(self, lost: list[BufferObject]) -> list[BufferObject]:
        """What else was evicted comes back, as far as there is room that no BO of this VM has."""
        own = OperationContext(no_wait_gpu=self.ctx.no_wait_gpu, ticket=self.ctx.ticket, together=self.ctx.together)
        back: list[BufferObject] = []
        for bo in lost:
            try:
                bo.check_alive()  # destroyed meanwhile, it may have been freed for what is touched
                await prepare(self.vdev, bo, own, bo.resv, self.patience)
            except TtmError:
                check_device(self.vdev)
                continue  # it stays where it is, and is tried again at the next exec
            back.append(bo)
        self.ctx.done.bytes_moved += own.done.bytes_moved
        return back

    def _queue(self, usable: list[BufferObject], lost: Container[BufferObject], queue_name: str, uid: int) -> VmJob:
        """Nothing fails once the queue has taken it, and nothing waits."""
        vdev, vm, operation = self.vdev, self.vm, self.operation
        pieces = self.pieces()
        bos = tuple(_bos_of(pieces))
        spans = {bo: capture(bo) for bo in bos}
        queue = vdev.compute.queues.open(queue_name, uid)
        point = queue.next_point()
        deps: list[Fence] = []
        for resv in dict.fromkeys(bo.resv for bo in bos):
            deps += resv.get_fences(Usage.READ if operation.writes else Usage.WRITE)
        fence = queue.timeline.next_fence(f"exec {vm.name} {operation.kind} {self.address:#x}+{self.length:#x}", deps)
        rebound = vm.usable([bo for bo in usable if bo in vm.bos], lost)
        memory = [spans[piece.bo] for piece in pieces]
        job = VmJob(operation, pieces, memory, bos, fence, tuple(deps), unmap_virtual, point, rebound)
        leave_fence(fence, bos, job.writes)
        vm.execs += 1
        self._to_the_end()
        vdev.compute.submit(queue, job, point=point)
        points.job(vdev.ttm.trace, job.name, fence=fence, kind=job.kind, bytes=self.length, bos=bos, queue=queue.name)
        call = vdev.ttm.uses
        for bo in bos:
            trace_use(bo, "job", call)
        return job

    def _to_the_end(self) -> None:
        """xe_vm_bulk_move: all of its local BOs were used just now. Where somebody else holds them, that is so too."""
        vm = self.vm
        if self._holds_vm:
            vm.bulk.move_tail()
        elif vm.resv.trylock():
            vm.bulk.move_tail()
            vm.resv.unlock()


def _bos_of(pieces: list[Piece]) -> dict[BufferObject, None]:
    return dict.fromkeys(piece.bo for piece in pieces)


def _unlock(bo: BufferObject) -> None:
    """Local BOs went to the end of the LRU in their order, as they shall stay."""
    if bo.bulk is None:
        bo.unreserve()
    else:
        bo.unlock()


async def exec_vm(
    vdev: VirtualDevice,
    vm: Vm,
    operation: Operation,
    address: int,
    length: int,
    ctx: OperationContext,
    *,
    queue: str = DEFAULT,
    uid: int = 0,
) -> VmJob:
    """Queue an operation on bytes of a VM.

    TtmError: EFAULT where nothing is bound, EPERM a write to what is bound read-only, ENOENT the VM was removed, EACCES
    another's queue; ENODEV, EIO, ENOMEM, EBUSY as of `submit_job`.
    """
    check_device(vdev)
    vdev.compute.queues.check(queue, uid, None)
    call = _Exec(vdev, vm, operation, address, length, ctx)
    for bo in _bos_of(call.pieces()):
        used(bo, "job")
    for _ in range(_ATTEMPTS):
        bos = tuple(dict.fromkeys([*(piece.bo for piece in call.pieces()), *vm.to_bring_back()]))
        await call.look_at_files(bos)
        try:
            job = await with_all_reserved(bos, ctx, partial(call.prepare, bos, queue, uid), unlock=_unlock)
        except TtmError:
            if not any(bo.deleted for bo in bos):
                raise
            continue  # one was unlinked meanwhile, and is bound no more
        if job is not None:
            return job
    raise TtmError(errno.EBUSY, "what is bound there changes all the time: say exec again when it does not")

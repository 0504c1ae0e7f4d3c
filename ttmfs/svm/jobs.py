"""What the device does to the bytes of a space: one operation is a chain of jobs, each over a part of one range.

A job works on the memory that its range was bound to: its fence, left on the allocation or on the chunk, keeps that
memory where it is. What clients have cached is flushed when the engine starts the job; what was written is published
by another flush before the fence signals (rule R7). Jobs of one operation run in order on one timeline, so the fence of
the last one stands for all.
"""

import errno
from typing import TYPE_CHECKING

import numpy as np

from ttmfs.driver.jobs import INLINE_BYTES, Span
from ttmfs.driver.operation import Operation
from ttmfs.errors import TtmError
from ttmfs.svm.fault import Bound
from ttmfs.svm.pages import CHUNK_PAGES, mask_of
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.sync.resv import Usage
from ttmfs.ttm.advice import used
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


class SvmJob:
    """A part of an operation that lies in one range: a QueuedWork of the queue `svm`."""

    __slots__ = ("deps", "done", "fence", "first", "kind", "name", "offset", "operation", "size", "space", "span")

    def __init__(
        self, space: "AddressSpace", operation: Operation, bound: Bound, address: int, size: int, done: int
    ) -> None:
        self.space = space
        self.name = space.name
        self.kind = operation.kind
        self.operation = operation
        self.first = address >> PAGE_SHIFT
        self.offset = address & PAGE_MASK
        self.size = size
        self.done = done
        self.span = _capture(bound, self.first, self.end - self.first)
        self.deps: tuple[Fence, ...] = ()
        if bound.devmem is not None:
            self.deps = tuple(bound.devmem.bo.resv.get_fences(Usage.KERNEL))
        what = f"{self.kind} svm:{space.name}@{address:#x} {size} bytes"
        self.fence = space.vdev.compute.queues.svm.timeline.next_fence(what, self.deps)

    @property
    def end(self) -> int:
        """The page behind its last."""
        return (((self.first << PAGE_SHIFT) + self.offset + self.size - 1) >> PAGE_SHIFT) + 1

    async def run(self, lane: Lane) -> None:
        """Flush, work, publish. TtmError: what ended an earlier part of the operation."""
        operation = self.operation
        if operation.error is not None:
            raise operation.error
        try:
            await self._work(operation, lane)
        except Exception as error:
            why = error.message if isinstance(error, TtmError) else repr(error)
            operation.error = TtmError(errno.EIO, f"{self.fence.what}: {why}")
            raise

    async def _work(self, operation: Operation, lane: Lane) -> None:
        await self.space.flush(self.first, self.end)
        self.space.vdev.ttm.inject.check("job", errno.EIO, f"job {self.fence.what}", bo=self.name)
        if self.size <= INLINE_BYTES:
            operation.execute(self.span, self.offset, self.size, self.done)
        else:
            await lane.run(operation.execute, self.span, self.offset, self.size, self.done)
        if operation.writes:
            watcher = self.space.watcher
            if watcher is not None:
                watcher.content_changed()
            await self.space.flush(self.first, self.end)
            if watcher is not None:
                await watcher.settle()


def _capture(bound: Bound, first: int, count: int) -> Span:
    """The memory behind these pages of a bound range."""
    index = first & (CHUNK_PAGES - 1)
    devmem = bound.devmem
    if devmem is not None:
        resource = devmem.resource
        return Span([(resource.arena, resource.numbers(index - devmem.first, count))])
    chunk = bound.chunk
    return Span([(chunk.space.arena, chunk.pages.numbers(mask_of(index, count)).astype(np.uint32, copy=False))])


def queue(space: "AddressSpace", operation: Operation, bound: Bound, address: int, size: int, done: int) -> None:
    """Queue one part; nothing can fail and nothing waits from here on. Ends the hold on what was bound."""
    job = SvmJob(space, operation, bound, address, size, done)
    if bound.devmem is not None:
        used(bound.devmem.bo, "job", came=not bound.devmem.bo.uses)
        bound.devmem.bo.resv.add_fence(job.fence, Usage.WRITE if operation.writes else Usage.READ)
    else:
        chunk, mask = bound.chunk, mask_of(job.first & (CHUNK_PAGES - 1), job.end - job.first)
        chunk.fences = (*chunk.fences, (mask, job.fence))
        chunk.touch(mask)
        space.used(chunk)
        chunk.busy(0)
        job.fence.add_callback(lambda _fence: space.tidy(chunk))
    bound.release()
    space.svm.counters.gpu_jobs += 1
    space.pending_jobs += 1
    job.fence.add_callback(lambda _fence: _ended(space))
    operation.fence = job.fence
    space.vdev.compute.submit(space.vdev.compute.queues.svm, job)


def _ended(space: "AddressSpace") -> None:
    space.pending_jobs -= 1

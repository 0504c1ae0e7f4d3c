"""Submit: hand a job over its BOs to the compute engine (what DRM_IOCTL_*_GEM_EXECBUFFER does)."""

import errno
from dataclasses import dataclass

import trio

from ttmfs.driver.calls import check_device
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job, QueuedJob, capture, check, leave_fence
from ttmfs.driver.locking import with_all_reserved
from ttmfs.driver.queues import behind
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Reservation, Usage
from ttmfs.ttm.advice import trace_use, used
from ttmfs.ttm.bo import CONTENT_LOST, PURGED, BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.external import ExternalTT
from ttmfs.ttm.populate import populate_all, populate_range
from ttmfs.ttm.unmap import unmap_virtual

_ATTEMPTS = 8
"""How often BOs that grow while others are prepared are prepared again."""


async def submit_job(vdev: VirtualDevice, job: Job, ctx: OperationContext) -> QueuedJob:
    """Reserve all BOs of the job under one ticket, validate them, queue the job behind their fences.

    TtmError: EINVAL for a range outside a BO or a point that is not beyond the queue's last, EACCES for another's
    queue, ENODEV unplugged, EIO for a BO whose content was lost, ENOMEM, EBUSY also for BOs that do not stop growing.
    With `--purgeable strict` EBUSY for a BO that is advised `dontneed`, EACCES for one that was purged.
    """
    check_device(vdev)
    check(job)
    vdev.compute.queues.check(job.queue, job.uid, job.point)
    bos = job.bos
    for bo in bos:
        check_content(bo)
        used(bo, "job")

    async def work() -> QueuedJob:
        # Again: it may have waited for long.
        check_device(vdev)
        await vdev.policies.promoter.submitted(bos, ctx)
        for _ in range(_ATTEMPTS):
            for bo in bos:
                await prepare(vdev, bo, ctx, bo.resv)
            # Sizes may have changed while others were waited for, and what has grown has holes.
            size = check(job)
            if all(bo.has_memory(0, bo.num_pages) for bo in bos):
                return _queue(vdev, job, size)
        raise TtmError(errno.EBUSY, "the BOs of the job grow all the time: submit it when their writers are done")

    return await with_all_reserved(bos, ctx, work)


@dataclass(slots=True)
class Patience:
    """What is left of the time that all exporters of one call have together."""

    seconds: float


async def prepare(
    vdev: VirtualDevice, bo: BufferObject, ctx: OperationContext, resv: Reservation, patience: Patience | None = None
) -> None:
    """To where the driver wants it, with all its memory, and a slot for the job's fence; others of `resv` may have to
    go for it where `ctx` allows that."""
    check_content(bo)
    await check_exporter(bo, patience or Patience(vdev.config.fault_timeout))
    ctx.resv = resv
    await vdev.funcs.validate_for_job(bo, ctx)
    bo.placed = True
    added = await _populate(bo, ctx)
    points.populate(bo.device.trace, bo, pages=added, why="job")
    bo.resv.reserve_fences(1)
    await vdev.funcs.take_dirty(bo)


async def check_exporter(bo: BufferObject, patience: Patience) -> None:
    """If its memory is somebody else's: is all of it there? TtmError(EIO), also where there is no patience left."""
    if not isinstance(bo.tt, ExternalTT):
        return
    begun = trio.current_time()
    try:
        with trio.move_on_after(patience.seconds):
            return await bo.tt.check_whole()
    finally:
        patience.seconds = max(patience.seconds - (trio.current_time() - begun), 0.0)
    raise TtmError(errno.EIO, f"{bo.name!r}: the files of this job did not answer in time")


def check_content(bo: BufferObject) -> None:
    """TtmError: EIO, EACCES, EBUSY; as msm and panfrost do with what is purged, or may be at any time."""
    if bo.unknown_state:
        raise TtmError(errno.EIO, f"{bo.name!r}: {CONTENT_LOST}")
    if bo.gone:
        raise TtmError(errno.EACCES, f"{bo.name!r}: {PURGED}")
    if bo.purgeable and bo.device.strict_purge:
        raise TtmError(errno.EBUSY, f"{bo.name!r} is advised dontneed: say willneed first, and look at `retained`")


async def _populate(bo: BufferObject, ctx: OperationContext) -> int:
    """Memory for all of it, or ENOMEM with no hole filled; the pages added."""
    if bo.resource is not None and not bo.resource.manager.use_tt:
        # What was appended behind the region's own pages.
        return await populate_range(bo, 0, bo.num_pages, ctx)
    tt = bo.need_tt()
    if tt.is_populated:
        return 0
    before = tt.populated_pages
    await populate_all(bo, tt, ctx)
    return tt.populated_pages - before


def _queue(vdev: VirtualDevice, job: Job, size: int) -> QueuedJob:
    """Everything is reserved and has memory: once its queue has taken it nothing can fail, and nothing waits."""
    writes = job.bos if job.kind == "busy" else () if job.dst is None else (job.dst,)
    queue = vdev.compute.queues.open(job.queue, job.uid)
    point = queue.next_point(job.point)
    deps: list[Fence] = []
    for bo in job.bos:
        # A writer waits for readers too; a reader for moves and writers.
        deps += bo.resv.get_fences(Usage.READ if bo in writes else Usage.WRITE)
    deps += behind(job.after)
    what = f"{job.kind} {' '.join(bo.name for bo in job.bos)}"
    queued = QueuedJob(
        job,
        size,
        queue.timeline.next_fence(what, deps),
        capture(job.dst) if job.dst is not None else None,
        tuple(capture(bo) for bo in job.srcs) if job.kind != "busy" else (),
        tuple(deps),
        unmap_virtual,
        point,
    )
    leave_fence(queued.fence, job.bos, writes)
    vdev.compute.submit(queue, queued, job.priority, point)
    first = job.bos[0].name if job.bos else ""
    points.job(vdev.ttm.trace, first, fence=queued.fence, kind=job.kind, bytes=size, bos=job.bos, queue=queue.name)
    call = vdev.ttm.uses
    for bo in job.bos:
        trace_use(bo, "job", call)
    return queued

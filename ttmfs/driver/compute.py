"""ComputeEngine: runs jobs one after another on its own timeline, in a worker thread (numpy releases the GIL)."""

import errno
import logging
from collections import deque
from typing import Final, Protocol

import trio

from ttmfs.driver.engine import FenceErrors
from ttmfs.driver.jobs import QueuedJob, execute, execute_imported
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.sync.offload import Lane

log = logging.getLogger(__name__)

INLINE_BYTES: Final = 256 << 10
"""Smaller jobs run on the loop: a thread hop costs more than they do."""


class OtherJob(Protocol):
    """A job that is not over BOs with a file: it knows by itself what it works on and what it flushes."""

    kind: str
    name: str
    """Whose memory it is, for the trace."""
    fence: Fence
    deps: tuple[Fence, ...]

    async def run(self, lane: Lane) -> None:
        """Do it, off the loop in `lane` where it is long. TtmError: the errno that the fence carries."""


class ComputeEngine:
    """One engine; `run` is its task."""

    def __init__(self, name: str, counters: FenceCounters, errors: FenceErrors) -> None:
        self.name = name
        self.timeline = Timeline(name, counters)
        self._queue: deque[QueuedJob | OtherJob] = deque()
        self._errors = errors
        self._work = trio.Event()
        # Its own thread: jobs must not wait for INVALs or the other way round.
        self._lane = Lane(name, 1)

    def submit(self, queued: QueuedJob | OtherJob) -> None:
        """Queue a job whose fence was emitted by `timeline`."""
        self._queue.append(queued)
        self._work.set()

    def pending(self) -> list[Fence]:
        """Fences of jobs that are queued or running, oldest first."""
        return [queued.fence for queued in self._queue]

    async def run(self) -> None:
        """Execute jobs for ever."""
        while True:
            while self._queue:
                queued = self._queue[0]
                for fence in queued.deps:
                    await fence.wait()
                self._trace("job_start", queued)
                error = await self._execute(queued)
                self._trace("job_end", queued, errno=error)
                self._queue.popleft()
                if error:
                    self._errors.add(queued.fence, error)
                queued.fence.signal(error)
            self._work = trio.Event()
            await self._work.wait()

    def _trace(self, event: str, queued: QueuedJob | OtherJob, **facts: object) -> None:
        trace = self.timeline.counters.trace if self.timeline.counters is not None else None
        if trace is not None and trace.on:
            if isinstance(queued, QueuedJob):
                bo, kind = queued.job.bos[0].name if queued.job.bos else "", queued.job.kind
            else:
                bo, kind = queued.name, queued.kind
            trace.emit(event, bo, engine=self.name, fence=queued.fence.name, kind=kind, **facts)

    async def _work_on(self, queued: QueuedJob) -> None:
        if queued.job.kind == "busy":
            await trio.sleep(queued.job.seconds)
        elif queued.imported:
            queued.value = await execute_imported(queued.work, self._lane)
        elif queued.size <= INLINE_BYTES:
            queued.value = execute(queued.work)
        else:
            queued.value = await self._lane.run(execute, queued.work)

    async def _execute(self, queued: QueuedJob | OtherJob) -> int:
        """0 or the errno that the job's fence carries."""
        try:
            if not isinstance(queued, QueuedJob):
                await queued.run(self._lane)
                return 0
            for bo in queued.job.bos:
                await queued.flush(bo)
            try:
                await self._work_on(queued)
            except Exception:
                await queued.publish()  # it may have written some of it
                raise
            await queued.publish()
        except TtmError as error:
            return error.errno or errno.EIO
        except Exception:  # a job that fails must not end the engine: its fence says so
            log.exception("job %s", queued.fence.what)
            return errno.EIO
        return 0

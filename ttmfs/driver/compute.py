"""ComputeEngine: runs jobs one after another on its own timeline, in a worker thread (numpy releases the GIL)."""

import errno
import logging
from collections import deque
from typing import Final

import trio

from ttmfs.driver.engine import FenceErrors
from ttmfs.driver.jobs import QueuedJob, execute
from ttmfs.sync.fence import Fence, FenceCounters, Timeline

log = logging.getLogger(__name__)

INLINE_BYTES: Final = 256 << 10
"""Smaller jobs run on the loop: a thread hop costs more than they do."""


class ComputeEngine:
    """One engine; `run` is its task."""

    def __init__(self, name: str, counters: FenceCounters, errors: FenceErrors) -> None:
        self.name = name
        self.timeline = Timeline(name, counters)
        self._queue: deque[QueuedJob] = deque()
        self._errors = errors
        self._work = trio.Event()
        # Its own thread: jobs must not wait for INVALs or the other way round.
        self._limiter = trio.CapacityLimiter(1)

    def submit(self, queued: QueuedJob) -> None:
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
                error = await self._execute(queued)
                self._queue.popleft()
                if error:
                    self._errors.add(queued.fence, error)
                queued.fence.signal(error)
            self._work = trio.Event()
            await self._work.wait()

    async def _execute(self, queued: QueuedJob) -> int:
        """0 or the errno that the job's fence carries."""
        try:
            for bo in queued.job.bos:
                await queued.flush(bo)
            if queued.job.kind == "busy":
                await trio.sleep(queued.job.seconds)
            elif queued.size <= INLINE_BYTES:
                queued.value = execute(queued.job, queued.size, queued.dst, queued.srcs)
            else:
                queued.value = await trio.to_thread.run_sync(
                    execute, queued.job, queued.size, queued.dst, queued.srcs, limiter=self._limiter
                )
            await queued.publish()
        except Exception:  # a job that fails must not end the engine: its fence says so
            log.exception("job %s", queued.fence.what)
            return errno.EIO
        return 0

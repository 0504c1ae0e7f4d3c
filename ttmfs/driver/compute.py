"""ComputeEngine: runs jobs one after another on its own timeline, in a worker thread (numpy releases the GIL)."""

import errno
import logging
from collections import deque
from typing import Protocol

from ttmfs.driver.engine import FenceErrors
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.bell import Bell
from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.sync.offload import Lane

log = logging.getLogger(__name__)


class QueuedWork(Protocol):
    """A job in the queue. It knows by itself what it works on, what it flushes before and what it publishes after."""

    fence: Fence
    deps: tuple[Fence, ...]

    @property
    def kind(self) -> str:
        """For the trace."""

    @property
    def name(self) -> str:
        """Whose memory it is, for the trace."""

    async def run(self, lane: Lane) -> None:
        """Do it, off the loop in `lane` where it is long. TtmError: the errno that the fence carries."""


class ComputeEngine:
    """One engine; `run` is its task."""

    def __init__(self, name: str, counters: FenceCounters, errors: FenceErrors) -> None:
        self.name = name
        self.timeline = Timeline(name, counters)
        self._trace = counters.trace
        self._queue: deque[QueuedWork] = deque()
        self._errors = errors
        self._work = Bell()
        # Its own thread: jobs must not wait for INVALs or the other way round.
        self._lane = Lane(name, 1)

    def submit(self, queued: QueuedWork) -> None:
        """Queue a job whose fence was emitted by `timeline`."""
        self._queue.append(queued)
        self._work.ring()

    def pending(self) -> list[Fence]:
        """Fences of jobs that are queued or running, oldest first."""
        return [queued.fence for queued in self._queue]

    async def run(self) -> None:
        """Execute jobs for ever."""
        while True:
            await self._work.heard()
            while self._queue:
                queued = self._queue[0]
                for fence in queued.deps:
                    await fence.wait()
                points.job_start(self._trace, queued, engine=self.name, fence=queued.fence, kind=queued.kind)
                error = await self._execute(queued)
                points.job_end(
                    self._trace, queued, engine=self.name, fence=queued.fence, kind=queued.kind, errno=error
                )
                self._queue.popleft()
                if error:
                    self._errors.add(queued.fence, error)
                queued.fence.signal(error)

    async def _execute(self, queued: QueuedWork) -> int:
        """0 or the errno that the job's fence carries."""
        try:
            await queued.run(self._lane)
        except TtmError as error:
            return error.errno or errno.EIO
        except Exception:  # a job that fails must not end the engine: its fence says so
            log.exception("job %s", queued.fence.what)
            return errno.EIO
        return 0

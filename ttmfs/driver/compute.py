"""Compute: the engines that run jobs, and which queue each takes next (drm_sched).

An engine serves the user who was not served for longest: many queues, or urgent ones, make no larger share. Of that
user's it takes a queue whose first job waits for nothing: of the most urgent ones, the one that became ready first. So
no engine is held by a job that waits, and an unrelated job runs past a long one while another engine is free. A queue
that was passed over MAX_PASSED times for others of its user is taken first, whatever its priority: nobody starves. Each
engine has a worker thread (numpy releases the GIL).
"""

import errno
import logging
from functools import partial
from typing import Final

import trio

from ttmfs.driver.engine import FenceErrors
from ttmfs.driver.queues import Priority, Queue, QueuedWork, Queues
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.breather import Pauses
from ttmfs.sync.fence import Fence, FenceCounters
from ttmfs.sync.offload import Lane

log = logging.getLogger(__name__)

MAX_PASSED: Final = 16


class Compute:
    """`engines` engines over the queues of one device; `run` is the task of all."""

    def __init__(self, engines: int, counters: FenceCounters, errors: FenceErrors) -> None:
        self.queues = Queues(counters)
        # Threads of its own: jobs must not wait for INVALs or the other way round.
        self._lanes = [Lane(f"compute{number}", 1) for number in range(engines)]
        self._trace = counters.trace
        self._errors = errors
        self._ready: dict[Queue, None] = {}
        self._served: dict[int, int] = {}
        """Which turn was the last one of each user."""
        self._turns = 0
        self._idle = trio.lowlevel.ParkingLot()

    def submit(self, queue: Queue, queued: QueuedWork, priority: Priority = Priority.NORMAL, point: int = 0) -> None:
        """Queue a job whose fence was emitted by the queue's timeline, as a point that was checked (0: the next)."""
        queue.push(queued, priority, point or queue.next_point())
        if len(queue) == 1 and not queue.running:
            self._look(queue)

    def _look(self, queue: Queue) -> None:
        """Its first job has changed, or what that one waited for has signaled."""
        fence = queue.waits_for()
        if fence is not None:
            fence.add_callback(partial(self._signaled, queue))
            return
        self._ready[queue] = None
        self._idle.unpark()

    def _signaled(self, queue: Queue, _fence: Fence) -> None:
        self._look(queue)

    def _take(self) -> Queue | None:
        """The queue that an engine works on next."""
        if not self._ready:
            return None
        user = min(self._ready, key=lambda queue: self._served.get(queue.uid, 0)).uid
        theirs = [queue for queue in self._ready if queue.uid == user]
        # Of equals the first: the one that is ready for longest.
        queue = max(theirs, key=lambda queue: (queue.passed >= MAX_PASSED, queue.priority))
        del self._ready[queue]
        self._turns += 1
        self._served[user] = self._turns
        for other in theirs:
            other.passed += 1
        queue.passed = 0
        return queue

    async def run(self) -> None:
        """Execute jobs for ever."""
        async with trio.open_nursery() as nursery:
            for lane in self._lanes:
                nursery.start_soon(self._engine, lane)

    async def _engine(self, lane: Lane) -> None:
        pauses = Pauses()
        while True:
            # Small jobs wait for nothing, and there may be thousands.
            await pauses.step()
            while (queue := self._take()) is None:
                await self._idle.park()
            queue.running = True
            queued = queue.head
            points.job_start(self._trace, queued, engine=lane.name, fence=queued.fence, kind=queued.kind)
            error = await self._execute(queued, lane)
            points.job_end(self._trace, queued, engine=lane.name, fence=queued.fence, kind=queued.kind, errno=error)
            queue.pop(error)
            if error:
                self._errors.add(queued.fence, error)
            queued.fence.signal(error)
            queue.running = False
            if len(queue):
                self._look(queue)

    async def _execute(self, queued: QueuedWork, lane: Lane) -> int:
        """0 or the errno that the job's fence carries."""
        try:
            await queued.run(lane)
        except TtmError as error:
            return error.errno or errno.EIO
        except Exception:  # a job that fails must not end the engine: its fence says so
            log.exception("job %s", queued.fence.what)
            return errno.EIO
        return 0

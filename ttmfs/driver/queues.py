"""Queues: where jobs stand in line, each with a timeline of its own (drm_sched_entity, drm_syncobj).

Jobs of one queue run one after another in the order of submission; those of different queues wait for each other only
where they touch the same BO or say `after=`. A job is a *point* of its queue's timeline, 1, 2, 3, … or what it was
given: a number beyond the last one. The points are a FenceChain (drm_syncobj_add_point): one is reached when its job
and all earlier ones have ended, and a number between two points stands for the later one.
"""

import errno
import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Protocol

from ttmfs.errors import TtmError
from ttmfs.sync.containers import FenceChain, merge
from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.sync.offload import Lane

DEFAULT: Final = "default"
SVM: Final = "svm"
"""The device's own: where jobs go that name none, and what address spaces do."""
MAX_QUEUES: Final = 64
"""Queues of one user. For one more the queue goes that has been idle for longest."""
MAX_JOBS: Final = 4096
"""Jobs of one user, and beside them of one address space, that are queued or running."""
_LAST_POINT: Final = (1 << 63) - 1
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_POINT: Final = re.compile(r"[1-9][0-9]{0,18}")
_CONTEXTS_KEPT: Final = 1024


class Priority(IntEnum):
    """drm_sched_priority, the more urgent the larger."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


def default_of(uid: int | str) -> str:
    """The queue where the jobs of a user go that name none, unless the device is theirs: nobody waits for others'."""
    return f"{DEFAULT}.{uid}"


def check_point(queue: str, last: int, point: int) -> None:
    """May a job be `point` of a queue that is at `last`? TtmError(EINVAL)."""
    if not last < point <= _LAST_POINT:
        raise TtmError(errno.EINVAL, f"point={point}: {queue} is at {last}, and points only grow")


class QueuedWork(Protocol):
    """A job in a queue. It knows by itself what it works on, what it flushes before and what it publishes after."""

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


class Queue:
    """One queue. Its first job is the one that runs, or runs next (`running`)."""

    __slots__ = ("_chain", "_first_error", "_jobs", "_urgency", "name", "passed", "running", "timeline", "uid")

    def __init__(self, name: str, uid: int, counters: FenceCounters) -> None:
        self.name = name
        self.uid = uid
        """Whose it is."""
        self.timeline = Timeline(name, counters)
        self.running = False
        self.passed = 0
        """How often an engine took another queue of its user while this one's first job could have run."""
        self._jobs: deque[tuple[QueuedWork, Priority]] = deque()
        self._urgency = [0] * len(Priority)
        self._chain: FenceChain | None = None
        self._first_error: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Jobs that are queued or running."""
        return len(self._jobs)

    @property
    def priority(self) -> Priority:
        """That of its most urgent job: what stands before that one hurries with it."""
        return next((level for level in reversed(Priority) if self._urgency[level]), Priority.NORMAL)

    @property
    def head(self) -> QueuedWork:
        """The oldest job."""
        return self._jobs[0][0]

    def pending(self) -> list[Fence]:
        """Fences of its jobs, oldest first."""
        return [queued.fence for queued, _ in self._jobs]

    def waits_for(self) -> Fence | None:
        """What its first job still waits for."""
        return next((fence for fence in self.head.deps if not fence.signaled), None)

    def push(self, queued: QueuedWork, priority: Priority, point: int) -> None:
        """Add a job whose fence was emitted by `timeline`, as a point that `next_point` has approved."""
        self._jobs.append((queued, priority))
        self._urgency[priority] += 1
        self._chain = FenceChain(self._chain, queued.fence, point)

    def pop(self, error: int) -> QueuedWork:
        """The oldest job has ended, with an errno or 0; its fence is to be signaled."""
        queued, priority = self._jobs.popleft()
        self._urgency[priority] -= 1
        if error and self._first_error is None:
            self._first_error = (self._point_of(queued.fence), error)
        return queued

    def _point_of(self, fence: Fence) -> int:
        """The point of a pending job."""
        link: Fence | None = self._chain
        while isinstance(link, FenceChain):
            if link.fence is fence:
                return link.seqno
            link = link.prev
        raise AssertionError(f"{fence.name} is no pending job of the queue {self.name}")

    # -- points --------------------------------------------------------------------------------------------------

    @property
    def last_point(self) -> int:
        """The point of its last job; 0 before the first."""
        return 0 if self._chain is None else self._chain.seqno

    def next_point(self, point: int | None = None) -> int:
        """The point for the next job: the one asked for, else the next. TtmError(EINVAL): points only grow."""
        if point is None:
            point = self.last_point + 1
        check_point(self.name, self.last_point, point)
        return point

    def find_point(self, point: int) -> Fence | None:
        """What reaches a point; None when it is reached. TtmError(EINVAL) for one that no job stands for yet."""
        if self._chain is None or point > self._chain.seqno:
            raise TtmError(
                errno.EINVAL, f"{self.name}:{point} is not submitted yet: the last point is {self.last_point}"
            )
        fence = self._chain.find_seqno(point)
        return None if fence.signaled else fence

    def error_at(self, point: int) -> int:
        """The errno of the first job that failed, when it is not beyond `point`; else 0."""
        first = self._first_error
        return 0 if first is None or first[0] > point else first[1]


class Queues:
    """All queues of a device by name. Jobs that name none are in `default`; `svm` is that of address spaces."""

    def __init__(self, counters: FenceCounters) -> None:
        self._counters = counters
        self._queues: OrderedDict[str, Queue] = OrderedDict()
        self._gone: OrderedDict[int, int] = OrderedDict()
        self.default = self._make(DEFAULT, 0)
        self.svm = self._make(SVM, 0)

    def __iter__(self) -> Iterator[Queue]:
        """The device's own first, then by their last use."""
        return iter(self._queues.values())

    def _make(self, name: str, uid: int) -> Queue:
        queue = self._queues[name] = Queue(name, uid, self._counters)
        return queue

    def get(self, name: str) -> Queue:
        """The queue of a name. TtmError(ENOENT)."""
        queue = self._queues.get(name)
        if queue is None:
            raise TtmError(errno.ENOENT, f"there is no queue {name[:64]!r}: submit queue={name[:64]} makes one")
        return queue

    def find(self, name: str, uid: int) -> Queue | None:
        """The queue of a name for `uid`'s jobs, if there is one.

        TtmError: EINVAL for no name, EACCES for another's, EAGAIN when `uid` has MAX_JOBS that have not ended.
        """
        queue = self._queues.get(name)
        if queue is not None:
            if queue is self.svm or (queue is not self.default and uid not in (0, queue.uid)):
                raise TtmError(errno.EACCES, f"the queue {name} is not yours: choose another name")
        elif not _NAME.fullmatch(name):
            raise TtmError(
                errno.EINVAL,
                f"queue={name[:70]!r}: at most 64 letters, digits, '_', '.' and '-', the first no digit",
            )
        elif name.startswith(default_of("")) and name != default_of(uid):
            raise TtmError(errno.EACCES, f"queue={name}: choose a name that does not begin with {default_of('')}")
        mine = (each for each in self._queues.values() if each.uid == uid and each is not self.svm)
        if sum(map(len, mine)) >= MAX_JOBS:
            raise TtmError(errno.EAGAIN, f"{MAX_JOBS} of your jobs have not ended: wait for one of them")
        return queue

    def check(self, name: str, uid: int, point: int | None) -> None:
        """Would the queue take a job as that point? Changes nothing. TtmError as `open` and `Queue.next_point`."""
        queue = self.find(name, uid)
        if point is not None:
            if queue is self.default:
                raise TtmError(errno.EINVAL, "point= is for a queue of your own: say queue=NAME")
            check_point(name, 0 if queue is None else queue.last_point, point)

    def open(self, name: str, uid: int = 0) -> Queue:
        """The queue of a name for one of `uid`'s jobs, made if there is none; root may use anybody's.

        TtmError: EINVAL for what is no name, EACCES for another's queue, ENOSPC when all that `uid` may have are busy.
        """
        queue = self.find(name, uid)
        if queue is not None:
            if queue is not self.default:
                self._queues.move_to_end(name)
            return queue
        mine = [queue for queue in self._queues.values() if queue.uid == uid and queue not in (self.default, self.svm)]
        if len(mine) >= MAX_QUEUES:
            idle = next((queue for queue in mine if not queue), None)
            if idle is None:
                raise TtmError(errno.ENOSPC, f"all of your {MAX_QUEUES} queues have jobs: use one of them")
            self._drop(idle)
        return self._make(name, uid)

    def _drop(self, queue: Queue) -> None:
        del self._queues[queue.name]
        self._gone[queue.timeline.context] = queue.timeline.last_emitted
        if len(self._gone) > _CONTEXTS_KEPT:
            self._gone.popitem(last=False)

    def emitted_and_gone(self, context: int, seqno: int) -> bool:
        """Was that fence one of a queue that is no more?"""
        return 0 < seqno <= self._gone.get(context, 0)

    def point(self, text: str) -> tuple[Queue, int] | None:
        """The queue and number of `QUEUE:POINT`; None for what is not of that form. TtmError(ENOENT)."""
        name, _, point = text.rpartition(":")
        if not _NAME.fullmatch(name) or not _POINT.fullmatch(point):
            return None
        return self.get(name), int(point)


def behind(fence: Fence | None) -> list[Fence]:
    """What a job waits for that comes after `fence`: of a point the newest job, of a plain fence itself."""
    if fence is None or fence.signaled:
        return []
    return [merge(fence)]

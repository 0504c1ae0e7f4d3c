"""Engine: a copy engine of the virtual device, with a timeline of its own.

Copies run one after another in the order of submission, each behind its dependencies. The bytes move on the loop, in
steps with a checkpoint in between, so that faults are served meanwhile: of 256 KiB while clients want something, up to
4 MiB while nobody does, of 2 MiB while a request waits for a copy. Simulated latency and bandwidth are spent before any
byte moves. What lies in whole frames of 2 MiB at both ends changes hands at the end instead of being copied, some
frames in each step.
"""

import errno
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from ttmfs import clock
from ttmfs.observe import points
from ttmfs.observe.counters import RequestCounters
from ttmfs.observe.inject import Injection
from ttmfs.sync.bell import Bell
from ttmfs.sync.fence import Fence, FenceCounters, Timeline
from ttmfs.sync.resv import Usage
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.copy import Copy, CopyState
from ttmfs.ttm.device import CLEAR_STEP_PAGES
from ttmfs.ttm.request import Request
from ttmfs.units import PAGE_SIZE

log = logging.getLogger(__name__)

_ERRORS_KEPT: Final = 1024

MAX_STEP_PAGES: Final = 1024
_HURRIED_STEP_PAGES: Final = 512
"""While a request waits for a copy: what faults of other BOs wait for longer, that one waits for less."""
_LOOKED_AT: Final = 16
"""Requests that wait, of which a step looks whether one waits for a copy: the oldest ones."""
_QUIET_CHECKPOINTS: Final = (3, 16)
"""So many checkpoints in a row at which no client wanted anything before steps grow: at first, and after a request."""
_LONG_STEP: Final = 800e-6
"""Seconds of a step beyond which the next ones are shorter: what a fault may have to wait for."""
_BUSY_CHECKPOINT: Final = 100e-6
"""Seconds of a checkpoint that say that somebody else uses the loop too."""


class CopySteps:
    """How many pages the next step of a copy takes: `pages`, from CLEAR_STEP_PAGES to MAX_STEP_PAGES.

    A checkpoint costs as much as copying 128 KiB, and every fault waits for the step that it arrives in: so steps are
    short while there are requests, and double when there were none for a while.
    """

    __slots__ = ("_quiet", "_served", "_wanted", "pages")

    def __init__(self, served: int) -> None:
        self.pages = CLEAR_STEP_PAGES
        self._served = served
        self._quiet = 0
        self._wanted = _QUIET_CHECKPOINTS[0]

    def after(self, step: float, checkpoint: float, served: int) -> None:
        """A step took `step` seconds, the checkpoint behind it `checkpoint`; `served` requests so far in all."""
        if served != self._served:
            self._served = served
            self._quiet = 0
            self._wanted = _QUIET_CHECKPOINTS[1]
            self.pages = CLEAR_STEP_PAGES
        elif step > _LONG_STEP or checkpoint > _BUSY_CHECKPOINT:
            self.pages = max(CLEAR_STEP_PAGES, self.pages // 2)
        else:
            self._quiet += 1
            if self._quiet >= self._wanted and step * 2 <= _LONG_STEP:
                self.pages = min(MAX_STEP_PAGES, self.pages * 2)


@dataclass(frozen=True, slots=True)
class Link:
    """The simulated link: `bandwidth` in bytes per second (0: not simulated), `latency` in seconds."""

    bandwidth: float = 0.0
    latency: float = 0.0

    def seconds(self, size: int) -> float:
        """What a copy of `size` bytes takes."""
        return self.latency + (size / self.bandwidth if self.bandwidth else 0.0)


@dataclass(frozen=True, slots=True)
class _Queued:
    """A copy in the queue, of one BO or of several, what it waits for, and whether the CPU could do it."""

    bos: tuple[BufferObject, ...]
    copy: Copy
    deps: tuple[Fence, ...]
    users: tuple[Fence, ...]
    """What used the BO's memory when the copy was submitted, readers included: they are no dependency of a copy."""
    cpu_reachable: bool

    @property
    def shares(self) -> list[tuple[BufferObject, int]]:
        """The BOs, with the pages of each."""
        if len(self.bos) == 1:
            return [(self.bos[0], self.copy.num_pages)]
        return [(bo, bo.num_pages) for bo in self.bos]


class FenceErrors:
    """The errors of the last fences that signaled with one, by name: who waits later still hears of them."""

    def __init__(self) -> None:
        self._errors: OrderedDict[str, int] = OrderedDict()

    def add(self, fence: Fence, error: int) -> None:
        """Remember the errno of a fence."""
        self._errors[fence.name] = error
        if len(self._errors) > _ERRORS_KEPT:
            self._errors.popitem(last=False)

    def get(self, name: str) -> int:
        """The errno, 0 when the fence was clean or is forgotten."""
        return self._errors.get(name, 0)


class _InjectedError(Exception):
    """debug/fail_engine: the engine gives up half way."""


class CopyEngine:
    """One engine. `run` is its task; `paused` keeps it from starting the next copy.

    A copy that fails is intercepted (i915_ttm_memcpy_work): its source is still intact, so the CPU copies all of
    it and the fence signals clean. Where the CPU may not or cannot, the BO is marked unknown-state, the fence carries
    EIO, and nobody is shown the target's bytes.
    """

    def __init__(
        self, name: str, counters: FenceCounters, link: Link, inject: Injection, errors: FenceErrors
    ) -> None:
        self.name = name
        self.timeline = Timeline(name, counters)
        self._trace = counters.trace
        self.link = link
        self.cpu_copies = 0
        """Copies that the CPU did for a failed engine."""
        self._inject = inject
        self._errors = errors
        self._queue: deque[_Queued] = deque()
        self._work = Bell()
        self._resumed = trio.Event()
        self._resumed.set()

    @property
    def paused(self) -> bool:
        """Held by debug/pause_engine."""
        return not self._resumed.is_set()

    @paused.setter
    def paused(self, value: bool) -> None:
        if value and not self.paused:
            self._resumed = trio.Event()
        elif not value:
            self._resumed.set()

    def submit(
        self,
        bo: BufferObject,
        src: Backing | None,
        dst: Backing,
        num_pages: int,
        deps: Sequence[Fence],
        *,
        cpu_reachable: bool,
        make: Callable[[Fence], Copy] | None = None,
        others: Sequence[BufferObject] = (),
    ) -> Fence:
        """Queue a copy (a clear when `src` is None) behind `deps`; returns the fence that announces it.

        `cpu_reachable`: both ends can be reached by the CPU, so that it may do the copy if the engine fails. `make`
        makes a copy of another kind, of as many pages, which knows its ends itself; it may move all pages of `others`
        too.
        """
        more = f" and {len(others)} more" if others else ""
        what = f"{'copy' if src is not None else 'clear'} {bo.name}{more} {num_pages} pages"
        fence = self.timeline.next_fence(what, deps)
        copy = Copy(src, dst, num_pages, fence) if make is None else make(fence)
        bos = (bo, *others)
        for each in bos:
            each.add_copy(copy)
        users = tuple(fence for each in bos for fence in each.resv.fences(Usage.BOOKKEEP) if not fence.signaled)
        self._queue.append(_Queued(bos, copy, tuple(deps), users, cpu_reachable))
        self._work.ring()
        return fence

    def pending(self) -> list[Fence]:
        """Fences of copies that are queued or running, oldest first."""
        return [queued.copy.fence for queued in self._queue]

    async def run(self) -> None:
        """Execute copies for ever."""
        while True:
            await self._work.heard()
            while self._queue:
                queued = self._queue[0]
                for fence in queued.deps:
                    await fence.wait()
                await self._execute(queued)
                self._queue.popleft()

    async def _execute(self, queued: _Queued) -> None:
        copy = queued.copy
        seconds = self.link.seconds(copy.pages_to_move * PAGE_SIZE if self.link.bandwidth else 0)
        if seconds:
            await trio.sleep(seconds)
        await self._resumed.wait()
        started = clock.monotonic_ns()
        copy.state = CopyState.RUNNING
        for bo, pages in queued.shares:
            points.copy_start(self._trace, bo, engine=self.name, fence=copy.fence, pages=pages)
        error = 0
        try:
            fail = any(self._inject["engine"].should_fail(pages, bo=bo.name) for bo, pages in queued.shares)
            if not fail and self._may_exchange(queued):
                await self._look_for_frames(copy)
            await self._move_bytes(queued, fail=fail)
        except Exception as failure:  # whatever it was: the BO's bytes depend on what happens now
            if not isinstance(failure, _InjectedError):
                log.exception("%s", copy.fence.what)
            copy.frames = ()
            error = await self._intercept(queued)
        # Nothing of this is intercepted: the source is none any more (R11).
        device = queued.bos[0].device
        moves = device.counters.moves
        while pages := copy.change_hands():
            moves.exchanged += pages * PAGE_SIZE
            if copy.frames:
                await trio.lowlevel.checkpoint()
        # No await from here to the signal.
        copy.finish()
        for bo, pages in queued.shares:
            points.copy_end(self._trace, bo, engine=self.name, fence=copy.fence, pages=pages, errno=error)
        if error:
            self._errors.add(copy.fence, error)
        device.worked("copy", queued.bos[0], int(seconds * 1e9) + clock.monotonic_ns() - started)
        copy.fence.signal(error)

    def _may_exchange(self, queued: _Queued) -> bool:
        """May frames change hands? Whoever still uses the memory goes on with its page numbers when the copy is done,
        so it would find the target's old bytes there."""
        return not self._inject.ban_exchange and all(fence.signaled for fence in queued.users)

    @staticmethod
    async def _look_for_frames(copy: Copy) -> None:
        index = 0
        while (index := copy.look_for_frames(index)) < copy.num_pages:
            await trio.lowlevel.checkpoint()
        copy.choose_frames()

    async def _move_bytes(self, queued: _Queued, *, fail: bool = False) -> None:
        copy = queued.copy
        requests = queued.bos[0].device.counters.requests
        steps = CopySteps(requests.read + requests.write)
        index = moved = 0
        half = (copy.pages_to_move - CLEAR_STEP_PAGES) // 2 if fail else 0
        while (index := copy.next_to_move(index)) < copy.num_pages:
            if fail and moved >= half:
                raise _InjectedError
            hurried = _HURRIED_STEP_PAGES if _somebody_waits_for_a_copy(requests) else 0
            pages = CLEAR_STEP_PAGES if fail else max(steps.pages, hurried)
            # To the next multiple: so a long step of large pages does not straddle two of them.
            count = min(pages - index % pages, copy.room(index))
            started = clock.monotonic()
            copy.step(index, count)
            index += count
            moved += count
            stepped = clock.monotonic()
            await trio.lowlevel.checkpoint()
            steps.after(stepped - started, clock.monotonic() - stepped, requests.read + requests.write)
        if fail:
            raise _InjectedError

    async def _intercept(self, queued: _Queued) -> int:
        """i915_ttm_memcpy_work: 0 when the CPU has copied instead, else the errno of the fence."""
        if queued.cpu_reachable and not self._inject.ban_memcpy:
            try:
                await self._move_bytes(queued)
            except Exception:
                log.exception("CPU copy for %s", queued.copy.fence.what)
            else:
                self.cpu_copies += 1
                return 0
        for bo in queued.bos:
            # Otherwise the BO was gutted meanwhile, and what is lost was no content any more.
            if queued.copy in bo.copies:
                bo.unknown_state = True
                bo.last_error = f"{queued.copy.fence.what} failed: the content is lost"
        return errno.EIO


def _somebody_waits_for_a_copy(requests: RequestCounters) -> bool:
    """Is one of the oldest requests parked on a BO whose bytes are on their way?

    Any copy, as those that are queued wait for the one that runs. READs wait in the gate and WRITEs for the copy's
    fence, and some for a reservation that is held across it: so the list of all that wait is what is looked at.
    """
    oldest = islice(requests.parked, _LOOKED_AT)
    return any(isinstance(request, Request) and request.bo.copies for request in oldest)

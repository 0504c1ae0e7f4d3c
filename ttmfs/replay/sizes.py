"""The engine `sizes`: counts only, as cache simulators do. No memory, no moves, no holes, no fences.

A request for what is there is a hit, and a use. For what is not, the policy names victims, one at a time, until there
is room; then it comes in. Where requests name pages, a BO has those that were brought in, and what is evicted is all of
it. Prefetched pages need room as others do, and evict as others do; where the region has no room for both, they stay
out.

A policy that raises, or names nobody though somebody could go, is ejected as in a mount. Deadlines are not kept here:
how long a policy takes must not change what is counted.
"""

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ttmfs.policy import BO, Evict, PlainBO, Prefetch, Region, Request
from ttmfs.policy.seat import failed
from ttmfs.policy.shipped.order import Lru
from ttmfs.policy.shipped.prefetch import NoPrefetch
from ttmfs.replay.rows import Counts
from ttmfs.replay.trace import Trace
from ttmfs.units import PAGE_SIZE, pages_of

REGION: Final = "vram"


class ReplayBO(PlainBO):
    """A BO of a trace: its number there, and what of it is in the region (`held` bytes, `there` by page)."""

    __slots__ = ("held", "index", "resident", "there")

    def __init__(self, index: int, name: str, size: int, client: str) -> None:
        super().__init__(name, size, client=client)
        self.index = index
        self.held = 0
        self.resident = False
        self.there: npt.NDArray[np.bool_] | None = None


class SizesEngine:
    """One run of a trace. `evict` and `prefetch` are made anew for it; `ejected` says who failed, and why."""

    def __init__(self, trace: Trace, capacity: int, evict: Evict, prefetch: Prefetch) -> None:
        self.trace = trace
        self.capacity = capacity
        self.counts = Counts()
        self.ejected: list[str] = []
        self.held = 0
        self.clock = 0
        self.bos: list[ReplayBO | None] = [None] * len(trace.names)
        self._prefetch = prefetch
        self._prefetches = type(prefetch).fault is not Prefetch.fault
        self._appoint(evict)

    def _appoint(self, policy: Evict) -> None:
        """From now on this one is asked. Hooks that it does not have are not called."""
        self._policy = policy
        own = type(policy)
        self._added = policy.added if own.added is not Evict.added else None
        self._used = policy.used if own.used is not Evict.used else None
        self._removed = policy.removed if own.removed is not Evict.removed else None
        self._tell(policy.attach, Region(REGION, self.capacity))

    def run(self) -> Counts:
        """All of it."""
        trace = self.trace
        if trace.first is None or trace.count is None:
            self._run_whole()
        else:
            self._run_pages(trace.first, trace.count)
        self.counts.requests = self.clock
        return self.counts

    # -- requests for whole BOs --------------------------------------------------------------------------------------

    def _run_whole(self) -> None:
        bos, counts, now = self.bos, self.counts, perf_counter_ns
        gone = None if self.trace.gone is None else self.trace.gone.tolist()
        requested = spent = 0
        for number, index in enumerate(self.trace.objects.tolist()):
            bo = bos[index]
            if bo is None:
                bo = self._new(index)
            if gone is not None and gone[number]:
                self._destroy(bo)
                continue
            self.clock += 1
            bo._uses += 1
            bo._last_use = self.clock
            requested += bo._size
            if not bo.resident:
                self._miss(bo)
            elif self._used is not None:
                began = now()
                try:
                    self._used(bo, "job")
                except Exception as error:
                    self._eject(error)
                spent += now() - began
        counts.bytes_requested += requested
        counts.policy_ns += spent

    def _miss(self, bo: ReplayBO) -> None:
        size = bo._size
        self.counts.misses += 1
        self.counts.bytes_missed += size
        if size > self.capacity:
            self.counts.too_large += 1
            return
        if self.held + size > self.capacity:
            self._make_room(bo, size)
        self._come(bo, size)

    def _come(self, bo: ReplayBO, size: int) -> None:
        """It is in the region from now on, or has so much more there."""
        bo.held += size
        self.held += size
        self.counts.bytes_moved += size
        if bo.resident:
            self._tell(self._used, bo, "fault")
        else:
            bo.resident = True
            bo._region = REGION
            self._tell(self._added, bo)

    # -- requests for pages ------------------------------------------------------------------------------------------

    def _run_pages(self, firsts: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> None:
        gone = None if self.trace.gone is None else self.trace.gone.tolist()
        columns = zip(self.trace.objects.tolist(), firsts.tolist(), numbers.tolist(), strict=True)
        for number, (index, first, count) in enumerate(columns):
            bo = self.bos[index] or self._new(index)
            if gone is not None and gone[number]:
                self._destroy(bo)
                continue
            self.clock += 1
            bo._uses += 1
            bo._last_use = self.clock
            self.counts.bytes_requested += count * PAGE_SIZE
            there = bo.there
            if there is None:
                there = bo.there = np.zeros(pages_of(bo._size), dtype=np.bool_)
            missing = count - int(np.count_nonzero(there[first : first + count]))
            if missing:
                self._fault(bo, there, first, count, missing)
            else:
                self._tell(self._used, bo, "fault")

    def _fault(self, bo: ReplayBO, there: npt.NDArray[np.bool_], first: int, count: int, missing: int) -> None:
        """Pages that are not there, and what is brought in besides."""
        self.counts.misses += 1
        self.counts.bytes_missed += missing * PAGE_SIZE
        start, end = self._wanted(bo, first, count) if self._prefetches else (first, first + count)
        besides = end - start - int(np.count_nonzero(there[start:end]))
        within = slice(max(start, first), min(end, first + count))
        besides -= max(0, within.stop - within.start) - int(np.count_nonzero(there[within])) if end > start else 0
        room = self.capacity - bo.held
        if missing * PAGE_SIZE > room:
            self.counts.too_large += 1
            return
        if (missing + besides) * PAGE_SIZE > room:
            besides, start, end = 0, first, first
        size = (missing + besides) * PAGE_SIZE
        if self.held + size > self.capacity:
            self._make_room(bo, size)
        there[first : first + count] = True
        there[start:end] = True
        self._come(bo, size)

    def _wanted(self, bo: ReplayBO, first: int, count: int) -> tuple[int, int]:
        """What the prefetch policy wants, clipped to the BO: first page and the one after the last."""
        began = perf_counter_ns()
        try:
            start, number = self._prefetch.fault(bo, first, count, "fault")
            start, end = max(0, int(start)), min(bo.pages, int(start) + int(number))
        except Exception as error:
            start, end = first, first + count
            self._eject_prefetch(error)
        self.counts.policy_ns += perf_counter_ns() - began
        return (start, end) if start < end else (first, first)

    # -- eviction ----------------------------------------------------------------------------------------------------

    def _make_room(self, bo: ReplayBO, size: int) -> None:
        while self.held + size > self.capacity:
            request = Request(pages_of(size), bo, protected=(bo,) if bo.resident else ())
            began = perf_counter_ns()
            victim = self._victim(request)
            self.counts.policy_ns += perf_counter_ns() - began
            self._leave(victim)

    def _victim(self, request: Request) -> ReplayBO:
        """The first usable one that the policy names; the least recently used one when it fails."""
        try:
            for bo in self._policy.victims(request):
                if type(bo) is ReplayBO and bo.resident and bo is not request.for_bo and self.bos[bo.index] is bo:
                    return bo
            self._eject(None)
        except Exception as error:
            self._eject(error)
        return self._victim(request)

    def _leave(self, bo: ReplayBO) -> None:
        self.counts.evictions += 1
        self.counts.bytes_moved += bo.held
        self._drop(bo, "evicted")

    def _drop(self, bo: ReplayBO, why: str) -> None:
        self.held -= bo.held
        bo.held = 0
        bo.resident = False
        bo._region = ""
        if bo.there is not None:
            bo.there[:] = False
            if self._prefetches:
                try:
                    self._prefetch.removed(bo, 0, bo.pages)
                except Exception as error:
                    self._eject_prefetch(error)
        self._tell(self._removed, bo, why)

    # -- BOs and policies --------------------------------------------------------------------------------------------

    def _new(self, index: int) -> ReplayBO:
        trace = self.trace
        client = "" if trace.clients is None else trace.clients[index]
        bo = self.bos[index] = ReplayBO(index, trace.names[index], int(trace.sizes[index]), client)
        return bo

    def _destroy(self, bo: ReplayBO) -> None:
        if bo.resident:
            self._drop(bo, "destroyed")

    def _tell(self, hook: Callable[..., Any] | None, *args: Any) -> None:
        if hook is not None:
            began = perf_counter_ns()
            try:
                hook(*args)
            except Exception as error:
                self._eject(error)
            self.counts.policy_ns += perf_counter_ns() - began

    def _eject(self, error: Exception | None) -> None:
        """lru is asked from now on, and told who is there, the least recently used first. What lru raises is ours."""
        if type(self._policy) is Lru:
            raise AssertionError("lru named nobody") from error
        self.ejected.append(f"eviction: {failed(error) if error else 'it named nothing usable'} (request {self.clock})")
        self._appoint(Lru())
        there: list[BO] = [bo for bo in self.bos if bo is not None and bo.resident]
        for bo in sorted(there, key=lambda bo: bo.last_use):
            self._tell(self._added, bo)

    def _eject_prefetch(self, error: Exception) -> None:
        self.ejected.append(f"prefetch: {failed(error)} (request {self.clock})")
        self._prefetch = NoPrefetch()
        self._prefetches = False

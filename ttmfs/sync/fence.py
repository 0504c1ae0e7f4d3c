"""Fences (dma_fence) and the timelines that emit them.

A fence is a promise that something will have happened: it is signaled exactly once, perhaps with an error, and
then runs its callbacks in the order of their registration. Fences of one context are ordered by seqno and signal
in that order; context 0 is the unordered one. Everything here belongs to the one trio thread: a worker thread
that finishes a copy hands the signal over to that thread. Waits are trio waits: a cancelled one leaves no trace.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

import trio

from ttmfs.observe import points
from ttmfs.observe.trace import Trace

FenceCallback = Callable[["Fence"], None]

_contexts = count(1)


def context_alloc() -> int:
    """A context number that no other timeline has, increasing from 1 (dma_fence_context_alloc)."""
    return next(_contexts)


class FenceCounters:
    """What a device counts, and traces, about its fences; handed to its timelines. Containers and stubs are not."""

    __slots__ = ("emitted", "signaled", "trace")

    def __init__(self, trace: Trace | None = None) -> None:
        self.emitted = 0
        self.signaled = 0
        self.trace = Trace() if trace is None else trace

    @property
    def pending(self) -> int:
        """Fences emitted and not signaled yet."""
        return self.emitted - self.signaled


class Fence:
    """One promise on a timeline (dma_fence).

    `signaled`, `error` (0 or a positive errno) and `what` (a few words for people) are plain attributes, to be
    read by anybody; only `signal` and `set_error` change the first two. `deps` is what the fence waits for, for
    display; it is dropped at the signal, so that no chain of finished work is kept alive.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_counters",
        "_timeline",
        "context",
        "deps",
        "error",
        "seqno",
        "signaled",
        "what",
    )

    def __init__(
        self,
        context: int,
        seqno: int,
        what: str = "",
        deps: Sequence["Fence"] = (),
        counters: FenceCounters | None = None,
    ) -> None:
        self.context = context
        self.seqno = seqno
        self.what = what
        self.deps = deps
        self.signaled = False
        self.error = 0
        # A dict, for its order and for removal in constant time: a fence may have thousands of waiters.
        self._callbacks: dict[FenceCallback, bool] | None = None
        self._timeline: Timeline | None = None
        self._counters = counters
        if counters is not None:
            counters.emitted += 1

    @property
    def name(self) -> str:
        """`CONTEXT:SEQNO`, the name under which people wait for it."""
        return f"{self.context}:{self.seqno}"

    @property
    def timeline(self) -> "Timeline | None":
        """The timeline that it is pending on; None once it is signaled, and for one of no timeline."""
        return self._timeline

    def __repr__(self) -> str:
        state = (f"error {self.error}" if self.error else "signaled") if self.signaled else "pending"
        return f"<{type(self).__name__} {self.name} {state}{' ' + self.what if self.what else ''}>"

    def is_later(self, other: "Fence") -> bool:
        """Whether this one is signaled strictly after `other` (dma_fence_is_later); False in context 0.

        AssertionError when the contexts differ: such fences have no order.
        """
        if self.context != other.context:
            raise AssertionError(f"fences {self.name} and {other.name} are of different contexts")
        return self.context != 0 and self.seqno > other.seqno

    def set_error(self, error: int) -> None:
        """Notes the positive errno that the signal will carry (dma_fence_set_error).

        AssertionError when the fence is signaled already, or when `error` is no positive number.
        """
        if self.signaled:
            raise AssertionError(f"fence {self.name} is signaled: its error cannot change any more")
        if error <= 0:
            raise AssertionError(f"fence error {error} is no positive errno")
        self.error = error

    def signal(self, error: int = 0) -> bool:
        """Signals the fence and runs its callbacks, in order of registration; False when it was signaled before.

        An `error` other than 0 replaces what `set_error` has noted. AssertionError, with nothing changed, when
        an earlier fence of the same timeline is still pending. A callback that raises does not keep the others
        from running; what was raised comes out at the end (several as an ExceptionGroup).
        """
        if self.signaled:
            return False
        timeline = self._timeline
        if timeline is not None:
            timeline._retire(self)
            self._timeline = None
        if error:
            self.set_error(error)
        self.signaled = True
        self.deps = ()
        if self._counters is not None:
            self._counters.signaled += 1
            points.fence_signal(
                self._counters.trace, fence=self, timeline=timeline, what=self.what, errno=self.error
            )
            self._counters = None
        if self._callbacks is not None:
            self._run_callbacks(self._callbacks)
        return True

    def _run_callbacks(self, callbacks: dict[FenceCallback, bool]) -> None:
        raised: list[Exception] = []
        for callback in list(callbacks):
            # An earlier callback may have removed this one, or cancelled the task that waits through it.
            if callbacks.pop(callback, False):
                try:
                    callback(self)
                except Exception as exc:
                    raised.append(exc)
        self._callbacks = None
        if len(raised) == 1:
            raise raised[0]
        if raised:
            raise ExceptionGroup(f"callbacks of fence {self.name} failed", raised)

    def add_callback(self, callback: FenceCallback) -> bool:
        """Has `callback(fence)` run at the signal; False, and it never runs, when signaled (dma_fence_add_callback).

        AssertionError when that very callback is queued already.
        """
        if self.signaled:
            return False
        if self._callbacks is None:
            self._callbacks = {}
        elif callback in self._callbacks:
            raise AssertionError(f"this callback is queued on fence {self.name} already")
        self._callbacks[callback] = True
        return True

    def remove_callback(self, callback: FenceCallback) -> bool:
        """Takes a callback back; True only when it was still queued, so that it will never run."""
        callbacks = self._callbacks
        if callbacks is None or not callbacks.pop(callback, False):
            return False
        if not callbacks and not self.signaled:
            self._callbacks = None
        return True

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits until signaled: True, or False after `timeout` seconds (None: no limit; 0: only looks).

        Does not raise the fence's error: look at `error`. Returns without a checkpoint when nothing is to be
        waited for. Cancelling it leaves no trace on the fence.
        """
        if self.signaled:
            return True
        if timeout is None:
            await self._park()
        elif timeout <= 0:
            return False
        else:
            with trio.move_on_after(timeout):
                await self._park()
        return self.signaled

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()

        def wake(_: Fence) -> None:
            trio.lowlevel.reschedule(task)

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self.remove_callback(wake)
            return trio.lowlevel.Abort.SUCCEEDED

        self.add_callback(wake)
        await trio.lowlevel.wait_task_rescheduled(abort)


class Timeline:
    """One context: emits fences with seqnos 1, 2, 3, … and sees that they signal in that order.

    `pending` holds the unsignaled fences, oldest first, and nothing else: it is what `fences/` shows and where a
    fence is found by its name. `last_emitted` and `last_signaled` are seqnos, 0 before the first.
    """

    __slots__ = ("__weakref__", "context", "counters", "last_emitted", "last_signaled", "name", "pending")

    def __init__(self, name: str, counters: FenceCounters | None = None) -> None:
        self.name = name
        self.context = context_alloc()
        self.counters = counters
        self.last_emitted = 0
        self.last_signaled = 0
        self.pending: deque[Fence] = deque()

    def __repr__(self) -> str:
        return f"<Timeline {self.context} {self.name} {self.last_signaled}/{self.last_emitted}>"

    def next_fence(self, what: str = "", deps: Sequence[Fence] = ()) -> Fence:
        """Emits the next fence of this context. Whoever takes it owes the signal."""
        self.last_emitted += 1
        fence = Fence(self.context, self.last_emitted, what, deps, self.counters)
        fence._timeline = self
        self.pending.append(fence)
        if self.counters is not None:
            points.fence_emit(self.counters.trace, fence=fence, timeline=self, what=what)
        return fence

    def find(self, seqno: int) -> Fence | None:
        """The pending fence with that seqno; None when it is signaled already or was never emitted."""
        at = seqno - self.last_signaled - 1
        return self.pending[at] if 0 <= at < len(self.pending) else None

    def _retire(self, fence: Fence) -> None:
        if fence is not self.pending[0]:
            raise AssertionError(
                f"fence {fence.name} is signaled before {self.pending[0].name} of the same timeline {self.name}"
            )
        self.pending.popleft()
        self.last_signaled = fence.seqno


def _signaled_stub() -> Fence:
    fence = Fence(0, 0, "stub")
    fence.signal()
    return fence


_STUB: Final = _signaled_stub()


def get_stub() -> Fence:
    """The fence that has always been signaled, without error (dma_fence_get_stub). It is one shared object."""
    return _STUB

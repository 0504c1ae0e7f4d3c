"""SureThread: what must be told to the kernel is told, also where the host gives the daemon no more threads.

There is a limit of threads for a user (`ulimit -u`), a service (TasksMax=) and a container (pids.max), and others use
it up too. An INVAL that is left out would leave clients with bytes that are not true any more, so one thread for these
is there from the beginning, and does them one after another while no other can be started.
"""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar, TypeVarTuple

import trio

from ttmfs.sync.offload import is_want_of_threads

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Call(Generic[_T]):
    """What was handed over, and what became of it."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self._failure: BaseException | None = None
        self._result: list[_T] = []

    def run(self) -> None:
        """In the thread."""
        try:
            self._result.append(self._work())
        except BaseException as error:  # raised where it is waited for
            self._failure = error
        # Once the loop has ended nobody waits any more.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._done.set)

    async def result(self) -> _T:
        """What it returned or raised."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self._result[0]


_Queue = queue.SimpleQueue[_Call[object] | None]


def _work(calls: _Queue) -> None:
    while (call := calls.get()) is not None:
        call.run()


class SureThread:
    """One thread, and as many of trio's as `threads` says while these can be had. RuntimeError: not even one can."""

    def __init__(self, name: str, threads: int) -> None:
        self.limiter = trio.CapacityLimiter(threads)
        self._calls: _Queue = queue.SimpleQueue()
        weakref.finalize(self, self._calls.put, None)
        threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True).start()

    async def run(self, work: Callable[[*_Ts], _T], *args: *_Ts, abandon_on_cancel: bool = False) -> _T:
        """`work(*args)` off the loop. Once begun it is waited for, unless `abandon_on_cancel`."""
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=self.limiter, abandon_on_cancel=abandon_on_cancel)
        except RuntimeError as error:
            if not is_want_of_threads(error):
                raise
        call = _Call(partial(work, *args))
        self._calls.put(call)  # type: ignore[arg-type]
        with trio.CancelScope(shield=not abandon_on_cancel):
            return await call.result()
        raise AssertionError("what is shielded is not cancelled")

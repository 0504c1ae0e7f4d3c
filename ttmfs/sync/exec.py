"""Locking several reservations under one ticket (drm_exec).

The set may be discovered while it is being locked, and the order is the caller's: where that would deadlock, all
is unlocked, the contended object is locked first by the slow path, and the block runs again from its start::

    async with Exec(unlock=unreserve) as ex:
        async for attempt in ex.until_all_locked():
            with attempt:
                await ex.prepare(vm, 1)
                for bo in vm.bos:           # may be another list when the block runs again
                    await ex.prepare(bo, 1)
        ...                                 # here everything is locked, and stays so until the end of Exec

Neither half can be forgotten: locking outside `with attempt` is an AssertionError the first time it runs, whether
contended or not, and inside it contention ends the block through an exception that `except Exception` does not
catch. EDEADLK never comes out. The block must be safe to run again, and one task runs it: a ticket is not shared.
"""

import errno
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from ttmfs.errors import TtmError
from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext


class HasResv(Protocol):
    """Anything that is locked through its reservation: a BO, a VM."""

    @property
    def resv(self) -> Reservation:
        """The reservation that stands for it."""
        ...


T = TypeVar("T", bound=Reservation | HasResv)


class _Contended(BaseException):
    """Ends a round of its Exec; never leaves that one's `with attempt`."""

    def __init__(self, ex: object) -> None:
        super().__init__("contention: the block runs again")
        self.ex = ex


def _resv_of(obj: Reservation | HasResv) -> Reservation:
    return obj if isinstance(obj, Reservation) else obj.resv


class Exec(Generic[T]):
    """drm_exec: the ticket, what is locked under it, and the restart when locking meets contention.

    `ignore_duplicates`: locking what is locked already (the same object, or another with the same reservation)
    does nothing instead of raising TtmError(EALREADY). `unlock(obj)`, when given, is called for each locked
    object in place of a plain unlock of its reservation, which it must release (ttm_bo_unreserve: LRU bump, then
    unlock); a duplicate that was ignored is not among them. `ticket` is good for evictions inside the block,
    which must have released what they took before Exec ends. `restarts` counts the rounds lost to contention.
    `stamp` is the age of an earlier ticket of the same caller, which has ended.
    """

    __slots__ = (
        "_contended",
        "_in_round",
        "_locked",
        "_prelocked",
        "_rounds",
        "_unlock",
        "ignore_duplicates",
        "restarts",
        "ticket",
    )

    def __init__(
        self,
        *,
        ignore_duplicates: bool = False,
        unlock: Callable[[T], None] | None = None,
        stamp: int | None = None,
    ) -> None:
        self.ignore_duplicates = ignore_duplicates
        self.ticket = AcquireContext()
        if stamp is not None:
            self.ticket.stamp = stamp
        self.restarts = 0
        self._unlock = unlock
        self._locked: dict[Reservation, T] = {}
        self._contended: tuple[Reservation, T] | None = None
        self._prelocked: Reservation | None = None
        self._rounds: _Rounds[T] | None = None
        self._in_round = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._unlock_all()
        self.ticket.fini()

    @property
    def objects(self) -> tuple[T, ...]:
        """What is locked, in the order of locking (drm_exec_for_each_locked_object)."""
        return tuple(self._locked.values())

    def until_all_locked(self) -> "_Rounds[T]":
        """The rounds: `async for attempt in …: with attempt: …`, until one has met no contention.

        AssertionError when asked twice: a restart of the second block would unlock what the first has locked.
        """
        if self._rounds is not None:
            raise AssertionError("until_all_locked is for one block: make another Exec for the other")
        self._rounds = _Rounds(self)
        return self._rounds

    async def lock(self, obj: T) -> None:
        """Locks one object (drm_exec_lock_obj), or ends the round.

        TtmError(EALREADY) for a duplicate unless those are ignored; AssertionError outside `with attempt`.
        """
        await self._lock(obj)

    async def _lock(self, obj: T) -> bool:
        """True when the object was not locked before."""
        if not self._in_round:
            raise AssertionError("Exec locks inside `with attempt` of until_all_locked only")
        if self._contended is not None:
            raise _Contended(self)  # the block has swallowed it once
        resv = _resv_of(obj)
        if resv is self._prelocked:
            self._prelocked = None
            self._locked[resv] = obj
            return True
        try:
            await resv.lock(self.ticket)
        except TtmError as exc:
            if exc.errno == errno.EDEADLK:
                self._contended = (resv, obj)
                raise _Contended(self) from None
            if exc.errno == errno.EALREADY and self.ignore_duplicates:
                return False
            raise
        self._locked[resv] = obj
        return True

    async def prepare(self, obj: T, n_fences: int) -> None:
        """`lock`, then `n_fences` fence slots (drm_exec_prepare_obj).

        TtmError(EINVAL) for none, TtmError(ENOMEM) without memory: an object that this very call has locked is
        unlocked again. (The kernel unlocks an ignored duplicate too, though an earlier call has locked it.)
        """
        fresh = await self._lock(obj)
        try:
            _resv_of(obj).reserve_fences(n_fences)
        except BaseException:
            if fresh:
                self.unlock(obj)
            raise

    async def prepare_array(self, objs: Iterable[T], n_fences: int) -> None:
        """`prepare` for each, up to the first error (drm_exec_prepare_array); those before it stay locked."""
        for obj in objs:
            await self.prepare(obj, n_fences)

    def unlock(self, obj: T) -> None:
        """Unlocks one object before the end (drm_exec_unlock_obj). AssertionError when it is not locked here."""
        resv = _resv_of(obj)
        if resv not in self._locked:
            raise AssertionError("this object is not locked by this Exec")
        self._unlock_one(resv, self._locked.pop(resv))

    def _unlock_one(self, resv: Reservation, obj: T) -> None:
        if self._prelocked is resv:
            self._prelocked = None
        if self._unlock is None:
            resv.unlock()
        else:
            self._unlock(obj)

    def _unlock_all(self) -> None:
        """In reverse; an `unlock` that raises does not keep the others locked."""
        raised: Exception | None = None
        while self._locked:
            resv, obj = self._locked.popitem()
            try:
                self._unlock_one(resv, obj)
            except Exception as exc:
                raised = raised or exc
        if raised is not None:
            raise raised

    async def _lock_contended(self) -> None:
        assert self._contended is not None
        resv, obj = self._contended
        self._contended = None
        self.restarts += 1
        await resv.lock_slow(self.ticket)
        if _resv_of(obj) is not resv:
            # It was given another one while nobody held this: the next round asks anew.
            resv.unlock()
            return
        self._locked[resv] = obj
        self._prelocked = resv


class _Rounds(Generic[T]):
    """The asynchronous iterator behind `until_all_locked`, and the context manager of each of its rounds."""

    __slots__ = ("_ex", "_started")

    def __init__(self, ex: Exec[T]) -> None:
        self._ex = ex
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "_Attempt[T]":
        if not self._started:
            self._started = True
        elif self._ex._contended is not None:
            await self._ex._lock_contended()
        else:
            raise StopAsyncIteration
        return _Attempt(self._ex)


class _Attempt(Generic[T]):
    """One round: locking is allowed inside; contention ends it with everything unlocked."""

    __slots__ = ("_ex",)

    def __init__(self, ex: Exec[T]) -> None:
        self._ex = ex

    def __enter__(self) -> None:
        self._ex._in_round = True

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        ex = self._ex
        ex._in_round = False
        if ex._contended is not None:
            ex._unlock_all()
        return isinstance(exc, _Contended) and exc.ex is ex

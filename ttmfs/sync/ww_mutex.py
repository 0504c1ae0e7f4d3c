"""The ww_mutex: a lock that is taken several at a time, in any order, under a ticket, and never deadlocks (wait-die).

It is TTM's own lock, held across awaits, not a guard against threads. Waits are trio waits; a cancelled one leaves no
trace and takes nobody's wake-up along. Who holds it, and who waits for it, is changed by the methods of WwMutex alone.
"""

import errno
from itertools import count
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.observe.inject import FailureHook


class WwClass:
    """What the reservations of one device share (reservation_ww_class): statistics and fault injection.

    `contended`: lock calls that found it held; `ticketed_waits`: those of them that queued with a ticket;
    `edeadlk`: those that ended with EDEADLK; `slow_locks`: calls of `lock_slow`.
    `fail_fence_slot` makes `reserve_fences` and `copy_fences` fail.
    """

    __slots__ = ("contended", "edeadlk", "fail_fence_slot", "slow_locks", "ticketed_waits")

    def __init__(self) -> None:
        self.contended = 0
        self.ticketed_waits = 0
        self.edeadlk = 0
        self.slow_locks = 0
        self.fail_fence_slot: FailureHook | None = None


reservation_ww_class: Final = WwClass()
"""The class of reservations that were given none."""

_stamps = count(1)


class AcquireContext:
    """A ticket (ww_acquire_ctx): belongs to one task, names a transaction that takes several reservations.

    `stamp` is its age (smaller is older; kept over back-offs, so that everybody becomes the oldest some day),
    `acquired` how many reservations it holds. `fini()` ends it: AssertionError while it still holds any.
    """

    __slots__ = ("acquired", "done", "stamp")

    def __init__(self) -> None:
        self.stamp: int = next(_stamps)
        self.acquired = 0
        self.done = False

    def __repr__(self) -> str:
        return f"<AcquireContext {self.stamp} holding {self.acquired}>"

    def fini(self) -> None:
        """Ends the ticket (ww_acquire_fini); a second time is harmless."""
        if self.acquired:
            raise AssertionError(f"the ticket still holds {self.acquired} reservations")
        self.done = True


def _no_ticket() -> AcquireContext:
    context = AcquireContext()
    context.stamp = 1 << 62  # never older than anybody, so that nobody dies for it
    return context


_NO_TICKET: Final = _no_ticket()


class _Waiter:
    __slots__ = ("died", "takes", "task", "ticket")

    def __init__(self, task: trio.lowlevel.Task, ticket: AcquireContext | None, takes: bool) -> None:
        self.task = task
        self.ticket = ticket
        self.takes = takes
        self.died = False


class WwMutex:
    """A ww_mutex of a wait-die class. Without a ticket one waits in arrival order. With tickets:

    - A ticket that holds nothing else waits for anybody: it cannot be part of a deadlock. This is the kernel's
      `ctx->acquired == 0`, and what makes `lock_slow` safe.
    - A ticket that holds something waits for younger ones and for holders without a ticket, and gets
      TtmError(EDEADLK) where an older one holds this or waits for it: as it arrives, or later, while it waits,
      when an older one queues up. It must then unlock all it holds and `lock_slow` this one first.
    - Tickets queue by stamp, the oldest first; a newcomer goes in front of younger tickets, but never passes a
      waiter without a ticket that no younger ticket stands before.

    So whoever holds something and waits, waits for younger tickets only: no cycle is possible, as long as
    those who lock without a ticket lock nothing else meanwhile. An unlock hands the lock to the first waiter at
    once: nobody, not even a trylock, comes between.
    """

    __slots__ = ("_owner", "_waiters", "ww_class")

    def __init__(self, ww_class: WwClass = reservation_ww_class) -> None:
        self.ww_class = ww_class
        self._owner: AcquireContext | None = None
        self._waiters: list[_Waiter] | None = None

    @property
    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self._owner is not None

    @property
    def holder(self) -> AcquireContext | None:
        """The ticket that holds it (dma_resv_locking_ctx); None when it is free or held without a ticket."""
        return None if self._owner is _NO_TICKET else self._owner

    def trylock(self, ticket: AcquireContext | None = None) -> bool:
        """Takes it if it is free (dma_resv_trylock)."""
        if self._owner is not None:
            return False
        if ticket is None:
            ticket = _NO_TICKET
        elif ticket.done:
            raise AssertionError("this ticket has ended")
        ticket.acquired += 1
        self._owner = ticket
        return True

    async def lock(self, ticket: AcquireContext | None = None) -> None:
        """Takes it, waiting for it if need be (dma_resv_lock); no checkpoint when it is free.

        TtmError(EALREADY) when this ticket holds it, TtmError(EDEADLK) by the rule in the class's docstring.
        """
        if not self.trylock(ticket):
            await self._lock_contended(ticket)

    async def lock_slow(self, ticket: AcquireContext) -> None:
        """After backing off: waits for the contended reservation, however old its holder (dma_resv_lock_slow).

        AssertionError when the ticket still holds anything.
        """
        if ticket.acquired:
            raise AssertionError(f"lock_slow with a ticket that still holds {ticket.acquired} reservations")
        self.ww_class.slow_locks += 1
        await self.lock(ticket)

    def unlock(self) -> None:
        """Releases it and hands it to the first waiter, if any. AssertionError when nobody holds it."""
        owner = self._owner
        if owner is None:
            raise AssertionError("unlock of a reservation that nobody holds")
        owner.acquired -= 1
        self._owner = None
        if self._waiters is not None:
            self._hand_over()

    async def wait_unlocked(self) -> None:
        """Waits until it is released, without taking it: what a fault does before it starts over.

        It waits for its turn in the queue, as the kernel's lock-and-unlock there does: those who queued before
        have had it. Those who queued after may hold it by the time this task runs. No checkpoint when it is free.
        """
        if self._owner is not None:
            await self._park(_Waiter(trio.lowlevel.current_task(), None, False))

    async def _lock_contended(self, ticket: AcquireContext | None) -> None:
        stats = self.ww_class
        if ticket is not None:
            if ticket.done:
                raise AssertionError("this ticket has ended")
            if self._owner is ticket:
                raise TtmError(errno.EALREADY, "this ticket holds the reservation already")
            stats.contended += 1
            if ticket.acquired and self._meets_older(ticket):
                self._die()
            stats.ticketed_waits += 1
        else:
            stats.contended += 1
        waiter = _Waiter(trio.lowlevel.current_task(), ticket, True)
        await self._park(waiter)
        if waiter.died:
            self._die()

    def _die(self) -> None:
        self.ww_class.edeadlk += 1
        raise TtmError(
            errno.EDEADLK, "an older ticket has this reservation: release all others and lock_slow this one first"
        )

    def _meets_older(self, ticket: AcquireContext) -> bool:
        stamp = ticket.stamp
        if self._owner is not None and self._owner.stamp < stamp:
            return True
        return any(w.ticket is not None and w.ticket.stamp < stamp for w in self._waiters or ())

    async def _park(self, waiter: _Waiter) -> None:
        self._enqueue(waiter)

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._dequeue(waiter)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _enqueue(self, waiter: _Waiter) -> None:
        queue = self._waiters
        if queue is None:
            queue = self._waiters = []
        at = len(queue)
        if waiter.ticket is not None:
            stamp = waiter.ticket.stamp
            younger = []
            for index in range(len(queue) - 1, -1, -1):
                other = queue[index].ticket
                if other is None:
                    continue
                if other.stamp < stamp:
                    break
                at = index
                if other.acquired:
                    younger.append(queue[index])
            queue.insert(at, waiter)
            for victim in younger:
                # It holds something and would now wait for an older ticket.
                victim.died = True
                queue.remove(victim)
                trio.lowlevel.reschedule(victim.task)
        else:
            queue.append(waiter)

    def _dequeue(self, waiter: _Waiter) -> None:
        queue = self._waiters
        if queue is not None:
            queue.remove(waiter)
            if not queue:
                self._waiters = None

    def _hand_over(self) -> None:
        queue = self._waiters
        while queue:
            waiter = queue.pop(0)
            if waiter.takes:
                owner = waiter.ticket or _NO_TICKET
                owner.acquired += 1
                self._owner = owner
                trio.lowlevel.reschedule(waiter.task)
                break
            trio.lowlevel.reschedule(waiter.task)
        if not queue:
            self._waiters = None

    def _assert_held(self) -> None:
        if self._owner is None:
            raise AssertionError("the reservation must be held for this")

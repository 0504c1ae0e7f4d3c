"""Reservation objects (dma_resv): a ww_mutex and a table of fences with usages.

Two BOs may share one. There may be a hundred thousand of them, nearly all idle: an idle one is a small object
without tables. The lock is TTM's own lock, held across awaits, not a guard against threads. Waits are trio waits;
a cancelled one leaves no trace and takes nobody's wake-up along.
"""

import errno
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import count
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.sync.containers import FenceArray, FenceChain
from ttmfs.sync.fence import Fence

FailureHook = Callable[[], bool]
"""Fault injection: True, or a MemoryError or TtmError raised, makes the allocation at hand fail."""


def should_fail(hook: FailureHook | None) -> bool:
    """Whether the injected failure strikes now (should_fail of the kernel's fault attributes)."""
    if hook is None:
        return False
    try:
        return hook()
    except (MemoryError, TtmError):
        return True


class Usage(IntEnum):
    """What a fence means to others (dma_resv_usage). Asking for one asks for all up to it."""

    KERNEL = 0
    WRITE = 1
    READ = 2
    BOOKKEEP = 3


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


class Reservation:
    """A dma_resv: one wait-die lock, and the fences of what happens to the memory it stands for.

    **The lock** is a ww_mutex of a wait-die class. Without a ticket one waits in arrival order. With tickets:

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

    **The fences** need a slot reserved beforehand (`reserve_fences`), so that adding one cannot fail once the
    work is on its way. Signaled ones are dropped whenever the table is looked at.
    """

    __slots__ = ("__weakref__", "_fences", "_max_fences", "_owner", "_waiters", "ww_class")

    def __init__(self, ww_class: WwClass = reservation_ww_class) -> None:
        self.ww_class = ww_class
        self._owner: AcquireContext | None = None
        self._waiters: list[_Waiter] | None = None
        self._fences: list[tuple[Fence, Usage]] | None = None
        self._max_fences = 0

    # The lock

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

    async def reserve(self, *, no_wait: bool = False, ticket: AcquireContext | None = None) -> None:
        """ttm_bo_reserve: `lock`, or with `no_wait` a trylock.

        TtmError(EBUSY) when `no_wait` finds it held, and always for `no_wait` with a ticket.
        """
        if not no_wait:
            await self.lock(ticket)
        elif ticket is not None:
            raise TtmError(errno.EBUSY, "a ticket is for waiting: it cannot be used with no_wait")
        elif not self.trylock():
            raise TtmError(errno.EBUSY, "the buffer object is reserved by somebody else, and no_wait was asked")

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

    # The fences

    @property
    def num_slots(self) -> int:
        """Size of the fence table, used and reserved slots together; 0 before the first `reserve_fences`."""
        return self._max_fences

    def _assert_held(self) -> None:
        if self._owner is None:
            raise AssertionError("the reservation must be held for this")

    def _prune(self) -> list[tuple[Fence, Usage]]:
        """The entries that are still pending; the others are dropped (in a new list: iterations go on)."""
        entries = self._fences
        if entries is None:
            return []
        left = [entry for entry in entries if not entry[0].signaled]
        if len(left) != len(entries):
            self._fences = left or None
        return left

    def reserve_fences(self, n: int) -> None:
        """Makes room for `n` more fences (dma_resv_reserve_fences).

        A first table has at least 4 slots, a later one twice as many as before, or what is needed. The
        reservation must be held (AssertionError). TtmError(EINVAL) for n < 1, TtmError(ENOMEM) when `fail_fence_slot`
        of the class says so, whether or not the table would have to grow; nothing has changed then.
        """
        self._assert_held()
        if n < 1:
            raise TtmError(errno.EINVAL, f"{n} fence slots cannot be reserved: ask for at least one")
        if should_fail(self.ww_class.fail_fence_slot):
            raise TtmError(errno.ENOMEM, f"no memory for {n} fence slots (injected by debug/fail_fence_slot)")
        self._make_room(n)

    def _make_room(self, n: int) -> None:
        need = len(self._prune()) + n
        if need > self._max_fences:
            self._max_fences = max(need, 2 * self._max_fences, 4)

    def add_fence(self, fence: Fence, usage: Usage) -> None:
        """Adds a fence (dma_resv_add_fence).

        It takes the place of an entry of the same context when it is the same or later and the entry's usage is
        the same or weaker (numerically >=); otherwise it takes a reserved slot. Fences of context 0 never
        replace each other. A fence that is signaled already is still noted, until the table is next looked at.
        AssertionError when the reservation is not held, no slot is left, or the fence is an array or chain:
        those must be taken apart, and each part needs its slot.
        """
        self._assert_held()
        self._refuse_container(fence)
        entries = self._prune()
        if fence.context:
            for index, (old, old_usage) in enumerate(entries):
                if old.context == fence.context and old_usage >= usage and fence.seqno >= old.seqno:
                    entries[index] = (fence, usage)
                    self._fences = entries
                    return
        if len(entries) >= self._max_fences:
            raise AssertionError("no fence slot is reserved: call reserve_fences before add_fence")
        entries.append((fence, usage))
        self._fences = entries

    @staticmethod
    def _refuse_container(fence: Fence) -> None:
        if isinstance(fence, (FenceArray, FenceChain)):
            raise AssertionError(f"{fence!r} is a container: add the fences that it holds")

    def fences(self, usage: Usage) -> Iterator[Fence]:
        """The fences of `usage` and stronger, from a snapshot: the table may change meanwhile.

        As in the kernel, with the reservation held signaled ones that are still in the table come too;
        otherwise only those that are pending when they are reached.
        """
        if self._fences is None:
            return
        for fence, entry_usage in tuple(self._fences):
            if entry_usage <= usage and (self._owner is not None or not fence.signaled):
                yield fence

    def test_signaled(self, usage: Usage) -> bool:
        """Whether no fence of `usage` or stronger is pending (dma_resv_test_signaled)."""
        if self._fences is None:
            return True
        return all(entry_usage > usage for _, entry_usage in self._prune())

    async def wait(self, usage: Usage, timeout: float | None = None) -> bool:
        """Waits until no fence of `usage` or stronger is pending (dma_resv_wait_timeout): True, or False when
        `timeout` seconds have passed (None: no limit; 0: only looks).

        Needs no lock; fences that are added meanwhile are waited for too. Errors of fences are not raised.
        No checkpoint when nothing is pending.
        """
        if self.test_signaled(usage):
            return True
        if timeout is None:
            await self._wait_all(usage)
        elif timeout <= 0:
            return False
        else:
            with trio.move_on_after(timeout):
                await self._wait_all(usage)
        return self.test_signaled(usage)

    async def _wait_all(self, usage: Usage) -> None:
        while True:
            fence = next((f for f, entry_usage in self._prune() if entry_usage <= usage), None)
            if fence is None:
                return
            await fence.wait()

    def get_fences(self, usage: Usage) -> list[Fence]:
        """The pending fences of `usage` and stronger (dma_resv_get_fences)."""
        if self._fences is None:
            return []
        return [fence for fence, entry_usage in self._prune() if entry_usage <= usage]

    def get_singleton(self, usage: Usage) -> Fence | None:
        """The pending fences as one (dma_resv_get_singleton): None, that very fence, or an array."""
        fences = self.get_fences(usage)
        if not fences:
            return None
        return fences[0] if len(fences) == 1 else FenceArray(fences)

    def replace_fences(self, context: int, fence: Fence, usage: Usage) -> None:
        """Puts `fence` where the pending fences of `context` are (dma_resv_replace_fences); no slot is needed.

        When there are several it comes once, when there is none nothing changes. AssertionError when the
        reservation is not held, for context 0, whose fences have nothing in common, and for containers.
        """
        self._assert_held()
        self._refuse_container(fence)
        if context == 0:
            raise AssertionError("fences of context 0 are unordered: they cannot be replaced by context")
        left: list[tuple[Fence, Usage]] = []
        replaced = False
        for entry in self._prune():
            if entry[0].context != context:
                left.append(entry)
            elif not replaced:
                left.append((fence, usage))
                replaced = True
        if replaced:
            self._fences = left

    def copy_fences(self, src: "Reservation") -> None:
        """Adds the pending fences of `src` with their usages (dma_resv_copy_fences), making room for them.

        The kernel replaces what this one had; here its own pending fences stay, because a fence forgotten is a
        use of memory too early. AssertionError when this one is not held (src need not be); TtmError(ENOMEM) from
        `fail_fence_slot`, with nothing changed.
        """
        self._assert_held()
        entries = src._prune()
        if not entries or src is self:
            return
        if should_fail(self.ww_class.fail_fence_slot):
            raise TtmError(errno.ENOMEM, f"no memory to copy {len(entries)} fences (injected by debug/fail_fence_slot)")
        self._make_room(len(entries))
        for fence, usage in tuple(entries):
            self.add_fence(fence, usage)

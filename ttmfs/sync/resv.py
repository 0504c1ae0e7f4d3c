"""Reservation objects (dma_resv): a ww_mutex and a table of fences with usages.

Two BOs may share one. There may be a hundred thousand of them, nearly all idle: an idle one is a small object
without tables. The table is changed by the methods of Reservation alone, by those who hold the lock.
"""

import errno
from collections.abc import Iterator
from enum import IntEnum

import trio

from ttmfs.errors import TtmError
from ttmfs.observe.inject import should_fail
from ttmfs.sync.containers import FenceArray, FenceChain
from ttmfs.sync.fence import Fence
from ttmfs.sync.ww_mutex import AcquireContext, WwClass, WwMutex, reservation_ww_class


class Usage(IntEnum):
    """What a fence means to others (dma_resv_usage). Asking for one asks for all up to it."""

    KERNEL = 0
    WRITE = 1
    READ = 2
    BOOKKEEP = 3


class Reservation(WwMutex):
    """A dma_resv: a lock, and the fences of what happens to the memory it stands for.

    The fences need a slot reserved beforehand (`reserve_fences`), so that adding one cannot fail once the
    work is on its way. Signaled ones are dropped whenever the table is looked at.
    """

    __slots__ = ("_fences", "_max_fences")

    def __init__(self, ww_class: WwClass = reservation_ww_class) -> None:
        super().__init__(ww_class)
        self._fences: list[tuple[Fence, Usage]] | None = None
        self._max_fences = 0

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

    @property
    def num_slots(self) -> int:
        """Size of the fence table, used and reserved slots together; 0 before the first `reserve_fences`."""
        return self._max_fences

    def _prune(self) -> list[tuple[Fence, Usage]]:
        """The entries that are still pending; the others are dropped (in a new list: iterations go on)."""
        entries = self._fences
        if entries is None:
            return []
        left = [entry for entry in entries if not entry[0].signaled]
        if len(left) != len(entries):
            self._fences = left or None
        return left

    def forget_signaled(self) -> None:
        """Drops what has signaled now and not when the table is next looked at, which may be never: a quarter of what
        a small idle BO costs. Needs no lock."""
        self._prune()

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

"""Gate: when the requests of a BO, or an address space, may touch its bytes (the FUSE face of ttm_bo_unmap_virtual).

    resident → unmapping → moving → resident

*unmapping*: an INVAL of the BO, or of some of its pages, is outstanding. The kernel holds folios locked until READs and
WRITEs of this very BO are answered, so none that names one of these pages may wait for anything that waits for the
INVAL: they are served at once from where the bytes are (rule R1), and those that were already parked are woken for it.
*moving*: bytes are being copied; READs wait for the copy's fence as ttm_bo_vm_fault_idle does, WRITEs wait so that none
is lost. *moving* is not stored here: it is whatever the oldest pending copy of the BO says, and the moves of a chunk of
an address space.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

ALL_PAGES: Final = range(1 << 50)
NO_PAGES: Final = range(0)


def _meet(some: range, others: range) -> bool:
    return some.start < others.stop and others.start < some.stop


class Gate:
    """The unmapping part of the gate of one BO or address space, and the requests parked there."""

    __slots__ = ("_parked", "_watched", "outstanding", "touched")

    def __init__(self) -> None:
        self.outstanding: tuple[range, ...] = ()
        """Pages of the INVALs that have not returned."""
        self.touched = False
        """A page that is watched was handed out."""
        self._watched = NO_PAGES
        self._parked: dict[trio.CancelScope, tuple[range, trio.lowlevel.Task]] | None = None
        """By their waits, the pages of the requests, and who serves them."""

    @property
    def unmapping(self) -> bool:
        """Is an INVAL outstanding?"""
        return bool(self.outstanding)

    def unmaps(self, first: int, count: int) -> bool:
        """Is an INVAL outstanding that may wait for a request of `count` pages from `first` on?"""
        return any(_meet(pages, range(first, first + count)) for pages in self.outstanding)

    def begin_unmapping(self, pages: range = ALL_PAGES) -> None:
        """Before an INVAL is issued: wakes every request of these pages, so that it is served from the source.

        Not those of other pages: one of them may be what unmaps these, to make room for itself. AssertionError when a
        request of these pages does that itself: INVAL would wait for the answer that waits for it (R2).
        """
        self._check_own(pages)
        self.outstanding += (pages,)
        self.wake(pages)

    def _check_own(self, pages: range) -> None:
        if self._parked:
            me = trio.lowlevel.current_task()
            for parked, task in self._parked.values():
                own = task is me and _meet(pages, parked)
                assert not own, f"a request unmaps its own pages: {parked} of {pages}"

    def wake(self, pages: range = ALL_PAGES) -> None:
        """End the wait of every parked request of one of these pages; each looks again at what to do."""
        for scope, (parked, _task) in (self._parked or {}).items():
            if _meet(pages, parked):
                scope.cancel()

    def end_unmapping(self, pages: range = ALL_PAGES) -> None:
        """The INVAL has returned; the caller closes the gate for a copy in the same step, or nobody does."""
        at = self.outstanding.index(pages)
        self.outstanding = self.outstanding[:at] + self.outstanding[at + 1 :]

    def watch(self, first: int, count: int) -> None:
        """From now on `touched` says whether one of these pages was handed out."""
        self._watched = range(first, first + count)
        self.touched = False

    def unwatch(self) -> None:
        """Nobody asks any more."""
        self._watched = NO_PAGES
        self.touched = False

    def touch(self, first: int, count: int) -> None:
        """Pages are handed out by who holds no reservation."""
        if _meet(self._watched, range(first, first + count)):
            self.touched = True

    async def park(
        self, wait: Callable[[], Awaitable[object]], timeout: float, first: int = 0, count: int = len(ALL_PAGES)
    ) -> bool:
        """Run `wait` for at most `timeout` seconds; False when unmapping or the timeout ended it early.

        `first` and `count` are the pages of the request. `wait` must be harmless to cancel: a lock, a fence, or a fault
        handler, which leaves things as they are when it is cancelled.
        """
        if self.unmaps(first, count):
            return False
        if self._parked is None:
            self._parked = {}
        with trio.move_on_after(timeout) as scope:
            self._parked[scope] = (range(first, first + count), trio.lowlevel.current_task())
            try:
                await wait()
            finally:
                del self._parked[scope]
        return not scope.cancelled_caught

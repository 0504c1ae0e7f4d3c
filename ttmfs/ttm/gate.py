"""Gate: when the requests of a BO may touch its bytes (the FUSE face of ttm_bo_unmap_virtual).

    resident → unmapping → moving → resident

*unmapping*: an INVAL of the BO is outstanding. The kernel holds folios locked until READs and WRITEs of this very BO
are answered, so none of them may wait for anything that waits for the INVAL: they are served at once from where the
bytes are (rule R1), and those that were already parked are woken for it. *moving*: bytes are being copied; READs wait
for the copy's fence as ttm_bo_vm_fault_idle does, WRITEs wait so that none is lost. *moving* is not stored here: it is
whatever the oldest pending copy of the BO says.
"""

from collections.abc import Awaitable, Callable

import trio


class Gate:
    """The unmapping part of one BO's gate, and the requests parked on the BO."""

    __slots__ = ("_parked", "outstanding")

    def __init__(self) -> None:
        self.outstanding = 0
        """INVALs of this BO that have not returned."""
        self._parked: set[trio.CancelScope] | None = None

    @property
    def unmapping(self) -> bool:
        """Is an INVAL outstanding?"""
        return self.outstanding > 0

    def begin_unmapping(self) -> None:
        """Before an INVAL is issued: wakes every parked request of the BO, so that it is served from the source."""
        self.outstanding += 1
        self.wake()

    def wake(self) -> None:
        """End the wait of every parked request; each looks again at what to do."""
        for scope in self._parked or ():
            scope.cancel()

    def end_unmapping(self) -> None:
        """The INVAL has returned; the caller closes the gate for a copy in the same step, or nobody does."""
        self.outstanding -= 1

    async def park(self, wait: Callable[[], Awaitable[object]], timeout: float) -> bool:
        """Run `wait` for at most `timeout` seconds; False when unmapping or the timeout ended it early.

        `wait` must be harmless to cancel: a lock or a fence, never a move.
        """
        if self.unmapping:
            return False
        if self._parked is None:
            self._parked = set()
        with trio.move_on_after(timeout) as scope:
            self._parked.add(scope)
            try:
                await wait()
            finally:
                self._parked.discard(scope)
        return not scope.cancelled_caught

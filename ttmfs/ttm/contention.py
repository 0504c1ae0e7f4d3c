"""Contention: space that others have only for the moment, whom to wait for, and whose turn it is.

The kernel ends in ENOMEM when every victim of an allocation happens to be reserved. Here such an allocation fails with
NoRoom, and that says whom it met. Whoever owns the call gives up every reservation, waits for that one, and starts
over with the age that it had (`Turn`), for as long as it may wait at all. NoRoom that names nobody is final: nothing
could be evicted.

Why nobody waits for ever, and nobody starves:

* Holding a reservation, one waits for another only under a ticket, where wait-die allows no circle (`Reservation`), and
  at most HOLD_SECONDS: requests of the BO that is held may wait for it meanwhile. All other waits are made holding
  nothing, and so are in no circle.
* What is waited for ends: who has a reservation waits for INVALs, which the BO's own requests never hold up (R1), for
  fences, or under the same rules for others.
* Space that becomes free may be taken by somebody faster, again and again. So who has walked a whole region in vain
  lays a claim to it (`Claims`): while that lasts nobody younger is given space there. Ages are kept, so everybody
  becomes the oldest some day. Claims end with their call, and pass to the oldest of those whom they kept out. They last
  CLAIM_SECONDS, with as long a pause between: one that gets nowhere, because an engine stands still, does not keep
  others out.
* R1: a request waits for any of this parked on its gate. An INVAL of its pages ends the wait, its time does too.
"""

from typing import Final, Protocol

import trio

from ttmfs.errors import TtmError
from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext

HOLD_SECONDS: Final = 1.0
"""How long a victim is waited for while the BO that needs its space is reserved."""
CLAIM_SECONDS: Final = 1.0
YOUNGEST: Final = 1 << 62
"""The age of who has no ticket."""


def _oldest() -> AcquireContext:
    ticket = AcquireContext()
    ticket.stamp = 0
    return ticket


OLDEST: Final = _oldest()
"""Whose turn it always is: who puts back what has failed. It is for no reservation."""


class Contended(Protocol):
    """What an allocation met."""

    @property
    def why(self) -> str:
        """In one word, for the trace."""

    async def wait(self, stamp: int) -> None:
        """Until it is worth another attempt. The caller, whose age is `stamp`, holds nothing."""


class Holdable(Protocol):
    """A BO, as far as waiting for it is concerned."""

    @property
    def resv(self) -> Reservation:
        """What it is held by."""

    def unlock(self) -> None:
        """Let it go again, and do what had to wait for that."""


class Held:
    """A BO that somebody has reserved."""

    __slots__ = ("bo",)
    why = "held"

    def __init__(self, bo: Holdable) -> None:
        self.bo = bo

    async def wait(self, stamp: int) -> None:
        """In the queue for it, by age."""
        ticket = AcquireContext()
        ticket.stamp = stamp
        await self.bo.resv.lock_slow(ticket)
        self.bo.unlock()
        ticket.fini()


class Changed:
    """The region: others came and went while it was walked."""

    __slots__ = ()
    why = "changed"

    async def wait(self, stamp: int) -> None:
        """Not at all: what has come is there."""


class _Heir:
    """A call that waits for a claim to end."""

    __slots__ = ("stamp", "woken")

    def __init__(self, stamp: int) -> None:
        self.stamp = stamp
        self.woken = trio.Event()


class Claims:
    """Whose turn it is to be given the space of one region, as far as it becomes free: one call's, or nobody's."""

    __slots__ = ("_heirs", "_laid", "_stamp", "_until")
    why = "claim"

    def __init__(self) -> None:
        self._laid = False
        self._stamp = YOUNGEST
        """Who had the last one."""
        self._until = 0.0
        self._heirs: dict[_Heir, None] = {}

    def binds(self, stamp: int) -> bool:
        """Has a call of this age to wait?"""
        return self._laid and stamp > self._stamp and trio.current_time() < self._until

    def lay(self, stamp: int) -> None:
        """After a whole walk in vain. Nothing happens while somebody older has one, or in the pause after one's own."""
        own_pause = stamp == self._stamp and trio.current_time() < self._until + CLAIM_SECONDS
        if not own_pause and not self.binds(stamp):
            self._lay(stamp)

    def _lay(self, stamp: int) -> None:
        self._laid, self._stamp, self._until = True, stamp, trio.current_time() + CLAIM_SECONDS

    def end(self, stamp: int) -> None:
        """The call of this age has its space, or has given up: the oldest who waits for that is next."""
        if not self._laid or stamp != self._stamp:
            return
        self._laid = False
        if self._heirs:
            # Only the one: all others would find its claim, and wait again.
            heir = min(self._heirs, key=lambda each: each.stamp)
            del self._heirs[heir]
            self._lay(heir.stamp)
            heir.woken.set()

    async def wait(self, stamp: int) -> None:
        """Until it is the turn of a call of this age, or nobody's."""
        heir = _Heir(stamp)
        self._heirs[heir] = None
        try:
            while self.binds(stamp):
                with trio.move_on_at(self._until):
                    await heir.woken.wait()
        finally:
            self._heirs.pop(heir, None)


class NoRoom(TtmError):  # noqa: N818 - it says which
    """Full; with `contended`, only for the moment."""

    def __init__(self, errno: int, message: str, contended: Contended | None) -> None:
        super().__init__(errno, message)
        self.contended = contended

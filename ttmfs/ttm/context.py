"""OperationContext: how one TTM call may wait and what it did (ttm_operation_ctx)."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.contention import OLDEST, YOUNGEST, Contended
from ttmfs.ttm.gate import Gate


class Gated(Protocol):
    """A BO, as far as its requests are concerned."""

    @property
    def gate(self) -> Gate:
        """Whether they wait."""


@dataclass(slots=True)
class Done:
    """What has come of one call into TTM so far."""

    bytes_moved: int = 0
    evictions: int = 0
    why: str = ""
    """Why a call that succeeded did less than was asked."""
    contended: Contended | None = None
    """What an allocation met that may be gone soon: give everything up, wait for it, start over (`Turn`)."""


@dataclass(slots=True)
class OperationContext:
    """How one call into TTM may wait, and what it asks for; passed down, never stored. `done` is what came of it."""

    interruptible: bool = True
    """Waits may be cancelled, by a signal of the caller (EINTR) or by the end of the mount. Each is bounded besides."""
    no_wait_gpu: bool = False
    """Never wait for a fence: EBUSY where a wait would happen, busy places and victims are skipped."""
    allow_res_evict: bool = False
    """BOs that share `resv`, which the caller holds, may be evicted all the same, except those in `keep`."""
    keep: Container[object] = ()
    resv: Reservation | None = None
    ticket: AcquireContext | None = None
    """Whose age counts where several want the same space: the ww ticket of the caller's reservations."""
    defrag: bool = False
    """Re-back at the beneficial order although the resource is compatible."""
    compact: bool = False
    """With `defrag`: re-back what has no whole piece of that order too, for the sake of the frames it lies in."""
    faulting: object = None
    """The BO whose fault this call serves. It is never unmapped: its own folio is locked by the READ (H30)."""
    unlimited: bool = False
    """What it takes is charged, but no limit of an account refuses it: content that has to go, or to come back."""
    power: bool = False
    """Part of suspend or resume: to nobody else does a suspended device give space."""
    together: Sequence[Gated] = ()
    """BOs that one ticket holds for a common move: none of their requests waits while one of them is unmapped."""
    done: Done = field(default_factory=Done)

    def for_victims(self) -> "OperationContext":
        """The same call where it evicts: what its target asked for is not for its victims, nor are limits.

        What comes of that is done by the call.
        """
        return replace(self, defrag=False, unlimited=True)

    def for_undo(self, resv: Reservation) -> "OperationContext":
        """The same call where it puts back what is held by `resv`: at once, and no limit refuses it.

        Whose requests it serves, and what else it holds, is as before: that must still not be unmapped, or made wait.
        """
        return OperationContext(
            resv=resv, ticket=OLDEST, unlimited=True, faulting=self.faulting, together=self.together, power=self.power
        )

    @property
    def age(self) -> int:
        """The smaller, the older."""
        return YOUNGEST if self.ticket is None else self.ticket.stamp

"""Funcs: whom the core asks outside, and the words it asks in.

Two outside parties, each behind a protocol: the driver (`DriverFuncs`, per BO, so that ghosts never reach it) and
whoever has pages in a cache (`Unmapper`, one method, which the mount implements as INVAL). This lies below the BO, so
that a BO can name its driver: what a BO is stands open in the protocols.
"""

import enum
import errno
from typing import Any, Protocol, TypeVar

import trio

from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.contention import Contended
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Place, Placement
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT

Bo_contra = TypeVar("Bo_contra", contravariant=True)
"""The BufferObject."""
Owner_contra = TypeVar("Owner_contra", contravariant=True)
"""Whose pages are cached."""


class Unmapper(Protocol[Owner_contra]):
    """Who caches pages of BOs."""

    async def invalidate(self, owner: Owner_contra, first_page: int, num_pages: int, /) -> None:
        """Drop these pages (num_pages 0: to the end) from every cache, dirty ones written back first.

        While it runs, READs and WRITEs of `owner` arrive and must be answered. Never raises for one that nobody knows.
        """


class NoUnmapper:
    """Nobody caches anything: the core without a mount."""

    async def invalidate(self, owner: object, first_page: int, num_pages: int, /) -> None:
        """Nothing to drop."""


class FaultResult(enum.Enum):
    """vm_fault_t, as far as TTM uses it."""

    OK = "ok"
    NOPAGE = "nopage"
    RETRY = "retry"
    SIGBUS = "sigbus"
    OOM = "oom"


class FaultFlag(enum.Flag):
    """FAULT_FLAG_*: how a fault may wait."""

    NONE = 0
    ALLOW_RETRY = enum.auto()
    """The reservation may be dropped for a long wait; the fault then starts over."""
    RETRY_NOWAIT = enum.auto()
    """Do not even wait: answer RETRY at once."""
    WRITE = enum.auto()


class Protection(enum.Flag):
    """vm_page_prot: recorded (`prot` of the event `fault`), not enforced (the page cache maps as it likes)."""

    NONE = 0
    READ = enum.auto()
    WRITE = enum.auto()

    @property
    def word(self) -> str:
        """r, w, rw, or - for none."""
        return "".join(each.name[0].lower() for each in self if each.name) or "-"


class VmFault:
    """One fault (struct vm_fault): pages [first, first + count) of `bo`, a BufferObject.

    `overwrite` says that every byte of these pages is about to be written, so that fresh ones need not be zeroed.
    `deadline` is on trio's clock.
    """

    __slots__ = (
        "bo",
        "code",
        "contended",
        "count",
        "deadline",
        "first",
        "flags",
        "message",
        "overwrite",
        "prefaulted",
        "prot",
        "reserved",
        "ticket",
        "waits",
    )

    def __init__(
        self,
        bo: Any,
        first: int,
        count: int,
        *,
        deadline: float,
        flags: FaultFlag = FaultFlag.ALLOW_RETRY,
        overwrite: bool = False,
        ticket: AcquireContext | None = None,
    ) -> None:
        self.bo = bo
        self.first = first
        self.count = count
        self.deadline = deadline
        self.flags = flags
        self.overwrite = overwrite
        self.prot = Protection.NONE
        """What the handler maps the pages with; none until it comes to that."""
        self.reserved = False
        self.ticket = ticket
        """What it reserves the BO with; None at first. See ttmfs.ttm.contention."""
        self.contended: Contended | None = None
        """What it met, and waits for before it starts over, when it found no room for the moment's reasons."""
        self.message = ""
        """Why it was SIGBUS or OOM, for error_log."""
        self.code = 0
        """The errno of that, where a program gets another one than the result says: EDQUOT."""
        self.prefaulted = 0
        """Pages that were populated beyond those asked."""
        self.waits: tuple[str, ...] = ()
        """What it waited for, in order: reservation, move, space."""

    @property
    def time_left(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - trio.current_time())

    def unreserve(self) -> None:
        """Drop the reservation if it is held."""
        if self.reserved:
            self.reserved = False
            self.bo.unreserve()

    def fail(self, result: FaultResult, error: OSError | str) -> FaultResult:
        """Remember why, return `result`."""
        if isinstance(error, OSError) and error.errno == errno.EDQUOT:
            self.code = errno.EDQUOT
        self.message = error if isinstance(error, str) else str(error.strerror)
        return result


class Multihop(Exception):  # noqa: N818 - the kernel's -EMULTIHOP is a request, not an error
    """The driver needs the BO in a temporary place first. Never leaves the core."""

    def __init__(self, hop: Placement) -> None:
        super().__init__(hop)
        self.hop = hop


class DriverFuncs(Protocol[Bo_contra]):
    """What a driver decides about its BOs (ttm_device_funcs, and the fault handler of its vm_ops)."""

    async def fault(self, vmf: VmFault) -> FaultResult:
        """Serve one CPU fault; see ttmfs.ttm.fault for the helpers to build it from."""

    async def fault_reserve_notify(self, bo: Bo_contra) -> None:
        """Bring the BO to where the CPU can reach it. EBUSY and ERESTARTSYS mean again, other errors SIGBUS."""

    async def move(
        self, bo: Bo_contra, resource: Resource, ctx: OperationContext, *, evict: bool, source: TT | None = None
    ) -> None:
        """Move the BO to `resource` and assign it, or raise Multihop; on any error the BO is as it was.

        With a `source` (a BO is backed anew, see ttmfs.ttm.defrag) copy from there to `bo.tt`, and await nothing before
        the copy is submitted: requests find the bytes through the copy.
        """

    def evict_flags(self, bo: Bo_contra) -> Placement:
        """Where an evicted BO goes; empty to purge it."""

    def eviction_valuable(self, bo: Bo_contra, place: Place | None) -> bool:
        """Is evicting this BO worth it for an allocation in `place`?"""

    def swap_notify(self, bo: Bo_contra) -> None:
        """The BO is about to be swapped out."""

    def delete_mem_notify(self, bo: Bo_contra) -> None:
        """The BO's memory is about to go."""

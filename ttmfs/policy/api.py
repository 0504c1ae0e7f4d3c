"""The policy API: what a policy sees, what it is told, what it is asked.

A policy is a class with a few methods, all of them synchronous. *It advises, the core decides*: what it answers is
checked, and what cannot be done is passed over. It sees read-only views of buffer objects, one for each BO for its
life, so that a view can be a key of its dicts and a member of its lists, also after the BO has left the region.

What holds for all three kinds:

* every hook is optional, except that an `Evict` has `victims`;
* nothing may wait: no `await`, no sleep, no I/O. An answer that takes more than 5 ms of processor time or 100 ms
  of wall time (without what the thread had to wait for a processor), and a hook that raises, *ejects* the policy: the
  default is back for that very request;
* parameters are keyword parameters of `__init__` with a default and a type (int, float, bool, str). The first
  sentence of the class's docstring is what `policies/available` shows.

A name that begins with an underscore is no part of the API.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ttmfs.units import PAGE_SIZE, pages_of

API_VERSION: Final = 1
"""Rises when a policy that was written for an earlier version would no longer do."""

Kind = Literal["evict", "prefetch", "promote"]
"""What a policy decides."""

UseWhy = Literal["fault", "write", "read", "job", "validate"]
"""How a BO was used. `read` is a READ that was answered without a fault."""

GoneWhy = Literal["evicted", "moved", "destroyed"]
"""Why a BO left its region: as a victim, by a move that somebody asked for, or with its last reference."""


class BO(ABC):
    """A view of a buffer object, read-only, hashable, the same object as long as the BO lives.

    What it says is of now, whenever it is read. After the BO is gone it says what was last true.
    """

    __slots__ = ("__weakref__",)

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name below `bo/`; "" for one that has none."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @property
    @abstractmethod
    def priority(self) -> int:
        """0 to 3; the core evicts all of a lower priority before any of a higher one."""

    @property
    @abstractmethod
    def group(self) -> str:
        """The group that it is charged to; "" for the root group."""

    @property
    @abstractmethod
    def client(self) -> str:
        """Who made it; "" for the device itself."""

    @property
    @abstractmethod
    def region(self) -> str:
        """The memory region that it is in; "" when it is in none."""

    @property
    @abstractmethod
    def pinned(self) -> bool:
        """It cannot be moved now."""

    @property
    @abstractmethod
    def uses(self) -> int:
        """How often it was used since it was made."""

    @property
    @abstractmethod
    def last_use(self) -> int:
        """When it was used last, on the device's clock, which ticks once for every use of any BO."""

    @property
    def pages(self) -> int:
        """Pages of 4 KiB that it needs."""
        return pages_of(self.size)


@dataclass(frozen=True, slots=True)
class Region:
    """A memory region: its name, and its size in bytes."""

    name: str
    size: int


class Request:
    """Room is needed in a region.

    `pages` that are needed; `for_bo` for whom (None: nobody's in particular, as for `ctl/evict`), `group` of that one;
    `priority`, the level whose BOs may go now (None: any); `protected`, BOs that cannot go for this request.
    """

    __slots__ = ("for_bo", "group", "pages", "priority", "protected")

    def __init__(
        self,
        pages: int,
        for_bo: BO | None = None,
        *,
        group: str = "",
        priority: int | None = None,
        protected: Collection[BO] = (),
    ) -> None:
        self.pages = pages
        self.for_bo = for_bo
        self.group = group
        self.priority = priority
        self.protected = protected

    @property
    def size(self) -> int:
        """Bytes of `pages`."""
        return self.pages * PAGE_SIZE


class Evict:
    """Who goes when a region is full.

    A BO that comes into the region is told by `added`, which counts as its first use there; later ones by `used`.
    `victims` is asked once for each victim: the core takes the first that it can use and asks anew. Being yielded is
    not being evicted: only `removed` says that a BO is gone.
    """

    def attach(self, region: Region) -> None:
        """The region that this policy is for; called once, before anything else."""

    def added(self, bo: BO) -> None:
        """A BO came in. When a policy is installed, all that are there already, least recently used first."""

    def used(self, bo: BO, why: UseWhy) -> None:
        """A resident BO was used again."""

    def removed(self, bo: BO, why: GoneWhy) -> None:
        """A BO left."""

    def victims(self, request: Request) -> Iterable[BO]:
        """Residents in the order in which they may go, the first first.

        Best a generator: it is not run further than needed. It goes on with the next BO where the one it yielded could
        not go (pinned, locked, of another priority), so it should come to every resident at last.
        """
        raise NotImplementedError(f"{type(self).__name__} has no victims()")


class Prefetch:
    """What is brought in besides the pages that a fault names. Pages are counted within the BO, from 0."""

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        """`count` pages from `first` on are wanted, which are not there: which pages to bring in, as (first, count).

        `why` is `fault` (of a client) or `svm` (of the device). The pages that the fault names are always brought in,
        whatever is answered. The answer is clipped to the BO, and never makes others give up memory.
        """
        return first, count

    def removed(self, bo: BO, first: int, count: int) -> None:
        """Pages that were there are not any more."""


class Promote:
    """Who comes home: BOs that lie lower than the first place that was wanted for them."""

    rate: int = 0
    """Bytes a second that may come home; 0: no limit."""

    def displaced(self, bo: BO, home: str) -> None:
        """The BO was evicted from, or got no room in, the region `home`."""

    def settled(self, bo: BO) -> None:
        """It is at home again, wanted elsewhere, or gone."""

    def submitted(self, bos: Collection[BO]) -> Iterable[tuple[BO, str]]:
        """A job on these BOs was submitted: (BO, region) of those that shall come home now."""
        return ()

    def tick(self, budget: int) -> Iterable[tuple[BO, str]]:
        """Time has passed, and `budget` bytes may come home: (BO, region) of those that shall."""
        return ()


Policy = Evict | Prefetch | Promote

BASES: Final[dict[Kind, type[Evict] | type[Prefetch] | type[Promote]]] = {
    "evict": Evict,
    "prefetch": Prefetch,
    "promote": Promote,
}
"""The base class of each kind."""

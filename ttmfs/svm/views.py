"""Views of address spaces, for policies: what a space has in VRAM are BOs like any other, its faults are its own."""

from typing import Protocol

from ttmfs.policy.api import BO
from ttmfs.ttm.placement import SYSTEM


class Space(Protocol):
    """An address space, as far as a policy may know it."""

    name: str
    size: int
    cpu_faults: int
    gpu_faults: int


class SpaceView(BO):
    """A side of an address space as a prefetch policy sees it: its pages are the space's.

    There are two for a space, the CPU's and the device's: what has memory at one side may have none at the other.
    """

    __slots__ = ("_region", "_space")

    def __init__(self, space: Space, region: str) -> None:
        self._space = space
        self._region = region

    @property
    def name(self) -> str:
        """Its name below `svm/`, behind `svm:`."""
        return f"svm:{self._space.name}"

    @property
    def size(self) -> int:
        """See BO."""
        return self._space.size

    @property
    def priority(self) -> int:
        """See BO."""
        return 1

    @property
    def group(self) -> str:
        """See BO."""
        return ""

    @property
    def client(self) -> str:
        """See BO."""
        return ""

    @property
    def region(self) -> str:
        """Where this side wants its pages: vram for the device's, system for the CPU's."""
        return self._region

    @property
    def pinned(self) -> bool:
        """See BO."""
        return False

    @property
    def uses(self) -> int:
        """Faults of this side so far."""
        return self._space.cpu_faults if self._region == SYSTEM else self._space.gpu_faults

    @property
    def last_use(self) -> int:
        """See BO."""
        return 0

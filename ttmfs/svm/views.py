"""Views of address spaces, for policies: what a space has in VRAM are BOs like any other, its faults are its own."""

from typing import Protocol

from ttmfs.policy.api import BO


class Space(Protocol):
    """An address space, as far as a policy may know it."""

    name: str
    size: int
    gpu_faults: int


class SpaceView(BO):
    """An address space as a prefetch policy sees it: its pages are the space's, it is in no region."""

    __slots__ = ("_space",)

    def __init__(self, space: Space) -> None:
        self._space = space

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
        """See BO."""
        return ""

    @property
    def pinned(self) -> bool:
        """See BO."""
        return False

    @property
    def uses(self) -> int:
        """Faults of the device so far."""
        return self._space.gpu_faults

    @property
    def last_use(self) -> int:
        """See BO."""
        return 0

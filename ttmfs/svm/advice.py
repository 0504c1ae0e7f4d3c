"""Advice: what madvise said of pages of an address space (xe_vma's mem_attr)."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Advice:
    """What madvise said of some pages. `preferred`: the name of a region, or `fault`: the memory of who faults.

    `migration` counts only with several devices, and is kept for them.
    """

    preferred: str = "fault"
    atomic: str = "undefined"
    migration: str = "all"

    @property
    def region(self) -> str | None:
        """The device's memory that they shall be in, if one was named."""
        return None if self.preferred in ("fault", "system") else self.preferred


NO_ADVICE: Final = Advice()

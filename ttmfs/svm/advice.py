"""Advice: what madvise said of pages of an address space (xe_vma's mem_attr)."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Advice:
    """What madvise said of some pages; `migration` counts only with several devices' memory, and is kept for them."""

    preferred: str = "fault"
    atomic: str = "undefined"
    migration: str = "all"


NO_ADVICE: Final = Advice()

"""Backing: what a Resource with memory of its own and a TT have in common: they say where the bytes of pages are."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import Arena


class Backing(Protocol):
    """Where bytes are: a Resource with memory of its own, or a TT. Units are pages."""

    @property
    def num_pages(self) -> int: ...
    @property
    def arena(self) -> Arena: ...
    def extent(self, index: int, count: int) -> tuple[int, int]: ...
    def numbers(self, index: int, count: int) -> NDArray[np.uint32]: ...

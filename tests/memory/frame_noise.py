"""Arenas of a few frames of noise, and how much of them the host holds."""

import numpy as np

from tests.memory.host_memory import resident_pages
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.units import PAGE_SIZE

FRAMES = 4
ADVISED = {"hg", "dc"}
"""MADV_HUGEPAGE and MADV_DONTFORK, as smaps has them."""


def noise(seed: int) -> np.ndarray:
    """A frame's bytes, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (FRAME_PAGES, PAGE_SIZE), dtype=np.uint8)


def frame(arena: Arena, number: int) -> np.ndarray:
    """The memory itself, not a copy."""
    return arena.mem[number * FRAME_PAGES : (number + 1) * FRAME_PAGES]


def resident(arena: Arena, number: int) -> int:
    return resident_pages(arena, number * FRAME_PAGES, FRAME_PAGES)

"""What tests of frames that change hands in moves share: noise in what nobody may read, and which copies exchange."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.engine import CopyEngine
from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES, Arena

HOW = ("exchanged", "copied", "either")
"""Moves of whole frames: always exchanged where it is allowed, never, or by chance."""
_NOISE = np.random.default_rng(5).integers(1, 256, (FRAME_PAGES, 4096), dtype=np.uint8)


def host_exchanges() -> bool:
    """Does it at all here?"""
    pair = Arena("a", FRAME_PAGES), Arena("b", FRAME_PAGES)
    able = frames.can_exchange(*pair)
    for arena in pair:
        arena.close()
    return able


def need_exchanges() -> None:
    """Skip the test where it does not."""
    if not host_exchanges():
        pytest.skip("this host exchanges no frames (Linux before 5.7)")


def noise_behind(patch: pytest.MonkeyPatch) -> None:
    """From now on what a frame has left behind is noise at once: who reads it after that, or takes it for clean, reads
    neither the right bytes nor zeros."""
    real = frames.exchange

    def exchange(one: Arena, page: int, other: Arena, other_page: int, count: int) -> None:
        real(one, page, other, other_page, count)
        for at in range(page, page + count * FRAME_PAGES, FRAME_PAGES):
            one.mem[at : at + FRAME_PAGES] = _NOISE

    patch.setattr("ttmfs.ttm.copy_frames.exchange", exchange)


def choose(patch: pytest.MonkeyPatch, how: str, seed: int = 0) -> None:
    """One of HOW, for all copies from now on."""
    rng = random.Random(f"{how} {seed}")
    chances = {"exchanged": 1.0, "copied": 0.0, "either": 0.5}
    real: Callable[..., bool] = CopyEngine._may_exchange
    patch.setattr(CopyEngine, "_may_exchange", lambda self, queued: rng.random() < chances[how] and real(self, queued))


def exchanged_frames(vdev: VirtualDevice) -> int:
    """So far."""
    whole, rest = divmod(vdev.ttm.counters.moves.exchanged, FRAME_PAGES * 4096)
    assert not rest
    return whole

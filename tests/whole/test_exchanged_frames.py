"""The whole device with moves that exchange frames, copy them, or do either: the same bytes, those of the models."""

from functools import partial
from typing import Any

import pytest
import trio

from tests.core.exchange import HOW, choose, need_exchanges, noise_behind
from tests.core.exercise import exercise
from tests.core.steps import small_steps
from tests.core.together import together
from tests.core.together_machine import SteppingClock
from ttmfs.driver.config import Config
from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES
from ttmfs.ttm import copy_frames
from ttmfs.ttm.copy import Copy

MIB = 1 << 20
CONFIGS = (
    Config(vram=16 * MIB, gtt=32 * MIB, memory=64 * MIB, swap=64 * MIB),
    Config(vram=8 * MIB, visible_vram=4 * MIB, gtt=16 * MIB, memory=32 * MIB, swap=64 * MIB, pages_limit=16 * MIB),
    Config(vram=16 * MIB, gtt=32 * MIB, memory=64 * MIB, swap=64 * MIB, copy_latency=0.0005, copy_engines=2),
)

SEEDS = {"exchanged": 3, "either": 2, "copied": 1}
"""How many of each by default: other tests of the whole device copy."""
ONE_MORE = 10
"""So many more, until one has exchanged a frame."""
BATCH = 20
"""How many in one test of the stress, which has five minutes."""


def batches(first: int, count: int) -> list[Any]:
    """The first seeds of those tests, as parameters."""
    return [pytest.param(seed, marks=pytest.mark.stress) for seed in range(first, first + count, BATCH)]


class Frames:
    """Frames that copies have exchanged."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = Copy.change_hands

        def change_hands(copy: Copy) -> int:
            pages = real(copy)
            self.count += pages // FRAME_PAGES
            return pages

        patch.setattr(Copy, "change_hands", change_hands)


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch, how: str) -> Frames:
    need_exchanges()
    monkeypatch.setattr(frames._Host, "refused", False)
    noise_behind(monkeypatch)
    # Each frame in a step of its own, so that requests come in between.
    monkeypatch.setattr(copy_frames, "longest_run", lambda: 1)
    monkeypatch.setattr("ttmfs.ttm.copy._STEP_FRAMES", 1)
    small_steps(monkeypatch)
    choose(monkeypatch, how)
    return Frames(monkeypatch)


@pytest.mark.parametrize("first", [7100, *batches(7200, 200)])
@pytest.mark.parametrize("how", HOW)
async def test_no_byte_of_bos_is_wrong(exchanged: Frames, how: str, first: int) -> None:
    most = first + (SEEDS[how] if first == 7100 else BATCH)
    for seed in range(first, most + ONE_MORE):
        # Where each has a chance of a half, all that there were may have been copied.
        if seed >= most and (exchanged.count or how == "copied"):
            break
        config = CONFIGS[seed % len(CONFIGS)]
        await exercise(seed, steps=60, config=config, faults=bool(seed % 2), max_size=6 * MIB)
    assert bool(exchanged.count) is (how != "copied")


@pytest.mark.parametrize("first", [100, *batches(1000, 100)])
@pytest.mark.parametrize("how", HOW)
def test_no_byte_of_address_spaces_is_wrong(exchanged: Frames, how: str, first: int) -> None:
    for seed in range(first, first + (SEEDS[how] if first == 100 else BATCH)):
        # What an engine fails to copy is lost where the CPU does not see it.
        faults, suspends = seed % 2 == 0, bool(seed & 2)
        run = partial(together, seed, config=CONFIGS[seed % 2], steps=30, faults=faults, suspends=suspends)
        trio.run(run, clock=SteppingClock())
    assert bool(exchanged.count) is (how != "copied")

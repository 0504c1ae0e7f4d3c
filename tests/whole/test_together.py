"""The whole device under one seeded schedule: see together.py. A failure names its seed."""

import random
from functools import partial

import pytest
import trio

from tests.core.together import together
from tests.core.together_machine import MIB, SteppingClock
from ttmfs.driver.config import Config

SEEDS = 3


def _config(seed: int, *, all_visible: bool) -> Config:
    """A small device of some kind. What an engine fails to copy is lost where the CPU does not see it."""
    rng = random.Random(f"config {seed}")
    return Config(
        vram=4 * MIB,
        visible_vram=None if all_visible else rng.choice((None, MIB)),
        gtt=rng.choice((8, 16)) * MIB,
        memory=rng.choice((24, 64)) * MIB,
        pages_limit=rng.choice((None, 6 * MIB, 12 * MIB)),
        swap=rng.choice((0, 8 * MIB, 64 * MIB, 64 * MIB)),
        beneficial_order=rng.choice((9, 4, 0)),
        copy_engines=rng.choice((1, 2)),
        copy_latency=rng.choice((0.0, 0.0, 0.0005)),
        sync_moves=rng.random() < 0.2,
        placement=rng.choice(("system", "vram gtt system")),
        prefault=rng.choice((0, 16, 256)),
        driver=rng.choice(("default", "default", "vmwgfx")),
        user_limit=rng.choice(("", "memory=3M,vram=1M", "memory=8M,vram=25%,gtt=2M")),
    )


@pytest.mark.parametrize("suspends", [False, True], ids=["", "suspends"])
@pytest.mark.parametrize("faults", [False, True], ids=["", "failures"])
@pytest.mark.parametrize("first", range(0, 4 * SEEDS, SEEDS))
def test_no_byte_is_wrong_and_nothing_is_left(first: int, faults: bool, suspends: bool) -> None:
    total: dict[str, int] = {}
    for seed in range(first, first + SEEDS):
        config = _config(seed, all_visible=faults)
        grouped = seed % 2 == 1
        run = partial(together, seed, config=config, steps=30, faults=faults, suspends=suspends, groups=grouped)
        for what, times in trio.run(run, clock=SteppingClock()).items():
            total[what] = total.get(what, 0) + times
    print(total)
    assert total["backed_up"] > 0
    assert total.get("suspend", 0) > 0 or not suspends
    assert total["group move"] > 0

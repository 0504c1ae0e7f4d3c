"""The seeded exerciser: any wrong byte is a bug of the core; the message has the seed and the last operations."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.exercise import exercise
from tests.memory.moved import count_moves, host_moves
from ttmfs.driver.config import Config
from ttmfs.policy.api import Kind

MIB = 1 << 20
CONFIGS = {
    "all of vram visible": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB),
    "a window": Config(vram=4 * MIB, visible_vram=MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB),
    "over the page limit": Config(vram=4 * MIB, gtt=8 * MIB, memory=64 * MIB, pages_limit=3 * MIB, swap=64 * MIB),
    "vmwgfx": Config(vram=4 * MIB, visible_vram=MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB, driver="vmwgfx"),
    "small blocks": Config(vram=4 * MIB, gtt=16 * MIB, memory=24 * MIB, swap=64 * MIB, beneficial_order=4),
    "two engines": Config(vram=4 * MIB, gtt=8 * MIB, memory=64 * MIB, swap=0, beneficial_order=5, copy_engines=2),
}

LIMITED = {
    "of vram": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB, user_limit="vram=1M,gtt=1M"),
    "of memory": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB, user_limit="memory=1M"),
    "of memory, little of it": Config(
        vram=4 * MIB, gtt=16 * MIB, memory=4 * MIB, swap=64 * MIB, user_limit="memory=2M,vram=2M", swap_store="zstd"
    ),
    "of memory, over the page limit": Config(
        vram=4 * MIB, gtt=8 * MIB, memory=64 * MIB, pages_limit=2 * MIB, swap=64 * MIB, user_limit="memory=1536K"
    ),
}


@pytest.mark.parametrize("name", LIMITED)
async def test_no_byte_is_wrong_and_accounts_add_up_where_users_have_limits(name: str) -> None:
    refused = 0
    for seed in range(400, 404):
        counts = await exercise(seed, steps=50, config=LIMITED[name], faults=seed % 2 == 1)
        refused += counts.get("EDQUOT", 0) + counts["failures"]
    assert refused > 0


STORES = {
    "file": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB, swap_store="file"),
    "zstd, little memory": Config(vram=4 * MIB, gtt=16 * MIB, memory=4 * MIB, swap=32 * MIB, swap_store="zstd"),
    "zstd+file": Config(vram=4 * MIB, gtt=16 * MIB, memory=8 * MIB, swap=16 * MIB, swap_store="zstd+file"),
    "shmem, little memory": Config(vram=4 * MIB, gtt=16 * MIB, memory=4 * MIB, swap=32 * MIB),
    "shmem, hardly any store": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=MIB, pages_limit=2 * MIB),
}


@pytest.mark.parametrize(
    "first", [pytest.param(first, marks=[pytest.mark.stress] if first >= 90 else []) for first in range(0, 150, 10)]
)
async def test_no_byte_is_ever_wrong(first: int) -> None:
    total: dict[str, int] = {}
    for seed in range(first, first + 10):
        config = list(CONFIGS.values())[seed % len(CONFIGS)]
        for what, times in (await exercise(seed, steps=60, config=config)).items():
            total[what] = total.get(what, 0) + times
    assert total["swapout"] + total.get("swap_all", 0) > 0
    assert total["validate"] > 0
    assert total["defragmented"] > 0


@pytest.mark.parametrize("name", STORES)
async def test_no_byte_is_wrong_where_the_store_fails(name: str, tmp_path: Path) -> None:
    config = STORES[name]
    if config.swap_store.endswith("file"):
        config = replace(config, swap_store=f"{config.swap_store}:{tmp_path / 'store'}")
    total: dict[str, int] = {}
    for seed in range(9000, 9005):
        for what, times in (await exercise(seed, steps=60, config=config, faults=True)).items():
            total[what] = total.get(what, 0) + times
    assert total["backed_up"] > 0
    assert total["restore"] > 0


POLICIES: tuple[tuple[tuple[Kind, tuple[str, ...]], ...], ...] = tuple(
    (
        ("evict", ("vram", vram)),
        ("evict", ("gtt", gtt)),
        ("prefetch", tuple(prefetch.split())),
        ("promote", ("moverate", "rate=0")),
    )
    for vram, gtt, prefetch in (
        ("random", "lirs", "window pages=7"),
        ("s3fifo", "mru", "sequential"),
        ("quota", "arc", "tree"),
        ("gdsf", "slru", "stride"),
    )
)


async def test_no_byte_is_wrong_whatever_policies_say() -> None:
    total: dict[str, int] = {}
    for seed in range(20):
        config = replace(list(CONFIGS.values())[seed % len(CONFIGS)], policies=POLICIES[seed % len(POLICIES)])
        for what, times in (await exercise(seed, steps=60, config=config)).items():
            total[what] = total.get(what, 0) + times
    assert total["advised"] > 100


FRAMES = {
    "memory for two of them": Config(vram=8 * MIB, gtt=16 * MIB, memory=16 * MIB, swap=64 * MIB),
    "memory for all": Config(vram=8 * MIB, gtt=16 * MIB, memory=32 * MIB, swap=64 * MIB, pages_limit=8 * MIB),
    "hardly any store": Config(vram=8 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=5 * MIB),
}


@pytest.mark.parametrize("seeds", [2, pytest.param(8, marks=pytest.mark.stress)])
async def test_no_byte_of_whole_frames_is_wrong(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    """BOs of several 2 MiB, whose memory changes hands with the store, to and fro."""
    moved = count_moves(monkeypatch)
    for seed in range(7000, 7020):
        if seed >= 7000 + seeds and ((moved.out and moved.back) or not host_moves()):
            break
        for config in FRAMES.values():
            await exercise(seed, steps=60, config=config, faults=bool(seed % 2), max_size=6 * MIB)
    if host_moves():
        assert moved.out, "none went to the store"
        assert moved.back, "none came back"


ISLANDS = (0, 1 << 30, (64 << 40) - MIB, (128 << 40) - 300_000)
"""Bytes: places in BOs of 128 TiB; the last one ends with the largest BO there is."""
SPARSE = {
    "memory for all": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB),
    "over the page limit": Config(vram=4 * MIB, gtt=8 * MIB, memory=64 * MIB, pages_limit=2 * MIB, swap=64 * MIB),
    "hardly any memory": Config(vram=4 * MIB, gtt=8 * MIB, memory=3 * MIB, swap=16 * MIB, swap_store="zstd"),
    "vmwgfx": Config(vram=MIB, gtt=MIB, memory=64 * MIB, swap=64 * MIB, driver="vmwgfx", beneficial_order=4),
    "to vram first": Config(vram=4 * MIB, gtt=16 * MIB, memory=64 * MIB, swap=64 * MIB, placement="vram gtt system"),
}


@pytest.mark.parametrize("seeds", [4, pytest.param(20, marks=pytest.mark.stress)])
@pytest.mark.parametrize("name", SPARSE)
async def test_no_byte_of_a_bo_of_128_tib_is_wrong(name: str, seeds: int) -> None:
    """Content in a few places far apart: whatever took time or memory by the page of it would not end."""
    total: dict[str, int] = {}
    for seed in range(100, 100 + 10 * seeds):
        if seed >= 100 + seeds and total.get("validate"):
            break  # what of it fits is luck, and another Python's
        counts = await exercise(
            seed, steps=60, config=SPARSE[name], faults=bool(seed % 2), max_size=300_000, islands=ISLANDS
        )
        for what, times in counts.items():
            total[what] = total.get(what, 0) + times
    assert total["backed_up"] > 0
    assert total["validate"] > 0

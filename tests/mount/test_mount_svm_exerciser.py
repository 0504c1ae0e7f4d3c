"""Address spaces at 9/8 of VRAM beside ordinary BOs of half of it: every word right, both kinds evict each other."""

import random
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Device
from tests.mount.svm_exerciser import OPTIONS, SCARCE, Exerciser

pytestmark = pytest.mark.mount

ROUNDS = 10
"""At least so many, however slow the machine is."""


def _exercise(
    mounted: Callable[..., Device], seed: int, seconds: float, options: tuple[str, ...] = OPTIONS
) -> None:
    device = mounted(*options)
    exerciser = Exerciser(device, seed)
    exerciser.run(seconds=seconds, rounds=ROUNDS)
    stats = device.stats()
    assert stats["svm"]["migrations_in"] > 10
    assert stats["svm"]["migrations_out"] > 10
    assert stats["svm"]["cpu_faults"] > 0
    assert stats["svm"]["gpu_faults"] > 0
    assert stats["svm"]["evictions"] > 0, "BOs have evicted ranges"
    assert sum(device.status(name)["evictions"] for name in ("left", "right")) > 0, "ranges have evicted BOs"
    assert stats["requests"]["write_errors"] == 0
    assert stats["requests"]["handler_errors"] == 0
    assert device.control("selfcheck") == []
    device.remove_all()
    device.until(lambda: device.control("spaces") == 0)
    device.until(lambda: device.stats()["regions"]["vram"]["used"] == 0, why="vram is empty")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == 0, why="no system page is in use")
    assert device.stats()["fences"]["pending"] == 0
    device.control("trim_pool")
    assert device.rss() < 400 * MIB


def test_every_word_is_right(mounted: Callable[..., Device]) -> None:
    _exercise(mounted, random.SystemRandom().randrange(1 << 32), 3)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "options"), [(None, OPTIONS), (1, OPTIONS), (None, SCARCE), (1, SCARCE)])
def test_every_word_is_right_for_long(
    mounted: Callable[..., Device], seed: int | None, options: tuple[str, ...]
) -> None:
    """With `SCARCE` the space and the BOs are more than memory: the store holds what nobody uses."""
    _exercise(mounted, random.SystemRandom().randrange(1 << 32) if seed is None else seed, 90, options)

"""The collector of garbage looks at little at once, and what lives long needs none."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from tests.core.harness import PAGE, device, idle, make, move
from ttmfs.driver.entries import Dentry
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.fs.kernel.collector import FEW, Collector
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject


@contextmanager
def collecting(load: int = 0) -> Iterator[Collector]:
    collector = Collector(lambda: load)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()


@contextmanager
def most_looked_at() -> Iterator[list[int]]:
    """How many containers each full collection looks at."""
    looked: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "start" and info["generation"] == 2:
            looked.append(len(gc.get_objects()))

    gc.callbacks.append(note)
    try:
        yield looked
    finally:
        gc.callbacks.remove(note)


def test_a_full_collection_looks_at_what_came_since_the_last_one() -> None:
    before: list[list[object]] = [[] for _ in range(500_000)]
    with collecting(), most_looked_at() as looked:
        kept: list[list[object]] = [[] for _ in range(400_000)]
        assert len(kept) + len(before) == 900_000
    assert all(count < 100_000 for count in looked), looked


class Circle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me: Circle | None = self


@pytest.mark.parametrize("load", [FEW, FEW + 1])
async def test_what_was_set_aside_is_looked_at_again_once_there_is_little(load: int, autojump_clock: object) -> None:
    with collecting(load) as collector:
        circle: Circle | None = Circle()
        assert circle is not None
        there = weakref.ref(circle)
        gc.collect()
        circle = None
        gc.collect()
        assert there() is not None, "it was not set aside"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collector.run)
            await trio.sleep(150)
            nursery.cancel_scope.cancel()
        assert (there() is None) == (load <= FEW)


async def test_a_stopped_collector_leaves_the_interpreters_rules() -> None:
    before = gc.get_threshold(), list(gc.callbacks)
    with collecting():
        assert gc.get_threshold() != before[0]
    assert (gc.get_threshold(), list(gc.callbacks)) == before


async def test_a_bo_and_its_file_end_without_a_collection() -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            for number in range(4):
                file = names.create(names.root, b"a", 0o600, uid=number, gid=0)
                await access.write(file.bo, 0, b"x" * 3 * PAGE)
                for place in ("vram", "gtt", "system"):
                    await move(vdev, file.bo, place)
                await idle(file.bo)
                names.unlink(names.root, b"a")
            del file
            # The engine still knows the copy that it did last.
            other = await make(vdev, "other", PAGE, place="vram")
            await idle(other)
            there = gc.get_objects()
            assert [bo.name for bo in there if isinstance(bo, BufferObject)] == ["other"]
            assert not any(isinstance(one, (BoFile, Dentry)) for one in there)
        finally:
            gc.unfreeze()
            gc.enable()

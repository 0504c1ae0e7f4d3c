"""regions/NAME/map against the page vectors, page by page, and how long it keeps others waiting."""

import random

import numpy as np
import pytest
import trio

from tests.core.harness import MIB, PAGE, device, idle, move
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.region_map import GHOST, POOL, RegionMap, region_map, rows
from ttmfs.errors import TtmError
from ttmfs.memory.pool_types import Caching
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext


def names_of(vdev: VirtualDevice) -> Namespace:
    return Namespace(vdev, uid=0, gid=0)


def create(names: Namespace, name: str) -> BufferObject:
    return names.create(names.root, name.encode(), 0o644, 0, 0).bo


def painted(found: RegionMap, num_pages: int) -> tuple[list[str], list[int]]:
    """(label or "", order or -1) of every page; fails where rows overlap, fall or touch without need."""
    labels, orders = [""] * num_pages, [-1] * num_pages
    end = 0
    last = None
    for first, pages, order, owner in zip(found.first, found.pages, found.order, found.owner, strict=True):
        assert first >= end, "not ascending"
        assert pages > 0
        assert first > end or (order, owner) != last, "two rows that are one run"
        for page in range(first, first + pages):
            labels[page], orders[page] = found.labels[owner], int(order)
        end, last = first + pages, (order, owner)
    assert end <= num_pages
    return labels, orders


@pytest.mark.parametrize("seed", range(6))
async def test_every_page_is_its_owners(seed: int) -> None:
    rng = random.Random(seed)
    async with device(vram=2 * MIB, gtt=8 * MIB, memory=32 * MIB) as vdev:
        names = names_of(vdev)
        for number in range(40):
            bo = create(names, f"bo{number}") if rng.random() < 0.4 else rng.choice(
                [file.bo for file in names.files.values()] or [create(names, "x")]
            )
            try:
                if not bo.size or rng.random() < 0.3:
                    await access.write(bo, rng.randrange(64) * PAGE, bytes(rng.randrange(1, 200) * PAGE))
                place = rng.choice((["vram"], ["gtt"], ["system"], ["gtt:topdown"]))
                await calls.validate_bo(vdev, bo, vdev.parse_placement(place), OperationContext())
                await idle(bo)
                if rng.random() < 0.2:
                    file = rng.choice(list(names.files.values()))
                    names.unlink(names.root, file.name)
            except TtmError:
                pass
        bos = [file.bo for file in names.files.values()]
        await idle(*bos)
        await check_system(vdev, names, bos)
        for region in ("gtt", "vram"):
            manager = vdev.ttm.managers[region]
            labels, orders = painted(await region_map(vdev, names, manager), manager.num_pages)
            expected = [""] * manager.num_pages
            for bo in bos:
                resource = bo.resource
                if resource is None or resource.manager is not manager:
                    continue
                held = range(resource.start, resource.start + resource.num_pages)
                for page in held if resource.pages is None else resource.pages.tolist():
                    expected[page] = bo.name
            assert labels == expected, region
            assert sum(map(bool, labels)) * PAGE == manager.usage
            check_orders(orders, labels, region == "gtt")


async def check_system(vdev: VirtualDevice, names: Namespace, bos: list[BufferObject]) -> None:
    pool = vdev.pool
    labels, orders = painted(await region_map(vdev, names, vdev.ttm.managers["system"]), pool.num_pages)
    expected = ["" if free else POOL for free in pool.free_map()]
    for bo in bos:
        if bo.tt is not None and bo.tt.populated_pages:
            for page in bo.tt.pages_at(bo.tt.present()).tolist():
                expected[page] = bo.name
    assert labels == expected
    assert labels.count(POOL) == pool.pooled_pages
    taken = np.array([page for page, label in enumerate(labels) if label], np.uint32)
    assert [orders[page] for page in taken.tolist()] == pool.page_orders(taken).tolist()


def check_orders(orders: list[int], labels: list[str], plain: bool) -> None:
    for order, label in zip(orders, labels, strict=True):
        assert (order >= 0) == bool(label)
        assert not plain or order <= 0


async def test_what_a_move_left_behind_is_a_ghosts() -> None:
    async with device(copy_latency=30.0) as vdev:
        names = names_of(vdev)
        bo = create(names, "a")
        await access.write(bo, 0, bytes(8 * PAGE))
        await move(vdev, bo, "vram")
        found = await region_map(vdev, names, vdev.ttm.managers["system"])
        labels, _orders = painted(found, vdev.pool.num_pages)
        assert labels.count(GHOST) == 8
        found = await region_map(vdev, names, vdev.ttm.managers["vram"])
        assert painted(found, vdev.ttm.managers["vram"].num_pages)[0].count("a") == 8


async def test_pooled_pages_of_any_kind_are_the_pools() -> None:
    async with device() as vdev:
        for caching in Caching:
            vdev.pool.free(vdev.pool.alloc(37, caching=caching).pages, caching)
        labels, _orders = painted(
            await region_map(vdev, names_of(vdev), vdev.ttm.managers["system"]), vdev.pool.num_pages
        )
        assert labels.count(POOL) == vdev.pool.pooled_pages == 111


async def test_a_row_is_tab_separated_with_the_names_given() -> None:
    async with device() as vdev:
        names = names_of(vdev)
        bo = create(names, "a b")
        await access.write(bo, 0, bytes(4 * PAGE))
        await move(vdev, bo, "vram")
        await idle(bo)
        found = await region_map(vdev, names, vdev.ttm.managers["vram"])
        labels = [label.replace(" ", "_") for label in found.labels]
        assert bo.resource is not None
        assert list(rows(found, 0, 10, labels)) == [f"{bo.resource.start}\t4\t2\ta_b\n"]


async def test_a_map_of_a_million_pages_lets_others_run() -> None:
    """4 GiB of address space; what counts is how much is done between two checkpoints, not how long that takes here."""
    size = 4096 * MIB
    async with device(vram=size, gtt=0, memory=16 * MIB) as vdev:
        manager = vdev.ttm.managers["vram"]
        names = names_of(vdev)
        checkpoints = 0

        async def count() -> None:
            nonlocal checkpoints
            while True:
                await trio.lowlevel.checkpoint()
                checkpoints += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            checkpoints = 0
            found = await region_map(vdev, names, manager)
            nursery.cancel_scope.cancel()
        assert not len(found.first)
        assert checkpoints >= (manager.num_pages >> 16) - 1

"""Where a new BO goes: to the first place of its list that has room, whatever uses it first."""

from collections.abc import Awaitable, Callable

import pytest

from tests.core.harness import MIB, PAGE, check, device, idle, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

Use = Callable[[VirtualDevice, BufferObject], Awaitable[object]]


async def _write(vdev: VirtualDevice, bo: BufferObject) -> None:
    await access.write(bo, 0, pattern(bo.name, bo.size))


async def _job(vdev: VirtualDevice, bo: BufferObject) -> None:
    await submit_job(vdev, Job("fill", dst=bo, value=3), OperationContext())


async def _validate(vdev: VirtualDevice, bo: BufferObject) -> None:
    await move(vdev, bo, "vram gtt system")


async def _validate_many(vdev: VirtualDevice, bo: BufferObject) -> None:
    await calls.validate_many(vdev, [bo], vdev.parse_placement(["vram", "gtt", "system"]), OperationContext())


@pytest.mark.parametrize("use", [_write, _job, _validate, _validate_many])
async def test_a_new_bo_goes_to_the_first_place_that_has_room(use: Use) -> None:
    async with device(vram=4 * MIB, gtt=4 * MIB, placement="vram gtt system") as vdev:
        where = []
        for number in range(6):
            bo = vdev.create_bo(f"bo{number}")
            lifetime.set_size(bo, 2 * MIB)
            await use(vdev, bo)
            await idle(bo)
            where.append(bo.mem_type)
            assert bo.placed
            assert bo.evictions == 0
        assert where == ["vram", "vram", "gtt", "gtt", "system", "system"]
        assert bo.moves == 0, "it was in system already"
        assert vdev.ttm.counters.moves.evictions == 0
        assert vdev.ttm.managers["system"].num_bos == 2


async def test_what_was_placed_stays_where_it_is_accepted() -> None:
    async with device(placement="vram gtt system") as vdev:
        bo = await make(vdev, "a", MIB)
        await idle(bo)
        await move(vdev, bo, "system")
        await move(vdev, bo, "vram gtt system")
        assert bo.mem_type == "system"
        await check(bo)


async def test_what_was_gutted_or_cut_to_nothing_is_placed_anew() -> None:
    async with device(placement="vram gtt system") as vdev:
        bo = await make(vdev, "a", MIB)
        await move(vdev, bo, "system")
        await move(vdev, bo, "none")
        await access.write(bo, 0, b"x")
        assert bo.mem_type == "vram"
        await idle(bo)
        await calls.evict_one(vdev, bo, OperationContext())
        await idle(bo)
        lifetime.set_size(bo, 0)
        await access.write(bo, 0, b"x")
        assert bo.mem_type == "vram"


async def test_looking_for_something_to_defrag_places_nothing() -> None:
    async with device(placement="vram gtt system") as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, 4 * MIB)
        await defrag_bo(vdev, bo, OperationContext())
        assert (bo.mem_type, bo.placed) == ("system", False)
        await access.write(bo, 0, bytes(PAGE))
        assert bo.mem_type == "vram"


async def test_a_pinned_new_bo_stays_in_system() -> None:
    async with device(placement="vram gtt system") as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, MIB)
        await calls.pin(vdev, bo)
        await access.write(bo, 0, pattern("a", MIB))
        assert bo.mem_type == "system"
        await check(bo)

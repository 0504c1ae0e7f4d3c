"""Validate: places and lists of them, what counts as compatible, what fails and how, which places a manager gives."""

import errno

import pytest

from tests.core.harness import MIB, PAGE, check, device, fails, idle, lru_names, make, move
from ttmfs.driver import calls
from ttmfs.ttm import access
from ttmfs.ttm.context import OperationContext


async def test_no_placement_guts_and_a_pinned_bo_is_refused() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        bo.pin()
        with fails(errno.EINVAL):
            await move(vdev, bo, "none")
        await check(bo)
        bo.unpin()
        await move(vdev, bo, "none")
        assert bo.resource is None
        assert vdev.ttm.managers["vram"].usage == 0
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)


async def test_gutting_many_is_all_or_none() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        b.pin()
        with fails(errno.EINVAL):
            await calls.validate_many(vdev, [a, b], (), OperationContext())
        await check(a)
        await check(b)


async def test_a_region_that_the_device_has_not_is_enomem() -> None:
    async with device(vram=0) as vdev:
        bo = await make(vdev, "a")
        with fails(errno.ENOMEM):
            await move(vdev, bo, "vram")
        with fails(errno.EINVAL):
            await move(vdev, bo, "moon")
        await check(bo)


@pytest.mark.parametrize(("propagate", "code"), [(False, errno.ENOMEM), (True, errno.ENOSPC)])
async def test_full_is_enomem_or_enospc(propagate: bool, code: int) -> None:
    async with device(propagate_enospc=propagate) as vdev:
        pinned = await make(vdev, "a", 4 * MIB, place="vram")
        pinned.pin()
        bo = await make(vdev, "b")
        with fails(code):
            await move(vdev, bo, "vram")
        assert bo.mem_type == "system"


async def test_a_full_hop_is_translated_too() -> None:
    async with device(gtt=MIB) as vdev:
        blocker = await make(vdev, "a", MIB, place="gtt")
        blocker.pin()
        bo = await make(vdev, "b")
        with fails(errno.ENOMEM):
            await move(vdev, bo, "vram")
        await check(bo)


async def test_desired_never_evicts_and_fallback_waits_for_the_second_pass() -> None:
    async with device() as vdev:
        old = await make(vdev, "old", 4 * MIB, place="vram")
        new = await make(vdev, "new")
        await move(vdev, new, "vram:desired gtt:fallback")
        assert (old.mem_type, new.mem_type) == ("vram", "gtt")
        assert old.evictions == 0
        other = await make(vdev, "other")
        # gtt is free, yet FALLBACK is no place of the first pass, and vram has room then.
        await move(vdev, old, "system")
        await idle(old)
        await move(vdev, other, "gtt:fallback vram")
        assert other.mem_type == "vram"


async def test_a_place_that_can_never_hold_it_evicts_nobody() -> None:
    async with device(visible_vram=MIB) as vdev:
        small = [await make(vdev, f"s{n}", place="vram") for n in range(4)]
        big = await make(vdev, "big", 5 * MIB)
        await move(vdev, big, "vram gtt")
        assert big.mem_type == "gtt"
        await move(vdev, big, "system")
        await move(vdev, big, "gtt@0-9 vram@0-99 gtt")
        assert big.mem_type == "gtt"
        assert [bo.evictions for bo in small] == [0, 0, 0, 0]


async def test_a_compatible_validate_moves_and_bumps_nothing_but_unreserve_bumps() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", place="vram"), await make(vdev, "b", place="vram")
        assert lru_names(vdev, "vram") == ["a", "b"]
        ticket_free = vdev.ttm.managers["vram"].lru.steps
        await a.resv.lock()
        assert vdev.ttm.managers["vram"].lru.steps == ticket_free
        a.unlock()
        assert lru_names(vdev, "vram") == ["a", "b"]
        result = await move(vdev, a, "vram gtt")
        assert result["bytes_moved"] == 0
        assert lru_names(vdev, "vram") == ["b", "a"]
        assert b.moves == a.moves == 2


async def test_temporary_is_never_compatible() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="gtt:temporary")
        moves = bo.moves
        await move(vdev, bo, "gtt:temporary")
        assert bo.moves == moves + 1


async def test_each_leg_counts_and_gutting_counts_nothing() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        assert (await move(vdev, bo, "vram"))["bytes_moved"] == 2 * MIB
        assert (await move(vdev, bo, "gtt"))["bytes_moved"] == MIB
        assert (await move(vdev, bo, "none"))["bytes_moved"] == 0


async def test_range_manager_topdown_and_bounds() -> None:
    async with device() as vdev:
        low = await make(vdev, "low", place="gtt")
        high = await make(vdev, "high", place="gtt:topdown")
        assert low.resource is not None
        assert high.resource is not None
        assert (low.resource.start, high.resource.start) == (0, 4096 - 256)
        await move(vdev, low, "gtt@512-767")
        assert low.resource.start == 512
        with fails(errno.ENOMEM):
            await move(vdev, low, "gtt@0-254")

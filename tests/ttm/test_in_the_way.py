"""No room: the sentence names who is in the way."""

import pytest

from tests.core.harness import MIB, device, make, move
from ttmfs.driver import calls
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.contention import Held
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.in_the_way import in_the_way


async def test_what_is_pinned_is_named() -> None:
    async with device(vram=4 * MIB) as vdev:
        for name in ("p 1", "p2", "p3"):
            await calls.pin(vdev, await make(vdev, name, place="vram"))
        await make(vdev, "goes", place="vram")
        wanted = await make(vdev, "a", 2 * MIB)
        with pytest.raises(TtmError) as found:
            await move(vdev, wanted, "vram vram:contiguous")
        assert found.value.message == (
            "no room for 'a' (2M) in vram vram:contiguous: 3M of the 4M of vram is pinned ('p 1', 'p2', 'p3')"
        )
        for name in ("p4", "p5"):
            await calls.pin(vdev, await make(vdev, name, 512 << 10, place="vram"))
        with pytest.raises(TtmError, match=r"4M of the 4M of vram is pinned \('p 1', 'p2', 'p3' and 2 more\)"):
            await move(vdev, wanted, "vram")


async def test_what_never_fits_is_said_for_each_region() -> None:
    async with device(vram=4 * MIB, gtt=0) as vdev:
        bo = await make(vdev, "a", 5 * MIB)
        with pytest.raises(TtmError) as found:
            await move(vdev, bo, "vram gtt")
        assert found.value.message == "no room for 'a' (5M) in vram gtt: all of vram is 4M; this device has no gtt"


async def test_a_range_that_never_holds_it_is_said_and_not_who_is_elsewhere() -> None:
    async with device(vram=4 * MIB) as vdev:
        await calls.pin(vdev, await make(vdev, "pinned", place="vram"))
        bo = await make(vdev, "a", MIB)
        for places, why in (
            ("vram@0-9", "all of vram@0-9 is 40K"),
            ("vram@0-9 vram@1000-1099", "all of vram@1000-1099 is 96K"),
            ("vram@5000-9000", "all of vram@5000-9000 is 0"),
        ):
            assert in_the_way(bo, vdev.parse_placement(places.split()), None) == why
        assert "pinned" in in_the_way(bo, vdev.parse_placement(["vram@0-9", "vram@0-255"]), None)


async def test_a_copy_that_has_not_ended_is_named_by_its_fence_and_a_holder_by_its_name() -> None:
    async with device(vram=4 * MIB) as vdev:
        held = await make(vdev, "held", place="vram")
        wanted = await make(vdev, "a", 4 * MIB)
        await calls.wait_bo(vdev, held, Usage.BOOKKEEP, 10)
        for engine in vdev.engines:
            engine.paused = True
        await calls.evict_one(vdev, held, OperationContext())
        (fence,) = vdev.ttm.managers["vram"].pending_eviction_fences()
        place = vdev.parse_placement(["vram"])
        assert in_the_way(wanted, place, None) == f"vram is still copied out of: fence {fence.name}"
        for engine in vdev.engines:
            engine.paused = False
        await fence.wait()
        free = "0 of the 4M of vram is in use"
        assert in_the_way(wanted, place, None) == free
        await held.resv.lock(AcquireContext())
        try:
            assert in_the_way(wanted, place, Held(held)) == f"{free}; 'held' is in use by another call"
        finally:
            held.unlock()

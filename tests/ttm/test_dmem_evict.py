"""Groups on a device: who goes for whom, and that what is charged is what is there."""

import errno
import random
from functools import partial
from typing import Any, Literal

import pytest
import trio

from tests.core.harness import MIB, check, device, idle, make, move, outcome, pattern
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import check_groups, set_max
from ttmfs.driver.locking import reserved
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime, mem_space
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import Held
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import UNLIMITED, Group, Pool
from ttmfs.ttm.placement import Place
from ttmfs.ttm.protection import Search
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.walk import Walk

VRAM = "vram"


async def theirs(vdev: VirtualDevice, group: Group, name: str, size: int = MIB, *, place: str = VRAM) -> BufferObject:
    """A BO of a group, full of `pattern`."""
    bo = await make(vdev, name, size)
    lifetime.set_group(bo, group)
    if place:
        await move(vdev, bo, place)
    return bo


def vram(group: Group) -> Pool:
    return group.pools[VRAM]


def places(*bos: BufferObject) -> str:
    return " ".join(bo.mem_type for bo in bos)


async def test_over_max_only_what_the_group_has_goes() -> None:
    async with device(vram=8 * MIB) as vdev:
        other = await make(vdev, "other", place=VRAM)
        group = vdev.ttm.dmem.root.make("small")
        vram(group).max = 2 * MIB
        bos = [await theirs(vdev, group, f"s{number}") for number in range(4)]
        assert places(other, *bos) == "vram gtt gtt vram vram"
        assert (vram(group).usage, vram(group).peak, vram(group).evictions) == (2 * MIB, 2 * MIB, 2)
        assert vram(group).max_events
        for bo in (other, *bos):
            await check(bo)


async def test_over_max_of_the_one_above_those_below_it_go() -> None:
    async with device(vram=8 * MIB) as vdev:
        above = vdev.ttm.dmem.root.make("above")
        one, two = above.make("one"), above.make("two")
        vram(above).max = 2 * MIB
        first = await theirs(vdev, one, "a", 2 * MIB)
        second = await theirs(vdev, two, "b")
        assert places(first, second) == "gtt vram"


async def test_eagain_never_leaves() -> None:
    async with device() as vdev:
        group = vdev.ttm.dmem.root.make("none")
        vram(group).max = MIB
        bo = await theirs(vdev, group, "big", 2 * MIB, place="")
        with pytest.raises(TtmError, match=r"group 'none' has 0 of the 1M of vram that it may have") as caught:
            await move(vdev, bo, VRAM)
        assert caught.value.errno == errno.ENOMEM
        await move(vdev, bo, "vram gtt")
        assert places(bo) == "gtt"


async def test_it_may_have_what_it_may_even_where_the_region_is_full_of_others() -> None:
    """First its own goes, since it is over max; then there is no room, so somebody else's does."""
    async with device(vram=4 * MIB) as vdev:
        group = vdev.ttm.dmem.root.make("g")
        mine = await theirs(vdev, group, "mine")
        others = [await make(vdev, f"o{number}", place=VRAM) for number in range(3)]
        vram(group).max = 2 * MIB
        big = await theirs(vdev, group, "big", 2 * MIB)
        assert places(mine, big) == "gtt vram"
        assert sum(bo.mem_type == VRAM for bo in others) == 2


async def test_min_protects_always_and_the_message_says_so() -> None:
    async with device() as vdev:
        game, other = vdev.ttm.dmem.root.make("game"), vdev.ttm.dmem.root.make("other")
        vram(game).protect(min=3 * MIB)
        kept = [await theirs(vdev, game, f"g{number}") for number in range(3)]
        storm = [await theirs(vdev, other, f"s{number}") for number in range(4)]
        assert places(*kept, *storm) == "vram vram vram gtt gtt gtt vram"
        big = await theirs(vdev, other, "big", 2 * MIB, place="")
        # This has the last unprotected one go; while it is copied, that is what is in the way.
        assert await outcome(lambda: move(vdev, big, VRAM)) == errno.ENOMEM
        await idle(*kept, *storm)
        with pytest.raises(TtmError, match=r"3M of that is protected by dmem\.min"):
            await move(vdev, big, VRAM)


async def test_low_goes_when_nobody_else_is_left() -> None:
    async with device() as vdev:
        game, other = vdev.ttm.dmem.root.make("game"), vdev.ttm.dmem.root.make("other")
        vram(game).protect(low=3 * MIB)
        kept = [await theirs(vdev, game, f"g{number}") for number in range(3)]
        storm = [await theirs(vdev, other, f"s{number}") for number in range(3)]
        assert places(*kept, *storm) == "vram vram vram gtt gtt vram"
        assert vram(game).low_events == 0
        big = await theirs(vdev, other, "big", 2 * MIB)
        assert places(big, *kept) == "vram gtt vram vram"
        assert vram(game).low_events == 1


@pytest.mark.parametrize(("protection", "where"), [("newer", "vram"), ("released", "gtt")])
async def test_who_has_less_than_protects_it_comes_back_in_the_first_pass(
    protection: Literal["newer", "released"], where: str
) -> None:
    """Others take what is idle only (gtt is their second choice); the newer series lets the protected evict."""
    async with device() as vdev:
        vdev.ttm.dmem.protection = protection
        game, other = vdev.ttm.dmem.root.make("game"), vdev.ttm.dmem.root.make("other")
        storm = [await theirs(vdev, other, f"s{number}") for number in range(4)]
        bo = await theirs(vdev, game, "g", place="")
        vram(game).protect(low=2 * MIB)
        await move(vdev, bo, "vram gtt")
        assert places(bo) == where
        assert (places(*storm) == "vram vram vram vram") is (protection == "released")
        again = await theirs(vdev, other, "again", place="")
        await move(vdev, again, "vram gtt")
        assert places(again) == "gtt"


async def test_lowering_max_drains_the_unprotected_first() -> None:
    async with device(vram=8 * MIB) as vdev:
        above = vdev.ttm.dmem.root.make("above")
        one, two = above.make("one"), above.make("two")
        vram(one).protect(low=2 * MIB)
        protected = [await theirs(vdev, one, f"p{number}") for number in range(2)]
        plain = [await theirs(vdev, two, f"q{number}") for number in range(3)]
        other = await make(vdev, "other", place=VRAM)
        assert await set_max(vdev, vram(above), 2 * MIB) == 3 * MIB
        assert places(*protected, *plain, other) == "vram vram gtt gtt gtt vram"
        assert await set_max(vdev, vram(above), 0) == 2 * MIB
        assert places(*protected, other) == "gtt gtt vram"
        for bo in (*protected, *plain, other):
            await check(bo)


async def test_what_is_pinned_stays_when_max_is_lowered() -> None:
    async with device() as vdev:
        group = vdev.ttm.dmem.root.make("g")
        bo, pinned = await theirs(vdev, group, "a"), await theirs(vdev, group, "b")
        pinned.pin_count += 1
        try:
            assert await set_max(vdev, vram(group), 0) == MIB
            assert places(bo, pinned) == "gtt vram"
        finally:
            pinned.pin_count -= 1


async def test_a_bo_takes_its_charge_along_or_stays() -> None:
    async with device() as vdev:
        one, two = vdev.ttm.dmem.root.make("one"), vdev.ttm.dmem.root.make("two")
        bo = await theirs(vdev, one, "a", 2 * MIB)
        vram(two).max = MIB
        assert await outcome(lambda: _set_group(bo, two)) == errno.ENOMEM
        assert (bo.group, vram(one).usage, vram(two).usage) == (one, 2 * MIB, 0)
        vram(two).max = UNLIMITED
        lifetime.set_group(bo, two)
        assert (bo.group, vram(one).usage, vram(two).usage) == (two, 0, 2 * MIB)
        await idle(bo)
        lifetime.set_size(bo, MIB)
        assert vram(two).usage == MIB


async def test_who_is_on_the_way_into_a_region_is_judged_by_what_it_gets_there() -> None:
    """Not by what it has elsewhere: groups have nothing in common across regions."""
    async with device() as vdev:
        root = vdev.ttm.dmem.root
        mover, newcomer = await theirs(vdev, root.make("a"), "a"), await theirs(vdev, root.make("b"), "b", place="gtt")
        await idle(mover)
        there = vdev.ttm.managers["gtt"].alloc(mover, Place("gtt"))
        search = Search(newcomer.group.pools["gtt"])
        walk = Walk(newcomer, vdev.ttm.managers["gtt"], Place("gtt"), OperationContext(), search, _nobody)
        assert walk.spares(mover), "it is in vram"
        async with reserved(mover):
            left = await walk.left()
        assert isinstance(left, Held)
        assert left.bo is mover
        vdev.ttm.managers["gtt"].free(there)


async def _nobody(_walk: Walk, _resource: Resource, _position: int) -> bool:
    raise AssertionError("nobody is evicted")


async def _set_group(bo: BufferObject, group: Group) -> None:
    lifetime.set_group(bo, group)


@pytest.mark.parametrize("seed", range(6))
async def test_sums_agree_and_no_byte_is_wrong_whatever_happens(seed: int) -> None:
    """BOs of nested groups come, move, change, fail and go while limits are set; each check names its seed."""
    chance = random.Random(seed)
    async with device(vram=4 * MIB, gtt=6 * MIB, copy_latency=0.0005) as vdev:
        root = vdev.ttm.dmem.root
        vdev.ttm.dmem.protection = "newer" if seed % 2 else "released"
        groups = [root, root.make("a"), root.make("b")]
        groups += [groups[1].make("c"), groups[1].make("d")]
        bos: list[BufferObject] = []

        async def act(name: str) -> None:
            kind = chance.randrange(7)
            group = chance.choice(groups)
            if kind < 2 or not bos:
                bo = vdev.create_bo(name)
                bo.group = group
                try:
                    await access.write(bo, 0, pattern(name, chance.choice((1, 64, 256)) * 4096))
                except TtmError:
                    lifetime.release(bo)
                    raise
                bos.append(bo)
                return
            bo = chance.choice(bos)
            if kind == 2:
                await move(vdev, bo, chance.choice(("vram", "vram gtt", "gtt", "system")))
            elif kind == 3:
                lifetime.set_group(bo, group)
            elif kind == 4 and group is not root:
                pool = group.pools[chance.choice(("vram", "gtt"))]
                pool.protect(low=chance.choice((0, MIB, 3 * MIB)), min=chance.choice((0, 0, MIB)))
            elif kind == 5 and group is not root:
                region = chance.choice(("vram", "gtt"))
                await set_max(vdev, group.pools[region], chance.choice((UNLIMITED, 2 * MIB, MIB, 0)))
            elif kind == 6:
                bos.remove(bo)
                lifetime.release(bo)

        async def tasks(number: int) -> None:
            for step in range(25):
                came_to = await outcome(partial(act, f"b{number}-{step}"))
                assert came_to in (0, errno.ENOMEM, errno.ENOENT, errno.EIO), seed
                assert not check_groups(vdev), seed

        vdev.ttm.inject["move"].set("probability", "10")
        vdev.ttm.inject["move"].set("times", "20")
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(tasks, number)
        vdev.ttm.inject["move"].set("probability", "0")
        for bo in bos:
            if bo.size:
                await check(bo)
        for bo in bos:
            lifetime.release(bo)
        while vdev.ttm.num_ghosts:
            await vdev.ttm.ghost_gone.park()
        for group in reversed(groups[1:]):
            group.remove()


async def test_two_who_need_space_take_no_more_than_what_is_above_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the same excess of one BO, and waits while a BO is evicted."""
    evict_bo = mem_space.evict_bo

    async def slowly(*args: Any, **more: Any) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        await evict_bo(*args, **more)

    async with device(vram=8 * MIB, gtt=32 * MIB) as vdev:
        game, browser = (vdev.ttm.dmem.root.make(name) for name in ("game", "browser"))
        textures = [await theirs(vdev, game, f"texture{number}") for number in range(5)]
        tabs = [await theirs(vdev, browser, f"tab{number}") for number in range(3)]
        new = [await theirs(vdev, browser, name, place="") for name in ("x", "y")]
        vram(game).protect(low=4 * MIB)
        monkeypatch.setattr(mem_space, "evict_bo", slowly)
        async with trio.open_nursery() as nursery:
            for bo in new:
                nursery.start_soon(move, vdev, bo, VRAM)
        assert places(*textures).count("gtt") == 1
        assert places(*new) == "vram vram"
        assert vram(game).leaving == 0
        for bo in (*textures, *tabs, *new):
            await check(bo)


@pytest.mark.parametrize("seed", range(4))
async def test_a_group_never_has_more_than_its_max(seed: int) -> None:
    """`peak` is the most that it ever had, whoever moves in and out at the same time."""
    rng = random.Random(seed)
    async with device(vram=8 * MIB, gtt=32 * MIB) as vdev:
        above = vdev.ttm.dmem.root.make("above")
        below = above.make("below")
        vram(above).max, vram(below).max = 4 * MIB, 3 * MIB
        bos = [await theirs(vdev, (above, below)[number % 2], f"b{number}", place="") for number in range(10)]

        async def come_and_go(bo: BufferObject) -> None:
            for _ in range(20):
                await outcome(partial(move, vdev, bo, rng.choice((VRAM, VRAM, "gtt"))))

        async with trio.open_nursery() as nursery:
            for bo in bos:
                nursery.start_soon(come_and_go, bo)
        assert (vram(above).peak, vram(below).peak) == (4 * MIB, 3 * MIB)
        assert check_groups(vdev) == []
        for bo in bos:
            await check(bo)

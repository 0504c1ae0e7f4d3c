"""Kernel BOs of a driver: space without a file, which moves as any other and which no cache ever has."""

import errno

import pytest

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, fails, idle, lru_names, make, pattern
from ttmfs.driver import calls
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release
from ttmfs.ttm.peek import peek, poke
from ttmfs.ttm.placement import GTT, VRAM, Place, PlaceFlag

HERE = __name__


class Firmware(DefaultDriver):
    """Has firmware pinned at the end of vram, page tables there that may be evicted, and a ring in gtt."""

    def __init__(self, vdev: Hardware) -> None:
        super().__init__(vdev)
        end = Place(VRAM, flags=PlaceFlag.TOPDOWN | PlaceFlag.CONTIGUOUS)
        self.firmware = self.create_kernel_bo("firmware", MIB - 100, end)
        self.tables = self.create_kernel_bo("tables", 64 * PAGE, Place(VRAM), pinned=False)
        self.ring = self.create_kernel_bo("ring", 16 * PAGE, Place(GTT))

    @property
    def own(self) -> tuple[BufferObject, ...]:
        """All of them."""
        return self.firmware, self.tables, self.ring


class Greedy(DefaultDriver):
    """Wants more than there is."""

    def __init__(self, vdev: Hardware) -> None:
        super().__init__(vdev)
        self.create_kernel_bo("all", 1 << 40, Place(VRAM))


async def filled(own: tuple[BufferObject, ...]) -> None:
    for bo in own:
        await poke(bo, 0, pattern(bo.name, bo.size))


async def whole(own: tuple[BufferObject, ...]) -> None:
    for bo in own:
        assert bytes(await peek(bo, 0, bo.size)) == pattern(bo.name, bo.size), bo.name


async def test_a_kernel_bo_has_its_space_and_moves_and_nobody_unmaps_it() -> None:
    async with device(driver=f"{HERE}:Firmware", vram=4 * MIB) as vdev:
        unmapper = WaitingUnmapper()
        vdev.ttm.unmapper = unmapper
        driver = vdev.funcs
        assert isinstance(driver, Firmware)
        assert (driver.firmware.name, driver.firmware.size) == ("kernel:firmware", MIB)
        assert driver.firmware.resource is not None
        assert driver.firmware.resource.start == 3 * MIB // PAGE
        assert vdev.ttm.managers[VRAM].usage == MIB + 64 * PAGE
        assert lru_names(vdev, VRAM) == ["kernel:tables"], "what is pinned is on no LRU"
        await filled(driver.own)
        # What does not fit beside the firmware drives the tables out, as it would any BO.
        user = await make(vdev, "a", 3 * MIB, place="vram")
        await idle(user, *driver.own)
        assert [bo.mem_type for bo in driver.own] == ["vram", "gtt", "gtt"]
        with fails(errno.ENOMEM):
            await calls.validate_bo(vdev, user, vdev.parse_placement(["vram@768-1023"]), OperationContext())
        await calls.evict_one(vdev, user, OperationContext())
        await whole(driver.own)
        await check(user)
        assert not {bo.name for bo in driver.own} & set(unmapper.unmapped)


async def test_kernel_bos_are_suspended_and_come_back_and_go_at_their_release() -> None:
    async with device(driver=f"{HERE}:Firmware", vram=4 * MIB) as vdev:
        driver = vdev.funcs
        assert isinstance(driver, Firmware)
        await filled(driver.own)
        await vdev.power.suspend(OperationContext())
        assert {bo.mem_type for bo in driver.own} == {"system"}
        await whole(driver.own)
        await vdev.power.resume(OperationContext())
        await idle(*driver.own)
        assert [bo.mem_type for bo in driver.own] == ["vram", "vram", "gtt"]
        assert driver.firmware.resource is not None
        assert driver.firmware.resource.start == 3 * MIB // PAGE
        await whole(driver.own)
        late = driver.create_kernel_bo("late", PAGE, Place(VRAM))
        assert not vdev.selfcheck()
        for bo in (*driver.own, late):
            release(bo)
            await idle(bo)
        assert (vdev.ttm.managers[VRAM].usage, vdev.ttm.managers[GTT].usage, vdev.ttm.num_bos) == (0, 0, 0)


@pytest.mark.parametrize(
    ("size", "region", "code"),
    [
        (PAGE, "vrm", errno.EINVAL),
        (0, VRAM, errno.EINVAL),
        (64 * MIB, VRAM, errno.E2BIG),
        (2 * MIB, VRAM, errno.ENOSPC),
    ],
)
async def test_one_that_cannot_be_made_leaves_nothing(size: int, region: str, code: int) -> None:
    async with device(vram=4 * MIB) as vdev:
        user = await make(vdev, "a", 3 * MIB, place="vram")
        before = list(vdev.ttm.bos)
        with fails(code):
            vdev.funcs.create_kernel_bo("x", size, Place(region))
        assert list(vdev.ttm.bos) == before
        await check(user)


async def test_a_driver_that_finds_no_room_for_its_own_is_refused() -> None:
    with pytest.raises(TtmError, match=r"Greedy: it cannot be made: .*vram"):
        async with device(driver=f"{HERE}:Greedy"):
            raise AssertionError("it was made")

"""io_mem_reserve and io_mem_free of a driver: an aperture of two mappings, and who loses one for whom."""

import errno
import random

import pytest
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, fails, idle, make, move
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.resource import Resource

HERE = __name__
SLOTS = 2


class Aperture(DefaultDriver):
    """Two resources at a time; `broken` says what a mapping fails with."""

    def __init__(self, vdev: Hardware) -> None:
        super().__init__(vdev)
        self.mapped: list[Resource] = []
        self.broken = 0

    def io_mem_reserve(self, resource: Resource) -> None:
        assert resource not in self.mapped
        if self.broken:
            raise TtmError(self.broken, "the aperture is broken")
        if len(self.mapped) == SLOTS:
            raise TtmError(errno.EAGAIN, "the aperture is full")
        self.mapped.append(resource)

    def io_mem_free(self, resource: Resource) -> None:
        self.mapped.remove(resource)


def names(vdev: VirtualDevice) -> list[str]:
    """Whose mappings there are, what faulted longest ago first."""
    driver = vdev.funcs
    assert isinstance(driver, Aperture)
    assert set(vdev.ttm.io_mem) == set(driver.mapped)
    return [resource.bo.name for resource in vdev.ttm.io_mem]


async def in_vram(vdev: VirtualDevice, text: str) -> list[BufferObject]:
    bos = [await make(vdev, name, 16 * PAGE, place="vram") for name in text]
    await idle(*bos)
    assert names(vdev) == []
    return bos


async def test_the_mapping_that_faulted_longest_ago_goes_first() -> None:
    async with device(driver=f"{HERE}:Aperture") as vdev:
        unmapper = WaitingUnmapper()
        vdev.ttm.unmapper = unmapper
        a, b, c = await in_vram(vdev, "abc")
        unmapper.unmapped.clear()
        vdev.ttm.trace.start(["io_mem_evict"])
        for bo in (a, b, a):
            await check(bo)
        assert names(vdev) == ["a", "b"], "what is mapped does not fault"
        await check(c)
        assert (names(vdev), unmapper.unmapped) == (["b", "c"], ["a"])
        assert [(event.bo, event.facts) for event in vdev.ttm.trace.ring] == [("a", {"for_bo": "c"})]
        await access.write(a, 0, b"x" * PAGE)
        assert (names(vdev), unmapper.unmapped) == (["c", "a"], ["a", "b"])
        assert bytes(await access.read(a, 0, 3)) == b"xxx"
        await check(b)
        await check(c)


async def test_a_mapping_goes_with_an_unmap_a_move_and_the_end_of_its_bo() -> None:
    async with device(driver=f"{HERE}:Aperture") as vdev:
        a, b, c = await in_vram(vdev, "abc")
        await check(a)
        await check(b)
        await move(vdev, a, "gtt")
        assert names(vdev) == ["b"]
        await idle(a)
        await check(a)
        assert names(vdev) == ["b"], "what is in system pages needs none"
        lifetime.set_size(b, 0)
        await idle(b)
        assert names(vdev) == []
        await check(c)
        vdev.destroy_bo(c)
        await idle(c)
        assert names(vdev) == []


async def test_a_bo_in_use_keeps_its_mapping_and_the_next_one_goes(autojump_clock: MockClock) -> None:
    async with device(driver=f"{HERE}:Aperture", fault_timeout=5.0) as vdev:
        a, b, c = await in_vram(vdev, "abc")
        await check(a)
        await check(b)
        await a.resv.lock()
        await check(c)
        assert names(vdev) == ["a", "c"]
        await c.resv.lock()
        # Nobody can go: it is served from where its bytes are, when its time is up.
        await check(b)
        assert names(vdev) == ["a", "c"]
        c.unlock()
        await check(b)
        assert names(vdev) == ["a", "b"]
        a.unlock()


async def test_what_cannot_be_mapped_is_sigbus_and_no_write_is_lost() -> None:
    async with device(driver=f"{HERE}:Aperture") as vdev:
        (a,) = await in_vram(vdev, "a")
        driver = vdev.funcs
        assert isinstance(driver, Aperture)
        for code in (errno.ENXIO, errno.EAGAIN):
            driver.broken = code
            with fails(errno.EIO):
                await access.read(a, 0, PAGE)
        assert a.last_error.endswith("the aperture is broken")
        await access.write(a, 0, b"x" * PAGE)
        driver.broken = 0
        assert bytes(await access.read(a, 0, 2 * PAGE))[: PAGE + 1] == b"x" * PAGE + bytes([b"a"[0] + 1])


@pytest.mark.parametrize("seed", range(4))
async def test_at_random(seed: int) -> None:
    rng = random.Random(seed)
    async with device(driver=f"{HERE}:Aperture", vram=MIB, visible_vram=MIB // 2) as vdev:
        vdev.ttm.unmapper = WaitingUnmapper()
        bos = [await make(vdev, name, 48 * PAGE) for name in "abcdefgh"]
        content = {bo: bytearray(bytes(await access.read(bo, 0, bo.size))) for bo in bos}
        for _ in range(150):
            bo = rng.choice(bos)
            offset = rng.randrange(48 * PAGE)
            size = rng.randint(1, 48 * PAGE - offset)
            kind = rng.choice(["read", "read", "read", "write", "vram", "gtt", "system"])
            if kind == "read":
                assert bytes(await access.read(bo, offset, size)) == content[bo][offset : offset + size], seed
            elif kind == "write":
                data = rng.randbytes(size)
                await access.write(bo, offset, data)
                content[bo][offset : offset + size] = data
            else:
                await move(vdev, bo, f"{kind} gtt system")
            assert len(names(vdev)) <= SLOTS
            for other in bos:
                assert other.vmap is None or other.reachable, seed
        for bo in bos:
            assert bytes(await access.read(bo, 0, bo.size)) == content[bo], seed

"""Policies of system and gtt: whom the shrinker takes first, within its classes, and what a policy there is told."""

import trio
import trio.testing

from tests.core.advised import Told, install
from tests.core.harness import PAGE, check, device, make, move
from ttmfs.policy import BO
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.shrinker import shrink

QUICK = OperationContext(no_wait_gpu=True)
EVERYTHING = 1 << 40


def in_store(*bos: BufferObject) -> str:
    """Names of those of which every page is there."""
    return " ".join(bo.name for bo in bos if set(bo.snapshot()) == {ord("b")})


async def test_the_order_of_the_policy_of_system_counts() -> None:
    async with device() as vdev:
        bos = [await make(vdev, name, 16 * PAGE) for name in "abcd"]
        await install(vdev, "mru", "system")
        assert (await shrink(vdev.ttm, 16, QUICK)).stored == 16
        assert in_store(*bos) == "d"
        await check(bos[0])
        assert (await shrink(vdev.ttm, 32, QUICK)).stored == 32
        assert in_store(*bos) == "a c d"
        found = vdev.policies.stats()["evict"]["system"]
        assert (found["name"], found["taken"], found["ejected"]) == ("mru", 3, 0)
        for bo in bos:
            await check(bo)


async def test_its_classes_stay_the_shrinker_s() -> None:
    """What is purgeable goes before whom the policy names, and idle ones before busy ones that it names first."""
    async with device() as vdev:
        purgeable, idle, other, busy = bos = [await make(vdev, name, 16 * PAGE) for name in ("p", "idle", "o", "busy")]
        lifetime.set_madvise(purgeable, "dontneed")
        fence = Fence(4711, 1, "a job")
        await busy.resv.lock()
        busy.resv.reserve_fences(1)
        busy.resv.add_fence(fence, Usage.READ)
        busy.unlock()
        await install(vdev, "mru", "system")
        assert (await shrink(vdev.ttm, 16, QUICK)).purged == 16
        assert (await shrink(vdev.ttm, 16, QUICK)).stored == 16
        assert in_store(*bos) == "o"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shrink, vdev.ttm, 32, OperationContext())
            await trio.testing.wait_all_tasks_blocked()
            assert in_store(*bos) == "idle o"
            fence.signal()
        assert in_store(*bos) == "idle o busy"
        for bo in (idle, other, busy):
            await check(bo)


async def test_a_bo_is_in_system_while_it_has_pages_there() -> None:
    async with device() as vdev:
        a, b = [await make(vdev, name, 16 * PAGE) for name in "ab"]
        empty = await make(vdev, "empty", 0)
        told = Told()
        await install(vdev, told, "system")
        assert told.take() == [f"attach system {vdev.ttm.pages_limit * PAGE}", "added a", "added b"]
        await shrink(vdev.ttm, 16, QUICK)
        assert told.take() == ["removed b evicted"]
        await access.read(b, 0, PAGE)
        assert told.take() == ["added b"]
        await access.read(b, PAGE, PAGE)
        assert told.take() == ["used b read"]
        await move(vdev, a, "vram")
        assert told.take() == ["used a validate", "removed a moved"]
        await shrink(vdev.ttm, EVERYTHING, QUICK)
        assert told.take() == ["removed b evicted"]
        lifetime.release(b)
        lifetime.release(empty)
        assert told.take() == []
        await check(a)


async def test_one_that_names_nobody_leaves_the_order_of_the_lru() -> None:
    """It is ejected where there was a victim, and nobody's memory fails for it."""

    class Nobody(Told):
        def victims(self, request: object) -> list[BO]:
            return []

    async with device() as vdev:
        bos = [await make(vdev, name, 16 * PAGE) for name in "ab"]
        await install(vdev, Nobody(), "system")
        assert (await shrink(vdev.ttm, 16, QUICK)).stored == 16
        assert in_store(*bos) == "a"
        assert vdev.ttm.managers["system"].adviser is None
        assert vdev.policies.stats()["evict"]["system"]["ejected"] == 1

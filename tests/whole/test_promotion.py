"""Promotion: BOs that lie lower than wanted are remembered, and come home within the budget when there is room."""

from collections.abc import Collection, Iterable, Iterator

import pytest
import trio
import trio.testing

from tests.core.advised import install
from tests.core.harness import MIB, check, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.policy import BO, Promote, deadline
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release

VRAM_OR_GTT = "vram gtt"


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


class Keeps(Promote):
    """Writes down who is displaced; `wanted` is what it says."""

    def __init__(self) -> None:
        self.homes: dict[BO, str] = {}
        self.wanted: list[tuple[BO, str]] = []

    def displaced(self, bo: BO, home: str) -> None:
        assert bo not in self.homes
        self.homes[bo] = home

    def settled(self, bo: BO) -> None:
        del self.homes[bo]

    def tick(self, budget: int) -> Iterable[tuple[BO, str]]:
        return self.wanted

    def submitted(self, bos: Collection[BO]) -> Iterable[tuple[BO, str]]:
        return [(bo, self.homes[bo]) for bo in bos if bo in self.homes]

    @property
    def names(self) -> dict[str, str]:
        return {bo.name: home for bo, home in self.homes.items()}


async def crowded(vdev: VirtualDevice) -> list[BufferObject]:
    """b0 to b5 of 1 MiB, wanted in vram, where four have room: the first two were evicted."""
    bos = []
    for number in range(6):
        bo = await make(vdev, f"b{number}")
        bo.placement = vdev.parse_placement(["vram", "gtt"])
        await move(vdev, bo, "vram")
        bos.append(bo)
    await idle(*bos)
    assert [bo.mem_type for bo in bos] == ["gtt"] * 2 + ["vram"] * 4
    return bos


async def test_who_is_displaced_is_remembered_with_and_without_a_policy() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        keeps = Keeps()
        await install(vdev, keeps, kind="promote")
        assert keeps.names == {"b0": "vram", "b1": "vram"}
        # At home again, wanted elsewhere, gutted, gone: not displaced any more.
        await move(vdev, bos[0], "gtt")
        assert keeps.names == {"b1": "vram"}
        await move(vdev, bos[1], "vram")
        assert keeps.names == {"b2": "vram"}
        release(bos[2])
        assert keeps.names == {}
        # No room, and none is made for it: it lies lower than it is wanted.
        new = await make(vdev, "new")
        await move(vdev, new, "vram:desired gtt")
        assert keeps.names == {"new": "vram"}
        await calls.evict_one(vdev, bos[3], OperationContext())
        assert keeps.names["b3"] == "vram"
        await move(vdev, bos[3], "none")
        assert "b3" not in keeps.names


async def test_without_a_policy_who_was_evicted_stays_out() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        for bo in bos[2:]:
            release(bo)
        await idle(*bos)
        await trio.sleep(0.2)
        assert [bo.mem_type for bo in bos[:2]] == ["gtt", "gtt"]


async def test_they_come_home_when_there_is_room_and_nobody_goes_for_it() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        vdev.ttm.trace.start(["promote", "evict"], [])
        await install(vdev, "moverate rate=0", kind="promote")
        await trio.sleep(0.2)
        assert [bo.mem_type for bo in bos[:2]] == ["gtt", "gtt"]
        release(bos[2])
        with trio.fail_after(10):
            # The last used first.
            while bos[1].mem_type != "vram":
                await trio.sleep(0.01)
        await trio.sleep(0.2)
        assert bos[0].mem_type == "gtt"
        assert vdev.ttm.counters.moves.promotions == 1
        (event,) = vdev.ttm.trace.ring
        assert (event.name, event.bo) == ("promote", "b1")
        assert event.facts == {"src": "gtt", "dst": "vram", "bytes": MIB, "why": "tick"}
        found = vdev.policies.stats()["promote"]
        assert (found["name"], found["taken"], found["displaced"]) == ("moverate", 1, 1)
        for bo in bos[:2]:
            await check(bo)


async def test_a_job_takes_its_bos_home() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        keeps = Keeps()
        await install(vdev, keeps, kind="promote")
        release(bos[5])
        await idle(bos[5])
        # Without promotion a job leaves them in gtt, which is a place that they accept.
        await submit_job(vdev, Job("fill", dst=bos[0], value=7), OperationContext())
        assert bos[0].mem_type == "vram"
        assert keeps.names == {"b1": "vram"}
        await idle(bos[0])
        assert bytes(await access.read(bos[0], 0, 4)) == b"\7" * 4
        await submit_job(vdev, Job("checksum", srcs=(bos[1],)), OperationContext())
        assert bos[1].mem_type == "gtt"


async def test_no_more_comes_home_than_the_rate_allows(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    async with device() as vdev:
        bos = await crowded(vdev)
        for bo in bos[2:]:
            release(bo)
        await idle(*bos)
        # A BO is twice what is saved in a second: it comes home when a whole second's worth is there, and the next one
        # when what it took too much is saved again.
        await install(vdev, f"moverate rate={MIB // 2}", kind="promote")
        homes = []
        for _ in range(12):
            await trio.sleep(0.5)
            homes.append(sum(bo.mem_type == "vram" for bo in bos[:2]))
        assert homes[0] == 0
        assert homes[-1] == 2
        assert homes.index(2) - homes.index(1) >= 3


async def test_what_the_policy_says_of_others_is_passed_over() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        keeps = Keeps()
        await install(vdev, keeps, kind="promote")
        views = {bo.name: bo for bo in keeps.homes}
        bos[1].pin()
        release(bos[2])
        await idle(bos[2])
        keeps.wanted = [(views["b0"], "gtt"), (views["b1"], "vram"), ("b0", "vram")]  # type: ignore[list-item]
        await trio.sleep(0.2)
        assert [bo.mem_type for bo in bos[:2]] == ["gtt", "gtt"]
        assert vdev.policies.stats()["promote"]["rejected"] >= 3
        keeps.wanted = [(views["b0"], "vram")]
        with trio.fail_after(10):
            while bos[0].mem_type != "vram":
                await trio.sleep(0.01)


async def test_a_promotion_policy_that_fails_is_ejected() -> None:
    class Bad(Keeps):
        def tick(self, budget: int) -> Iterable[tuple[BO, str]]:
            raise KeyError("b0")

    async with device() as vdev:
        await crowded(vdev)
        ejections: list[object] = []
        vdev.policies.report = ejections.append
        await install(vdev, Bad(), kind="promote")
        with trio.fail_after(10):
            while not ejections:
                await trio.sleep(0.01)
        assert vdev.policies.text("promote") == "none\n"
        assert "KeyError" in str(ejections[0])


async def test_after_a_resume_too() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        await install(vdev, "moverate rate=0", kind="promote")
        await vdev.power.suspend(OperationContext())
        await trio.sleep(0.2)
        assert {bo.mem_type for bo in bos} == {"system"}
        release(bos[4])
        release(bos[5])
        result = await vdev.power.resume(OperationContext())
        assert result["failed"] == 0
        with trio.fail_after(10):
            while [bo.mem_type for bo in bos[:4]] != ["vram"] * 4:
                await trio.sleep(0.01)
        for bo in bos[:4]:
            await check(bo)


async def test_who_is_held_by_somebody_is_left_alone() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        await bos[1].resv.lock()
        await install(vdev, "moverate rate=0", kind="promote")
        release(bos[4])
        release(bos[5])
        with trio.fail_after(10):
            while bos[0].mem_type != "vram":
                await trio.sleep(0.01)
        assert bos[1].mem_type == "gtt"
        bos[1].unlock()
        with trio.fail_after(10):
            while bos[1].mem_type != "vram":
                await trio.sleep(0.01)


async def test_what_is_in_the_store_does_not_make_others_give_memory_up() -> None:
    async with device(memory=8 * MIB, swap=32 * MIB) as vdev:
        bos = await crowded(vdev)
        await calls.swapout_one(vdev, bos[0], OperationContext())
        assert bos[0].swapped
        held = await make(vdev, "held", 5 * MIB)
        release(bos[4])
        await idle(bos[4])
        out = vdev.ttm.counters.backup.pages_out
        while vdev.pool.free_pages >= 256:
            await make(vdev, "more", 256 << 10)
        await install(vdev, "moverate rate=0", kind="promote")
        await trio.sleep(0.3)
        assert bos[0].swapped
        assert vdev.ttm.counters.backup.pages_out == out
        assert held.num_pages == 1280


async def test_a_job_that_may_not_wait_takes_nobody_to_space_that_is_still_copied_out() -> None:
    async with device() as vdev:
        bos = await crowded(vdev)
        await install(vdev, Keeps(), kind="promote")
        for engine in vdev.engines:
            engine.paused = True
        await calls.evict_one(vdev, bos[5], OperationContext())
        job = Job("checksum", srcs=(bos[0],))
        await submit_job(vdev, job, OperationContext(no_wait_gpu=True))
        assert bos[0].mem_type == "gtt"
        await submit_job(vdev, job, OperationContext())
        assert bos[0].mem_type == "vram"
        for engine in vdev.engines:
            engine.paused = False
        await idle(*bos)
        await check(bos[0])

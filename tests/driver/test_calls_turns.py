"""One call with thousands of small BOs lets others run: counted in turns of the loop, and under stress by the clock."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.core.harness import MIB, PAGE, device, idle, make, move
from tests.turns import LongestStep, Turns, ticking_clock
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job, execute
from ttmfs.driver.submit import submit_job
from ttmfs.ttm.afford import take
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.mem_space import move_to

BOS = 256
MANY = 3000
LONGEST = 0.05
"""Seconds that one may keep all others waiting."""


Call = Callable[[VirtualDevice, list[BufferObject]], Awaitable[object]]


def validate_them(place: str) -> Call:
    """All of them in one call."""

    async def call(vdev: VirtualDevice, bos: list[BufferObject]) -> object:
        return await calls.validate_many(vdev, bos, vdev.parse_placement([place]), OperationContext())

    return call


async def evict_them(vdev: VirtualDevice, _bos: list[BufferObject]) -> object:
    return await calls.evict_region(vdev, "vram", None, OperationContext())


async def evict_bytes(vdev: VirtualDevice, bos: list[BufferObject]) -> object:
    return await calls.evict_region(vdev, "vram", len(bos) * PAGE, OperationContext())


@pytest.mark.parametrize("call", [evict_them, evict_bytes, validate_them("gtt")], ids=["evict", "evict N", "validate"])
async def test_others_run_between_one_and_the_next(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    turns = Turns()
    async with device() as vdev:
        bos = [await make(vdev, f"bo{number}", PAGE, place="vram") for number in range(BOS)]
        await idle(*bos)
        monkeypatch.setattr("ttmfs.ttm.mem_space.take", turns.noting("take", take))
        with ticking_clock(us=200), turns:
            await call(vdev, bos)
        assert {bo.mem_type for bo in bos} == {"gtt"}
        assert 0 < turns.most("take") <= 16


async def test_others_run_between_one_and_the_next_of_suspend_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"bo{number}", PAGE, place="vram") for number in range(BOS)]
        await idle(*bos)
        for call, place in ((vdev.power.suspend, "system"), (vdev.power.resume, "vram")):
            with ticking_clock(us=200), Turns() as turns:
                monkeypatch.setattr("ttmfs.ttm.mem_space.take", turns.noting("take", take))
                await call(OperationContext())
            assert {bo.mem_type for bo in bos} == {place}
            assert 0 < turns.most("take") <= 16, place


async def test_others_run_between_one_move_and_the_next_of_a_validate_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has anything cached a move waits for nothing."""
    turns = Turns()
    async with device() as vdev:
        bos = [await make(vdev, f"bo{number}", PAGE) for number in range(BOS)]
        monkeypatch.setattr("ttmfs.ttm.validate.move_to", turns.noting("move", move_to))
        with ticking_clock(us=200), turns:
            await validate_them("vram")(vdev, bos)
        assert {bo.mem_type for bo in bos} == {"vram"}
        assert 0 < turns.most("move") <= 16


async def test_others_run_between_one_small_job_and_the_next(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    turns = Turns()
    with ticking_clock(us=200):
        async with device() as vdev:
            bo = await make(vdev, "bo", PAGE)
            # Until all are there: the clock of trio goes on when nobody has anything to do.
            await submit_job(vdev, Job("busy", srcs=(bo,), seconds=20), OperationContext())
            for _ in range(BOS):
                await submit_job(vdev, Job("fill", dst=bo, value=1), OperationContext())
            monkeypatch.setattr("ttmfs.driver.jobs.execute", turns.noting("job", execute))
            with turns:
                await idle(bo)
    assert 0 < turns.most("job") <= 16


# -- the table of the worst --------------------------------------------------------------------------------------------


async def validate_large(vdev: VirtualDevice, _bos: list[BufferObject]) -> object:
    """One that needs all of vram."""
    large = vdev.create_bo("large")
    set_size(large, vdev.ttm.managers["vram"].size)
    return await calls.validate_bo(vdev, large, vdev.parse_placement(["vram"]), OperationContext())


async def validate_large_in_vain(vdev: VirtualDevice, bos: list[BufferObject]) -> None:
    """All victims are held."""
    for bo in bos:
        assert bo.resv.trylock()
    with trio.move_on_after(2):
        await validate_large(vdev, bos)
    for number, bo in enumerate(bos):
        bo.unlock()
        if not number % 100:
            await trio.lowlevel.checkpoint()


async def swap_out(vdev: VirtualDevice, _bos: list[BufferObject]) -> object:
    return await calls.swapout_all(vdev, 1 << 30, OperationContext())


async def shrink(vdev: VirtualDevice, _bos: list[BufferObject]) -> object:
    return await calls.shrink_all(vdev, 1 << 30, BackupFlags(), OperationContext())


async def suspend(vdev: VirtualDevice, _bos: list[BufferObject]) -> object:
    await vdev.power.suspend(OperationContext())
    return await vdev.power.resume(OperationContext())


TABLE: dict[str, tuple[Call, ...]] = {
    "evict a region": (evict_them,),
    "validate many": (evict_them, validate_them("vram"), validate_them("gtt"), validate_them("system")),
    "validate a large one": (validate_large,),
    "find all of them held": (validate_large_in_vain,),
    "swap out, and back": (validate_them("system"), swap_out, validate_them("vram")),
    "shrink, and back": (validate_them("system"), shrink, validate_them("gtt")),
    "suspend and resume": (suspend,),
}


@pytest.mark.stress
@pytest.mark.parametrize("name", TABLE)
async def test_nobody_waits_longer_for_the_worst_of_them(name: str) -> None:
    async with device(vram=MANY * PAGE, gtt=MANY * PAGE * 2) as vdev:
        bos = [await make(vdev, f"bo{number}", PAGE, place="vram") for number in range(MANY)]
        await idle(*bos)
        for call in TABLE[name]:
            with LongestStep() as longest:
                await call(vdev, bos)
            assert longest.seconds < LONGEST, f"{name}: {longest}"


@pytest.mark.parametrize("size", [None, 2 * MIB], ids=["all", "some"])
async def test_evicting_a_region_ends_although_something_comes_back_all_the_time(size: int | None) -> None:
    async with device() as vdev, trio.open_nursery() as nursery:
        bo = await make(vdev, "a", MIB, place="vram")
        await make(vdev, "b", MIB, place="vram")

        async def come_back() -> None:
            while True:
                await move(vdev, bo, "vram")
                await trio.lowlevel.checkpoint()

        nursery.start_soon(come_back)
        with trio.fail_after(30):
            done = await calls.evict_region(vdev, "vram", size, OperationContext())
        assert 1 <= done["evictions"] <= 3
        nursery.cancel_scope.cancel()

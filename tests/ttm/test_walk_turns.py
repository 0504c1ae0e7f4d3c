"""The search for victims lets others run, however many BOs it passes over, evicts, or finds held."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.core.harness import PAGE, device, idle, make, outcome
from tests.turns import Turns, ticking_clock
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.walk import Walk

BOS = 256
"""A page each, they fill the vram."""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Notes each look at a victim."""
    turns = Turns()
    monkeypatch.setattr(Walk, "wants", turns.noting("look", Walk.wants))
    return turns


async def crowd(vdev: VirtualDevice, pages: int = BOS) -> tuple[list[BufferObject], Callable[[], Awaitable[object]]]:
    """BOs that fill the vram, and the validate of one that needs so many pages of it."""
    bos = [await make(vdev, f"bo{number}", PAGE, place="vram") for number in range(BOS)]
    await idle(*bos)
    big = vdev.create_bo("big")
    set_size(big, pages * PAGE)

    async def validate() -> object:
        return await calls.validate_bo(vdev, big, vdev.parse_placement(["vram"]), OperationContext())

    return bos, validate


async def test_to_evict_all_of_them(turns: Turns) -> None:
    async with device(vram=BOS * PAGE) as vdev:
        bos, validate = await crowd(vdev)
        with ticking_clock(us=200), turns:
            await validate()
        assert {bo.mem_type for bo in bos} != {"vram"}
        assert turns.most("look") <= 16


async def test_to_find_them_all_held(turns: Turns, autojump_clock: object) -> None:
    async with device(vram=BOS * PAGE) as vdev:
        bos, validate = await crowd(vdev)
        for bo in bos:
            assert bo.resv.trylock()
        with ticking_clock(us=200), turns, trio.move_on_after(3):
            await validate()
        assert turns.most("look") <= 16
        for bo in bos:
            bo.unlock()


async def test_room_that_others_make_meanwhile_is_taken(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be evicted, but some go of their own while the rest are looked at."""
    async with device(vram=BOS * PAGE) as vdev:
        bos, validate = await crowd(vdev, BOS // 2)
        monkeypatch.setattr(Walk, "wants", lambda *_: turns.note("look"))
        for bo in bos[: BOS // 2]:
            await calls.pin(vdev, bo)
        assert await outcome(validate) == errno.ENOMEM, "else it proves nothing"

        async def go() -> None:
            while turns.count < 5:
                await trio.lowlevel.checkpoint()
            for bo in bos[: BOS // 2]:
                bo.pin_count = 0
                release(bo)

        with ticking_clock(us=200), turns:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                await validate()

"""Space that others hold for the moment: who needs it waits, in the order of age, and nobody starves."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.core.contention import KIB, MIB, Plan, contend
from tests.core.harness import check, device, idle, make, move, outcome
from tests.ttm.test_first_touch import HeldUnmapper, fresh
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import CLAIM_SECONDS, HOLD_SECONDS, Claims
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release
from ttmfs.ttm.unmap import unmap_virtual

PLANS = {
    "few large ones": Plan(bos=1),
    "many small ones": Plan(bos=6),
    "a slow link": Plan(bos=1, bandwidth=200.0 * MIB),
    "pauses": Plan(bos=1, bandwidth=200.0 * MIB, pauses=True),
    "jobs": Plan(bos=1, jobs=True),
    "one that needs nearly all": Plan(large=7 * MIB // 2),
    "no room below": Plan(bos=1, gtt=2 * MIB),
    "long holds": Plan(bos=1, longest_hold=3.0, fills=10),
}


@pytest.mark.parametrize("name", PLANS)
def test_no_fill_fails(name: str) -> None:
    for seed in range(2):
        run = contend(PLANS[name], seed)
        assert not run.counts["failed"], (seed, run.counts)
        assert run.counts["ended in vram"] > run.counts["fills"] // 4


@pytest.mark.stress
@pytest.mark.parametrize("name", PLANS)
def test_no_fill_fails_in_many(name: str) -> None:
    for seed in range(100, 120):
        run = contend(replace(PLANS[name], fills=100), seed)
        assert not run.counts["failed"], (seed, run.counts)


# -- one at a time -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def held(bo: BufferObject, seconds: float) -> AsyncIterator[None]:
    """Somebody has it reserved for so long."""
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            await bo.resv.lock()
            try:
                await trio.sleep(seconds)
            finally:
                bo.unreserve()

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_first_touch_waits_for_the_only_victim(autojump_clock: object, kind: str) -> None:
    async with device() as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        bo = fresh(vdev, "bo", MIB, "vram")
        started = trio.current_time()
        async with held(victim, 7.0):
            if kind == "read":
                assert bytes(await access.read(bo, 0, 8)) == bytes(8)
            else:
                await access.write(bo, 0, b"contents")
            assert trio.current_time() - started == pytest.approx(7.0, abs=0.5)
        assert (bo.mem_type, victim.mem_type) == ("vram", "gtt")
        await check(victim)


CALLS: dict[str, Callable[[VirtualDevice, BufferObject, OperationContext], object]] = {
    "validate": lambda vdev, bo, ctx: calls.validate_bo(vdev, bo, vdev.parse_placement(["vram"]), ctx),
    "ctl/validate": lambda vdev, bo, ctx: calls.validate_many(vdev, [bo], vdev.parse_placement(["vram"]), ctx),
    "submit": lambda vdev, bo, ctx: submit_job(vdev, Job("fill", dst=bo, value=7), ctx),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_waits_for_the_only_victim_unless_it_may_not(autojump_clock: object, name: str) -> None:
    async with device() as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        bo = fresh(vdev, "bo", MIB, "vram")
        async with held(victim, 30.0):
            started = trio.current_time()
            no_wait = OperationContext(no_wait_gpu=True)
            assert await outcome(lambda: CALLS[name](vdev, bo, no_wait)) == errno.ENOMEM  # type: ignore[arg-type,return-value]
            assert trio.current_time() == started
            await CALLS[name](vdev, bo, OperationContext())  # type: ignore[misc]
            assert trio.current_time() - started == pytest.approx(30.0, abs=0.5)
        assert (bo.mem_type, victim.mem_type) == ("vram", "gtt")
        await idle(bo)


@pytest.mark.parametrize("name", CALLS)
async def test_what_has_waited_finds_the_device_suspended(autojump_clock: object, name: str) -> None:
    async with device() as vdev, trio.open_nursery() as nursery:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        bo = fresh(vdev, "bo", MIB, "vram")
        async with held(victim, 5.0):
            ended: list[int] = []

            async def call() -> None:
                ended.append(await outcome(lambda: CALLS[name](vdev, bo, OperationContext())))  # type: ignore[arg-type,return-value]

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(vdev.power.suspend, OperationContext())
            await trio.sleep(6.0)
        assert ended == [errno.ENODEV]
        assert bo.mem_type == "system"
        assert not vdev.ttm.managers["vram"].usage
        await vdev.power.resume(OperationContext())


async def test_evicting_waits_for_who_is_in_the_way_below(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that evicts to gtt or nowhere."""
    async with device(gtt=4 * MIB) as vdev:
        to_gtt, to_system = vdev.parse_placement(["gtt"]), vdev.parse_placement(["system"])
        monkeypatch.setattr(vdev.funcs, "evict_flags", lambda bo: to_gtt if bo.mem_type == "vram" else to_system)
        bo = await make(vdev, "bo", MIB, place="vram")
        below = await make(vdev, "below", 4 * MIB, place="gtt")
        evictions: list[Callable[[], Awaitable[object]]] = [
            lambda: calls.evict_one(vdev, bo, OperationContext()),
            lambda: calls.evict_region(vdev, "vram", None, OperationContext()),
        ]
        for call in evictions:
            started = trio.current_time()
            async with held(below, 5.0):
                await call()
                assert trio.current_time() - started == pytest.approx(5.0, abs=0.5)
            assert (bo.mem_type, below.mem_type) == ("gtt", "system")
            for each, place in ((bo, "vram"), (below, "gtt")):
                await move(vdev, each, place)
                await idle(each)


@pytest.mark.parametrize("why", ["pinned", "too large", "no region"])
async def test_what_waiting_does_not_help_is_enomem_at_once(autojump_clock: object, why: str) -> None:
    async with device(gtt=0 if why == "no region" else 8 * MIB) as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="" if why == "no region" else "vram")
        if why == "pinned":
            victim.pin()
        bo = fresh(vdev, "bo", 5 * MIB if why == "too large" else MIB, "gtt" if why == "no region" else "vram")
        started = trio.current_time()
        async with held(victim, 5.0):
            assert await outcome(lambda: access.write(bo, 0, b"x")) == errno.ENOMEM
            assert await outcome(lambda: move(vdev, bo, "vram" if why != "no region" else "gtt")) == errno.ENOMEM
            assert trio.current_time() == started


@pytest.mark.parametrize("attempt", [1, 2])
async def test_an_inval_of_its_own_bo_ends_the_wait_for_a_victim(autojump_clock: object, attempt: int) -> None:
    """R1, holding nothing at the first attempt, holding the reservation under a ticket at the second."""
    async with device() as vdev, trio.open_nursery() as nursery:
        first, second = [await make(vdev, name, 2 * MIB, place="vram") for name in ("first", "second")]
        bo = fresh(vdev, "bo", 3 * MIB, "vram")
        bo.handed_out = True
        unmapper = vdev.ttm.unmapper = HeldUnmapper(bo)
        answered = trio.Event()

        async def request() -> None:
            await access.read(bo, 0, KIB)
            answered.set()

        async with held(second, 100.0):
            if attempt == 2:
                async with held(first, 1.0):
                    nursery.start_soon(request)
                    await trio.sleep(1.2)
                assert bo.resv.locked
                assert bo.resv.holder is not None
            else:
                nursery.start_soon(request)
                await trio.testing.wait_all_tasks_blocked()
                assert not bo.resv.locked
            started = trio.current_time()
            nursery.start_soon(unmap_virtual, bo)
            await unmapper.waiting.wait()
            with trio.fail_after(500):
                await answered.wait()
            assert trio.current_time() == started
            unmapper.go_on.set()
        release(bo)


async def test_the_one_who_has_waited_longest_is_first(autojump_clock: object) -> None:
    async with device() as vdev, trio.open_nursery() as nursery:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        order: list[str] = []

        async def touch(name: str) -> None:
            bo = fresh(vdev, name, 4 * MIB, "vram")
            await access.write(bo, 0, b"x")
            order.append(name)

        async with held(victim, 10.0):
            for name in "abcd":
                nursery.start_soon(touch, name)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.sleep(11)
        assert order == list("abcd")


async def _one_large_among_small_ones(vdev: VirtualDevice, seconds: float) -> bool:
    """Does one that needs nearly all of vram get it, while others refill what becomes free at once?"""
    had = False

    async def small(name: str) -> None:
        bo = fresh(vdev, name, MIB, "vram")
        while True:
            await move(vdev, bo, "vram")
            bo.handed_out = True
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for name in "abcdefgh":
            nursery.start_soon(small, name)
        large = fresh(vdev, "large", 4 * MIB, "vram")
        await trio.sleep(0.1)
        with trio.move_on_after(seconds):
            await move(vdev, large, "vram")
            had = True
        nursery.cancel_scope.cancel()
    return had


class BriefUnmapper:
    """INVALs that take a moment."""

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        await trio.sleep(0.002)


@pytest.mark.parametrize("claims", [True, False])
async def test_nobody_starves_because_others_are_faster(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, claims: bool
) -> None:
    if not claims:
        monkeypatch.setattr(Claims, "lay", lambda *_: None)
    async with device() as vdev:
        vdev.ttm.unmapper = BriefUnmapper()
        assert await _one_large_among_small_ones(vdev, 0.6) == claims


async def test_who_gets_nowhere_keeps_nobody_out_for_long(autojump_clock: object) -> None:
    """The claim of one that waits for a victim which is never let go of ends, and pauses before it comes again."""
    async with device() as vdev, trio.open_nursery() as nursery:
        stuck = await make(vdev, "stuck", 2 * MIB, place="vram")
        large = fresh(vdev, "large", 3 * MIB, "vram")
        async with held(stuck, 1000.0):
            nursery.start_soon(move, vdev, large, "vram")
            await trio.sleep(0.1)
            longest = 0.0
            for number in range(20):
                started = trio.current_time()
                bo = await make(vdev, f"small{number}", 512 * KIB)
                await move(vdev, bo, "vram")
                longest = max(longest, trio.current_time() - started)
                await trio.sleep(0.3)
                release(bo)
            assert 0 < longest <= CLAIM_SECONDS + HOLD_SECONDS
            nursery.cancel_scope.cancel()

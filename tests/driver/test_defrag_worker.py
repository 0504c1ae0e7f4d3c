"""The defrag worker: what joins the list, how often it is worked off, and how it backs off."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.driver.conftest import MakeDevice
from tests.driver.defrag_tools import MIB, content, hog, orders, scattered
from ttmfs.driver import calls, defrag
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.knobs import set_knob
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


def watch_runs(vdev: VirtualDevice, times: list[float]) -> None:
    """Note the time of every pass."""
    real = vdev.defrag.one_pass

    async def one_pass() -> None:
        times.append(round(trio.current_time(), 3))
        await real()

    vdev.defrag.one_pass = one_pass  # type: ignore[method-assign]


async def until(condition: Callable[[], object], seconds: float = 100) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.05)


async def test_what_is_listed(device: MakeDevice) -> None:
    async with device(swap=0) as vdev:
        listed = vdev.ttm.defrag_list
        vdev.defrag.interval = 1000.0
        fine = vdev.create_bo("fine")
        await access.write(fine, 0, random.Random(1).randbytes(4 * MIB))
        assert fine not in listed
        assert fine.tt is not None
        assert not fine.tt.beneficial_order_failed
        small, _ = await scattered(vdev, "small", MIB)
        assert small not in listed
        assert small.tt is not None
        assert not small.tt.beneficial_order_failed, "there was no attempt at the beneficial order"
        others = hog(vdev)
        whole = vdev.create_bo("whole")
        lifetime.set_size(whole, 4 * MIB)
        await calls.validate_bo(vdev, whole, vdev.parse_placement(["gtt"]), OperationContext())
        assert whole in listed
        assert list(listed) == [whole]
        faulted = vdev.create_bo("faulted")
        await access.write(faulted, 0, bytes(2 * MIB))
        assert list(listed) == [whole, faulted]
        lifetime.release(whole)
        assert list(listed) == [faulted]
        vdev.pool.free(others, to_pool=False)


async def test_the_worker_moves_what_is_listed_and_stops(device: MakeDevice, clock: MockClock) -> None:
    async with device() as vdev:
        runs: list[float] = []
        watch_runs(vdev, runs)
        made = [await scattered(vdev, f"b{n}", 2 * MIB, seed=n) for n in range(3)]
        assert len(vdev.ttm.defrag_list) == 3
        await until(lambda: not len(vdev.ttm.defrag_list))
        assert vdev.ttm.defrag_list.as_dict() == {"runs": 1, "moved": 3, "failed": 0, "listed": 0}
        for bo, data in made:
            assert orders(bo) == {9: 1}
            assert await content(bo) == data
        await trio.sleep(200)
        assert len(runs) == 1, "stopped while the list is empty"


async def test_a_pass_is_capped(device: MakeDevice, clock: MockClock) -> None:
    async with device() as vdev:
        set_knob(vdev, "defrag_limit", "2")
        runs: list[float] = []
        watch_runs(vdev, runs)
        for n in range(5):
            await scattered(vdev, f"b{n}", 2 * MIB, seed=n)
        await until(lambda: not len(vdev.ttm.defrag_list))
        assert len(runs) == 3
        assert runs[1] - runs[0] == pytest.approx(0.5, abs=0.1)


async def test_exponential_backoff_reset_by_a_new_entry(device: MakeDevice, clock: MockClock) -> None:
    async with device() as vdev:
        set_knob(vdev, "defrag_interval", "1")
        set_knob(vdev, "defrag_interval_max", "8")
        runs: list[float] = []
        watch_runs(vdev, runs)
        bo, data = await scattered(vdev, "a", 2 * MIB)
        others = hog(vdev)
        await until(lambda: len(runs) == 7)
        gaps = [round(b - a) for a, b in itertools.pairwise(runs)]
        assert gaps == [2, 4, 8, 8, 8, 8]
        assert vdev.ttm.defrag_list.failed >= 6
        assert vdev.pool.reclaim_backoff, "until the next pass populating does not reclaim for the order"
        assert await content(bo) == data
        await trio.sleep(1.5)
        joined = trio.current_time()
        late = vdev.create_bo("late")
        await access.write(late, 0, bytes(2 * MIB))
        assert late in vdev.ttm.defrag_list
        await until(lambda: len(runs) == 9)
        assert runs[7] - joined == pytest.approx(1, abs=0.1)
        assert runs[8] - runs[7] == pytest.approx(2, abs=0.1)
        vdev.pool.free(others, to_pool=False)
        await until(lambda: not len(vdev.ttm.defrag_list))
        assert not vdev.pool.reclaim_backoff
        assert orders(bo) == {9: 1}


async def test_reclaim_backoff_ends_when_what_failed_is_deleted(
    device: MakeDevice, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = defrag.try_one

    async def and_deleted(
        vdev: VirtualDevice, bo: BufferObject, tally: defrag.PassTally, *, wait: bool, compact: bool = False
    ) -> bool:
        moved = await real(vdev, bo, tally, wait=wait, compact=compact)
        lifetime.release(bo)
        return moved

    monkeypatch.setattr(defrag, "try_one", and_deleted)
    async with device() as vdev:
        await scattered(vdev, "a", 2 * MIB)
        others = hog(vdev)
        await until(lambda: vdev.ttm.defrag_list.failed)
        await wait_all_tasks_blocked()
        assert not len(vdev.ttm.defrag_list)
        assert not vdev.pool.reclaim_backoff
        vdev.pool.free(others, to_pool=False)


async def test_reclaim_backoff_leaves_the_pool_alone_for_the_order(device: MakeDevice, clock: MockClock) -> None:
    async with device(pool_limit=64 * MIB) as vdev:
        vdev.defrag.interval = 1000.0
        pool = vdev.pool
        pages = pool.alloc(pool.free_pages + pool.reserve_pages, max_order=0, zero=False, use_reserve=True).pages
        pool.free(pages[:4096])
        assert pool.pooled_pages == 4096
        pool.reclaim_backoff = True
        bo = vdev.create_bo("a")
        await access.write(bo, 0, bytes(2 * MIB))
        assert orders(bo) == {0: 512}
        assert pool.pooled_pages == 4096 - 512
        pool.reclaim_backoff = False
        other = vdev.create_bo("b")
        await access.write(other, 0, bytes(2 * MIB))
        assert pool.pooled_pages == 0, "it was emptied for another try"
        pool.free(pages[4096:], to_pool=False)


async def test_a_locked_or_pinned_bo_is_passed_over_and_nobody_is_evicted(device: MakeDevice, clock: MockClock) -> None:
    async with device(gtt=8 * MIB) as vdev:
        vdev.defrag.interval = 1000.0
        locked, _ = await scattered(vdev, "locked", 2 * MIB)
        pinned, _ = await scattered(vdev, "pinned", 2 * MIB)
        big, _ = await scattered(vdev, "big", 6 * MIB, "gtt")
        free, data = await scattered(vdev, "free", 2 * MIB)
        pinned.pin()
        await locked.resv.lock()
        with trio.fail_after(5):
            await vdev.defrag.one_pass()
        assert set(vdev.ttm.defrag_list) == {locked, pinned, big}
        assert big.mem_type == "gtt"
        assert big.evictions == 0
        assert orders(free) == {9: 1}
        assert (vdev.ttm.defrag_list.moved, vdev.ttm.defrag_list.failed) == (1, 1)
        assert await content(free) == data
        locked.unlock()


async def test_a_suspended_device_is_left_alone(device: MakeDevice, clock: MockClock) -> None:
    async with device() as vdev:
        bo, _ = await scattered(vdev, "a", 2 * MIB)
        await vdev.power.suspend(OperationContext())
        await trio.sleep(50)
        assert vdev.ttm.defrag_list.runs == 0
        await vdev.power.resume(OperationContext())
        await until(lambda: bo not in vdev.ttm.defrag_list)
        await bo.resv.wait(Usage.BOOKKEEP)


@pytest.mark.parametrize("words", ["defrag_limit=x", "defrag_interval=-1", "defrag_interval_max=x"])
async def test_bad_knobs(device: MakeDevice, words: Any) -> None:
    async with device() as vdev:
        with pytest.raises(TtmError):
            set_knob(vdev, *words.split("="))

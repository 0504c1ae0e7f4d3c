"""Pages on their way to the store, in it, and on their way back, met by faults, WRITEs, truncates and unmaps."""

import errno
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.core.harness import MIB, PAGE, check, device, idle, make, outcome, pattern
from tests.core.stores import (
    KINDS,
    LONGEST_HOLD,
    Allocations,
    check_empty,
    fail,
    heal,
    held_device,
    make_noise,
    noise,
    same,
    spec,
    store_of,
)
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.shrinker import shrink

PAGES = 64
SIZE = PAGES * PAGE


async def backup(vdev: VirtualDevice, bo: BufferObject) -> int:
    out: int = (await calls.backup_one(vdev, bo, BackupFlags(), OperationContext()))["pages_out"]
    return out


async def restore(vdev: VirtualDevice, bo: BufferObject) -> None:
    await calls.restore(vdev, bo, OperationContext())


async def gone(vdev: VirtualDevice, bo: BufferObject) -> None:
    lifetime.release(bo)
    with trio.fail_after(10):
        while vdev.ttm.num_bos:
            await trio.sleep(0.001)
    check_empty(vdev)


# -- a page that is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shmem", "zstd"])
@pytest.mark.parametrize("lost", [0, 5, 40, 63])
async def test_a_lost_page_costs_nobody_the_pages_around_it(kind: str, lost: int, tmp_path: Path) -> None:
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        bo = await make_noise(vdev, "a", PAGES)
        model = noise("a", SIZE)
        await backup(vdev, bo)
        store_of(vdev).corrupt(lost + 1, 77)  # type: ignore[attr-defined]
        for page in (*range(lost, PAGES), *range(lost)):
            got = await outcome(lambda page=page: access.read(bo, page * PAGE, PAGE))  # type: ignore[misc]
            assert got == (errno.EIO if page == lost else 0), f"page {page}"
            if page != lost:
                assert bytes(await access.read(bo, page * PAGE, PAGE)) == model[page * PAGE : (page + 1) * PAGE]
        assert bo.snapshot() == b"s" * lost + b"b" + b"s" * (PAGES - lost - 1)
        assert await outcome(lambda: access.read(bo, 0, SIZE)) == errno.EIO
        assert await outcome(lambda: restore(vdev, bo)) == errno.EIO
        # What is lost can be cut off.
        lifetime.set_size(bo, lost * PAGE)
        assert bo.tt is not None
        assert bo.tt.unfinished is None
        await same(bo, model[: lost * PAGE])
        await gone(vdev, bo)


async def test_pages_of_a_stopped_restore_are_had_back_under_pressure() -> None:
    """It costs the restore its state, and nobody a byte."""
    async with device(memory=4 * MIB, pool_limit=0) as vdev:
        bos = [await make_noise(vdev, f"b{n}", 128) for n in range(10)]
        for bo in bos[:6]:
            await backup(vdev, bo)
        fail(vdev, "store_read", 0, times=-1)
        for bo in bos[:3]:
            assert await outcome(lambda bo=bo: restore(vdev, bo)) == errno.EIO  # type: ignore[misc]
        heal(vdev)
        assert len(vdev.ttm.unfinished_restores) == 3
        held = vdev.pool.in_use_pages
        done = await shrink(vdev.ttm, 1, OperationContext(no_wait_gpu=True))
        assert done.released == 384
        assert vdev.pool.in_use_pages == held - 384
        for bo in bos:
            await same(bo, noise(bo.name, 128 * PAGE))


async def test_a_restore_that_others_have_overtaken_holds_nothing() -> None:
    async with held_device(fault_timeout=0.05) as (vdev, store):
        bo = await make_noise(vdev, "a", PAGES)
        await backup(vdev, bo)
        fail(vdev, "store_read", 10)
        assert await outcome(lambda: restore(vdev, bo)) == errno.EIO
        heal(vdev)
        await bo.resv.lock()
        # Who holds it for long makes no READ fail whose bytes are in the store.
        await same(bo, noise("a", SIZE))
        bo.unreserve()
        assert vdev.pool.in_use_pages == 2 * PAGES - 10
        await access.write(bo, SIZE, b"more")
        assert vdev.pool.in_use_pages == PAGES + 1
        await gone(vdev, bo)
        assert not store.held


# -- on the way out ----------------------------------------------------------------------------------------------------


async def test_reads_wait_for_a_step_and_writes_land_after_it() -> None:
    async with held_device() as (vdev, store):
        bo = await make(vdev, "a", SIZE)
        store.writing.shut()
        got: list[bytes] = []

        async def read() -> None:
            got.append(bytes(await access.read(bo, 0, SIZE)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(backup, vdev, bo)
            await store.until_held()
            nursery.start_soon(read)
            nursery.start_soon(access.write, bo, 5 * PAGE + 7, b"NEW")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not got
            store.writing.open()
        model = bytearray(pattern("a", SIZE))
        before = bytes(model)
        model[5 * PAGE + 7 : 5 * PAGE + 10] = b"NEW"
        assert got[0] in (before, bytes(model))
        await same(bo, bytes(model))
        await gone(vdev, bo)


@pytest.mark.parametrize("again", [1, 3])
async def test_a_late_read_is_served_from_memory_and_what_it_was_given_is_unmapped_first(again: int) -> None:
    """What a client has cached keeps its memory until it was unmapped, or its WRITE could fail."""
    async with held_device(fault_timeout=0.05) as (vdev, store):
        bo = await make(vdev, "a", SIZE)
        unmapper = vdev.ttm.unmapper = Hooked(idle, times=0)
        result: list[int] = []

        async def go() -> None:
            result.append(await outcome(lambda: backup(vdev, bo)))

        store.writing.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            for attempt in range(again):
                await store.until_held(attempt + 1)
                assert len(unmapper.ranges) == attempt + 1
                assert bytes(await access.read(bo, 3 * PAGE, 2 * PAGE)) == pattern("a", 5 * PAGE)[3 * PAGE :]
                store.writing.step()
            store.writing.open()
        assert result == ([0] if again == 1 else [errno.EBUSY])
        assert bo.snapshot() == (b"b" if again == 1 else b"s") * PAGES
        assert bo.tt is not None
        assert store.slots.stored == bo.tt.backed_up_pages
        await check(bo)
        await gone(vdev, bo)


@pytest.mark.parametrize("cut", [0, 1, PAGE, 10 * PAGE + 100, SIZE - 1])
@pytest.mark.parametrize("when", ["out", "in store", "back"])
async def test_truncate_down_and_up(cut: int, when: str) -> None:
    """In the middle of a page too: what was cut off reads as zeros, wherever its pages were."""
    async with held_device() as (vdev, store):
        bo = await make(vdev, "a", SIZE)

        def down_and_up() -> None:
            lifetime.set_size(bo, cut)
            lifetime.set_size(bo, 2 * SIZE)

        if when == "out":
            store.writing.shut()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backup, vdev, bo) if cut else nursery.start_soon(outcome, lambda: backup(vdev, bo))
                await store.until_held()
                down_and_up()
                store.writing.open()
        else:
            await backup(vdev, bo)
            if when == "in store":
                down_and_up()
            else:
                store.reading.shut()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(restore, vdev, bo)
                    await store.until_held()
                    down_and_up()
                    # Fresh bytes beside those that are on their way.
                    store.reading.open()
        model = bytearray(pattern("a", cut) + bytes(2 * SIZE - cut))
        await same(bo, bytes(model))
        await backup(vdev, bo)
        await access.write(bo, SIZE // 2, b"x" * 100)
        model[SIZE // 2 : SIZE // 2 + 100] = b"x" * 100
        await same(bo, bytes(model))
        assert bo.tt is not None
        assert bo.tt.unfinished is None
        await gone(vdev, bo)


async def test_unlinked_on_the_way_out_and_back() -> None:
    async with held_device() as (vdev, store):
        for gate, call in ((store.writing, backup), (store.reading, restore)):
            bo = await make(vdev, "a", SIZE)
            if call is restore:
                await backup(vdev, bo)
            gate.shut()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, vdev, bo)
                await store.until_held(1 if call is backup else 2)
                lifetime.release(bo)
                assert vdev.ttm.num_bos == 1
                gate.open()
            assert vdev.ttm.num_bos == 0
            check_empty(vdev)


class Hooked:
    """INVALs in whose middle clients go on: `hook` runs in each, at most `times` times."""

    def __init__(self, hook: Callable[[BufferObject], Awaitable[object]], times: int = 1) -> None:
        self.hook, self.times = hook, times
        self.ranges: list[tuple[int, int]] = []

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.ranges.append((first_page, num_pages))
        await trio.lowlevel.checkpoint()
        if self.times:
            self.times -= 1
            await self.hook(bo)
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["read", "write", "both"])
async def test_requests_in_the_middle_of_the_unmap(kind: str, what: str, tmp_path: Path) -> None:
    """They are served; a second unmap takes away what they were given; nothing is lost."""
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        bo = await make(vdev, "a", SIZE)
        model = bytearray(pattern("a", SIZE))

        async def client(bo: BufferObject) -> None:
            if what != "read":
                await access.write(bo, 9 * PAGE - 1, b"WW")
                model[9 * PAGE - 1 : 9 * PAGE + 1] = b"WW"
            if what != "write":
                assert bytes(await access.read(bo, 0, SIZE)) == model

        unmapper = vdev.ttm.unmapper = Hooked(client)
        assert await backup(vdev, bo) == PAGES
        assert len(unmapper.ranges) == 2
        await same(bo, bytes(model))
        # And with pages in the store: they come back for who may not wait, and stay.
        await backup(vdev, bo)
        vdev.ttm.unmapper = Hooked(client)
        bo.prefault = 0
        await access.read(bo, 20 * PAGE, PAGE)
        await calls.unmap(vdev, bo, 0, 0)
        await same(bo, bytes(model))
        await gone(vdev, bo)


async def test_a_client_that_never_stops_reading_keeps_its_pages() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", SIZE)

        async def read(bo: BufferObject) -> None:
            await access.read(bo, 8 * PAGE, PAGE)

        unmapper = vdev.ttm.unmapper = Hooked(read, times=-1)
        assert await outcome(lambda: backup(vdev, bo)) == errno.EBUSY
        assert len(unmapper.ranges) == 3
        assert bo.snapshot() == b"s" * PAGES
        assert not bo.gate.touched
        await check(bo)


# -- on the way back ---------------------------------------------------------------------------------------------------


async def test_a_late_read_overtakes_a_load_and_nothing_is_dropped_twice() -> None:
    async with held_device(fault_timeout=0.05) as (vdev, store):
        bo = await make(vdev, "a", SIZE)
        await backup(vdev, bo)
        store.reading.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore, vdev, bo)
            await store.until_held()
            got = bytes(await access.read(bo, 10 * PAGE + 3, 5 * PAGE))
            assert got == pattern("a", SIZE)[10 * PAGE + 3 : 15 * PAGE + 3]
            # They are in memory and can be written, though the load still has their handles.
            await access.write(bo, 12 * PAGE, b"overtaken")
            assert bo.snapshot() == b"b" * 10 + b"s" * 6 + b"b" * 48
            assert store.slots.stored == PAGES
            store.reading.open()
        model = bytearray(pattern("a", SIZE))
        model[12 * PAGE : 12 * PAGE + 9] = b"overtaken"
        await same(bo, bytes(model))
        assert store.slots.stored == 0
        assert vdev.pool.in_use_pages == PAGES
        await gone(vdev, bo)


async def test_writes_and_unmaps_while_it_comes_back() -> None:
    async with held_device(fault_timeout=0.05) as (vdev, store):
        bo = await make(vdev, "a", SIZE)
        await backup(vdev, bo)
        model = bytearray(pattern("a", SIZE))
        store.reading.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore, vdev, bo)
            await store.until_held()
            for page in (0, 20, 63):
                await access.write(bo, page * PAGE + 1, b"w" * 5000 if page < 63 else b"w" * 100)
                size = 5000 if page < 63 else 100
                model[page * PAGE + 1 : page * PAGE + 1 + size] = b"w" * size
            lifetime.set_size(bo, 40 * PAGE + 5)
            lifetime.set_size(bo, SIZE)
            model[40 * PAGE + 5 :] = bytes(SIZE - 40 * PAGE - 5)
            store.reading.open()
        await same(bo, bytes(model))
        await gone(vdev, bo)


@pytest.mark.parametrize("when", ["inside", "between"])
async def test_a_restore_that_is_interrupted_goes_on_where_it_was(when: str) -> None:
    """Inside a piece and between two: no page is loaded or allocated twice."""
    async with held_device() as (vdev, store):
        pages = 6 * 512 + 100
        bo = await make_noise(vdev, "a", pages)
        await backup(vdev, bo)
        taken, before = Allocations(vdev), store.pages_in
        store.reading.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore, vdev, bo)
            await store.until_held()
            if when == "between":
                store.reading.step()
                with trio.fail_after(LONGEST_HOLD):
                    while bo.snapshot().count(b"s") < 512:
                        await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
            # What has begun in a thread is waited for.
            store.reading.open()
        came = bo.snapshot().count(b"s")
        assert 512 <= came < pages
        assert not bo.resv.locked
        assert store.pages_in == before + came
        await restore(vdev, bo)
        assert store.pages_in == before + pages
        assert taken.pages == pages
        assert bo.tt is not None
        assert bo.tt.unfinished is None
        await same(bo, noise("a", pages * PAGE))
        await gone(vdev, bo)


async def test_an_injected_interrupt_and_a_failed_allocation_change_nothing() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", SIZE)
        await backup(vdev, bo)
        for place, code in (("interrupt", errno.EINTR), ("page_alloc", errno.ENOMEM)):
            fail(vdev, place, 0)
            assert await outcome(lambda: restore(vdev, bo)) == code
            heal(vdev)
            assert bo.snapshot() == b"b" * PAGES
            assert vdev.pool.in_use_pages == 0
        await check(bo)


async def test_a_fault_brings_its_piece_and_a_job_the_whole() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 1024 * PAGE)
        await backup(vdev, bo)
        bo.prefault = 15
        await access.read(bo, 100 * PAGE, PAGE)
        assert bo.snapshot() == b"b" * 96 + b"s" * 16 + b"b" * 912
        assert bo.prefault_pages == 15
        bo.prefault = 0
        await access.write(bo, 200 * PAGE + 1, b"w")
        assert bo.snapshot().count(b"s") == 17
        job = await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())
        assert await job.fence.wait(10)
        assert bo.snapshot() == b"s" * 1024
        model = bytearray(pattern("a", 1024 * PAGE))
        model[200 * PAGE + 1] = ord("w")
        assert job.value == zlib.crc32(bytes(model))
        await gone(vdev, bo)


async def test_the_store_meant_here_can_wait() -> None:
    """Or the tests above would show nothing."""
    async with held_device() as (vdev, store):
        bo = await make(vdev, "a", SIZE)
        store.writing.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backup, vdev, bo)
            await store.until_held()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert bo.snapshot() == b"m" * PAGES
            store.writing.open()
        assert bo.snapshot() == b"b" * PAGES

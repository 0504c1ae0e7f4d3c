"""The shrinker: who goes first, who is left alone, what is unmapped; BOs larger than the page limit; purging."""

import errno
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, make, move, pattern
from tests.core.stores import check_empty, make_noise, noise, same, store_of
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, kswapd, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.shrinker import WINDOW_PAGES, bo_shrink, shrink, shrink_self

EVERYTHING = 1 << 40
QUICK = OperationContext(no_wait_gpu=True)


def where(*bos: BufferObject) -> str:
    """One letter for each BO that is all in one place."""
    letters = [set(bo.snapshot().decode()) for bo in bos]
    assert all(len(each) == 1 for each in letters), letters
    return "".join(each.pop() for each in letters)


async def with_job(bo: BufferObject) -> Fence:
    """Somebody reads it until the fence is signaled."""
    fence = Fence(4711, 1, "a job")
    await bo.resv.lock()
    bo.resv.reserve_fences(1)
    bo.resv.add_fence(fence, Usage.READ)
    bo.unlock()
    return fence


# -- order -------------------------------------------------------------------------------------------------------------


async def test_purgeable_then_idle_then_busy() -> None:
    async with device() as vdev:
        busy, idle, older, purgeable = [await make(vdev, name, 16 * PAGE) for name in ("busy", "idle", "old", "purge")]
        lifetime.set_madvise(purgeable, "dontneed")
        fence = await with_job(busy)
        idle.bump()
        assert (await shrink(vdev.ttm, 16, QUICK)).purged == 16
        assert where(busy, idle, older, purgeable) == "sss."
        done = await shrink(vdev.ttm, 16, QUICK)
        assert (done.stored, done.purged) == (16, 0)
        assert where(busy, idle, older) == "ssb"
        assert (await shrink(vdev.ttm, 16, QUICK)).stored == 16
        assert where(busy, idle, older) == "sbb"
        assert (await shrink(vdev.ttm, 16, QUICK)).pages == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shrink, vdev.ttm, 16, OperationContext())
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert where(busy) == "s"
            fence.signal()
        assert where(busy) == "b"
        for bo in (busy, idle, older):
            await check(bo)
        assert bytes(await access.read(purgeable, 0, 16 * PAGE)) == bytes(16 * PAGE)


async def test_priorities_go_before_age_and_gtt_goes_with_system() -> None:
    async with device() as vdev:
        names = ("keep", "gtt", "cheap")
        keep, gtt, cheap = [await make(vdev, name, 16 * PAGE) for name in names]
        await move(vdev, gtt, "gtt")
        for bo, priority in ((keep, 3), (cheap, 0)):
            bo.priority = priority
            bo.relist()
        assert (await shrink(vdev.ttm, 16, QUICK)).stored == 16
        assert where(cheap) == "b"
        await shrink(vdev.ttm, EVERYTHING, QUICK)
        assert (where(keep, gtt, cheap), gtt.mem_type) == ("bbb", "system")
        for bo in (keep, gtt, cheap):
            await check(bo)


async def test_who_is_left_alone() -> None:
    async with device() as vdev:
        pinned, held, vram, free = [await make(vdev, name, 16 * PAGE) for name in ("pinned", "held", "vram", "free")]
        await calls.pin(vdev, pinned)
        await move(vdev, vram, "vram")
        await vram.resv.wait(Usage.BOOKKEEP)
        await held.resv.lock()
        with trio.fail_after(5):
            done = await shrink(vdev.ttm, EVERYTHING, OperationContext())
        held.unlock()
        assert (done.stored, done.failed) == (16, 0)
        assert where(pinned, held, vram, free) == "ssvb"
        # Nor the one that the room is for.
        assert (await shrink(vdev.ttm, EVERYTHING, QUICK, but=held)).pages == 0
        await calls.unpin(vdev, pinned)
        for bo in (pinned, held, vram, free):
            await check(bo)


async def test_one_that_fails_is_passed_over_and_met_once() -> None:
    async with device() as vdev:
        stubborn, other = await make(vdev, "stubborn", 16 * PAGE), await make(vdev, "other", 16 * PAGE)

        class Reader:
            calls = 0

            async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
                if bo is stubborn:
                    self.calls += 1
                    bo.bump()
                    await access.read(bo, 0, PAGE)

        reader = vdev.ttm.unmapper = Reader()
        done = await shrink(vdev.ttm, EVERYTHING, QUICK)
        assert (done.stored, done.failed, reader.calls) == (16, 1, 3)
        assert where(stubborn, other) == "sb"


# -- in pieces ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Which pages are unmapped."""

    def __init__(self) -> None:
        self.ranges: list[range] = []

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.ranges.append(range(first_page, first_page + num_pages if num_pages else bo.num_pages))
        await trio.lowlevel.checkpoint()


async def test_a_large_bo_goes_piece_by_piece_from_its_hand_on() -> None:
    async with device() as vdev:
        pages = 3 * WINDOW_PAGES
        bo = await make(vdev, "a", pages * PAGE)
        bo.prefault = 0
        recorder = vdev.ttm.unmapper = Recorder()
        assert (await shrink(vdev.ttm, 100, QUICK)).stored == 100
        assert bo.snapshot() == b"b" * 100 + b"s" * (pages - 100)
        assert recorder.ranges == [range(100)]
        await access.read(bo, 0, 10 * PAGE)
        recorder.ranges.clear()
        assert (await shrink(vdev.ttm, 200, QUICK)).stored == 200
        # Not the ten that have just come back.
        assert bo.snapshot() == b"s" * 10 + b"b" * 290 + b"s" * (pages - 300)
        assert recorder.ranges == [range(100, 300)]
        await shrink(vdev.ttm, pages - 295, QUICK)
        # Round the end.
        assert bo.snapshot() == b"b" * 5 + b"s" * 5 + b"b" * (pages - 10)
        await check(bo)


async def test_a_bo_makes_room_for_its_own_fault_and_keeps_what_the_fault_has_locked() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 600 * PAGE)
        recorder = vdev.ttm.unmapper = Recorder()
        keep = range(40, 50)
        await bo.resv.lock()
        try:
            assert await shrink_self(bo, EVERYTHING, keep) == 590
        finally:
            bo.unreserve()
        assert bo.snapshot() == b"b" * 40 + b"s" * 10 + b"b" * 550
        assert all(keep.stop <= pages.start or pages.stop <= keep.start for pages in recorder.ranges)
        await check(bo)


async def test_a_hole_between_two_stretches_is_not_unmapped() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        bo.prefault = 0
        far = (WINDOW_PAGES + 100) * PAGE
        await access.write(bo, 0, b"a" * PAGE)
        await access.write(bo, far, b"b" * PAGE)
        recorder = vdev.ttm.unmapper = Recorder()
        await bo.resv.lock()
        try:
            assert await shrink_self(bo, EVERYTHING, range(5, 6)) == 2
        finally:
            bo.unreserve()
        assert [len(pages) for pages in recorder.ranges] == [1, 1]


@pytest.mark.parametrize("store", ["shmem", "zstd"])
@pytest.mark.parametrize("where_the_limit_is", ["pages_limit", "memory"])
@pytest.mark.parametrize("order", ["random", "ascending"])
async def test_a_bo_of_four_times_the_limit_simply_works(store: str, where_the_limit_is: str, order: str) -> None:
    limit = 2 * MIB
    options = {"pages_limit": limit} if where_the_limit_is == "pages_limit" else {"memory": limit}
    async with device(swap_store=store, vram=0, pool_limit=0, **options) as vdev:
        vdev.ttm.unmapper = WaitingUnmapper(1)
        pages = 4 * limit // PAGE
        bo = await make(vdev, "a", 0)
        lifetime.set_size(bo, pages * PAGE)
        model = bytearray(pages * PAGE)
        rng = random.Random(1)
        most = 0
        for _round in range(2):
            places = list(range(0, pages, 16))
            if order == "random":
                rng.shuffle(places)
            for page in places:
                offset = page * PAGE
                assert bytes(await access.read(bo, offset, 16 * PAGE)) == model[offset : offset + 16 * PAGE]
                data = rng.randbytes(16 * PAGE - 100)
                await access.write(bo, offset + 50, data)
                model[offset + 50 : offset + 50 + len(data)] = data
                most = max(most, vdev.pool.in_use_pages)
        # Soft, and only by what one request names.
        assert most <= limit // PAGE + 16 + bo.prefault
        await same(bo, bytes(model))
        assert vdev.ttm.counters.faults.errors == 0
        lifetime.release(bo)
        check_empty(vdev)


@pytest.mark.parametrize("store", ["shmem", "zstd"])
async def test_backup_works_with_no_page_beyond_the_reserve(store: str) -> None:
    async with device(memory=8 * MIB, vram=0, pool_limit=0, swap_store=store) as vdev:
        room = vdev.pool.free_pages
        bo = await make(vdev, "a", 0)
        other = await make_noise(vdev, "other", room - 600)
        await calls.pin(vdev, other)
        lifetime.set_size(bo, 600 * PAGE)
        await access.write(bo, 0, noise("a", 600 * PAGE))
        assert vdev.pool.free_pages == 0
        done = await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
        assert (done["pages_out"], vdev.pool.free_pages) == (600, 600)
        await same(bo, noise("a", 600 * PAGE))
        await calls.unpin(vdev, other)
        await same(other, noise("other", (room - 600) * PAGE))


# -- ahead of need -----------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object], what: str) -> None:
    with trio.move_on_after(10):
        while not condition():
            await trio.sleep(0.001)
    assert condition(), what


async def test_room_is_made_ahead_of_need() -> None:
    async with device(pages_limit=4 * MIB, vram=0) as vdev:
        gap = vdev.ttm.pages_gap
        assert gap == 64
        bos = [await make(vdev, f"b{n}", 100 * PAGE) for n in range(10)]
        assert vdev.ttm.over_limit(gap) > 0
        shrinks = vdev.ttm.counters.backup.shrinks
        await until(lambda: vdev.ttm.over_limit(2 * gap) <= 0, "nobody made room")
        assert vdev.ttm.counters.backup.shrinks > shrinks
        # The fault that comes next pays for nothing.
        shrinks = vdev.ttm.counters.backup.shrinks
        await access.write(bos[-1], 100 * PAGE, bytes(20 * PAGE))
        assert vdev.ttm.counters.backup.shrinks == shrinks
        for bo in bos[:-1]:
            await check(bo)


async def test_it_does_not_spin_when_nothing_can_go(autojump_clock: MockClock) -> None:
    """It looks once for each time that somebody needed room, and rests in between."""
    vdev: VirtualDevice
    async with device(pages_limit=MIB, vram=0) as vdev:
        bo = await make(vdev, "a", 255 * PAGE)
        await calls.pin(vdev, bo)
        await trio.sleep(1)
        shrinks = vdev.ttm.counters.backup.shrinks
        await trio.sleep(3600)
        assert vdev.ttm.counters.backup.shrinks == shrinks
        vdev.ttm.note_pressure()
        started = trio.current_time()
        await trio.sleep(kswapd.BACKOFF / 2)
        for _ in range(100):
            vdev.ttm.note_pressure()
            await trio.lowlevel.checkpoint()
        assert vdev.ttm.counters.backup.shrinks == shrinks + 1
        assert trio.current_time() - started < kswapd.BACKOFF
        await calls.unpin(vdev, bo)
        await trio.sleep(2 * kswapd.BACKOFF)
        assert vdev.ttm.over_limit(2 * vdev.ttm.pages_gap) <= 0
        await check(bo)


# -- purge -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["system", "gtt", "vram", "store", "part"])
async def test_purge_drops_everything_past_the_pool_and_leaves_no_mark(place: str) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 64 * PAGE + 7)
        if place in ("gtt", "vram"):
            await move(vdev, bo, place)
            await bo.resv.wait(Usage.BOOKKEEP)
        elif place == "store":
            await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
        elif place == "part":
            attr = vdev.ttm.inject["store_write"]
            attr.space, attr.probability = 20, 100
            await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
            assert bo.tt is not None
            assert bo.tt.backed_up_pages == 20
        pooled = vdev.pool.pooled_pages
        done = await calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext())
        assert done["purged_pages"] == 65
        assert bo.purged
        assert bo.tt is None or (bo.tt.backed_up_pages, bo.tt.unfinished, bo.tt.has_content) == (0, None, False)
        assert set(bo.snapshot()) == {ord(".")}
        assert (vdev.pool.in_use_pages, store_of(vdev).slots.stored) == (0, 0)
        assert place == "vram" or vdev.pool.pooled_pages == pooled
        assert vdev.ttm.managers["vram"].usage == 0
        assert bytes(await access.read(bo, 0, bo.size)) == bytes(64 * PAGE + 7)
        lifetime.set_madvise(bo, "willneed")
        assert not bo.purged
        await access.write(bo, 5, b"anew")
        await move(vdev, bo, "vram")
        assert bytes(await access.read(bo, 4, 6)) == b"\0anew\0"


async def test_a_purge_waits_for_copies_or_is_ebusy() -> None:
    async with device(copy_latency=0.2) as vdev:
        bo = await make(vdev, "a", 64 * PAGE)
        await move(vdev, bo, "vram")
        assert bo.copies
        with pytest.raises(TtmError) as caught:
            await calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext(no_wait_gpu=True))
        assert caught.value.errno == errno.EBUSY
        assert not bo.purged
        done = await calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext())
        assert done["purged_pages"] == 64
        assert bytes(await access.read(bo, 0, 64 * PAGE)) == bytes(64 * PAGE)


async def test_clients_that_read_in_the_middle_of_a_purge_are_unmapped_once_more() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 64 * PAGE)
        seen: list[bytes] = []

        class Client:
            async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
                await trio.lowlevel.checkpoint()
                seen.append(bytes(await access.read(bo, 0, 4 * PAGE)))

        vdev.ttm.unmapper = Client()
        await calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext())
        # Old bytes at first; the unmap after the drop takes them away, and whoever reads then gets zeros.
        assert seen == [pattern("a", 4 * PAGE), bytes(4 * PAGE)]


async def test_dontneed_goes_first_and_willneed_saves() -> None:
    async with device() as vdev:
        saved, lost = await make(vdev, "saved", 16 * PAGE), await make(vdev, "lost", 16 * PAGE)
        for bo in (saved, lost):
            lifetime.set_madvise(bo, "dontneed")
        lifetime.set_madvise(saved, "willneed")
        done = await calls.shrink_all(vdev, EVERYTHING, BackupFlags(purge=True), OperationContext())
        assert (done["purged_pages"], done["pages_out"]) == (16, 0)
        assert (saved.purged, lost.purged) == (False, True)
        await check(saved)
        # What came after a purge is content again, until the next one.
        await access.write(lost, 0, b"new")
        assert bytes(await access.read(lost, 0, 4)) == b"new\0"


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_bo_shrink_moves_out_of_vram_only_where_that_was_allowed() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 64 * PAGE, place="vram")
        await bo.resv.wait(Usage.BOOKKEEP)
        await bo.resv.lock()
        try:
            with pytest.raises(TtmError) as caught:
                await bo_shrink(bo, OperationContext(), BackupFlags())
            assert (caught.value.errno, bo.mem_type) == (errno.EBUSY, "vram")
            assert await bo_shrink(bo, OperationContext(), BackupFlags(allow_move=True)) == 64
        finally:
            bo.unreserve()
        assert (where(bo), bo.mem_type) == ("b", "system")
        await check(bo)


async def test_without_a_store_only_the_purge_works() -> None:
    async with device(swap=0) as vdev:
        bo = await make(vdev, "a", 16 * PAGE)
        with pytest.raises(TtmError) as caught:
            await calls.shrink_all(vdev, 1, BackupFlags(), OperationContext())
        assert caught.value.errno == errno.EBUSY
        lifetime.set_madvise(bo, "dontneed")
        assert (await calls.shrink_all(vdev, 1, BackupFlags(purge=True), OperationContext()))["purged_pages"] == 16

"""Backup of a tt: whole, in part, failing at every page, in both directions; nothing is lost, nothing leaks."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, check, device, make, move, pattern
from tests.core.stores import (
    KINDS,
    Allocations,
    check_empty,
    fail,
    handles,
    heal,
    make_noise,
    noise,
    same,
    spec,
    store_of,
)
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.sync import offload
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm import backup as backup_module
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.store_io import StoreSteps

PAGES = 64
T = TypeVar("T")


async def backup(vdev: VirtualDevice, bo: BufferObject, *, no_wait: bool = False, **flags: bool) -> dict[str, int]:
    return await calls.backup_one(vdev, bo, BackupFlags(**flags), OperationContext(no_wait_gpu=no_wait))


async def refused(vdev: VirtualDevice, bo: BufferObject, *, no_wait: bool = False, **flags: bool) -> int | None:
    """The errno that a backup fails with; the BO is as it was."""
    before = bo.snapshot()
    with pytest.raises(TtmError) as caught:
        await backup(vdev, bo, no_wait=no_wait, **flags)
    assert bo.snapshot() == before
    assert caught.value.message
    return caught.value.errno


async def restore(vdev: VirtualDevice, bo: BufferObject) -> dict[str, int]:
    return await calls.restore(vdev, bo, OperationContext())


async def unlinked(vdev: VirtualDevice, *bos: BufferObject) -> None:
    """Unlink them: everything is given back."""
    for bo in bos:
        lifetime.release(bo)
    with trio.fail_after(10):
        while vdev.ttm.num_bos:
            await trio.sleep(0.001)
    check_empty(vdev)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", ["read", "write", "restore", "gtt", "vram"])
async def test_round_trip(kind: str, back: str, tmp_path: Path) -> None:
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        bo = await make_noise(vdev, "a", 600)
        model = bytearray(noise("a", 600 * PAGE))
        assert (await backup(vdev, bo, writeback=back == "read"))["pages_out"] == 600
        assert bo.snapshot() == b"b" * 600
        assert (vdev.pool.in_use_pages, store_of(vdev).slots.stored) == (0, 600)
        if back == "write":
            await access.write(bo, 1000, b"new" * 5000)
            model[1000:16000] = b"new" * 5000
        elif back == "restore":
            assert (await restore(vdev, bo))["pages_in"] == 600
            assert bo.snapshot() == b"s" * 600
            assert store_of(vdev).slots.stored == 0
        elif back != "read":
            await move(vdev, bo, back)
        await same(bo, bytes(model))
        await unlinked(vdev, bo)


@pytest.mark.parametrize("kind", KINDS[:3])
async def test_the_store_is_full_half_way(kind: str, tmp_path: Path) -> None:
    async with device(swap=MIB if kind == "zstd" else 100 * PAGE, swap_store=spec(kind, tmp_path)) as vdev:
        bo = await make_noise(vdev, "a", 512)
        result = await backup(vdev, bo)
        out = result["pages_out"]
        assert 0 < out < 512
        assert kind == "zstd" or out == 100
        assert result["partial"] is True
        assert "full" in str(result["why"])
        assert bo.snapshot() == b"b" * out + b"s" * (512 - out)
        assert bo.tt is not None
        assert (bo.tt.populated_pages, bo.tt.backed_up_pages) == (512 - out, out)
        assert vdev.pool.in_use_pages == 512 - out
        assert await refused(vdev, bo) == errno.EBUSY
        # One page comes back: it may go again, as far as there is room.
        bo.prefault = 0
        assert bytes(await access.read(bo, 5 * PAGE, PAGE)) == noise("a", 6 * PAGE)[5 * PAGE :]
        assert bo.snapshot()[:6] == b"bbbbbs"
        assert (await backup(vdev, bo))["pages_out"] >= 1
        await same(bo, noise("a", 512 * PAGE))
        await unlinked(vdev, bo)


@pytest.mark.parametrize("by", ["name", "shrinker"])
async def test_a_backup_in_part_goes_on_with_what_is_left(by: str) -> None:
    async with device() as vdev:
        bo = await make_noise(vdev, "a", PAGES)
        fail(vdev, "store_write", 20)
        assert (await backup(vdev, bo))["pages_out"] == 20
        heal(vdev)
        if by == "name":
            result = await backup(vdev, bo)
        else:
            result = await calls.shrink_all(vdev, PAGES, BackupFlags(), OperationContext())
        assert result["pages_out"] == PAGES - 20
        assert bo.snapshot() == b"b" * PAGES
        assert store_of(vdev).slots.stored == PAGES, "no page is backed up twice"
        await same(bo, noise("a", PAGES * PAGE))
        await unlinked(vdev, bo)


class ReadingMeanwhile:
    """A client reads the first page while pages are stored, from the second time on."""

    def __init__(self, bo: BufferObject) -> None:
        self.bo, self.begun = bo, 0

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        del lane
        self.begun += 1
        if self.begun > 1:
            await access.read(self.bo, 0, PAGE)
        return work()


async def test_why_is_the_reason_of_this_backup(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with device(swap_store=spec("file", tmp_path)) as vdev:
        bo = await make_noise(vdev, "a", 1200)
        bo.last_error = "something of long ago"
        reading = ReadingMeanwhile(bo)
        offload.use(reading)
        result = await backup(vdev, bo)
        offload.use(offload.Threads())
        assert 0 < result["pages_out"] < 1200
        assert result["partial"] is True
        assert "go on reading" in str(result["why"])
        assert bo.last_error == str(result["why"])
        await same(bo, noise("a", 1200 * PAGE))
        await unlinked(vdev, bo)


async def test_a_writeback_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(_device: object) -> None:
        raise TtmError(errno.EIO, "the medium is broken")

    monkeypatch.setattr(backup_module, "flush_store", failing)
    async with device() as vdev:
        bo = await make_noise(vdev, "a", PAGES)
        result = await backup(vdev, bo, writeback=True)
        assert (result["pages_out"], result["populated_pages"]) == (PAGES, 0)
        assert str(result["why"]) == "the medium is broken"
        await same(bo, noise("a", PAGES * PAGE))


@pytest.mark.parametrize("kind", KINDS)
async def test_every_page_in_turn_fails_to_go_out(kind: str, tmp_path: Path) -> None:
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        for k in range(PAGES):
            bo = await make_noise(vdev, f"a{k}", PAGES)
            fail(vdev, "store_write", k)
            if k == 0:
                assert await refused(vdev, bo) in (errno.ENOSPC, errno.EBUSY)
            else:
                result = await backup(vdev, bo)
                assert (result["pages_out"], result["populated_pages"]) == (k, PAGES - k)
            heal(vdev)
            assert bo.snapshot() == b"b" * k + b"s" * (PAGES - k)
            assert vdev.pool.in_use_pages == PAGES - k
            assert store_of(vdev).slots.stored == k
            if k % 3:
                bo.prefault = k % 5
                await access.read(bo, 0, PAGE)
                left = bo.snapshot().count(b"s")
                assert PAGES - k < left <= PAGES
                assert (await backup(vdev, bo))["pages_out"] == left
                assert bo.snapshot() == b"b" * PAGES
                await same(bo, noise(f"a{k}", PAGES * PAGE))
            await unlinked(vdev, bo)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_page_in_turn_fails_to_come_back(kind: str, tmp_path: Path) -> None:
    """No page is loaded or allocated twice, and whatever is in between, nothing is lost or left."""
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        for k in range(PAGES):
            bo = await make_noise(vdev, f"a{k}", PAGES)
            await backup(vdev, bo)
            taken, loaded = Allocations(vdev), store_of(vdev).pages_in
            fail(vdev, "store_read", k)
            with pytest.raises(TtmError) as caught:
                await restore(vdev, bo)
            assert caught.value.errno == errno.EIO
            assert bo.tt is not None
            assert bo.tt.unfinished is not None
            assert store_of(vdev).pages_in == loaded + k
            assert bo.snapshot() == b"s" * k + b"b" * (PAGES - k)
            assert vdev.pool.in_use_pages == PAGES
            if k % 4 == 1:
                # Once more, two pages on.
                fail(vdev, "store_read", 2)
                if k + 2 < PAGES:
                    with pytest.raises(TtmError):
                        await restore(vdev, bo)
                    assert store_of(vdev).pages_in == loaded + k + 2
            heal(vdev)
            if k % 4 == 2:
                await same(bo, noise(f"a{k}", PAGES * PAGE))
            if k % 4 != 3:
                await restore(vdev, bo)
                assert bo.tt.unfinished is None
                assert not vdev.ttm.unfinished_restores
                assert (taken.pages, store_of(vdev).pages_in) == (PAGES, loaded + PAGES)
                await same(bo, noise(f"a{k}", PAGES * PAGE))
            await unlinked(vdev, bo)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_device_ends_in_between(kind: str, tmp_path: Path) -> None:
    """Backed up, partly backed up and half restored BOs at the end: the store's file is gone with the device."""
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        whole, part, half = [await make_noise(vdev, name, PAGES) for name in ("whole", "part", "half")]
        await backup(vdev, whole)
        fail(vdev, "store_write", 20)
        await backup(vdev, part)
        await backup(vdev, half)
        fail(vdev, "store_read", 20)
        with pytest.raises(TtmError):
            await restore(vdev, half)
        assert [bo.snapshot().count(b"b") for bo in (whole, part, half)] == [64, 20, 44]
    assert os.listdir(tmp_path) == []


async def test_lowest_free_slots_first_and_handles_are_slots_plus_one() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", 8 * PAGE), await make(vdev, "b", 8 * PAGE)
        await backup(vdev, a)
        await backup(vdev, b)
        assert (handles(a), handles(b)) == (list(range(1, 9)), list(range(9, 17)))
        lifetime.set_size(a, 4 * PAGE)
        c = await make(vdev, "c", 6 * PAGE)
        await backup(vdev, c)
        assert handles(c) == [5, 6, 7, 8, 17, 18]
        for bo, size in ((a, 4), (b, 8), (c, 6)):
            await same(bo, pattern(bo.name, size * PAGE))


async def test_large_blocks_are_split_on_the_way_out_and_whole_again_after_a_restore() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, 4 * MIB)
        await access.write(bo, 0, pattern("a", 4 * MIB))
        assert bo.tt is not None
        assert bo.tt.page_orders() == {9: 2}
        # The failure is in the middle of a step that is in the middle of the block.
        fail(vdev, "store_write", 700)
        assert (await backup(vdev, bo))["pages_out"] == 700
        assert sum(count << order for order, count in bo.tt.page_orders().items()) == 1024 - 700
        assert 9 not in bo.tt.page_orders()
        assert vdev.pool.in_use_pages == 1024 - 700
        heal(vdev)
        taken = Allocations(vdev)
        await restore(vdev, bo)
        # The second piece of 2 MiB had 324 pages that were never stored: they were copied into a new block, and freed.
        assert bo.tt.page_orders() == {9: 2}
        assert (taken.pages, vdev.pool.in_use_pages) == (1024, 1024)
        await check(bo)
        assert vdev.selfcheck() == []


async def test_retained_pages_stay_where_they_are_when_there_is_no_room_for_a_new_block() -> None:
    async with device(memory=4 * MIB, pool_limit=0) as vdev:
        bo = await make(vdev, "a", 3 * MIB)
        fail(vdev, "store_write", 300)
        assert (await backup(vdev, bo))["pages_out"] == 300
        await restore(vdev, bo)
        await check(bo)
        assert bo.snapshot() == b"s" * 768


async def test_cancelled_between_two_steps_of_a_backup_it_is_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps stay short: of a few that doubled, the last could be done in the turn in which the first is seen.
    monkeypatch.setattr(StoreSteps, "after_step", lambda size: None)
    async with device() as vdev:
        bo = await make(vdev, "a", 16 * MIB)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backup, vdev, bo)
                with trio.fail_after(10):
                    while not bo.snapshot().count(b"b"):
                        await trio.lowlevel.checkpoint()
                scope.cancel()
        assert not bo.resv.locked
        out = bo.snapshot().count(b"b")
        assert 0 < out < 4096
        assert store_of(vdev).slots.stored == out
        assert (await backup(vdev, bo))["pages_out"] == 4096 - out
        await check(bo)
        await unlinked(vdev, bo)


async def test_refusals() -> None:
    async with device(swap=64 * PAGE) as vdev:
        bo, other = await make(vdev, "a", 8 * PAGE), await make(vdev, "other", 64 * PAGE)
        bo.pin()
        assert await refused(vdev, bo) == errno.EBUSY
        assert await refused(vdev, bo, purge=True) == errno.EBUSY
        bo.unpin()
        await move(vdev, bo, "vram")
        await bo.resv.wait(Usage.BOOKKEEP)
        assert await refused(vdev, bo) == errno.EBUSY, "it is in vram, and nobody allowed to move it"
        assert (await backup(vdev, bo, allow_move=True))["pages_out"] == 8
        assert (await backup(vdev, other))["pages_out"] == 56
        assert store_of(vdev).available_pages == 0
        # What is there comes back, and finds no place any more: others have taken it.
        await restore(vdev, bo)
        third = await make(vdev, "third", 16 * PAGE)
        assert (await backup(vdev, third))["pages_out"] == 8
        assert await refused(vdev, bo) == errno.EBUSY
        for each in (bo, other, third):
            await check(each)


async def test_no_store_is_ebusy() -> None:
    async with device(swap=0) as vdev:
        bo = await make(vdev, "a", 8 * PAGE)
        assert await refused(vdev, bo) == errno.EBUSY
        assert (await backup(vdev, bo, purge=True))["purged_pages"] == 8


async def test_a_busy_bo_is_waited_for_or_ebusy() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 8 * PAGE)
        fence = Fence(77, 1, "somebody's job")
        await bo.resv.lock()
        bo.resv.reserve_fences(1)
        bo.resv.add_fence(fence, Usage.READ)
        bo.unreserve()
        assert await refused(vdev, bo, no_wait=True) == errno.EBUSY
        assert await refused(vdev, bo, no_wait=True, purge=True) == errno.EBUSY
        out: list[dict[str, int]] = []

        async def wait() -> None:
            out.append(await backup(vdev, bo))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not out
            assert bo.snapshot() == b"s" * 8
            fence.signal()
        assert out[0]["pages_out"] == 8
        await check(bo)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
async def test_what_the_medium_says_is_told_as_it_is(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device(swap_store=spec("file", tmp_path)) as vdev:
        bo = await make(vdev, "a", 8 * PAGE)
        medium = store_of(vdev).medium  # type: ignore[attr-defined]

        def broken(*_: object) -> None:
            raise OSError(code, "made to fail")

        monkeypatch.setattr(medium, "write_pages", broken)
        assert await refused(vdev, bo) == code
        assert "made to fail" in bo.last_error
        assert store_of(vdev).slots.stored == 0
        monkeypatch.undo()
        assert (await backup(vdev, bo))["pages_out"] == 8
        monkeypatch.setattr(medium, "read_pages", broken)
        with pytest.raises(TtmError) as caught:
            await restore(vdev, bo)
        assert caught.value.errno == code
        with pytest.raises(TtmError) as caught:
            await access.read(bo, 0, PAGE)
        assert caught.value.errno == errno.EIO
        monkeypatch.undo()
        await check(bo)
        await unlinked(vdev, bo)


async def test_nothing_to_do_is_success() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 0)
        assert (await backup(vdev, bo))["pages_out"] == 0
        lifetime.set_size(bo, 64 << 30)
        assert (await backup(vdev, bo))["pages_out"] == 0
        assert (await backup(vdev, bo, purge=True))["purged_pages"] == 0
        await access.write(bo, 60 << 30, b"far")
        bo.prefault = 0
        out = await backup(vdev, bo)
        assert (out["pages_out"], out["populated_pages"]) == (store_of(vdev).slots.stored, 0)
        assert bytes(await access.read(bo, (60 << 30) - 5, 9)) == bytes(5) + b"far\0"


@pytest.mark.parametrize("kind", ["file", "zstd+file"])
async def test_writeback_is_on_the_disk_when_it_returns(kind: str, tmp_path: Path) -> None:
    async with device(swap_store=spec(kind, tmp_path)) as vdev:
        bo = await make_noise(vdev, "a", 256)
        await backup(vdev, bo)
        before = store_of(vdev).statistics()
        await same(bo, noise("a", 256 * PAGE))
        await backup(vdev, bo, writeback=True)
        after = store_of(vdev).statistics()
        assert kind == "file" or before.on_disk == 0
        assert after.on_disk == after.used > 0
        assert (tmp_path / "store").stat().st_blocks * 512 >= 256 * PAGE
        await same(bo, noise("a", 256 * PAGE))

"""Blocks ahead: who writes a file from its begin to its end gets pages of 2 MiB, and holds at most one block more."""

import errno
import random
from functools import partial

import pytest
import trio

from tests.core.harness import MIB, PAGE, check, device, idle, make, move, outcome, pattern
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm import access
from ttmfs.ttm.account import MEMORY
from ttmfs.ttm.ahead import give_ahead_back
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.shrinker import shrink

BLOCK = 512


def written(vdev: VirtualDevice, name: str = "a") -> BufferObject:
    """A BO that somebody has open for writing."""
    bo = vdev.create_bo(name)
    bo.has_writers = True
    return bo


async def append(bo: BufferObject, size: int, step: int) -> bytes:
    """`size` bytes at its end, `step` bytes a WRITE; all of its content since it was empty."""
    content = pattern("a", bo.size + size)
    for offset in range(bo.size, len(content), step):
        await access.write(bo, offset, content[offset : min(offset + step, len(content))])
    return content


def held(bo: BufferObject) -> int:
    """Pages that it has beyond those of its bytes."""
    tt = bo.need_tt()
    return tt.populated_pages + tt.ahead_pages - bo.num_pages


@pytest.mark.parametrize("step", [PAGE, 10_000, 64 << 10, 128 << 10, 300_000, MIB, 3 * MIB])
async def test_a_writer_gets_whole_blocks_whatever_it_writes_at_a_time(step: int) -> None:
    async with device() as vdev:
        bo = written(vdev)
        content = await append(bo, 8 * MIB + 5000, step)
        assert bo.need_tt().page_orders()[9] == 4
        assert not bo.need_tt().beneficial_order_failed
        assert held(bo) <= BLOCK
        give_ahead_back(bo)
        assert held(bo) == 0
        assert bytes(await access.read(bo, 0, bo.size)) == content
        assert not vdev.selfcheck()


async def test_small_files_leave_the_large_blocks_alone() -> None:
    async with device() as vdev:
        for n in range(64):
            bo = written(vdev, f"b{n}")
            await access.write(bo, 0, pattern("b", MIB))
            assert held(bo) == 0


async def test_at_most_one_block_is_held_and_its_pages_are_counted_as_the_bos() -> None:
    async with device() as vdev:
        bo = written(vdev)
        account = bo.account
        most = 0
        for n in range(100):
            await append(bo, 70_000, 70_000)
            most = max(most, held(bo))
            assert account.used(MEMORY) == bo.num_pages + held(bo), n
        assert BLOCK // 2 < most <= BLOCK


async def test_who_jumps_ahead_gives_the_rest_of_the_block_back() -> None:
    async with device() as vdev:
        bo = written(vdev)
        await append(bo, 3 * MIB, MIB)
        assert held(bo) == 256
        await access.write(bo, 9 * MIB, b"x" * MIB + b"y")
        assert bo.need_tt().ahead_pages == 511
        assert bytes(await access.read(bo, 3 * MIB, 6 * MIB)) == bytes(6 * MIB)
        assert not vdev.selfcheck()


@pytest.mark.parametrize("how", ["cut", "release", "shrink", "move", "defrag", "purge", "pressure"])
async def test_what_ends_it(how: str) -> None:
    async with device(memory=16 * MIB, pool_limit=0) as vdev:
        bo = written(vdev)
        content = await append(bo, 3 * MIB, 64 << 10)
        assert held(bo) == 256
        if how == "cut":
            set_size(bo, 2 * MIB + 5)
            content = content[: 2 * MIB + 5]
        elif how == "release":
            release(bo)
            assert vdev.pool.in_use_pages == 0
            return
        elif how == "shrink":
            assert (await shrink(vdev.ttm, 1, OperationContext())).released == 256
        elif how == "move":
            await move(vdev, bo, "vram")
        elif how == "defrag":
            await move(vdev, bo, "system", defrag=True)
        elif how == "purge":
            await access.write(bo, 3 * MIB, b"y")
            set_size(bo, 0)
            content = b""
        else:
            # Memory that nothing else can give: the block goes before anybody is told that there is none.
            hog = await make(vdev, "hog", 0)
            for offset in range(0, 16 * MIB, MIB):
                if await outcome(partial(access.write, hog, offset, bytes(MIB))):
                    break
        await idle(bo)
        assert held(bo) <= 0 or bo.mem_type == "vram"
        assert bo.tt is None or not bo.tt.ahead_pages
        assert bytes(await access.read(bo, 0, max(1, bo.size))) == content


async def test_there_is_none_where_memory_is_short_limited_or_the_order_is_off() -> None:
    async with device(memory=4 * MIB) as vdev:
        bo = written(vdev)
        await append(bo, 3 * MIB, 64 << 10)
        assert held(bo) == 0
    async with device(beneficial_order=0) as vdev:
        bo = written(vdev)
        await append(bo, 3 * MIB, 64 << 10)
        assert held(bo) == 0
    async with device() as vdev:
        bo = vdev.create_bo("nobody will close it")
        await append(bo, 3 * MIB, 64 << 10)
        assert held(bo) == 0


async def test_a_write_that_fails_leaves_nothing_behind() -> None:
    async with device() as vdev:
        bo = written(vdev)
        content = await append(bo, MIB, 64 << 10)
        fail = vdev.ttm.inject["page_alloc"]
        fail.probability, fail.times = 100, 1
        assert await outcome(lambda: access.write(bo, MIB, bytes(MIB))) == errno.ENOMEM
        assert bo.size == MIB
        content = await append(bo, 3 * MIB, 64 << 10)
        assert bo.need_tt().page_orders() == {9: 2}
        await check(bo)
        assert bytes(await access.read(bo, 0, 4 * MIB)) == content


@pytest.mark.parametrize("order", ["up", "at random"])
async def test_a_piece_made_whole_out_of_small_blocks_is_marked_and_listed(order: str) -> None:
    """What mmap touches do, page by page, in a file that has its size."""
    async with device() as vdev:
        vdev.defrag.interval = 1000.0
        bo = vdev.create_bo("a")
        bo.prefault = 1
        set_size(bo, 2 * MIB + 5)
        pages = list(range(513))
        if order == "at random":
            random.Random(4).shuffle(pages)
        for done, page in enumerate(pages):
            assert (bo in vdev.ttm.defrag_list) == bo.need_tt().beneficial_order_failed if done else True
            await access.read(bo, page * PAGE, 1)
        assert bo in vdev.ttm.defrag_list
        await vdev.defrag.one_pass()
        await idle(bo)
        assert bo.need_tt().page_orders()[9] == 1
        assert bo not in vdev.ttm.defrag_list


async def test_random_writers_cuts_and_moves_keep_every_byte() -> None:
    for seed in range(6):
        r = random.Random(seed)
        async with device(memory=16 * MIB, vram=4 * MIB) as vdev:
            models: dict[BufferObject, bytearray] = {written(vdev, f"b{n}"): bytearray() for n in range(3)}
            for step in range(60):
                bo, model = r.choice(list(models.items()))
                what = r.choice(("append", "append", "append", "append", "jump", "cut", "move", "shrink", "close"))
                if what in ("append", "jump"):
                    at = len(model) + (r.randrange(MIB) if what == "jump" else 0)
                    if at > 4 * MIB:
                        continue
                    data = r.randbytes(r.choice((1, 4096, 10_000, 200_000, MIB)))
                    await access.write(bo, at, data)
                    model.extend(bytes(at - len(model)) + data)
                elif what == "cut":
                    size = r.randrange(len(model) + 1)
                    set_size(bo, size)
                    del model[size:]
                elif what == "move" and model:
                    place = r.choice(("system", "gtt", "vram"))
                    assert await outcome(partial(move, vdev, bo, place)) in (0, errno.ENOSPC, errno.ENOMEM)
                elif what == "shrink":
                    await shrink(vdev.ttm, r.randrange(2000), OperationContext())
                elif what == "close":
                    bo.has_writers = not bo.has_writers
                    give_ahead_back(bo)
                wrong = vdev.selfcheck()
                assert not wrong, (seed, step, what, wrong)
            with trio.fail_after(60):
                await idle(*models)
                for bo, model in models.items():
                    got = b"" if not model else bytes(await access.read(bo, 0, len(model)))
                    assert got == bytes(model), seed

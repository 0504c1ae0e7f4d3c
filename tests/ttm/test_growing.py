"""Files that grow: WRITEs that fail leave size and content as they were, however many there are."""

import errno
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, check, device, make, outcome
from tests.svm.conftest import MakeDevice, svm_device
from ttmfs.svm import cpu
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import MAX_SIZE
from ttmfs.ttm.growth import settled_size

__all__ = ["svm_device"]


@pytest.mark.parametrize("size", [0, 10, PAGE, MIB + 5])
@pytest.mark.parametrize("gap", [0, 1, PAGE, 3 * MIB])
async def test_a_write_beyond_the_end_that_finds_no_memory_changes_nothing(size: int, gap: int) -> None:
    async with device(memory=32 * MIB, swap=0) as vdev:
        bo = await make(vdev, "a", size)
        before = vdev.pool.in_use_pages
        vdev.ttm.inject["page_alloc"].probability, vdev.ttm.inject["page_alloc"].times = 100, -1
        assert await outcome(lambda: access.write(bo, size + gap, b"x" * 3 * PAGE)) == errno.ENOMEM
        assert bo.size == size
        assert bo.growth is None
        assert vdev.pool.in_use_pages == before
        vdev.ttm.inject["page_alloc"].probability = 0
        await check(bo)
        await access.write(bo, size + gap, b"y")
        assert bytes(await access.read(bo, size, gap + 10)) == bytes(gap) + b"y"


async def test_what_was_begun_and_failed_does_not_show_where_the_file_grows_later() -> None:
    async with device(memory=2 * MIB, swap=0) as vdev:
        other = await make(vdev, "other", MIB)
        lifetime.release(other)
        bo = await make(vdev, "a", 100)
        assert await outcome(lambda: access.write(bo, 0, b"z" * 3 * MIB)) == errno.ENOMEM
        await check(bo)
        lifetime.set_size(bo, MIB)
        assert bytes(await access.read(bo, 100, MIB)) == bytes(MIB - 100)


@pytest.mark.parametrize("offset", [MAX_SIZE, MAX_SIZE - 1, 1 << 50, (1 << 63) - 10])
async def test_no_bo_is_larger_than_the_largest(offset: int) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 10)
        assert await outcome(lambda: access.write(bo, offset, b"xy")) == errno.EFBIG
        assert bo.size == 10
        with pytest.raises(OSError, match="128 TiB"):
            lifetime.set_size(bo, MAX_SIZE + 1)
        await check(bo)


async def test_of_two_appends_under_way_the_one_that_fails_takes_only_its_own_part_back(
    autojump_clock: MockClock,
) -> None:
    async with device(memory=32 * MIB, swap=0) as vdev:
        bo = await make(vdev, "a", PAGE)
        await bo.resv.lock()
        inject = vdev.ttm.inject["page_alloc"]
        results: dict[int, int] = {}

        async def append(offset: int) -> None:
            results[offset] = await outcome(lambda: access.write(bo, offset, b"w" * PAGE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, 8 * PAGE)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(append, 4 * PAGE)
            await trio.testing.wait_all_tasks_blocked()
            assert settled_size(bo) == PAGE, "nobody sees what may still fail"
            # The first to be served is the first that came.
            inject.probability, inject.times = 100, 1
            bo.unreserve()
        assert sorted(results.values()) == [0, errno.ENOMEM]
        done = next(offset for offset, code in results.items() if not code)
        assert bo.size == done + PAGE
        assert bytes(await access.read(bo, PAGE, bo.size)) == bytes(done - PAGE) + b"w" * PAGE


async def test_a_truncate_meanwhile_is_what_a_failed_append_leaves(autojump_clock: MockClock) -> None:
    async with device(memory=32 * MIB, swap=0) as vdev:
        bo = await make(vdev, "a", 2 * PAGE)
        await bo.resv.lock()
        vdev.ttm.inject["page_alloc"].probability = 100
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, lambda: access.write(bo, 8 * PAGE, b"w" * PAGE))
            await trio.testing.wait_all_tasks_blocked()
            lifetime.set_size(bo, 100)
            assert settled_size(bo) == 100
            bo.unreserve()
        assert bo.size == 100


async def test_a_space_is_as_before_when_a_write_to_it_fails(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(memory=2 * MIB, swap=0) as dev:
        size = 12 * PAGE + 100
        space = dev.space(size)
        await cpu.write(space, 0, b"precious")
        space.mapping.set(3, 13, "none")
        too_much, too_far = (errno.ENOMEM, 50, 3 * MIB), (errno.EFBIG, 1 << 40, 1)
        for wanted, offset, count in (too_much, too_far):
            assert await outcome(partial(cpu.write, space, offset, b"x" * count)) == wanted
            assert space.size == settled_size(space) == size
            assert bytes(await cpu.read(space, 0, 2 * size)) == b"precious" + bytes(size - 8)
            assert space.mapping.interval(5, 1 << 28)[2] == "none", "it was not stored to"
        await cpu.write(space, 5 * PAGE, b"x" * size)
        assert space.size == 5 * PAGE + size
        assert space.mapping.interval(5, 1 << 28)[2] == "rw"
        space.release()
        await dev.check_nothing_left()

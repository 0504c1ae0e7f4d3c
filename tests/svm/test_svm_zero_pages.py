"""Zero pages of address spaces give way: to BOs, to other pages of the space, never with a byte of anybody's."""

import errno
import random
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.core.harness import outcome
from tests.svm.conftest import MakeDevice
from ttmfs.svm import calls, cpu
from ttmfs.svm.audit import check_svm
from ttmfs.ttm import access, lifetime

MIB = 1 << 20
PAGE = 4096


async def test_reading_through_a_space_leaves_room_for_bos(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(memory=16 * MIB, vram=4 * MIB) as device:
        space = device.space(64 * MIB)
        await cpu.write(space, 5 * MIB, b"mine" * 1000)
        for page in range(0, 64 * MIB // PAGE, 3):
            await device.cache.load(space, page * PAGE, 1)
        bo = device.vdev.create_bo("b")
        data = random.Random(1).randbytes(8 * MIB)
        await access.write(bo, 0, data)
        assert bytes(await access.read(bo, 0, len(data))) == data
        assert await device.cache.load(space, 5 * MIB, 4000) == b"mine" * 1000
        assert await device.cache.load(space, 40 * MIB, 3 * PAGE) == bytes(3 * PAGE)
        assert check_svm(device.svm) == []
        lifetime.release(bo)
        space.release()
        await device.check_nothing_left()


async def test_a_request_is_not_given_what_it_was_given_already(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    """What a WRITE fills first is zeros until all of it has memory: it would go round until its time is over."""
    async with svm_device(memory=2 * MIB, swap=0) as device:
        space = device.space(8 * MIB)
        started = trio.current_time()
        for _ in range(2):
            assert await outcome(partial(cpu.write, space, PAGE, bytes([1]) * 3 * MIB)) == errno.ENOMEM
            assert trio.current_time() == started
            assert not space.asked
        assert bytes(await cpu.read(space, 0, 8 * PAGE)) == bytes(8 * PAGE)
        await cpu.write(space, 3 * MIB, bytes([2]) * MIB)
        assert bytes(await cpu.read(space, 3 * MIB, MIB)) == bytes([2]) * MIB
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize("seed", range(4))
async def test_stores_while_pages_are_reclaimed(
    svm_device: MakeDevice, autojump_clock: MockClock, seed: int
) -> None:
    """Clients store into pages that are being dropped, the device fills others, and memory is short all the time."""
    rng = random.Random(seed)
    async with svm_device(memory=8 * MIB, vram=4 * MIB) as device:
        space = device.space(32 * MIB)
        stored: dict[int, int] = {}

        async def touch() -> None:
            for _ in range(1500):
                await device.cache.load(space, rng.randrange(32 * MIB // PAGE) * PAGE, 1)

        async def store() -> None:
            for _ in range(150):
                page = rng.randrange(16 * MIB // PAGE)
                await device.cache.store(space, page * PAGE + 8, bytes([page % 251 + 1]))
                stored[page] = page % 251 + 1
                await trio.sleep(0.001)

        async def fill() -> None:
            for number in range(6):
                await calls.gpu_fill(space, 20 * MIB + number * 2 * MIB, PAGE, number + 1)
                await trio.sleep(0.01)

        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                for work in (touch, touch, store, fill):
                    nursery.start_soon(work)
        for page, value in stored.items():
            assert await device.cache.load(space, page * PAGE, 16) == bytes(8) + bytes([value]) + bytes(7), page
        for number in range(6):
            assert await device.cache.load(space, 20 * MIB + number * 2 * MIB, PAGE) == bytes([number + 1]) * PAGE
        assert check_svm(device.svm) == []
        space.release()
        await device.check_nothing_left()

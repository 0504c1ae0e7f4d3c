"""Policies and address spaces: what a space has in VRAM is evicted by policy, and a fault may take ranges along."""

import random
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.core.advised import Told, install
from tests.svm.conftest import MakeDevice
from ttmfs.policy import BO, Prefetch, deadline
from ttmfs.svm import calls, cpu
from ttmfs.svm.cpu import read
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.swap import store_chunk

MIB = 1 << 20
PAGE = 4096


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


class Says(Prefetch):
    """Writes down what it is asked and told; `answer` is what it says."""

    def __init__(self, answer: tuple[int, int]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int, int, str]] = []
        self.gone: list[tuple[str, int, int]] = []
        self.views: set[BO] = set()

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        self.asked.append((bo.name, first, count, why))
        self.views.add(bo)
        return self.answer

    def removed(self, bo: BO, first: int, count: int) -> None:
        self.gone.append((bo.name, first, count))


async def test_ranges_take_part_in_eviction(svm_device: MakeDevice, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    async with svm_device(vram=8 * MIB) as device:
        told = Told()
        await install(device.vdev, told)
        space = device.space(16 * MIB)
        room = device.vdev.ttm.managers["vram"].size // (2 * MIB)
        for number in range(room):
            await calls.gpu_fill(space, number * 2 * MIB, 4096, 1)
        names = [f"svm:a@{number * 2 * MIB:#x}" for number in range(room + 1)]
        assert [bo.name for bo in told.here] == names[:room]
        assert told.take()[1:] == [f"added {name}" for name in names[:room]]
        await calls.gpu_fill(space, 0, 4096, 2)
        assert told.take() == [f"used {names[0]} job"]
        # The youngest goes first, as the policy says, and its bytes are there all the same.
        await calls.gpu_fill(space, room * 2 * MIB, 4096, 3)
        assert told.take() == [f"removed {names[room - 1]} evicted", f"added {names[room]}"]
        assert (await calls.gpu_read(space, (room - 1) * 2 * MIB, 1))["data"] == "01"
        assert device.vdev.policies.stats()["evict"]["vram"]["ejected"] == 0


async def test_what_it_says_migrates_along(svm_device: MakeDevice, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    async with svm_device(vram=8 * MIB) as device:
        says = Says((0, 1024))
        await install(device.vdev, says, kind="prefetch")
        space = device.space(16 * MIB)
        await calls.gpu_fill(space, 2 * MIB, 4096, 1)
        assert says.asked == [("svm:a", 512, 512, "svm")]
        assert sorted((start, where) for start, _, where in device.locations(space)) == [(0, "vram"), (2 * MIB, "vram")]
        # It is there already: no fault.
        await calls.gpu_fill(space, 0, 4096, 1)
        assert len(says.asked) == 1
        await read(space, 0, 4096)
        assert ("svm:a", 0, 512) in says.gone


async def test_prefetch_evicts_nobody(svm_device: MakeDevice, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    async with svm_device(vram=8 * MIB) as device:
        says = Says((0, 1 << 30))
        await install(device.vdev, says, kind="prefetch")
        manager = device.vdev.ttm.managers["vram"]
        space = device.space(4 * manager.size)
        await calls.gpu_fill(space, 0, 4096, 1)
        assert manager.usage == manager.size
        assert device.svm.counters.evictions == 0


async def test_a_client_s_fault_takes_along_what_it_says(
    svm_device: MakeDevice, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with svm_device(vram=8 * MIB) as device:
        says = Says((500, 24))
        await install(device.vdev, says, kind="prefetch")
        space = device.space(8 * MIB)
        await calls.unmap(space, 510 * PAGE, 2 * PAGE)
        await cpu.write(space, 2 * PAGE, b"mine")
        assert says.asked == [("svm:a", 2, 1, "fault")]
        there = [*range(500, 510), *range(512, 524)]
        assert system_pages(space) == [2, *there]
        # What is there is no fault, a READ of a hole is one; nothing comes where nothing is mapped.
        assert bytes(await read(space, 512 * PAGE, 12 * PAGE)) == bytes(12 * PAGE)
        assert bytes(await read(space, 1000 * PAGE, 2 * PAGE)) == bytes(2 * PAGE)
        assert says.asked[1:] == [("svm:a", 1000, 2, "fault")]
        assert system_pages(space) == [2, *there, 1000, 1001]
        space.set_size(4096)
        assert says.gone == [(name, first, count) for first, count in ((1, 511), (512, 512)) for name in ["svm:a"] * 2]


async def test_it_comes_out_of_the_store_and_the_two_sides_are_apart(
    svm_device: MakeDevice, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with svm_device(vram=8 * MIB, swap=64 * MIB) as device:
        space = device.space(8 * MIB)
        data = random.Random(1).randbytes(2 * MIB)
        await cpu.write(space, 0, data)
        says = Says((0, 64))
        await install(device.vdev, says, kind="prefetch")
        assert await store_chunk(space, space.chunks[0], 512) == 512
        assert says.gone == [("svm:a", 0, 512)]
        assert await read(space, 100 * PAGE, PAGE) == data[100 * PAGE : 101 * PAGE]
        assert system_pages(space) == [*range(64), 100]
        assert await read(space, 0, 64 * PAGE) == data[: 64 * PAGE]
        await calls.gpu_fill(space, 2 * MIB, 4096, 1)
        assert [why for _name, _first, _count, why in says.asked] == ["fault", "svm"]
        assert sorted(view.region for view in says.views) == ["system", "vram"]


async def test_at_nobody_s_expense_also_for_the_cpu(
    svm_device: MakeDevice, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with svm_device(vram=4 * MIB, memory=8 * MIB, swap=64 * MIB) as device:
        await install(device.vdev, Says((0, 1 << 40)), kind="prefetch")
        space, other = device.space(1 << 38), device.space(4 * MIB, "b")
        await cpu.write(other, 0, bytes(3 * MIB))
        out = device.vdev.ttm.counters.backup.pages_out
        await cpu.write(space, 20 * MIB, b"mine")
        assert device.vdev.ttm.counters.backup.pages_out == out
        assert other.stored_pages == 0
        assert MIB // PAGE < space.held_pages <= 5 * MIB // PAGE
        assert device.vdev.policies.stats()["prefetch"]["ejected"] == 0


async def test_an_inval_of_its_page_does_not_wait_for_what_comes_along(
    svm_device: MakeDevice, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    async with svm_device(vram=4 * MIB) as device:
        await install(device.vdev, Says((0, 1 << 30)), kind="prefetch")
        space = device.space(16 * MIB)
        done = trio.Event()

        async def client() -> None:
            await device.cache.load(space, 0, PAGE)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            while not space.held_pages:
                await trio.lowlevel.checkpoint()
            space.gate.begin_unmapping(range(1))
            with trio.fail_after(1):
                await done.wait()
            space.gate.end_unmapping(range(1))
        # It was ended half way.
        assert space.held_pages < space.num_pages


def system_pages(space: AddressSpace) -> list[int]:
    return [page for page, letter in enumerate(space.snapshot(0, space.num_pages)) if letter == ord("s")]

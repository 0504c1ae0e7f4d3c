"""Policies and address spaces: what a space has in VRAM is evicted by policy, and a fault may take ranges along."""

from collections.abc import Iterator

import pytest
import trio.testing

from tests.core.advised import Told, install
from tests.svm.conftest import MakeDevice
from ttmfs.policy import BO, Prefetch, deadline
from ttmfs.svm import calls
from ttmfs.svm.cpu import read

MIB = 1 << 20


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

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        self.asked.append((bo.name, first, count, why))
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

"""Prefetch by a policy: what comes along with a fault, at nobody's expense, and what the policy hears of it."""

from collections.abc import Iterator

import pytest

from tests.core.advised import install
from tests.core.harness import MIB, PAGE, check, device, make, pattern
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.policy import BO, Prefetch, deadline
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


class Says(Prefetch):
    """Writes down what it is asked and told; `answer` is what it says."""

    def __init__(self, answer: tuple[int, int] | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int, int, str]] = []
        self.gone: list[tuple[str, int, int]] = []

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        self.asked.append((bo.name, first, count, why))
        return self.answer or (first, count)

    def removed(self, bo: BO, first: int, count: int) -> None:
        self.gone.append((bo.name, first, count))


def sparse(vdev: VirtualDevice, name: str = "a", pages: int = 512) -> BufferObject:
    """A BO that is all holes."""
    bo = vdev.create_bo(name)
    set_size(bo, pages * PAGE)
    return bo


def pages_there(bo: BufferObject) -> list[int]:
    return [] if bo.tt is None else bo.tt.present().tolist()


async def test_what_it_says_comes_along_and_the_fault_in_any_case() -> None:
    async with device() as vdev:
        says = Says((8, 8))
        await install(vdev, says, kind="prefetch")
        bo = sparse(vdev)
        assert bytes(await access.read(bo, 0, 2 * PAGE)) == bytes(2 * PAGE)
        assert pages_there(bo) == [0, 1, *range(8, 16)]
        assert says.asked == [("a", 0, 2, "fault")]
        # What is there is no fault.
        await access.read(bo, 8 * PAGE, PAGE)
        await access.write(bo, 8 * PAGE, bytes(PAGE))
        assert len(says.asked) == 1
        await access.write(bo, 100 * PAGE, bytes(PAGE))
        assert says.asked[1:] == [("a", 100, 1, "fault")]
        assert (bo.prefault_pages, vdev.ttm.counters.faults.prefault_pages) == (8, 8)


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        ((0, 1), [0, 4]),
        ((4, 1), [4]),
        ((10, 1 << 40), [4, *range(10, 16)]),
        ((-5, 8), [0, 1, 2, 4]),
        ((1 << 40, 5), [4]),
    ],
)
async def test_it_is_clipped_to_the_bo(answer: tuple[int, int], there: list[int]) -> None:
    async with device() as vdev:
        await install(vdev, Says(answer), kind="prefetch")
        bo = sparse(vdev, pages=16)
        await access.read(bo, 4 * PAGE, PAGE)
        assert pages_there(bo) == there
        assert vdev.policies.stats()["prefetch"]["ejected"] == 0


async def test_nobody_gives_memory_up_for_it() -> None:
    async with device(memory=4 * MIB, swap=16 * MIB, gtt=4 * MIB) as vdev:
        await install(vdev, Says((0, 512)), kind="prefetch")
        other = await make(vdev, "other", 2 * MIB)
        out = vdev.ttm.counters.backup.pages_out
        bo = sparse(vdev)
        await access.read(bo, 5 * PAGE, PAGE)
        assert pages_there(bo) == [5]
        assert vdev.ttm.counters.backup.pages_out == out
        await check(other)


async def test_what_is_in_the_store_comes_back_with_it_and_going_there_is_told() -> None:
    async with device() as vdev:
        says = Says((0, 64))
        await install(vdev, says, kind="prefetch")
        bo = await make(vdev, "a", 64 * PAGE)
        says.gone.clear()
        await calls.swapout_one(vdev, bo, OperationContext())
        assert says.gone == [("a", 0, 64)]
        await access.read(bo, 3 * PAGE, PAGE)
        assert len(pages_there(bo)) == 64
        await check(bo)
        says.gone.clear()
        set_size(bo, 10 * PAGE)
        assert says.gone == [("a", 10, 54)]


async def test_who_only_looks_gets_what_is_in_the_store_and_no_memory_for_holes() -> None:
    async with device() as vdev:
        says = Says((0, 64))
        await install(vdev, says, kind="prefetch")
        bo = await make(vdev, "a", 16 * PAGE)
        set_size(bo, 64 * PAGE)
        await calls.swapout_one(vdev, bo, OperationContext())
        bo.looks_only = True
        assert bytes(await access.read(bo, 3 * PAGE, PAGE)) == pattern("a", 16 * PAGE)[3 * PAGE : 4 * PAGE]
        assert says.asked == [("a", 0, 16, "fault"), ("a", 3, 1, "fault")]
        assert pages_there(bo) == list(range(16))


async def test_without_a_policy_the_bo_s_own_prefault_counts_and_comes_back() -> None:
    class Bad(Says):
        def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
            raise KeyError(bo.name)

    async with device(prefault=16) as vdev:
        bo, other = sparse(vdev), sparse(vdev, "b")
        await access.read(bo, 0, PAGE)
        usual = pages_there(bo)
        assert len(usual) > 8
        await install(vdev, Bad(), kind="prefetch")
        await access.read(other, 0, PAGE)
        assert pages_there(other) == [0]
        assert vdev.ttm.prefetcher is None
        assert "KeyError" in vdev.policies.stats()["prefetch"]["last_error"]
        last = sparse(vdev, "c")
        await access.read(last, 0, PAGE)
        assert pages_there(last) == usual


async def test_sequential_reads_fault_less_and_less_often() -> None:
    async with device() as vdev:
        await install(vdev, "sequential most=64", kind="prefetch")
        bo = sparse(vdev, pages=512)
        for page in range(512):
            await access.read(bo, page * PAGE, PAGE)
        asked = vdev.policies.stats()["prefetch"]["asked"]
        assert 8 <= asked <= 20

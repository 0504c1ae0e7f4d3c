"""The first touch of a BO, which takes space or memory from others: what it waits for, and what ends that."""

import pytest
import trio
import trio.testing

from tests.core.harness import MIB, PAGE, device, make
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.funcs import FaultResult, VmFault
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.unmap import unmap_virtual


def fresh(vdev: VirtualDevice, name: str, size: int, place: str) -> BufferObject:
    """A BO whose first touch takes it to `place`."""
    bo = vdev.create_bo(name)
    set_size(bo, size)
    bo.placement, bo.placed = vdev.parse_placement([place]), False
    return bo


class HeldUnmapper:
    """INVALs of one BO return when they are told to; `waiting` is set while one waits."""

    def __init__(self, bo: BufferObject) -> None:
        self.bo = bo
        self.waiting = trio.Event()
        self.go_on = trio.Event()

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        if bo is self.bo:
            self.waiting.set()
            await self.go_on.wait()


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_fault_that_waits_for_a_victim_is_served_when_its_own_bo_is_unmapped(
    kind: str, autojump_clock: object
) -> None:
    """R1: the INVAL (of an O_TRUNC, say) waits for the request, whatever that one waits for."""
    async with device(gtt=MIB) as vdev, trio.open_nursery() as nursery:
        victim = await make(vdev, "victim", place="gtt")
        await submit_job(vdev, Job("busy", srcs=(victim,), seconds=100.0), OperationContext())
        bo = fresh(vdev, "bo", MIB, "gtt")
        bo.handed_out = True
        unmapper = vdev.ttm.unmapper = HeldUnmapper(bo)
        answered = trio.Event()

        async def request() -> None:
            if kind == "read":
                assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)
            else:
                await access.write(bo, 0, b"x" * PAGE)
            answered.set()

        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        nursery.start_soon(unmap_virtual, bo)
        await unmapper.waiting.wait()
        with trio.fail_after(500):
            await answered.wait()
        assert trio.current_time() == started
        unmapper.go_on.set()
        if kind == "write":
            assert bytes(await access.read(bo, 0, PAGE)) == b"x" * PAGE


async def test_a_fault_is_not_woken_by_what_it_unmaps_itself() -> None:
    """To make room for itself it sends other pages of its own BO to the store."""
    async with device(memory=4 * MIB, swap=16 * MIB) as vdev:
        bo = vdev.create_bo("large")
        for at in range(0, 8 * MIB, MIB):
            await access.write(bo, at, bytes([at >> 20]) * MIB)
        handler = bo.funcs.fault
        asked: list[VmFault] = []

        async def fault(vmf: VmFault) -> FaultResult:
            asked.append(vmf)
            return await handler(vmf)

        bo.funcs.fault = fault  # type: ignore[method-assign]
        unmaps = vdev.ttm.counters.moves.unmaps
        for at in range(0, 8 * MIB, MIB):
            asked.clear()
            assert bytes(await access.read(bo, at, MIB)) == bytes([at >> 20]) * MIB
            assert len(asked) <= 1
        assert vdev.ttm.counters.moves.unmaps > unmaps
        del bo.funcs.fault

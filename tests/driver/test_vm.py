"""VMs: the table of mappings, local BOs with one reservation and one bulk move, exec and what it brings back."""

import errno
import zlib

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, device, fails, idle, make, move
from ttmfs.driver import calls, vm_exec
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.locking import reserved_all
from ttmfs.driver.operation import Operation
from ttmfs.driver.submit import submit_job
from ttmfs.driver.vm import MAX_ADDRESS, MAX_MAPPINGS, MAX_PIECES, Vm
from ttmfs.driver.vm_exec import VmJob, exec_vm
from ttmfs.sync.resv import Usage
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

BASE = 1 << 30
SMALL = 128 << 10
"""A job of so many bytes has no thread, during which a mocked clock would run on."""


async def run(
    vdev: VirtualDevice, vm: Vm, kind: str, address: int, length: int, value: int = 0, data: bytes = b"", **more: str
) -> VmJob:
    """One exec, to its end."""
    operation = Operation(kind, value=value, data=data)
    job = await exec_vm(vdev, vm, operation, address, length, OperationContext(), **more)  # type: ignore[arg-type]
    await job.fence.wait()
    return job


async def read(vdev: VirtualDevice, vm: Vm, address: int, length: int) -> bytes:
    """What a VM's job reads there."""
    result = (await run(vdev, vm, "read", address, length)).operation.result
    assert isinstance(result, bytearray)
    return bytes(result)


async def local(vdev: VirtualDevice, vm: Vm, name: str, size: int, place: str = "vram gtt") -> BufferObject:
    """A local BO of zeros with that placement, not placed yet."""
    bo = vdev.create_bo(name)
    bo.placement = vdev.parse_placement(place.split())
    bo.placed = False
    await vdev.vms.adopt(bo, vm)
    lifetime.set_size(bo, size)
    return bo


def lru(vdev: VirtualDevice, region: str = "vram") -> list[str]:
    return [item.bo.name for item in vdev.ttm.managers[region].lru]


async def test_a_mapping_replaces_what_was_bound_there() -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = await make(vdev, "x", 16 * PAGE), await make(vdev, "y", 16 * PAGE)
        assert vm.bind(0, x, 0, 16 * PAGE, read_only=False) == 0
        assert vm.bind(4 * PAGE, y, PAGE, 2 * PAGE, read_only=True) == 2
        assert [(m.first, m.end, m.bo, m.page) for m in vm] == [(0, 4, x, 0), (4, 6, y, 1), (6, 16, x, 6)]
        assert vm.unbind(3 * PAGE, 4 * PAGE) == 4
        assert [(m.first, m.end, m.page) for m in vm] == [(0, 3, 0), (7, 16, 7)]
        assert list(vm.bos) == [x]
        assert vm.unbind(0, MAX_ADDRESS) == 12
        assert not len(vm)
        assert not vm.bos


async def test_what_is_refused_changes_nothing() -> None:
    async with device() as vdev:
        vm, other = vdev.vms.make("a"), vdev.vms.make("b")
        x = await make(vdev, "x", 4 * PAGE)
        for code, address, offset, length in (
            (errno.EINVAL, 1, 0, PAGE),
            (errno.EINVAL, 0, 1, PAGE),
            (errno.EINVAL, 0, 0, PAGE + 1),
            (errno.EINVAL, 0, 0, 0),
            (errno.EINVAL, 0, 0, 5 * PAGE),
            (errno.EINVAL, 0, 4 * PAGE, PAGE),
            (errno.EFAULT, MAX_ADDRESS, 0, PAGE),
        ):
            with fails(code):
                vm.bind(address, x, offset, length, read_only=False)
        with fails(errno.EEXIST):
            vdev.vms.make("a")
        with fails(errno.EBUSY):
            await vdev.vms.adopt(x, vm)  # it has content
        y = await local(vdev, vm, "y", PAGE)
        with fails(errno.EBUSY):
            await vdev.vms.adopt(y, other)
        with fails(errno.EINVAL):
            vdev.vms.may_bind(y, other)
        with fails(errno.EBUSY):
            vdev.vms.remove("a")
        assert not len(vm)


async def test_an_exec_works_on_what_is_bound(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = await make(vdev, "x", MIB), await make(vdev, "y", MIB, place="vram")
        before = bytes(await access.read(x, 0, MIB))
        vm.bind(BASE, x, 0, MIB, read_only=False)
        vm.bind(BASE + MIB, y, MIB // 2, MIB // 2, read_only=False)
        await run(vdev, vm, "fill", BASE + MIB - 10, 20, value=7)
        assert bytes(await access.read(x, 0, MIB)) == before[:-10] + b"\7" * 10
        assert bytes(await access.read(y, MIB // 2, 10)) == b"\7" * 10
        await run(vdev, vm, "write", BASE + MIB - 2, 4, data=b"abcd", queue="render")
        assert await read(vdev, vm, BASE + MIB - 3, 6) == b"\7abcd\7"
        assert (await run(vdev, vm, "atomic_add", BASE + 8, 8, value=1)).operation.result == int.from_bytes(
            before[8:16], "little"
        )
        content = bytes(await access.read(x, 0, MIB)) + bytes(await access.read(y, MIB // 2, MIB // 2))
        assert (await run(vdev, vm, "checksum", BASE, MIB + MIB // 2)).operation.result == zlib.crc32(content)


async def test_what_is_not_bound_faults(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x = await make(vdev, "x", 2 * PAGE + 10)
        vm.bind(PAGE, x, 0, 3 * PAGE, read_only=True)
        for code, kind, address, length in (
            (errno.EFAULT, "read", 0, 2 * PAGE),
            (errno.EFAULT, "read", PAGE, 3 * PAGE),  # its last page ends in the middle
            (errno.EFAULT, "read", 4 * PAGE, 1),
            (errno.EPERM, "fill", PAGE, 1),
        ):
            with fails(code):
                await run(vdev, vm, kind, address, length)
        await run(vdev, vm, "read", PAGE, 2 * PAGE + 10)
        vdev.destroy_bo(x)
        with fails(errno.EFAULT):
            await run(vdev, vm, "read", PAGE, 1)
        vdev.vms.remove("a")
        with fails(errno.ENOENT):
            await run(vdev, vm, "read", PAGE, 1)


async def test_unbinding_beneath_a_job_waits_for_nothing_and_takes_nothing_from_it(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x = await local(vdev, vm, "x", SMALL, "vram")
        vm.bind(BASE, x, 0, SMALL, read_only=False)
        hold = await submit_job(vdev, Job("busy", srcs=(x,), seconds=60), OperationContext())
        job = await exec_vm(vdev, vm, Operation("fill", value=9), BASE, SMALL, OperationContext())
        read = await exec_vm(vdev, vm, Operation("checksum"), BASE, SMALL, OperationContext())
        began = trio.current_time()
        vm.unbind(BASE, SMALL)
        vdev.destroy_bo(x)
        vdev.vms.remove("a")
        assert trio.current_time() == began
        assert vdev.ttm.managers["vram"].usage == SMALL
        await read.fence.wait()
        assert trio.current_time() == began + 60
        assert read.operation.result == zlib.crc32(b"\11" * SMALL)
        assert not job.fence.error
        assert not hold.fence.error
        await trio.sleep(0.1)
        assert vdev.ttm.managers["vram"].usage == 0


async def test_what_was_evicted_comes_back_at_the_next_exec(autojump_clock: MockClock) -> None:
    async with device(vram=4 * MIB) as vdev:
        vm = vdev.vms.make("a")
        bos = [await local(vdev, vm, name, MIB, "vram") for name in "xyz"]
        for number, bo in enumerate(bos):
            vm.bind(BASE + number * MIB, bo, 0, MIB, read_only=False)
        assert (await run(vdev, vm, "fill", BASE, 3 * MIB, value=1)).rebound == 0, "they were nowhere before"
        assert (await run(vdev, vm, "fill", BASE, 1, value=2)).rebound == 0
        await calls.evict_region(vdev, "vram", None, OperationContext())
        assert not lru(vdev)
        job = await run(vdev, vm, "fill", BASE + MIB, 1, value=3)
        assert job.rebound == 3
        assert {bo.mem_type for bo in bos} == {"vram"}
        for bo, first in zip(bos, (2, 3, 1), strict=True):
            assert bytes(await access.read(bo, 0, MIB)) == bytes([first]) + b"\1" * (MIB - 1)


async def test_what_has_no_room_and_is_not_touched_stays_away(autojump_clock: MockClock) -> None:
    async with device(vram=2 * MIB) as vdev:
        vm = vdev.vms.make("a")
        bos = [await local(vdev, vm, name, MIB, "vram") for name in "xy"]
        for number, bo in enumerate(bos):
            vm.bind(BASE + number * MIB, bo, 0, MIB, read_only=False)
        await run(vdev, vm, "fill", BASE, 2 * MIB, value=1)
        await calls.evict_region(vdev, "vram", None, OperationContext())
        big = await make(vdev, "big", MIB, place="vram")
        big.pin()
        assert (await run(vdev, vm, "fill", BASE, 1, value=2)).rebound == 1
        assert [bo.mem_type for bo in bos] == ["vram", "gtt"]
        assert vm.evicted() == [bos[1]]
        big.unpin()


@pytest.mark.parametrize("allow", [False, True])
async def test_only_with_allow_res_evict_local_bos_go_for_each_other(allow: bool, autojump_clock: MockClock) -> None:
    async with device(vram=2 * MIB) as vdev:
        vm = vdev.vms.make("a")
        vm.allow_res_evict = allow
        bos = [await local(vdev, vm, name, MIB, "vram") for name in "xyz"]
        for number, bo in enumerate(bos):
            vm.bind(BASE + number * MIB, bo, 0, MIB, read_only=False)
        await run(vdev, vm, "fill", BASE, 2 * MIB, value=1)
        if not allow:
            with fails(errno.ENOMEM):
                await run(vdev, vm, "fill", BASE + 2 * MIB, MIB, value=2)
            assert lru(vdev) == ["x", "y"]
            return
        await run(vdev, vm, "fill", BASE + 2 * MIB, MIB, value=2)
        assert bos[2].mem_type == "vram"
        assert sum(bo.mem_type == "vram" for bo in bos) == 2
        with fails(errno.ENOMEM):
            await run(vdev, vm, "fill", BASE, 3 * MIB, value=3)  # what is touched never goes for it
        for bo, byte in zip(bos, b"\1\1\2", strict=True):
            assert bytes(await access.read(bo, 0, MIB)) == bytes([byte]) * MIB


async def test_local_bos_move_through_the_lru_as_one_and_keep_their_order(autojump_clock: MockClock) -> None:
    async with device(vram=8 * MIB) as vdev:
        vm = vdev.vms.make("a")
        bos = [await local(vdev, vm, name, MIB, "vram") for name in "xyz"]
        for number, bo in enumerate(bos):
            vm.bind(BASE + number * MIB, bo, 0, MIB, read_only=False)
        await run(vdev, vm, "fill", BASE, 3 * MIB, value=1)
        other = await make(vdev, "other", MIB, place="vram")
        assert lru(vdev) == ["x", "y", "z", "other"]
        await run(vdev, vm, "fill", BASE + MIB, 1)
        assert lru(vdev) == ["other", "x", "y", "z"]
        await move(vdev, other, "vram")
        assert lru(vdev)[-1] == "other"
        await run(vdev, vm, "fill", BASE, 1)
        assert lru(vdev) == ["other", "x", "y", "z"]


async def test_a_job_over_two_bos_of_one_reservation_leaves_one_fence(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = [await local(vdev, vm, name, MIB, "vram") for name in "xy"]
        await access.write(x, 0, b"a" * MIB)
        for _ in range(20):
            await submit_job(vdev, Job("copy", dst=y, srcs=(x,)), OperationContext())
        await idle(x)
        assert bytes(await access.read(y, 0, MIB)) == b"a" * MIB


async def test_what_a_bo_has_put_off_is_done_when_another_one_ends_the_reservation(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = [await local(vdev, vm, name, MIB, "vram") for name in "xy"]
        await access.write(x, 0, b"a" * MIB)
        await access.write(y, 0, b"b" * MIB)
        assert vdev.ttm.managers["vram"].usage == 2 * MIB
        await y.resv.lock()
        lifetime.set_size(x, PAGE)
        assert vdev.ttm.managers["vram"].usage == 2 * MIB
        y.unreserve()
        assert vdev.ttm.managers["vram"].usage == MIB + PAGE
        assert not vm.resv.late


async def test_a_local_bo_that_is_destroyed_leaves_the_others_alone(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = [await local(vdev, vm, name, MIB, "vram") for name in "xy"]
        vm.bind(BASE, x, 0, MIB, read_only=False)
        vm.bind(BASE + MIB, y, 0, MIB, read_only=False)
        await run(vdev, vm, "fill", BASE, 2 * MIB, value=5)
        busy = await submit_job(vdev, Job("busy", srcs=(x,), seconds=10), OperationContext())
        vdev.destroy_bo(x)
        assert x.resv is not vm.resv
        assert list(vm.locals) == [y]
        assert bytes(await access.read(y, 0, MIB)) == b"\5" * MIB
        await busy.fence.wait()
        await vm.resv.wait(Usage.BOOKKEEP)
        assert vdev.ttm.managers["vram"].usage == MIB


async def test_a_local_bo_that_is_destroyed_while_its_reservation_is_held_gets_its_own_afterwards(
    autojump_clock: MockClock,
) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = [await local(vdev, vm, name, MIB, "vram") for name in "xy"]
        await access.write(x, 0, b"a" * MIB)
        busy = await submit_job(vdev, Job("busy", srcs=(x,), seconds=10), OperationContext())
        await y.resv.lock()
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with fails(errno.ENOENT):
                    await move(vdev, x, "gtt")

            nursery.start_soon(waits)
            await trio.sleep(1)
            vdev.destroy_bo(x)
            assert x.resv is vm.resv, "somebody waits for it"
            y.unreserve()
        assert x.resv is not vm.resv
        await busy.fence.wait()
        await submit_job(vdev, Job("busy", srcs=(y,), seconds=100), OperationContext())
        await trio.sleep(1)
        assert vdev.ttm.managers["vram"].usage == MIB, "y's: nothing of x waits for what is not its own"
        assert not vm.resv.late
        await vm.resv.wait(Usage.BOOKKEEP)


@pytest.mark.parametrize("turns", range(4))
async def test_a_local_bo_that_is_destroyed_between_dying_and_waiting_is_not_locked_for_another(turns: int) -> None:
    """Who has to die waits for the VM's reservation anew, which is not the BO's any more by then."""
    async with device() as vdev, trio.open_nursery() as nursery:
        vm = vdev.vms.make("a")
        x, z = [await local(vdev, vm, name, MIB, "vram") for name in "xz"]
        y = vdev.create_bo("y")
        older = AcquireContext()

        async def younger() -> None:
            with fails(errno.ENOENT):
                async with reserved_all([y, x]):
                    x.check_alive()

        async def older_one() -> None:
            await z.resv.lock(older)
            z.unreserve()

        assert z.resv.trylock()
        nursery.start_soon(younger)
        await trio.testing.wait_all_tasks_blocked()
        vdev.destroy_bo(x)
        nursery.start_soon(older_one)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        z.unreserve()
        await trio.testing.wait_all_tasks_blocked()
        assert not any(bo.resv.locked for bo in (x, y, z))


async def test_a_bo_becomes_local_to_one_vm_only_however_long_that_waits() -> None:
    async with device() as vdev, trio.open_nursery() as nursery:
        a, b = vdev.vms.make("a"), vdev.vms.make("b")
        bo = vdev.create_bo("x")

        async def too_late() -> None:
            with fails(errno.EBUSY):
                await vdev.vms.adopt(bo, a)

        assert a.resv.trylock()
        nursery.start_soon(too_late)
        await trio.testing.wait_all_tasks_blocked()
        await vdev.vms.adopt(bo, b)
        a.resv.unlock()
        await trio.testing.wait_all_tasks_blocked()
        assert (list(a.locals), list(b.locals)) == ([], [bo])
        assert vdev.selfcheck() == []


async def test_work_is_cut_into_what_a_thread_may_be_given(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_exec, "_AT_ONCE", 3 * PAGE + 100)
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x, y = [await make(vdev, name, SMALL) for name in "xy"]
        for number in range(16):
            vm.bind(BASE + number * 2 * PAGE, (x, y)[number % 2], number * 7 % 16 * 2 * PAGE, 2 * PAGE, read_only=False)
        data = bytes(number * 7 % 251 for number in range(30 * PAGE + 77))
        await run(vdev, vm, "write", BASE + 33, len(data), data=data)
        assert await read(vdev, vm, BASE + 33, len(data)) == data
        assert (await run(vdev, vm, "checksum", BASE + 33, len(data))).operation.result == zlib.crc32(data)


async def test_an_exec_touches_so_many_mappings_and_a_full_vm_can_be_emptied() -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        bo = await make(vdev, "x", 4 * PAGE)
        vm.bind(0, bo, 0, 4 * PAGE, read_only=False)
        for number in range(2, MAX_MAPPINGS - 1):
            vm.bind(number * 2 * PAGE, bo, number % 2 * PAGE, PAGE, read_only=False)
        vm.bind(PAGE, bo, 0, PAGE, read_only=False)
        assert len(vm) == MAX_MAPPINGS
        with fails(errno.ENOSPC):
            vm.bind(1 << 40, bo, 0, PAGE, read_only=False)
        assert vm.unbind(4 * PAGE, PAGE) == 1
        assert vm.unbind(0, MAX_ADDRESS) == MAX_MAPPINGS
        for number in range(MAX_PIECES + 1):
            vm.bind(number * PAGE, bo, number % 2 * PAGE, PAGE, read_only=False)
        with fails(errno.E2BIG):
            await run(vdev, vm, "fill", 0, (MAX_PIECES + 1) * PAGE, value=1)
        assert len(vm.pieces(0, MAX_PIECES * PAGE, write=True)) == MAX_PIECES

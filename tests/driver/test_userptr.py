"""Userptr: memory of other files in a VM: whose bytes they are, what a cut costs, how many files are open."""

# ruff: noqa: ASYNC240 - the files are in memory
import errno
import os
import threading
import zlib
from pathlib import Path

import pytest
import trio

from tests.core.harness import MIB, PAGE, device, fails, make, outcome, pattern
from ttmfs.driver import userptr
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.operation import Operation
from ttmfs.driver.submit import submit_job
from ttmfs.driver.userptr import Asked
from ttmfs.driver.vm import MAX_USERPTRS, Vm
from ttmfs.driver.vm_exec import VmJob, exec_vm
from ttmfs.errors import TtmError
from ttmfs.memory.as_caller import Caller
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release

BASE = 1 << 30
ME = Caller(os.geteuid(), os.getegid())


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.write_bytes(pattern("theirs", 16 * PAGE))
    return path


async def bind(
    vdev: VirtualDevice, vm: Vm, path: Path, address: int = BASE, offset: int = 0, length: int = 16 * PAGE, **more: bool
) -> BufferObject:
    """As the command does."""
    asked = Asked(ME, str(path), offset, length, read_only=more.get("read_only", False))
    bo, read_only = await vdev.userptrs.make(vdev.funcs, asked)
    vm.bind(address, bo, 0, length, read_only=read_only)
    return bo


async def run(vdev: VirtualDevice, vm: Vm, kind: str, address: int, length: int, **what: object) -> VmJob:
    """One exec, to its end."""
    operation = Operation(kind, **what)  # type: ignore[arg-type]
    job = await exec_vm(vdev, vm, operation, address, length, OperationContext())
    await job.fence.wait()
    return job


def found(job: VmJob) -> bytes:
    """What a read has found."""
    assert isinstance(job.operation.result, bytearray)
    return bytes(job.operation.result)


async def test_a_job_works_on_the_bytes_of_the_file(theirs: Path) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        x = await make(vdev, "x", 4 * PAGE)
        vm.bind(BASE, x, 0, 4 * PAGE, read_only=False)
        await bind(vdev, vm, theirs, BASE + 4 * PAGE, 2 * PAGE, 8 * PAGE)
        before = theirs.read_bytes()
        job = await run(vdev, vm, "read", BASE + 4 * PAGE - 10, 2 * PAGE)
        assert found(job) == pattern("x", 4 * PAGE)[-10:] + before[2 * PAGE : 4 * PAGE - 10]
        await run(vdev, vm, "fill", BASE + 4 * PAGE - 1, PAGE + 2, value=9)
        assert theirs.read_bytes() == before[: 2 * PAGE] + b"\x09" * (PAGE + 1) + before[3 * PAGE + 1 :]
        theirs.write_bytes(b"new!" * 4 * PAGE)
        job = await run(vdev, vm, "checksum", BASE + 4 * PAGE, 8 * PAGE)
        assert job.operation.result == zlib.crc32(b"new!" * 2 * PAGE)
        assert vdev.userptrs.stats() == {"userptrs": 1, "pinned_files": 1}
        assert vm.unbind(BASE + 5 * PAGE, 6 * PAGE) == 6
        job = await run(vdev, vm, "read", BASE + 11 * PAGE, 4)
        assert found(job) == b"new!", "what is left of it is where it was"
        vm.unbind(BASE, 64 * PAGE)
        assert vdev.userptrs.stats() == {"userptrs": 0, "pinned_files": 0}


async def test_the_file_lives_until_the_fence(theirs: Path) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        await bind(vdev, vm, theirs)
        x = await make(vdev, "x", PAGE)
        await submit_job(vdev, Job("busy", srcs=(x,), seconds=0.2), OperationContext())
        job = await exec_vm(vdev, vm, Operation("fill", value=3), BASE, PAGE, OperationContext())
        theirs.unlink()
        kept = os.open(f"/proc/self/fd/{_descriptor_of(theirs)}", os.O_RDONLY)
        vdev.vms.remove("a")
        assert vdev.userptrs.stats()["userptrs"] == 1
        assert not job.fence.signaled
        assert await job.fence.wait(10)
        assert not job.fence.error
        assert os.pread(kept, PAGE + 1, 0) == b"\3" * PAGE + pattern("theirs", PAGE + 1)[PAGE:]
        os.close(kept)
        with trio.fail_after(10):
            while vdev.userptrs.stats()["userptrs"]:
                await trio.sleep(0.001)


async def test_no_file_stays_open_when_the_device_is_gone(theirs: Path) -> None:
    async with device() as vdev:
        await bind(vdev, vdev.vms.make("a"), theirs)
        assert _descriptor_of(theirs) > 0
    with pytest.raises(StopIteration):
        _descriptor_of(theirs)


def _descriptor_of(path: Path) -> int:
    return next(
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}").startswith(str(path))
    )


async def test_a_cut_is_eio_until_the_file_is_long_enough_again(theirs: Path) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        bo = await bind(vdev, vm, theirs, length=8 * PAGE)
        x = await make(vdev, "x", PAGE)
        vm.bind(0, x, 0, PAGE, read_only=False)
        assert vm.state(bo) == "new"
        await run(vdev, vm, "checksum", BASE, PAGE)
        assert vm.state(bo) == "usable"
        os.truncate(theirs, 8 * PAGE)  # behind what is bound
        assert (await run(vdev, vm, "checksum", BASE, PAGE)).rebound == 1
        os.truncate(theirs, 8 * PAGE - 1)
        for kind in ("checksum", "fill"):
            with fails(errno.EIO):
                await run(vdev, vm, kind, BASE, PAGE)
        assert vm.state(bo) == "evicted"
        await run(vdev, vm, "checksum", 0, PAGE)
        os.truncate(theirs, 8 * PAGE)
        job = await run(vdev, vm, "read", BASE + 8 * PAGE - 2, 2)
        assert (job.rebound, found(job)) == (1, pattern("theirs", 8 * PAGE)[-2:-1] + b"\0")
        assert (await run(vdev, vm, "read", BASE, 1)).rebound == 0
        assert vm.rebound == 2


async def test_a_file_that_is_cut_all_the_time_harms_nobody(theirs: Path) -> None:
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            os.truncate(theirs, PAGE)
            os.truncate(theirs, 16 * PAGE)

    async with device() as vdev:
        vm = vdev.vms.make("a")
        await bind(vdev, vm, theirs)
        owner = threading.Thread(target=cut)
        owner.start()
        try:
            for number in range(60):
                operation = Operation(("fill", "checksum")[number % 2], value=1)
                job = None

                async def work(operation: Operation = operation) -> None:
                    nonlocal job
                    job = await exec_vm(vdev, vm, operation, BASE, 16 * PAGE, OperationContext())

                assert await outcome(work) in (0, errno.EIO)
                if job is not None:
                    assert await job.fence.wait(10)
                    assert job.fence.error in (0, errno.EIO)
        finally:
            stop.set()
            owner.join()


async def test_what_is_only_readable_is_bound_read_only(theirs: Path) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        await bind(vdev, vm, theirs, read_only=True)
        await run(vdev, vm, "checksum", BASE, PAGE)
        with fails(errno.EPERM):
            await run(vdev, vm, "fill", BASE, PAGE)


async def test_what_is_refused_leaves_nothing(theirs: Path) -> None:
    (theirs.parent / "empty").touch()
    (theirs.parent / "link").symlink_to(theirs)
    theirs.write_bytes(b"x" * (PAGE + 1))
    async with device() as vdev:
        vm = vdev.vms.make("a")
        for name, offset, length, code in (
            ("theirs", 0, 3 * PAGE, errno.EINVAL),
            ("theirs", 2 * PAGE, PAGE, errno.EINVAL),
            ("empty", 0, PAGE, errno.EINVAL),
            ("link", 0, PAGE, errno.ELOOP),
            ("none", 0, PAGE, errno.ENOENT),
            ("", 0, PAGE, errno.EINVAL),
        ):
            with fails(code):
                await bind(vdev, vm, theirs.parent / name, BASE, offset, length)
        assert vdev.userptrs.stats() == {"userptrs": 0, "pinned_files": 0}
        assert not vm.bos
        bo = await bind(vdev, vm, theirs, BASE, PAGE, PAGE)
        assert bo.size == 1
        assert found(await run(vdev, vm, "read", BASE, 1)) == b"x"
        with fails(errno.EFAULT):
            await run(vdev, vm, "read", BASE, 2)  # the file ends before the page does


async def test_only_so_many_files_of_a_user_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userptr, "MAX_PINNED_OF_A_USER", 3)
    async with device() as vdev:
        vdev.ttm.accounts.exempt = frozenset()
        vm = vdev.vms.make("a")
        paths = [tmp_path / str(number) for number in range(5)]
        for number, path in enumerate(paths):
            path.write_bytes(bytes([number]) * PAGE)
            await bind(vdev, vm, path, BASE + number * PAGE, 0, PAGE)
        assert vdev.userptrs.stats() == {"userptrs": 5, "pinned_files": 3}
        job = await run(vdev, vm, "read", BASE, PAGE)
        assert (found(job), job.rebound) == (bytes(PAGE), 0), "no job could use it before"
        await run(vdev, vm, "read", BASE + PAGE, PAGE)
        await run(vdev, vm, "read", BASE + 4 * PAGE, PAGE)
        await run(vdev, vm, "read", BASE + 2 * PAGE, PAGE)
        job = await run(vdev, vm, "read", BASE, PAGE)
        assert job.rebound == 1, "it was let go, and opened again"
        assert vdev.userptrs.stats()["pinned_files"] == 3
        with fails(errno.EBUSY):
            await run(vdev, vm, "checksum", BASE, 5 * PAGE)  # all five would be in use
        await run(vdev, vm, "checksum", BASE + 2 * PAGE, 3 * PAGE)
        taken = paths[1].rename(tmp_path / "taken")
        with fails(errno.EFAULT):
            await run(vdev, vm, "read", BASE + PAGE, 1)
        paths[1].write_bytes(b"another" * PAGE)
        with fails(errno.EFAULT):
            await run(vdev, vm, "read", BASE + PAGE, 1)
        taken.rename(paths[1])
        assert found(await run(vdev, vm, "read", BASE + PAGE, 1)) == b"\1"
        assert vdev.userptrs.stats()["pinned_files"] <= 3
        vm.clear()
        assert vdev.userptrs.stats() == {"userptrs": 0, "pinned_files": 0}


async def test_a_vm_has_only_so_many(theirs: Path) -> None:
    async with device() as vdev:
        vm = vdev.vms.make("a")
        vm.userptrs += MAX_USERPTRS
        with fails(errno.ENOSPC):
            vm.check_room(userptrs=1)
        vm.check_room()
        vm.userptrs -= MAX_USERPTRS


async def test_a_file_that_does_not_answer_is_eio_in_time(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    async with device(fault_timeout=0.4) as vdev:
        vm = vdev.vms.make("a")
        await bind(vdev, vm, theirs)
        monkeypatch.setattr(ForeignFile, "look", lambda _self: released.wait(20))
        try:
            with fails(errno.EIO):
                await run(vdev, vm, "checksum", BASE, PAGE)
        finally:
            released.set()
        monkeypatch.undo()
        assert (await run(vdev, vm, "checksum", BASE, PAGE)).rebound == 0


async def test_files_that_take_their_time_hold_nobody_else_and_have_one_time_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = threading.Event()
    async with device(fault_timeout=0.5) as vdev:
        vm = vdev.vms.make("a")
        x = await make(vdev, "x", PAGE)
        vm.bind(BASE, x, 0, PAGE, read_only=False)
        for number in range(1, 9):
            path = tmp_path / str(number)
            path.write_bytes(bytes(PAGE))
            await bind(vdev, vm, path, BASE + number * PAGE, length=PAGE)
        real = ForeignFile.look
        looks: list[str] = []

        def look(file: ForeignFile) -> os.stat_result:
            looks.append(file.path)
            hurried.wait(0.3)
            return real(file)

        monkeypatch.setattr(ForeignFile, "look", look)
        codes: list[int] = []

        async def all_of_it() -> None:
            codes.append(await outcome(lambda: run(vdev, vm, "checksum", BASE, 9 * PAGE)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(all_of_it)
            with trio.fail_after(10):
                while not looks:
                    await trio.sleep(0.001)
            assert not x.resv.locked
        assert codes == [errno.EIO]
        hurried.set()
        await run(vdev, vm, "checksum", BASE, 9 * PAGE)


async def test_a_userptr_that_is_never_bound_is_found(theirs: Path) -> None:
    async with device() as vdev:
        asked = Asked(ME, str(theirs), 0, MIB // 16, read_only=False)
        bo, _read_only = await vdev.userptrs.make(vdev.funcs, asked)
        assert any("bound nowhere" in sentence for sentence in vdev.selfcheck())
        release(bo)
        assert not vdev.selfcheck()


async def test_a_failure_that_meets_the_look_at_a_file_is_the_execs(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(MIB))
    async with device() as vdev:
        vm = vdev.vms.make("a")
        await bind(vdev, vm, path)
        interrupt = vdev.ttm.inject["interrupt"]
        interrupt.probability, interrupt.times = 100, 1
        with pytest.raises(TtmError, match="interrupt"):
            await run(vdev, vm, "checksum", BASE, 4096)
        await run(vdev, vm, "checksum", BASE, 4096)

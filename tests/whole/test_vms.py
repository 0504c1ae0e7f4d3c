"""VMs of a whole device, whose BOs are moved, evicted and destroyed beneath their jobs, against a simple model.

The model: a page of a VM means a page of a BO or nothing; jobs over the same BO work in the order in which they were
submitted, on what was bound then; one that failed has changed nothing. One task submits and binds, others move BOs all
the while.
"""

import errno
import zlib
from random import Random

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.core.harness import PAGE, device
from tests.turns import run_seeded
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.operation import Operation
from ttmfs.driver.vm import Vm
from ttmfs.driver.vm_exec import VmJob, exec_vm
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

PAGES = 24
"""Of each BO."""
MOST = 24
"""BOs at a time: all of them fit into memory."""
ADDRESSES = 64
"""Pages of a VM that are used."""
PLACES = ("vram", "vram gtt", "gtt", "vram:topdown gtt:fallback")
KINDS = ("fill", "write", "read", "atomic_add", "checksum")
QUEUES = ("default", "render", "copy")
REFUSED = {errno.ENOMEM, errno.ENOSPC, errno.EBUSY, errno.ENOENT}
"""What may happen to a move or a job in such a storm; ENOENT: the BO was destroyed meanwhile."""

Page = tuple[BufferObject, int, bool]
Piece = tuple[BufferObject, int, int]


class World:
    """One device with VMs, and what its bytes must be."""

    def __init__(self, vdev: VirtualDevice, rng: Random) -> None:
        self.vdev = vdev
        self.rng = rng
        self.memory: dict[BufferObject, bytearray] = {}
        """Also of BOs that are destroyed, until the jobs that use them are done."""
        self.live: dict[BufferObject, None] = {}
        self.tables: dict[Vm, dict[int, Page]] = {vdev.vms.make(f"vm{number}"): {} for number in range(2)}
        self.opened: list[BufferObject] = []
        self.jobs: list[tuple[VmJob, list[Piece]]] = []
        self.made = self.execs = 0

    async def make(self) -> None:
        """One more BO, local to a VM or not."""
        self.made += 1
        bo = self.vdev.create_bo(f"bo{self.made}")
        bo.placement = self.vdev.parse_placement(self.rng.choice(PLACES).split())
        bo.placed = False
        if self.rng.random() < 0.6:
            await self.vdev.vms.adopt(bo, self.rng.choice(list(self.tables)))
        lifetime.set_size(bo, PAGES * PAGE)
        self.memory[bo] = bytearray(PAGES * PAGE)
        self.live[bo] = None

    def bind(self) -> None:
        rng = self.rng
        vm, table = rng.choice(list(self.tables.items()))
        home = self.vdev.vms.home
        bo = rng.choice([bo for bo in self.live if home(bo) in (None, vm)] or [None])
        first, count = rng.randrange(ADDRESSES), rng.randrange(1, PAGES + 1)
        if bo is None or rng.random() < 0.2:
            vm.unbind(first * PAGE, count * PAGE)
            for page in range(first, first + count):
                table.pop(page, None)
            return
        page, read_only = rng.randrange(PAGES - count + 1), rng.random() < 0.2
        vm.bind(first * PAGE, bo, page * PAGE, count * PAGE, read_only=read_only)
        table.update({first + index: (bo, page + index, read_only) for index in range(count)})

    def _expected(self, table: dict[int, Page], address: int, length: int, *, writes: bool) -> int | list[Piece]:
        """Page by page what a job touches, or the errno that it gets."""
        pieces: list[Piece] = []
        at = address
        while at < address + length:
            size = min(PAGE - at % PAGE, address + length - at)
            found = table.get(at // PAGE)
            if found is None:
                return errno.EFAULT
            if writes and found[2]:
                return errno.EPERM
            pieces.append((found[0], found[1] * PAGE + at % PAGE, size))
            at += size
        return pieces

    async def submit(self) -> None:
        rng = self.rng
        vm, table = rng.choice(list(self.tables.items()))
        kind = rng.choice(KINDS)
        if table and rng.random() < 0.8:
            address = rng.choice(list(table)) * PAGE + rng.choice((0, 8 * rng.randrange(PAGE // 8)))
        else:
            address = 8 * rng.randrange(ADDRESSES * PAGE // 8)
        length = 8 if kind == "atomic_add" else rng.randrange(1, rng.choice((PAGE, 8 * PAGE)))
        data = rng.randbytes(length) if kind == "write" else b""
        operation = Operation(kind, value=rng.randrange(256), data=data)
        expected = self._expected(table, address, length, writes=operation.writes)
        vm.allow_res_evict = rng.random() < 0.5
        try:
            job = await exec_vm(
                self.vdev, vm, operation, address, length, OperationContext(), queue=rng.choice(QUEUES)
            )
        except TtmError as error:
            if error.errno not in ({expected} if isinstance(expected, int) else REFUSED):
                raise
            return
        assert not isinstance(expected, int), f"{kind} at {address:#x}+{length}: must be {errno.errorcode[expected]}"
        self.execs += 1
        self.jobs.append((job, expected))
        # Nothing has run since it was submitted.
        lru = [item.bo for item in self.vdev.ttm.managers["vram"].lru]
        while lru and lru[-1] in vm.bos and lru[-1] not in vm.locals:
            del lru[-1]  # others that the job has used come after them
        mine = [bo for bo in lru if bo in vm.locals]
        if any(bo in vm.locals for bo, _, _ in expected) and len({bo.priority for bo in lru}) == 1:
            assert lru[len(lru) - len(mine) :] == mine, "the local BOs are no bulk at the end of the LRU"

    async def move_for_ever(self) -> None:
        """What moves BOs, in a task of its own: it changes no byte."""
        rng, vdev = self.rng, self.vdev
        while True:
            await trio.sleep(rng.randrange(1, 40) / 1e4)
            bo = rng.choice(list(self.live))
            place = vdev.parse_placement(rng.choice(PLACES).split())
            try:
                match rng.randrange(5):
                    case 0:
                        await calls.evict_one(vdev, bo, OperationContext())
                    case 1:
                        await calls.swapout_one(vdev, bo, OperationContext())
                    case 2:
                        await calls.validate_bo(vdev, bo, place, OperationContext())
                    case 3:
                        await self._read(bo)
                    case 4:
                        others = [bo, *rng.sample(list(self.live), 2)]
                        await calls.validate_many(vdev, others, place, OperationContext())
            except TtmError as error:
                if error.errno not in REFUSED:
                    raise

    async def _read(self, bo: BufferObject) -> None:
        """A fault of a client, who has it open as long."""
        self.opened.append(bo)
        try:
            await access.read(bo, PAGE * self.rng.randrange(PAGES), PAGE)
        finally:
            self.opened.remove(bo)

    def destroy(self) -> None:
        """A BO goes, whatever its jobs do: what they find in it is right to their end."""
        bo = self.rng.choice(list(self.live))
        if bo in self.opened:
            return
        del self.live[bo]
        for table in self.tables.values():
            for page in [page for page, found in table.items() if found[0] is bo]:
                del table[page]
        self.vdev.destroy_bo(bo)

    async def step(self) -> None:
        """Something of all that."""
        rng = self.rng
        what = rng.random()
        if what < 0.55:
            await self.submit()
        elif what < 0.85:
            self.bind()
        elif what < 0.9 and len(self.live) < MOST:
            await self.make()
        elif what < 0.95 and len(self.live) > 4:
            self.destroy()
        elif what < 0.97:
            await self.settle()
        if rng.random() < 0.3:
            await trio.sleep(rng.randrange(50) / 1e4)

    async def settle(self) -> None:
        """Until all jobs are done; then every byte is what the model says, and a client writes some."""
        for job, pieces in self.jobs:
            assert await job.fence.wait(60)
            if not job.fence.error:
                self._apply(job.operation, pieces)
        self.jobs.clear()
        self.memory = {bo: self.memory[bo] for bo in self.live}
        for bo, expected in self.memory.items():
            # A fault evicts for a local BO no other of its VM: with vram and gtt alone there might be no room for it.
            bo.placement = self.vdev.parse_placement(["vram", "gtt", "system"])
            assert bytes(await access.read(bo, 0, bo.size)) == bytes(expected), f"{bo.name}: wrong bytes"
        bo, offset = self.rng.choice(list(self.live)), self.rng.randrange(PAGES * PAGE)
        data = self.rng.randbytes(self.rng.randrange(1, PAGES * PAGE - offset + 1))
        await access.write(bo, offset, data)
        for each in self.memory:
            each.placement = self.vdev.parse_placement(self.rng.choice(PLACES).split())
        self.memory[bo][offset : offset + len(data)] = data

    def _apply(self, operation: Operation, pieces: list[Piece]) -> None:
        """What a job does, said again in the plainest way; what it has found is checked."""
        before = b"".join(bytes(self.memory[bo][offset : offset + size]) for bo, offset, size in pieces)
        after = {
            "fill": bytes([operation.value]) * len(before),
            "write": operation.data,
            "atomic_add": ((int.from_bytes(before[:8], "little") + operation.value) % (1 << 64)).to_bytes(8, "little"),
        }.get(operation.kind, before)
        found = {
            "read": before,
            "checksum": zlib.crc32(before),
            "atomic_add": int.from_bytes(before[:8], "little"),
        }
        if operation.kind in found:
            assert operation.result == found[operation.kind], f"{operation.kind} has found other bytes"
        at = 0
        for bo, offset, size in pieces:
            self.memory[bo][offset : offset + size] = after[at : at + size]
            at += size


async def _world(seed: int, steps: int) -> None:
    rng = Random(seed)
    options = {"vram": 64 * PAGE, "gtt": 256 * PAGE, "memory": 1024 * PAGE, "swap": 1024 * PAGE}
    async with device(**options, compute_engines=rng.randrange(1, 4), copy_latency=rng.choice((0.0, 0.002))) as vdev:
        # All of vram is visible: the CPU copies for an engine that fails, and no content is lost.
        for name, percent in (("engine", 10), ("job", 10), ("work_alloc", 10), ("ghost", 10), ("fence_array", 10)):
            vdev.ttm.inject[name].probability = percent
            vdev.ttm.inject[name].times = -1
        world = World(vdev, rng)
        for _ in range(6):
            await world.make()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.move_for_ever)
            with trio.fail_after(600):
                for _ in range(steps):
                    await world.step()
                await world.settle()
            nursery.cancel_scope.cancel()
        for name in vdev.ttm.inject:
            vdev.ttm.inject[name].probability = 0
        for bo in list(world.live):
            await bo.resv.wait(Usage.BOOKKEEP)
            vdev.destroy_bo(bo)
        while vdev.ttm.num_ghosts or vdev.ttm.num_zombies:
            await trio.sleep(0.001)
        wrong = vdev.selfcheck()
        assert not wrong, wrong
        assert not vdev.ttm.managers["vram"].usage
        for vm in world.tables:
            assert not len(vm)
            assert not vm.resv.late
            vdev.vms.remove(vm.name)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32))
@example(1)
def test_jobs_of_vms_find_the_bytes_that_their_order_says(seed: int) -> None:
    run_seeded(_world, seed, 120)


@pytest.mark.stress
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_jobs_of_vms_for_long(seed: int) -> None:
    run_seeded(_world, seed, 500)

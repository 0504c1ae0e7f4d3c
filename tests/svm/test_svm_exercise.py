"""Everything at once, every word checked: clients, the device, ordinary BOs, eviction, advice, unmapping.

Each round gives every page to one actor only (the page is the unit of coherence), runs all actors at the same time and
then compares the whole space with a model, through clients and through the device. The seed is in the test's name and
in every message: run one with `-k seed-N`.
"""

import errno
import random
import zlib

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.svm.conftest import MakeDevice, SvmDevice
from tests.turns import seed_turns
from ttmfs.driver.calls import evict_region, validate_bo
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.svm import calls
from ttmfs.svm.audit import check_svm
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.placement import Place

MIB = 1 << 20
PAGE = 4096
VRAM = 8 * MIB
SIZE = VRAM * 9 // 8
CLIENTS = 3
ROUNDS = 12


class Exercise:
    def __init__(self, device: SvmDevice, seed: int) -> None:
        # Without, ranges stay large; with it they fall to pieces and mixtures arise.
        self.unmaps = seed % 2 == 0
        self.device = device
        self.rounds = 0
        self.random = random.Random(seed)
        self.space: AddressSpace = device.space(SIZE)
        self.model = np.zeros(SIZE // 8, "<u8")
        self.bos: list[BufferObject] = []
        for number in range(4):
            bo = device.vdev.create_bo(f"bo{number}")
            lifetime.set_size(bo, VRAM // 8)
            bo.placement = (Place("vram"), Place("system"))
            self.bos.append(bo)
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # Actors: each changes only the pages that it is given, and the model with them.

    async def client(self, pages: list[int]) -> None:
        cache, space = self.device.cache, self.space
        for page in pages:
            word = page * 512 + self.random.randrange(512)
            value = self.random.getrandbits(64)
            data = value.to_bytes(8, "little")
            if self.random.random() < 0.2:
                await cache.pwrite(space, word * 8, data)
            else:
                await cache.store(space, word * 8, data)
            self.model[word] = value
            self.count("stores")
            if self.random.random() < 0.3:
                await trio.lowlevel.checkpoint()
            got = int.from_bytes(await cache.load(space, word * 8, 8), "little")
            assert got == value, f"page {page}: a client does not see its own store"

    async def gpu(self, pages: list[int]) -> None:
        space = self.space
        for page in pages:
            kind = self.random.choice(("fill", "write", "atomic", "atomic"))
            self.count(kind)
            if kind == "fill":
                byte = self.random.randrange(256)
                await calls.gpu_fill(space, page * PAGE, PAGE, byte)
                self.model[page * 512 : page * 512 + 512] = int.from_bytes(bytes([byte]) * 8, "little")
            elif kind == "write":
                words = np.frombuffer(self.random.randbytes(256), "<u8")
                at = page * 512 + self.random.randrange(512 - len(words))
                await calls.gpu_write(space, at * 8, words.tobytes(), wait=self.random.random() < 0.5)
                self.model[at : at + len(words)] = words
            else:
                word = page * 512 + self.random.randrange(512)
                addend = self.random.getrandbits(64)
                result = await calls.gpu_atomic_add(space, word * 8, addend)
                assert result["value"] == int(self.model[word]), f"word {word}: the atomic saw something else"
                self.model[word] = (int(self.model[word]) + addend) % (1 << 64)

    async def unmapper(self, pages: list[int]) -> None:
        for page in pages[:2]:
            await calls.unmap(self.space, page * PAGE, PAGE)
            self.model[page * 512 : page * 512 + 512] = 0
            await calls.map_range(self.space, page * PAGE, PAGE, read_only=False)
            self.count("unmaps")

    async def mover(self) -> None:
        """Changes no byte: prefetches, advises, evicts."""
        space = self.space
        for _ in range(4):
            first = self.random.randrange(SIZE // PAGE)
            count = min(self.random.choice((1, 16, 100, 512, 1024)), SIZE // PAGE - first)
            act = self.random.choice(("vram", "system", "preferred", "madvise", "evict"))
            self.count(act)
            try:
                if act == "madvise":
                    if not self.unmaps:
                        first = count = 0
                    first, count = (first, count) if count else (0, SIZE // PAGE)
                    where = self.random.choice(("vram", "system", "fault"))
                    await calls.madvise(space, first * PAGE, count * PAGE, preferred=where)
                elif act == "evict":
                    await evict_region(self.device.vdev, "vram", 2 * MIB, OperationContext())
                else:
                    await calls.prefetch(space, first * PAGE, count * PAGE, act)
            except TtmError as error:
                assert error.errno == errno.ENODATA, error  # noqa: PT017
                self.count("prefetch failed")

    async def ordinary(self, bo: BufferObject) -> None:
        """An ordinary BO is used on the device, and holds what it should."""
        vdev = self.device.vdev
        for _ in range(3):
            try:
                await validate_bo(vdev, bo, (Place("vram"),), OperationContext())
            except TtmError as error:
                assert error.errno == errno.ENOMEM, error  # noqa: PT017
                self.count("bo found no room")
                continue
            byte = self.random.randrange(256)
            await submit_job(vdev, Job("fill", dst=bo, value=byte), OperationContext())
            check = await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())
            await check.fence.wait()
            assert check.value == zlib.crc32(bytes([byte]) * bo.size)
            self.count("bo jobs")

    # Rounds.

    async def round(self) -> None:
        self.rounds += 1
        self.count("looked" if self.space.looked else "not looked")
        await before_stores(self.space, self.space.drop_looked)
        pages = list(range(SIZE // PAGE))
        self.random.shuffle(pages)
        shares = [pages[number * 12 : number * 12 + 12] for number in range(CLIENTS + 3)]
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(self.client, shares[number])
            nursery.start_soon(self.gpu, shares[CLIENTS])
            nursery.start_soon(self.gpu, shares[CLIENTS + 1])
            if self.unmaps:
                nursery.start_soon(self.unmapper, shares[CLIENTS + 2])
            nursery.start_soon(self.mover)
            for bo in self.bos:
                nursery.start_soon(self.ordinary, bo)

    async def looks(self) -> bool:
        """Has a client looked at a hole in one of the rounds, or does it now?"""
        if "looked" not in self.counts:
            await calls.unmap(self.space, 0, PAGE)
            self.model[:512] = 0
            self.rounds += self.rounds % 2
            await self.check()
        return "looked" in self.counts or self.space.looked

    async def check(self) -> None:
        """Everything, in an order of its own: a part by clients, a part by the device."""
        wanted = self.model.tobytes()
        looks = self.rounds % 2 == 0
        if looks:
            # Nobody has it open for writing until the next round: its holes are looked at and stay such.
            await self.device.cache.writeback(self.space)
            after_stores(self.space)
        parts = list(range(0, SIZE, 256 << 10))
        self.random.shuffle(parts)
        for at in parts:
            length = min(256 << 10, SIZE - at)
            if looks or self.random.random() < 0.4:
                got = await self.device.cache.load(self.space, at, length)
                assert got == wanted[at : at + length], f"a client reads wrong bytes near {at:#x}"
            else:
                result = await calls.gpu_checksum(self.space, at, length)
                assert result["value"] == zlib.crc32(wanted[at : at + length]), f"the device, near {at:#x}"
        assert check_svm(self.device.svm) == []


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed-{seed}") for seed in range(6)])
async def test_clients_device_and_bos_at_nine_eighths_of_vram(
    svm_device: MakeDevice, autojump_clock: MockClock, seed: int
) -> None:
    # With a link that takes its time everything else happens meanwhile.
    latency = (0.0, 0.001, 0.01)[seed % 3]
    seed_turns(seed)
    async with svm_device(vram=VRAM, memory=96 * MIB, copy_latency=latency) as device:
        exercise = Exercise(device, seed)
        await calls.gpu_fill(exercise.space, 0, SIZE, 0)
        for number in range(ROUNDS):
            await exercise.round()
            try:
                await exercise.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {number}: {error}; {exercise.counts}") from error
        counters = device.svm.counters
        print(f"seed {seed}: {exercise.counts} {device.svm.stats()}")
        assert counters.evictions > 0, "no range was ever evicted"
        assert sum(bo.evictions for bo in exercise.bos) > 0, "no BO was ever evicted for a range"
        assert counters.migrations_in > counters.evictions
        assert {"stores", "atomic", "bo jobs"} <= exercise.counts.keys()
        assert not exercise.unmaps or await exercise.looks()
        for bo in exercise.bos:
            lifetime.release(bo)
        await device.check_nothing_left()

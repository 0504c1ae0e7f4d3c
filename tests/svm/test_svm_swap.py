"""Pages of address spaces go to the swap store and come back, with every byte, and nothing of them is left behind."""

import errno
import random
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.core.advised import install
from tests.core.harness import outcome
from tests.svm.conftest import MakeDevice, SvmDevice
from tests.turns import seed_turns
from ttmfs.driver.calls import shrink_all
from ttmfs.memory.stores import SwapStore
from ttmfs.policy import deadline
from ttmfs.svm import calls, cpu
from ttmfs.svm.audit import check_svm
from ttmfs.svm.backup import backup, restore
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.swap import load_stored, store_chunk
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.looking import after_stores

MIB = 1 << 20
PAGE = 4096
PAGES = 16 * MIB // PAGE
"""Of a space that a storm uses."""


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


def store_of(device: SvmDevice) -> SwapStore:
    assert device.vdev.ttm.swap_store is not None
    return device.vdev.ttm.swap_store


async def store_all(space: AddressSpace) -> int:
    return sum([await store_chunk(space, chunk, 512) for chunk in list(space.chunks.values())])


async def shrink(device: SvmDevice, pages: int, *, wait: bool = False) -> int:
    ctx = OperationContext(no_wait_gpu=not wait)
    result = await shrink_all(device.vdev, pages, BackupFlags(), ctx)
    return int(result["pages_out"])


async def test_out_and_back_on_touch(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(8 * MIB)
        data = random.Random(1).randbytes(3 * MIB)
        await cpu.write(space, MIB, data)
        assert await store_all(space) == 3 * MIB // PAGE
        assert (space.held_pages, space.stored_pages) == (0, 3 * MIB // PAGE)
        assert device.vdev.pool.in_use_pages == 0
        assert store_of(device).slots.stored == 3 * MIB // PAGE
        assert space.snapshot(0, 2048) == b"." * 256 + b"b" * 768 + b"." * 1024
        assert device.vdev.selfcheck() == []
        assert await device.cache.load(space, MIB + 5 * PAGE, 100) == data[5 * PAGE : 5 * PAGE + 100]
        await device.cache.store(space, MIB + 300 * PAGE + 7, b"new")
        assert await device.cache.load(space, 0, 8 * MIB) == (
            bytes(MIB) + data[: 300 * PAGE + 7] + b"new" + data[300 * PAGE + 10 :] + bytes(4 * MIB)
        )
        assert (space.stored_pages, store_of(device).slots.stored) == (0, 0)
        space.release()
        await device.check_nothing_left()


async def test_the_device_gets_what_is_in_the_store(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(4 * MIB)
        data = random.Random(2).randbytes(4 * MIB)
        await cpu.write(space, 0, data)
        await store_all(space)
        assert (await calls.gpu_checksum(space, 0, 4 * MIB))["value"] == zlib.crc32(data)
        assert space.snapshot(0, 1024) == b"v" * 1024, "ranges migrate as ever"
        assert store_of(device).slots.stored == 0
        # In system: the page tables of the device are void once its pages have gone.
        await calls.madvise(space, 0, 4 * MIB, preferred="system")
        await calls.prefetch(space, 0, 4 * MIB, "system")
        await calls.gpu_fill(space, 0, PAGE, 7)
        invalidations = device.svm.counters.invalidations
        await store_all(space)
        assert device.svm.counters.invalidations > invalidations
        assert (await calls.gpu_read(space, 0, 2 * PAGE))["data"] == (bytes([7]) * PAGE + data[PAGE : 2 * PAGE]).hex()
        space.release()
        await device.check_nothing_left()


async def test_a_space_of_four_times_memory_by_clients_and_device(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(memory=16 * MIB, vram=4 * MIB, swap=128 * MIB) as device:
        space = device.space(64 * MIB)
        data = random.Random(3).randbytes(64 * MIB)
        for at in range(0, 64 * MIB, 256 << 10):
            await cpu.write(space, at, data[at : at + (256 << 10)])
        assert space.stored_pages >= 40 * MIB // PAGE
        for at in range(0, 64 * MIB, MIB):
            assert bytes(await cpu.read(space, at, MIB)) == data[at : at + MIB]
        assert (await calls.gpu_checksum(space, 0, 64 * MIB))["value"] == zlib.crc32(data)
        await calls.gpu_fill(space, 0, 64 * MIB, 9)
        for at in range(0, 64 * MIB, 512 << 10):
            assert bytes(await cpu.read(space, at, 512 << 10)) == bytes([9]) * (512 << 10)
        space.release()
        await device.check_nothing_left()


async def test_the_coldest_goes_first_and_bos_give_their_share(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(8 * MIB)
        await cpu.write(space, 0, bytes([1]) * 8 * MIB)
        for chunk in (3, 0, 2, 1):
            await cpu.read(space, chunk * 2 * MIB, PAGE)
        assert await shrink(device, 1024) == 1024
        assert space.snapshot(0, 2048).replace(b"b" * 512, b"B").replace(b"s" * 512, b"S") == b"BSSB"
        bo = device.vdev.create_bo("b")
        await access.write(bo, 0, bytes([2]) * 12 * MIB)
        before = space.stored_pages
        await shrink(device, 1024)
        assert bo.tt is not None
        assert space.stored_pages - before == 256, "a quarter of memory is the space's"
        assert bo.tt.backed_up_pages == 768
        lifetime.release(bo)
        space.release()
        await device.check_nothing_left()


async def test_what_is_used_meanwhile_stays(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    """Pages that are read, written, cut off or worked on while they are stored keep what they have then."""
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(2 * MIB)
        await cpu.write(space, 0, bytes([1]) * 2 * MIB)
        await calls.madvise(space, 0, 2 * MIB, preferred="system")
        space.chunks[0].handed = 0

        async def meddle() -> None:
            while space.chunks[0].stored is None:
                await trio.lowlevel.checkpoint()
            await cpu.write(space, 5 * PAGE, b"five")
            await cpu.read(space, 9 * PAGE, 1)
            await calls.gpu_write(space, 20 * PAGE, b"gpu", wait=False)
            space.set_size(2 * MIB - 100)
            space.set_size(2 * MIB)
            await space.flush(0, 512)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meddle)
            await store_chunk(space, space.chunks[0], 512)
        letters = space.snapshot(0, 512)
        for page in (5, 9, 20, 511):
            assert letters[page] == ord("s"), page
        wanted = bytearray(bytes([1]) * 2 * MIB)
        wanted[5 * PAGE : 5 * PAGE + 4] = b"five"
        wanted[20 * PAGE : 20 * PAGE + 3] = b"gpu"
        wanted[2 * MIB - 100 :] = bytes(100)
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == wanted
        space.release()
        await device.check_nothing_left()


async def test_truncated_while_it_is_away(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(2 * MIB)
        await cpu.write(space, 0, bytes([1]) * 2 * MIB)
        await store_all(space)
        space.set_size(MIB + 100)
        assert space.stored_pages == store_of(device).slots.stored == 257
        space.set_size(2 * MIB)
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == bytes([1]) * (MIB + 100) + bytes(MIB - 100)
        await store_all(space)
        await calls.unmap(space, 0, MIB)
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == bytes(MIB) + bytes([1]) * 100 + bytes(MIB - 100)
        await store_all(space)
        space.release()
        await device.check_nothing_left()
        assert store_of(device).slots.stored == 0


async def test_truncated_while_it_comes_back(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(2 * MIB)
        await cpu.write(space, 0, bytes([1]) * 2 * MIB)
        await store_all(space)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load_stored, space, 0, (1 << 512) - 1)
            while not (stored := space.chunks[0].stored) or not stored.loading:
                await trio.lowlevel.checkpoint()
            assert device.vdev.selfcheck() == []
            space.set_size(MIB + 100)
            space.set_size(2 * MIB)
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == bytes([1]) * (MIB + 100) + bytes(MIB - 100)
        await store_all(space)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load_stored, space, 0, (1 << 512) - 1)
                while not (stored := space.chunks[0].stored) or not stored.loading:
                    await trio.lowlevel.checkpoint()
                space.release()
                scope.cancel()
        await device.check_nothing_left()
        assert store_of(device).slots.used == 0


async def test_who_may_not_wait_is_faster_than_who_loads(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(2 * MIB)
        data = random.Random(5).randbytes(2 * MIB)
        await cpu.write(space, 0, data)
        await store_all(space)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load_stored, space, 0, (1 << 512) - 1)
            while not (stored := space.chunks[0].stored) or not stored.loading:
                await trio.lowlevel.checkpoint()
            space.gate.begin_unmapping(range(512))
            assert bytes(await cpu.read(space, 3 * PAGE, PAGE)) == data[3 * PAGE : 4 * PAGE]
            await cpu.write(space, 3 * PAGE, b"late")
            space.gate.end_unmapping(range(512))
            assert device.vdev.selfcheck() == []
        wanted = data[: 3 * PAGE] + b"late" + data[3 * PAGE + 4 :]
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == wanted
        assert store_of(device).slots.used == 0
        space.release()
        await device.check_nothing_left()


async def test_a_failing_store_loses_nothing(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        inject = device.vdev.ttm.inject
        space = device.space(4 * MIB)
        data = random.Random(6).randbytes(4 * MIB)
        await cpu.write(space, 0, data)
        fault = inject["store_write"]
        fault.probability, fault.times = 100, -1
        assert await shrink(device, 2048) == 0
        fault.probability = 0
        await store_all(space)
        assert space.stored_pages == 1024
        fault = inject["store_read"]
        fault.probability, fault.times = 100, 2
        assert await outcome(partial(cpu.read, space, MIB, PAGE)) == errno.EIO
        fault.probability = 0
        assert bytes(await cpu.read(space, 0, 4 * MIB)) == data
        space.release()
        await device.check_nothing_left()


async def test_each_restore_counts_its_own_pages(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        spaces = [device.space(size * MIB, name) for size, name in ((2, "a"), (4, "b"))]
        results = {}

        async def bring_back(space: AddressSpace) -> None:
            results[space.name] = (await restore(space))["pages_in"]

        for space in spaces:
            await cpu.write(space, 0, b"\1" * space.size)
            await backup(space)
        async with trio.open_nursery() as nursery:
            for space in spaces:
                nursery.start_soon(bring_back, space)
        assert results == {"a": 512, "b": 1024}


async def test_what_went_before_the_store_failed_is_said(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space, store = device.space(2 * MIB), store_of(device)
        await cpu.write(space, 0, b"\1" * 2 * MIB)
        begin, tickets = store.begin_store, []

        def begin_store(count: int, **how: Any) -> Any:
            tickets.append(begin(count, **how))
            if len(tickets) == 2:
                tickets[1].fail_at, tickets[1].fail_errno = 0, errno.ENOSPC
            return tickets[-1]

        monkeypatch.setattr(store, "begin_store", begin_store)
        # A page that is asked for stands between two parts.
        with space.asked.during(256, 257):
            result = await backup(space)
        assert (result["pages_out"], space.stored_pages, result["partial"]) == (256, 256, True)
        monkeypatch.undo()
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == b"\1" * 2 * MIB
        space.release()
        await device.check_nothing_left()


async def test_who_looks_gets_what_is_in_the_store(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        space = device.space(4 * MIB)
        await cpu.write(space, MIB, bytes([4]) * MIB)
        await store_all(space)
        after_stores(space)
        assert bytes(await cpu.read(space, 0, 4 * MIB)) == bytes(MIB) + bytes([4]) * MIB + bytes(2 * MIB)
        assert space.num_blocks() == 256
        space.release()
        await device.check_nothing_left()


async def test_who_pays_is_charged_for_the_store(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(swap=64 * MIB) as device:
        accounts = device.vdev.ttm.accounts
        space = device.svm.create("a", accounts.of(1000))
        space.set_size(2 * MIB)
        await cpu.write(space, 0, bytes([1]) * 2 * MIB)
        await store_all(space)
        assert space.account.charged == {"swap": 512}
        space.set_account(accounts.of(1001))
        assert space.account.charged == {"swap": 512}
        assert accounts.of(1000).charged == {}
        await cpu.read(space, 0, PAGE)
        assert space.account.used("memory") == 512
        space.release()
        assert space.account.charged == {}
        await device.check_nothing_left()


@pytest.mark.parametrize("seed", range(6))
async def test_storm_at_twice_memory(svm_device: MakeDevice, autojump_clock: MockClock, seed: int) -> None:
    await storm(svm_device, seed)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(6, 206))
async def test_storms_at_twice_memory(svm_device: MakeDevice, autojump_clock: MockClock, seed: int) -> None:
    await storm(svm_device, seed)


async def storm(svm_device: MakeDevice, seed: int) -> None:
    """Clients, the device, prefetches, truncates and the shrinker at once; each page is one actor's, every word is
    checked, in a third of them with a prefetch policy. The seed says all: run one with `-k "storm and [SEED]"`.
    """
    seed_turns(seed)
    options = {"memory": 8 * MIB, "vram": 4 * MIB, "swap": 64 * MIB, "copy_latency": (0.0, 0.002)[seed % 2]}
    async with svm_device(**options) as device:
        if seed % 3 == 2:
            await install(device.vdev, ("tree", "sequential", "window pages=64")[seed // 3 % 3], kind="prefetch")
        actors = Actors(device, seed)
        with trio.fail_after(900):
            async with trio.open_nursery() as nursery:
                for number, work in enumerate((actors.client, actors.client, actors.gpu, actors.gpu)):
                    nursery.start_soon(work, number)
                nursery.start_soon(actors.others)
        device.vdev.ttm.inject["store_write"].probability = 0
        assert check_svm(device.svm) == []
        assert device.vdev.selfcheck() == []
        await actors.check()
        assert device.vdev.ttm.counters.backup.pages_out > 512
        actors.space.release()
        await device.check_nothing_left()
        assert store_of(device).slots.used == 0


class Actors:
    """Of one storm: each has the pages whose number modulo 4 is its own."""

    def __init__(self, device: SvmDevice, seed: int) -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.space = device.space(20 * MIB)
        self.model: dict[int, int] = {}

    def page(self, number: int) -> int:
        return self.rng.randrange(PAGES // 4) * 4 + number

    async def client(self, number: int) -> None:
        rng, cache, space = self.rng, self.device.cache, self.space
        for _ in range(250):
            page, value = self.page(number), rng.getrandbits(64)
            act = rng.choice((cache.pwrite, cache.store, None))
            if act is not None:
                await act(space, page * PAGE + 16, value.to_bytes(8, "little"))
                self.model[page] = value
            else:
                got = int.from_bytes(await cache.load(space, page * PAGE + 16, 8), "little")
                assert got == self.model.get(page, 0), f"page {page}"

    async def gpu(self, number: int) -> None:
        for _ in range(60):
            page = self.page(number)
            if self.rng.random() < 0.5:
                value = self.rng.getrandbits(64)
                await calls.gpu_write(self.space, page * PAGE + 16, value.to_bytes(8, "little"))
                self.model[page] = value
            else:
                got = (await calls.gpu_read(self.space, page * PAGE + 16, 8))["data"]
                assert int.from_bytes(bytes.fromhex(got), "little") == self.model.get(page, 0), f"page {page}"

    async def others(self) -> None:
        """Whatever changes no byte below PAGES."""
        rng, device, space = self.rng, self.device, self.space
        for _ in range(40):
            act = rng.choice(("vram", "system", "shrink", "shrink", "wait", "truncate", "advise", "fail", "backup"))
            if act in ("vram", "system"):
                first = rng.randrange(0, PAGES, 16)
                await outcome(partial(calls.prefetch, space, first * PAGE, 64 << 10, act))
            elif act in ("shrink", "wait"):
                await shrink(device, rng.choice((64, 512, 2048)), wait=act == "wait")
            elif act == "truncate":
                await cpu.write(space, 17 * MIB + rng.randrange(MIB), b"gone")
                size = 16 * MIB + rng.randrange(2 * MIB)
                device.cache.truncate(space, size)
                space.set_size(size)
                space.set_size(20 * MIB)
            elif act == "advise":
                await calls.madvise(space, 0, 16 * MIB, preferred=rng.choice(("vram", "system", "fault")))
            elif act == "backup":
                await outcome(partial(rng.choice((backup, restore)), space))
            else:
                fault = device.vdev.ttm.inject["store_write"]
                fault.probability, fault.times = 30, rng.randrange(4)
            await trio.sleep(0.002)

    async def check(self) -> None:
        for page in self.rng.sample(range(PAGES), 400):
            if self.rng.random() < 0.5:
                got = await self.device.cache.load(self.space, page * PAGE, 24)
            else:
                got = bytes.fromhex((await calls.gpu_read(self.space, page * PAGE, 24))["data"])
            assert got == bytes(16) + self.model.get(page, 0).to_bytes(8, "little"), f"page {page}"

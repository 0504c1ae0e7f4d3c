"""Ranges that migrate together: one copy and one fence for them, as one by one where somebody is in the way."""

import random
import zlib
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.core.exchange import exchanged_frames, host_exchanges, noise_behind
from tests.svm.conftest import MakeDevice, SvmDevice
from tests.turns import seed_turns
from ttmfs.errors import TtmError
from ttmfs.memory import frames
from ttmfs.memory.arena import Arena
from ttmfs.svm import calls, cpu
from ttmfs.svm.batch import MOST_RANGES
from ttmfs.svm.devmem import SvmCopy
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm.request import Waiting

MIB = 1 << 20
PAGE = 4096
CHUNK = 2 * MIB
KIB64 = 64 << 10


@pytest.fixture(autouse=True)
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames._Host, "refused", False)
    noise_behind(monkeypatch)


async def filled(device: SvmDevice, size: int) -> tuple[AddressSpace, bytes]:
    """A space with random bytes in all of its pages, none of them cached."""
    space, wanted = device.space(size), np.random.default_rng(size).bytes(size)
    for at in range(0, size, MIB):
        await cpu.write(space, at, wanted[at : at + MIB])
    await space.flush(0, space.num_pages)
    return space, wanted


async def whole(space: AddressSpace) -> bytes:
    """All bytes, as clients read them; nothing stays in their caches."""
    parts = [bytes(await cpu.read(space, at, min(MIB, space.size - at))) for at in range(0, space.size, MIB)]
    await space.flush(0, space.num_pages)
    return b"".join(parts)


def bound(space: AddressSpace) -> list[bool]:
    return [found.bound for found in space.table.ranges.values()]


async def there_and_back(device: SvmDevice, space: AddressSpace, wanted: bytes) -> None:
    """To vram and to system again; every byte at both places."""
    size = space.size
    assert (await calls.prefetch(space, 0, size, "vram"))["ranges"] == len(space.table)
    assert {row[2] for row in device.locations(space)} == {"vram"}
    assert all(bound(space))
    assert (await calls.gpu_checksum(space, 0, size))["value"] == zlib.crc32(wanted)
    assert (await calls.prefetch(space, 0, size, "system"))["ranges"] == len(space.table)
    assert {row[2] for row in device.locations(space)} == {"system"}
    assert all(bound(space))
    assert device.vram_used == 0
    assert await whole(space) == wanted


async def test_one_fence_moves_many_ranges_and_no_byte_is_wrong(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    chunks = MOST_RANGES + 4
    async with svm_device(vram=64 * MIB, memory=128 * MIB) as device:
        space, wanted = await filled(device, chunks * CHUNK)
        for _ in range(3):
            before, moved = device.vdev.fence_counters.emitted, exchanged_frames(device.vdev)
            invalidations = device.svm.counters.invalidations
            result = await calls.prefetch(space, 0, space.size, "vram")
            assert result == {"bytes_moved": space.size, "ranges": chunks}
            assert device.vdev.fence_counters.emitted - before == 2
            result = await calls.prefetch(space, 0, space.size, "system")
            assert result == {"bytes_moved": space.size, "ranges": chunks}
            assert device.vdev.fence_counters.emitted - before == 4
            assert device.svm.counters.invalidations - invalidations <= 2 * chunks
            assert host_exchanges() * chunks <= exchanged_frames(device.vdev) - moved <= 2 * chunks
            assert await whole(space) == wanted
        await there_and_back(device, space, wanted)
        counters = device.svm.counters
        assert counters.migrations_in == counters.migrations_out == 4 * chunks
        assert counters.bytes_in == counters.bytes_out == 4 * space.size
        assert space.stats.values["svm_2M_migrate_count"] == 4 * chunks
        space.release()
        await device.check_nothing_left()


async def test_frames_that_follow_each_other_change_hands_in_one_go(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not host_exchanges():
        pytest.skip("this host exchanges no frames (Linux before 5.7)")
    runs: list[int] = []
    real: Callable[..., None] = frames.exchange

    def exchange(one: Arena, page: int, other: Arena, other_page: int, count: int) -> None:
        runs.append(count)
        real(one, page, other, other_page, count)

    monkeypatch.setattr("ttmfs.ttm.copy_frames.exchange", exchange)
    async with svm_device(vram=64 * MIB, memory=64 * MIB) as device:
        space, wanted = await filled(device, 8 * CHUNK)
        await there_and_back(device, space, wanted)
        runs.clear()
        await calls.prefetch(space, 0, space.size, "vram")
        assert sum(runs) == 8
        assert len(runs) <= (2 if frames.longest_run() > 1 else 8), runs
        assert (await calls.gpu_checksum(space, 0, space.size))["value"] == zlib.crc32(wanted)
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize("way", ["vram", "system"])
async def test_a_request_never_finds_a_part_of_the_frames_exchanged(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Until the fence signals a request without time goes to the source: all frames must change hands in that step."""
    monkeypatch.setattr("ttmfs.svm.devmem.longest_run", lambda: 1)
    monkeypatch.setattr("ttmfs.ttm.copy._STEP_FRAMES", 1)
    async with svm_device(vram=32 * MIB) as device:
        space, wanted = await filled(device, 6 * CHUNK)
        await there_and_back(device, space, wanted)
        if way == "system":
            await calls.prefetch(space, 0, space.size, "vram")
        moved, looks, ended = exchanged_frames(device.vdev), 0, trio.Event()

        async def move() -> None:
            await calls.prefetch(space, 0, space.size, way)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            while not ended.is_set():
                for at in range(0, space.size, CHUNK):
                    if any(move.live for move in space.chunks[at // CHUNK].moves):
                        looks += 1
                        data = await cpu.read(space, at, PAGE, Waiting(space.gate, 0))
                        assert bytes(data) == wanted[at : at + PAGE]
                await trio.lowlevel.checkpoint()
        assert looks
        assert exchanged_frames(device.vdev) - moved == 6 * host_exchanges()
        assert await whole(space) == wanted
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize(("size", "sizes"), [(64 << 10, "64K,4K"), (4 << 10, "4K")])
async def test_small_ranges_go_together_too(
    svm_device: MakeDevice, autojump_clock: MockClock, size: int, sizes: str
) -> None:
    async with svm_device(svm_range_sizes=sizes, svm_migrate_threshold=4096) as device:
        space, wanted = await filled(device, 10 * size)
        before = device.vdev.fence_counters.emitted
        await calls.prefetch(space, 0, space.size, "vram")
        assert device.vdev.fence_counters.emitted - before == 1
        await there_and_back(device, space, wanted)
        space.release()
        await device.check_nothing_left()


async def test_holes_are_zeros_on_both_sides(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(5 * CHUNK)
        wanted = bytearray(space.size)
        for page in (*range(0, 512, 3), 600, 2 * 512 + 5, *range(4 * 512, 5 * 512)):
            await cpu.write(space, page * PAGE, b"\x5a" * PAGE)
            wanted[page * PAGE : (page + 1) * PAGE] = b"\x5a" * PAGE
        await space.flush(0, space.num_pages)
        await there_and_back(device, space, bytes(wanted))
        space.release()
        await device.check_nothing_left()


async def test_what_has_no_room_evicts_one_by_one(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(vram=5 * CHUNK) as device:
        space, wanted = await filled(device, 8 * CHUNK)
        assert (await calls.prefetch(space, 0, space.size, "vram"))["ranges"] == 8
        places = [row[2] for row in device.locations(space)]
        assert places == ["system"] * 3 + ["vram"] * 5
        assert (await calls.gpu_checksum(space, 0, space.size))["value"] == zlib.crc32(wanted)
        assert await whole(space) == wanted
        space.release()
        await device.check_nothing_left()


async def test_what_is_mixed_in_vram_or_used_by_a_job_goes_by_itself(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(vram=16 * CHUNK, memory=64 * MIB) as device:
        space, wanted = await filled(device, 8 * CHUNK)
        await calls.prefetch(space, 2 * CHUNK, CHUNK, "vram")
        # A part of this one comes back by itself: the range is mixed then.
        await calls.prefetch(space, 4 * CHUNK, CHUNK, "vram")
        await calls.unmap(space, 4 * CHUNK, PAGE)
        await calls.map_range(space, 4 * CHUNK, PAGE, read_only=False)
        wanted = wanted[: 4 * CHUNK] + bytes(PAGE) + wanted[4 * CHUNK + PAGE :]
        await cpu.write(space, 4 * CHUNK, b"")
        await calls.prefetch(space, 6 * CHUNK, CHUNK, "system")
        await calls.gpu_fill(space, 6 * CHUNK, 1, wanted[6 * CHUNK], wait=False)
        await there_and_back(device, space, wanted)
        space.release()
        await device.check_nothing_left()


Act = Callable[[trio.CancelScope, AddressSpace, bytearray], Awaitable[None]]


async def unmap_in_the_middle(_scope: trio.CancelScope, space: AddressSpace, wanted: bytearray) -> None:
    for first in (CHUNK, 3 * CHUNK + 7 * PAGE):
        await calls.unmap(space, first, CHUNK // 2)
        await calls.map_range(space, first, CHUNK // 2, read_only=False)
        wanted[first : first + CHUNK // 2] = bytes(CHUNK // 2)


async def truncate(_scope: trio.CancelScope, space: AddressSpace, wanted: bytearray) -> None:
    space.set_size(3 * CHUNK + 100)
    space.set_size(len(wanted))
    wanted[3 * CHUNK + 100 :] = bytes(len(wanted) - 3 * CHUNK - 100)


async def write_and_read(_scope: trio.CancelScope, space: AddressSpace, wanted: bytearray) -> None:
    """A WRITE that a copy in the queue carries along; a READ that has no time is answered from the source."""
    for at in (0, CHUNK + 5 * PAGE + 9, 4 * CHUNK - PAGE):
        async with trio.open_nursery() as nursery:
            data = random.Random(at).randbytes(PAGE)
            nursery.start_soon(cpu.write, space, at, data)
            wanted[at : at + PAGE] = data
        assert bytes(await cpu.read(space, at, PAGE)) == wanted[at : at + PAGE]


async def cancel(scope: trio.CancelScope, _space: AddressSpace, _wanted: bytearray) -> None:
    scope.cancel()


@pytest.mark.parametrize("way", ["vram", "system"])
@pytest.mark.parametrize("act", [unmap_in_the_middle, truncate, write_and_read, cancel])
async def test_while_a_batch_is_on_its_way(
    svm_device: MakeDevice, autojump_clock: MockClock, act: Act, way: str
) -> None:
    async with svm_device(fault_timeout=2) as device:
        space, data = await filled(device, 5 * CHUNK)
        wanted = bytearray(data)
        if way == "system":
            await calls.prefetch(space, 0, space.size, "vram")
        device.vdev.engines[0].paused = True
        scope = trio.CancelScope()

        async def move() -> None:
            try:
                with scope:
                    await calls.prefetch(space, 0, space.size, way)
            except TtmError as error:
                assert error.name == "ENODATA"  # noqa: PT017

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await wait_all_tasks_blocked()
            assert b"m" * 512 * 4 in space.snapshot(0, space.num_pages), "the batch is on its way"
            await act(scope, space, wanted)
            device.vdev.engines[0].paused = False
        await wait_all_tasks_blocked()
        assert not any(chunk.moves for chunk in space.chunks.values())
        assert (await calls.gpu_checksum(space, 0, space.size))["value"] == zlib.crc32(wanted)
        assert await whole(space) == wanted
        await there_and_back(device, space, bytes(wanted))
        space.release()
        await device.check_nothing_left()


async def test_pages_that_clients_take_again_meanwhile_go_by_themselves(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space, wanted = await filled(device, 5 * CHUNK)
        cache, inner = device.cache, device.cache.invalidate
        await cache.load(space, 3 * CHUNK, 1)
        touched: list[bytes] = []

        async def invalidate(space: AddressSpace, first_page: int, num_pages: int) -> None:
            await inner(space, first_page, num_pages)
            if not touched:
                touched.append(await cache.load(space, 2 * CHUNK, PAGE))

        cache.invalidate = invalidate  # type: ignore[method-assign]
        before = device.vdev.fence_counters.emitted
        await calls.prefetch(space, 0, space.size, "vram")
        assert touched == [wanted[2 * CHUNK : 2 * CHUNK + PAGE]]
        # Two together, then the one that was touched with those behind it.
        assert device.vdev.fence_counters.emitted - before == 2
        assert (await calls.gpu_checksum(space, 0, space.size))["value"] == zlib.crc32(wanted)
        assert await cache.load(space, 2 * CHUNK, PAGE) == wanted[2 * CHUNK : 2 * CHUNK + PAGE]
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize("way", ["vram", "system"])
@pytest.mark.parametrize("ban", [False, True])
async def test_a_copy_of_many_that_fails_loses_nothing(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, way: str, ban: bool
) -> None:
    """The CPU copies instead; where it must not, all are where they were, and go one by one."""
    async with svm_device() as device:
        space, wanted = await filled(device, 5 * CHUNK)
        if way == "system":
            await calls.prefetch(space, 0, space.size, "vram")
        device.vdev.ttm.inject.ban_memcpy = ban
        device.vdev.ttm.inject.ban_exchange = True
        real = SvmCopy.step
        failed: list[int] = []

        def step(self: SvmCopy, index: int, count: int) -> None:
            if len(self.moves) > 1 and index > 1000 and not failed:
                failed.append(index)
                raise RuntimeError("an engine fails in a test")
            real(self, index, count)

        monkeypatch.setattr(SvmCopy, "step", step)
        assert (await calls.prefetch(space, 0, space.size, way))["ranges"] == 5
        assert failed
        assert {row[2] for row in device.locations(space)} == {way}
        assert (await calls.gpu_checksum(space, 0, space.size))["value"] == zlib.crc32(wanted)
        assert await whole(space) == wanted
        space.release()
        await device.check_nothing_left()


async def test_failures_and_a_link_strike_each_range_by_itself(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space, wanted = await filled(device, 4 * CHUNK)
        attr = device.vdev.ttm.inject["engine"]
        attr.probability, attr.interval, attr.times = 100, 3, 1
        device.vdev.ttm.inject.ban_memcpy = True
        with pytest.raises(TtmError, match="0x400000 could not be prefetched to vram"):
            await calls.prefetch(space, 0, space.size, "vram")
        assert [row[2] for row in device.locations(space)] == ["vram", "vram", "system"]
        assert await whole(space) == wanted
        space.release()
        await device.check_nothing_left()
    async with svm_device(copy_latency=0.5) as device:
        space, wanted = await filled(device, 4 * CHUNK)
        started = trio.current_time()
        await calls.prefetch(space, 0, space.size, "vram")
        assert trio.current_time() - started >= 4 * 0.5
        space.release()
        await device.check_nothing_left()


SIZE = 6 * CHUNK + 3 * KIB64


class Random:
    """Tasks that move all of a space to and fro while others change its bytes, each the pages of its own."""

    def __init__(self, device: SvmDevice, seed: int) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.space = device.space(SIZE)
        self.model = bytearray(SIZE)

    async def mover(self, rounds: int) -> None:
        for _ in range(rounds):
            first = self.random.choice((0, 0, self.random.randrange(SIZE // PAGE - 1)))
            size = min(SIZE - first * PAGE, self.random.choice((SIZE, 3 * CHUNK, 20 * KIB64)))
            way = self.random.choice(("vram", "system"))
            try:
                with trio.move_on_after(self.random.choice((0.001, 60, 60, 60))):
                    await calls.prefetch(self.space, first * PAGE, size, way)
            except TtmError as error:
                assert error.name == "ENODATA", error  # noqa: PT017
            await trio.sleep(self.random.choice((0, 0, 0.001)))

    async def changer(self, number: int, rounds: int) -> None:
        """Its pages are those whose number divided by 4 leaves `number`."""
        space, cache = self.space, self.device.cache
        for _ in range(rounds):
            page = self.random.randrange(SIZE // PAGE // 4) * 4 + number
            at, data = page * PAGE, self.random.randbytes(64) * (PAGE // 64)
            act = self.random.choice(("store", "store", "pwrite", "load", "gpu", "unmap"))
            if act == "load":
                assert await cache.load(space, at, PAGE) == self.model[at : at + PAGE], f"page {page}"
                continue
            if act == "unmap":
                await calls.unmap(space, at, PAGE)
                await calls.map_range(space, at, PAGE, read_only=False)
                data = bytes(PAGE)
            elif act == "gpu":
                await calls.gpu_write(space, at, data)
            else:
                await (cache.store if act == "store" else cache.pwrite)(space, at, data)
            self.model[at : at + PAGE] = data
            await trio.sleep(self.random.choice((0, 0, 0.0005)))

    async def check(self) -> None:
        got = await self.device.cache.load(self.space, 0, SIZE)
        if got != self.model:
            wrong = np.frombuffer(got, np.uint8) != np.frombuffer(bytes(self.model), np.uint8)
            raise AssertionError(f"pages {sorted(set((np.flatnonzero(wrong) // PAGE).tolist()))[:10]}")


def seeds(first: int, count: int, stress: int) -> list[object]:
    marked = [pytest.param(seed, marks=pytest.mark.stress) for seed in range(first + count, first + count + stress)]
    return [*range(first, first + count), *marked]


@pytest.mark.parametrize("seed", seeds(1, 2, 38))
async def test_ranges_go_to_and_fro_under_all_that_clients_and_the_device_do(
    svm_device: MakeDevice, autojump_clock: MockClock, seed: int
) -> None:
    seed_turns(seed)
    vram = random.Random(seed).choice((4 * CHUNK, 8 * CHUNK))
    async with svm_device(vram=vram, memory=40 * MIB) as device:
        case = Random(device, seed)
        for at in range(0, SIZE, KIB64):
            if case.random.random() < 0.8:
                data = case.random.randbytes(PAGE) * 16
                case.model[at : at + KIB64] = data
                await cpu.write(case.space, at, data)
        await case.space.flush(0, case.space.num_pages)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(case.mover, 6)
                nursery.start_soon(case.mover, 3)
                for number in range(4):
                    nursery.start_soon(case.changer, number, 8)
            await case.check()
            assert device.vdev.selfcheck() == []
        case.space.release()
        await device.check_nothing_left()

"""Peek: the bytes of a BO where they are, against what its file says, and nothing else changes for it."""

import errno

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.harness import MIB, PAGE, check, device, fails, idle, lru_names, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.dirty import DirtyTracker
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.peek import peek, poke


def state(vdev: VirtualDevice, bo: BufferObject) -> tuple[object, ...]:
    """What a look must not change."""
    faults = vdev.ttm.counters.faults
    lrus = [lru_names(vdev, region) for region in vdev.ttm.managers]
    return bo.mem_type, bo.moves, bo.faults, faults.count, bo.snapshot(), lrus, vdev.pool.in_use_pages


async def put(vdev: VirtualDevice, bo: BufferObject, where: str) -> None:
    if where == "store":
        await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
    elif where != "system":
        await move(vdev, bo, where)
        await idle(bo)


@pytest.mark.parametrize("swap_store", ["shmem", "zstd"])
@pytest.mark.parametrize("where", ["system", "gtt", "vram", "store"])
async def test_it_reads_and_writes_where_the_bytes_are_and_nothing_moves(where: str, swap_store: str) -> None:
    async with device(visible_vram=MIB, swap_store=swap_store) as vdev:
        bo, _other = await make(vdev, "a", 2 * MIB), await make(vdev, "b", MIB)
        await put(vdev, bo, where)
        before = state(vdev, bo)
        wanted = bytearray(pattern("a", 2 * MIB))
        assert await peek(bo, 0, 4 * MIB) == wanted
        assert await peek(bo, 5000, 300_000) == wanted[5000:305_000]
        for offset, size in ((0, PAGE), (5000, 10), (5 * PAGE + 7, 70 * PAGE), (2 * MIB - 1, 1)):
            await poke(bo, offset, b"\xa5" * size)
            wanted[offset : offset + size] = b"\xa5" * size
        assert await peek(bo, 0, 2 * MIB) == wanted
        assert state(vdev, bo) == before
        assert bytes(await access.read(bo, 0, 2 * MIB)) == wanted


async def test_past_the_end_and_what_is_gone() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 5000)
        assert await peek(bo, 5000, 10) == b""
        with fails(errno.EIO):
            await poke(bo, 4990, b"x" * 11)
        await check(bo)
        bo.unknown_state = True
        with fails(errno.EIO):
            await peek(bo, 0, 1)
        bo.unknown_state = False


async def test_a_hole_reads_as_zeros_and_gets_memory_when_it_is_written() -> None:
    async with device() as vdev:
        fresh = vdev.create_bo("fresh")
        set_size(fresh, MIB)
        assert await peek(fresh, 0, MIB) == bytes(MIB)
        assert vdev.pool.in_use_pages == 0
        await poke(fresh, PAGE, b"x")
        assert await peek(fresh, PAGE, 2) == b"x\0"
        bo = await make(vdev, "a", MIB)
        await put(vdev, bo, "store")
        set_size(bo, 2 * MIB)
        await poke(bo, MIB + 5, b"tail")
        assert bo.snapshot().count(b"b") == 256
        assert await peek(bo, MIB, 10) == b"\0" * 5 + b"tail" + b"\0"


async def test_a_full_store_is_enospc_and_what_is_in_it_stays() -> None:
    async with device(swap=MIB) as vdev:
        bo = await make(vdev, "a", MIB)
        await put(vdev, bo, "store")
        with fails(errno.ENOSPC):
            await poke(bo, 0, b"x" * PAGE)
        await check(bo)


async def test_what_a_truncate_cut_off_of_a_stored_page_stays_zeros() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 4 * PAGE)
        await put(vdev, bo, "store")
        set_size(bo, 2 * PAGE + 100)
        set_size(bo, 4 * PAGE)
        wanted = bytearray(pattern("a", 2 * PAGE + 100) + bytes(2 * PAGE - 100))
        assert await peek(bo, 0, 4 * PAGE) == wanted
        assert await peek(bo, 2 * PAGE + 50, 100) == wanted[2 * PAGE + 50 : 2 * PAGE + 150]
        await poke(bo, 2 * PAGE + 200, b"again")
        wanted[2 * PAGE + 200 : 2 * PAGE + 205] = b"again"
        assert await peek(bo, 0, 4 * PAGE) == wanted
        assert bo.swapped or bo.snapshot().count(b"b") == 3
        assert bytes(await access.read(bo, 0, 4 * PAGE)) == wanted


async def test_it_looks_at_the_source_while_bytes_move_and_writes_when_they_are_there() -> None:
    async with device(copy_latency=0.05) as vdev:
        bo = await make(vdev, "a", MIB)
        await move(vdev, bo, "vram")
        assert bo.copies
        assert await peek(bo, 0, MIB) == pattern("a", MIB)
        assert bo.copies
        await poke(bo, 3, b"new")
        assert not bo.copies
        assert await peek(bo, 0, 8) == pattern("a", 3) + b"new" + pattern("a", 8)[6:]


_SPANS = st.tuples(st.integers(0, 200 * PAGE), st.integers(1, 80 * PAGE))
_ACTS = st.lists(
    st.tuples(st.sampled_from(["peek", "poke", "write", "cut", "store", "vram", "gtt", "system"]), _SPANS),
    min_size=3,
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(acts=_ACTS, seed=st.integers(0, 255))
def test_beside_writes_truncates_and_moves_it_is_always_what_the_file_is(
    acts: list[tuple[str, tuple[int, int]]], seed: int
) -> None:
    async def main() -> None:
        async with device(visible_vram=MIB // 2) as vdev:
            bo = await make(vdev, "a", MIB)
            model = bytearray(pattern("a", MIB))
            for number, (act, (offset, size)) in enumerate(acts):
                data = bytes([(seed + number) & 0xFF]) * size
                if act == "peek":
                    assert await peek(bo, offset, size) == model[offset : offset + size]
                elif act == "poke":
                    data = data[: max(0, len(model) - offset)]
                    await poke(bo, min(offset, len(model)), data)
                    model[offset : offset + len(data)] = data
                elif act == "write":
                    await access.write(bo, offset, data)
                    model.extend(bytes(max(0, offset + size - len(model))))
                    model[offset : offset + size] = data
                elif act == "cut":
                    set_size(bo, offset)
                    model = model[:offset] + bytes(max(0, offset - len(model)))
                elif act == "store" and bo.size:
                    await move(vdev, bo, "system")
                    await idle(bo)
                    await put(vdev, bo, "store")
                elif bo.size:
                    await put(vdev, bo, act) if act != "system" else await move(vdev, bo, act)
            assert await peek(bo, 0, MIB * 2) == model
            assert bytes(await access.read(bo, 0, len(model))) == model

    trio.run(main)


async def test_somebody_brings_the_page_back_while_it_is_stored_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look of a WRITE that may not wait: what it brought is what counts, and nothing is left in the store."""
    async with device() as vdev:
        bo = await make(vdev, "a", 8 * PAGE)
        await put(vdev, bo, "store")
        store = vdev.ttm.swap_store
        assert store is not None
        real = store.write_steps
        calls_made: list[int] = []

        def write_steps(*arguments: object) -> object:
            if not calls_made:
                calls_made.append(1)
                bo.need_tt().load_now(2, 1)
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "write_steps", write_steps)
        await poke(bo, 0, b"y" * (8 * PAGE))
        assert calls_made
        assert await peek(bo, 0, 8 * PAGE) == b"y" * (8 * PAGE)
        assert bo.snapshot() == b"bbsbbbbb"


async def test_what_failed_half_way_is_seen_by_clients() -> None:
    """A READ that was answered during the first INVAL is in a client's cache, with what was there before."""

    class Cache:
        held = b""

        async def invalidate(self, bo: BufferObject, first: int, count: int) -> None:
            again = not bo.resv.locked or self.held
            self.held = b""
            await trio.lowlevel.checkpoint()
            if not again:
                self.held = bytes(await access.read(bo, 0, PAGE))

    async with device() as vdev:
        bo = await make(vdev, "a", PAGE)
        set_size(bo, 4 * PAGE)
        cache = vdev.ttm.unmapper = Cache()
        assert isinstance(bo.dirty, DirtyTracker)
        bo.dirty.take()
        failure = vdev.ttm.inject["page_alloc"]
        failure.probability, failure.times = 100, -1
        with fails(errno.ENOMEM):
            await poke(bo, 0, b"N" * 2 * PAGE)
        failure.probability = 0
        assert await peek(bo, 0, PAGE) == b"N" * PAGE
        assert cache.held == b"", "a client has the old bytes still"
        assert bo.dirty.take()

"""The contract of swap stores, the same for all of them: what goes in comes out, or the store says that it cannot."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.stores import FileStore, LoadError, ShmemStore, SwapStore, ZstdFileStore, ZstdStore, make_store
from ttmfs.units import PAGE_SIZE

KINDS = ("shmem", "file", "zstd", "zstd+file")
MiB = 1 << 20
Make = Callable[[int], SwapStore]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, tmp_path: Path) -> Iterator[Make]:
    """Makes stores of one kind; afterwards their books must be right and their files gone."""
    stores: list[SwapStore] = []

    def build(size: int) -> SwapStore:
        spec = f"{kind}:{tmp_path}/store{len(stores)}" if kind.endswith("file") else kind
        store = make_store(spec, size)
        assert store is not None
        stores.append(store)
        return store

    yield build
    for store in stores:
        store.check()
        store.close()
        store.close()
    assert not list(tmp_path.glob("store*"))


def random_arena(pages: int, seed: int = 0) -> Arena:
    """Pages of every sort: noise, small numbers, one byte, zeros."""
    rng = np.random.default_rng(seed)
    arena = Arena("source", pages)
    noise = rng.integers(0, 256, (pages, PAGE_SIZE), dtype=np.uint8)
    sort = rng.integers(0, 8, pages)
    arena.mem[:] = noise
    arena.mem[sort == 1] &= 3
    arena.mem[sort == 2] = 0x80
    arena.mem[sort == 3] = 0
    return arena


def noise_arena(pages: int, seed: int = 0) -> Arena:
    """Pages that nothing makes smaller."""
    arena = Arena("noise", pages)
    arena.mem[:] = np.random.default_rng(seed).integers(0, 256, arena.mem.shape, dtype=np.uint8)
    return arena


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint32)


@pytest.mark.parametrize("count", [1, 127, 1300])
def test_round_trip_in_random_order(make: Make, count: int) -> None:
    rng = np.random.default_rng(count)
    store, source, target = make(16 * MiB), random_arena(count), Arena("target", count)
    order = rng.permutation(count).astype(np.uint32)
    handles = store.store(source, order)
    assert handles.dtype == np.uint32
    assert handles.tolist() == list(range(1, count + 1)), "the lowest slots first, never handle 0"
    for _ in range(2):
        target.mem[:] = 0xAA
        back = rng.permutation(count)
        store.load(handles[back], target, order[back])
        assert (target.mem == source.mem).all()
    numbers_now = store.statistics()
    assert (numbers_now.pages, numbers_now.pages_out, numbers_now.pages_in) == (count, count, 2 * count)
    store.drop(handles[rng.permutation(count)])
    assert store.used == 0
    assert store.statistics().waste == 0


def test_nothing_is_nothing(make: Make) -> None:
    store, arena = make(MiB), Arena("a", 4)
    assert store.store(arena, numbers(0)).size == 0
    store.load(numbers(0), arena, numbers(0))
    store.drop(numbers(0))
    store.writeback()
    assert store.used == 0


def test_fills_up_half_way_and_takes_more_later(make: Make) -> None:
    store, source, target = make(64 * PAGE_SIZE), noise_arena(100), Arena("target", 100)
    handles = store.store(source, numbers(100))
    assert handles.size == 64
    assert store.available_pages == 0
    assert store.used == store.size
    with pytest.raises(TtmError, match="full") as full:
        store.store(source, numbers(1))
    assert full.value.errno == errno.ENOSPC
    store.load(handles, target, numbers(64))
    assert (target.mem[:64] == source.mem[:64]).all()
    store.drop(handles[10:20])
    assert store.available_pages == 10
    again = store.store(source, numbers(100)[64:])
    assert again.tolist() == handles[10:20].tolist()
    store.load(again, target, numbers(100)[64:74])
    assert (target.mem[64:74] == source.mem[64:74]).all()
    store.load(handles[20:], target, numbers(100)[20:64])
    assert (target.mem[20:64] == source.mem[20:64]).all()


def test_lowest_slots_first_after_drops(make: Make) -> None:
    store, source = make(16 * MiB), noise_arena(1200)
    handles = store.store(source, numbers(1200))
    gone = np.array([3, 4, 700, 1100], np.uint32)
    store.drop(handles[gone[::-1]])
    assert store.store(source, numbers(6)).tolist() == [4, 5, 701, 1101, 1201, 1202]


def test_what_is_no_handle_changes_nothing(make: Make) -> None:
    store, source, target = make(MiB), noise_arena(8), Arena("target", 8)
    handles = store.store(source, numbers(8))
    store.drop(handles[2:3])
    before = store.statistics()
    for bad in ([0], [1, 3], [1, 1], [9], [1 << 31], [2, 1, 2]):
        for call in (store.drop, lambda some: store.load(some, target, numbers(len(some)))):
            with pytest.raises(TtmError) as error:
                call(np.array(bad, np.uint32))
            assert error.value.errno == errno.EINVAL
    with pytest.raises(TtmError, match="not in"):
        store.store(source, np.array([0, 8], np.uint32))
    with pytest.raises(TtmError, match="not in"):
        store.load(handles[:2], target, np.array([0, 8], np.uint32))
    with pytest.raises(TtmError, match="fill"):
        store.load(handles[:2], target, numbers(3))
    assert store.statistics() == before
    assert not target.mem.any()
    store.load(handles[[0, 1, 3]], target, numbers(3))
    assert (target.mem[:3] == source.mem[[0, 1, 3]]).all()


def damage(store: SwapStore, handle: int) -> None:
    """Flip one bit of what is stored for this handle, on its medium."""
    if isinstance(store, ShmemStore):
        store.corrupt(handle, offset=1000)
    elif isinstance(store, FileStore):
        with Path(store.medium.path).open("r+b") as file:
            file.seek((handle - 1) * PAGE_SIZE + 1000)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))
    elif isinstance(store, ZstdFileStore):
        segment, offset = store.place_of(handle)
        assert segment.block >= 0, "not written behind"
        with Path(store.medium.path).open("r+b") as file:
            file.seek((segment.block << 21) + offset + 20)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))
    elif isinstance(store, ZstdStore):
        store.corrupt(handle, offset=20)


@pytest.mark.parametrize("content", ["noise", "small numbers"])
def test_a_wrong_byte_is_never_handed_out(make: Make, content: str, caplog: pytest.LogCaptureFixture) -> None:
    store, source, target = make(16 * MiB), noise_arena(600), Arena("target", 600)
    if content != "noise":
        source.mem &= 7
    handles = store.store(source, numbers(600))
    store.writeback()
    damage(store, 551)
    with pytest.raises(LoadError, match="handle 551") as wrong:
        store.load(handles, target, numbers(600))
    assert wrong.value.errno == errno.EIO
    assert wrong.value.loaded == 550
    assert "551" in caplog.text
    assert (target.mem[:550] == source.mem[:550]).all()
    good = target.mem[550] == source.mem[550]
    assert not target.mem[550].any() or good.all(), "the damaged page was handed out"
    store.load(handles[551:], target, numbers(600)[551:])
    assert (target.mem[551:] == source.mem[551:]).all()
    store.drop(handles)
    assert store.used == 0


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("offset", [0, 1, 2047, 4095])
def test_every_byte_of_memory_is_summed(offset: int, bit: int) -> None:
    store, source = ShmemStore(MiB), noise_arena(3)
    handles = store.store(source, numbers(3))
    store.corrupt(2, offset, 1 << bit)
    with pytest.raises(LoadError, match="handle 2"):
        store.load(handles, source, numbers(3))
    store.corrupt(2, offset, 1 << bit)
    store.load(handles, source, numbers(3))
    store.close()


@pytest.mark.parametrize("nth", [0, 1, 37, 63])
def test_every_failing_write_leaves_right_books(make: Make, nth: int) -> None:
    store, source, target = make(MiB), random_arena(64), Arena("target", 64)
    store.fail_write = lambda number: number == nth
    with pytest.raises(TtmError, match="injected") as failed:
        store.store(source, numbers(64))
    assert failed.value.errno == errno.EIO
    store.check()
    assert (store.used, store.statistics().pages, store.statistics().waste) == (0, 0, 0)
    handles = store.store(source, numbers(64))
    store.load(handles, target, numbers(64))
    assert (target.mem == source.mem).all()
    # No room is no error: what fitted stays.
    base = nth + 1 + 64
    store.fail_write = lambda number: errno.ENOSPC if number == base + nth else 0
    if nth:
        more = store.store(source, numbers(64))
        assert more.size == nth
        target.mem[:] = 1
        store.load(more, target, numbers(nth))
        assert (target.mem[:nth] == source.mem[:nth]).all()
    else:
        with pytest.raises(TtmError, match="injected"):
            store.store(source, numbers(64))


@pytest.mark.parametrize("nth", [0, 1, 37, 63])
def test_a_load_resumes_where_it_failed(make: Make, nth: int) -> None:
    store, source, target = make(MiB), random_arena(64), Arena("target", 64)
    handles = store.store(source, numbers(64))
    store.fail_read = lambda number: number == nth
    with pytest.raises(LoadError, match="injected") as failed:
        store.load(handles, target, numbers(64))
    assert failed.value.loaded == nth
    assert (target.mem[:nth] == source.mem[:nth]).all()
    assert not target.mem[nth:].any()
    store.check()
    store.load(handles[nth:], target, numbers(64)[nth:])
    assert (target.mem == source.mem).all()
    assert store.pages_in == 64, "no page was loaded twice"


def test_bytes_move_in_a_worker_thread(make: Make) -> None:
    store, source, target = make(16 * MiB), random_arena(1024), Arena("target", 1024)
    transfers = [store.begin_store(512), store.begin_store(512)]
    parts = [numbers(1024)[:512], numbers(1024)[512:]]

    def run(work: Callable[..., None], arena: Arena, some: list[Any]) -> None:
        threads = [threading.Thread(target=work, args=(t, arena, p)) for t, p in zip(some, parts, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    run(store.write, source, transfers)
    handles = [store.end_store(transfer) for transfer in transfers]
    loads = [store.begin_load(some) for some in handles]
    extra = store.store(source, parts[0])
    store.drop(extra)  # pages may come and go, and be written behind, while others are being read
    run(store.read, target, loads)
    assert [store.end_load(load) for load in loads] == [512, 512]
    assert (target.mem == source.mem).all()


def test_a_cancelled_transfer_leaves_nothing(make: Make) -> None:
    store, source = make(16 * MiB), noise_arena(600)
    never = store.begin_store(600)
    store.cancel_store(never)
    late = store.begin_store(600)
    store.write(late, source, numbers(600))
    store.cancel_store(late)
    handles = store.store(source, numbers(10))
    load = store.begin_load(handles)
    assert store.end_load(load) == 0
    store.drop(handles)
    store.check()
    assert (store.used, store.slots.used, store.statistics().waste) == (0, 0, 0)


def test_drop_while_giving_back_is_on_its_way(make: Make) -> None:
    store, source, target = make(32 * MiB), noise_arena(4096), Arena("target", 4096)
    handles = store.store(source, numbers(4096))
    store.drop(handles[::3], upkeep=False)
    rest = np.delete(handles, slice(None, None, 3))
    rest = np.random.default_rng(0).permutation(rest)
    pages = rest - np.uint32(1)
    store.drop(rest[:2000], upkeep=False)
    work = store.begin_upkeep()
    assert work is not None
    thread = threading.Thread(target=store.run_upkeep, args=(work,))
    thread.start()
    new = store.store(source, numbers(200))
    store.drop(rest[2000:2400], upkeep=False)
    thread.join(30)
    store.end_upkeep(work)
    store.check()
    rest, pages = rest[2400:], pages[2400:]
    store.load(rest, target, pages)
    assert (target.mem[pages] == source.mem[pages]).all()
    store.load(new, target, numbers(200))
    assert (target.mem[:200] == source.mem[:200]).all()


@pytest.mark.parametrize("spec", ["", "disk", "shmem:/x", "zstd:/x", "file", "file:", "zstd+file:", "file:a\0b"])
def test_a_spec_that_is_none(spec: str) -> None:
    with pytest.raises(TtmError) as error:
        make_store(spec, MiB)
    assert error.value.errno == errno.EINVAL


def test_sizes(tmp_path: Path) -> None:
    assert make_store("shmem", 0) is None
    assert make_store(f"file:{tmp_path}/none", 0) is None
    assert not (tmp_path / "none").exists()
    for size in (-1, 100):
        with pytest.raises(TtmError, match="not one page"):
            make_store("zstd", size)
    with pytest.raises(TtmError, match="too much"):
        make_store("zstd", 1 << 50)
    with pytest.raises(TtmError):
        make_store("nothing", 0)


def test_a_closed_store_says_so(make: Make) -> None:
    store, source = make(MiB), noise_arena(2)
    store.store(source, numbers(2))
    store.close()
    for call in (lambda: store.store(source, numbers(2)), lambda: store.drop(numbers(1))):
        with pytest.raises(TtmError, match="closed"):
            call()

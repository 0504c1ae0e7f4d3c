"""Tails: what was appended behind a resource of VRAM goes to the store and comes back as any page of system does."""

import errno
import random
from functools import partial
from typing import Any

import pytest
import trio

from tests.core.harness import MIB, PAGE, device, idle, make, move, outcome, pattern
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm import access, backup, store_io
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.peek import peek
from ttmfs.ttm.shrinker import shrink


async def with_tail(vdev: VirtualDevice, own: int, whole: int) -> tuple[BufferObject, bytes]:
    """A BO of `whole` bytes of which `own` are in VRAM, and its content."""
    bo = await make(vdev, "a", own, place="vram")
    await idle(bo)
    content = pattern("a", own) + pattern("tail", whole - own)
    for offset in range(own, whole, MIB):
        await access.write(bo, offset, content[offset : offset + MIB])
    assert bo.mem_type == "vram"
    return bo, content


async def test_a_bo_whose_tail_is_larger_than_memory_beside_a_store_with_room() -> None:
    async with device(vram=8 * MIB, gtt=8 * MIB, memory=6 * MIB, swap=64 * MIB) as vdev:
        bo, content = await with_tail(vdev, 2 * MIB, 12 * MIB)
        assert bo.need_tt().backed_up_pages > 0
        for offset in range(0, 12 * MIB, MIB):
            assert bytes(await access.read(bo, offset, MIB)) == content[offset : offset + MIB]
        assert (bo.mem_type, bo.own_pages) == ("vram", 512)


@pytest.mark.parametrize("where", ["gtt", "system", "vram"])
async def test_the_shrinker_takes_it_and_every_move_brings_it_along(where: str) -> None:
    async with device(vram=8 * MIB, gtt=16 * MIB) as vdev:
        bo, content = await with_tail(vdev, 2 * MIB, 4 * MIB)
        done = await shrink(vdev.ttm, 1 << 30, OperationContext())
        assert done.stored == 512
        assert bo.snapshot() == b"v" * 512 + b"b" * 512
        assert not bo.unevictable
        assert await peek(bo, 0, 4 * MIB) == content
        assert bytes(await access.read(bo, 2 * MIB - PAGE, 2 * PAGE)) == content[2 * MIB - PAGE : 2 * MIB + PAGE]
        await move(vdev, bo, where)
        await idle(bo)
        assert bytes(await access.read(bo, 0, 4 * MIB)) == content


async def test_writes_and_truncates_while_a_tail_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below it they are served at once, in it they wait for the copy; what is cut off stays cut off."""
    async with device(vram=8 * MIB, gtt=16 * MIB) as vdev:
        bo, content = await with_tail(vdev, 2 * MIB, 4 * MIB)
        wanted = bytearray(content)
        store = vdev.ttm.swap_store
        assert store is not None
        real = store.write_steps
        states: list[bytes] = []

        async def clients() -> None:
            for offset in (0, 2 * MIB - PAGE, 2 * MIB + 5 * PAGE):
                await access.write(bo, offset, b"w" * 2 * PAGE)
                wanted[offset : offset + 2 * PAGE] = b"w" * 2 * PAGE

        def write_steps(*arguments: object) -> object:
            if not states:
                states.append(bo.snapshot())
                vdev_nursery.start_soon(clients)
                set_size(bo, 3 * MIB + 100)
                set_size(bo, 4 * MIB)
                wanted[3 * MIB + 100 :] = bytes(MIB - 100)
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "write_steps", write_steps)
        async with trio.open_nursery() as vdev_nursery:
            await shrink(vdev.ttm, 1 << 30, OperationContext())
        assert states[0][:512] == b"v" * 512
        assert b"m" in states[0]
        assert bytes(await access.read(bo, 0, 4 * MIB)) == wanted


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("stored", [30, 68, 132])
@pytest.mark.parametrize("place", ["gtt", "vram gtt"])
async def test_a_tail_that_comes_back_while_what_was_in_vram_is_copied(
    place: str, stored: int, interrupted: bool
) -> None:
    """The restore of the whole makes pieces whole: not of pages into which a copy moves bytes."""
    async with device(vram=4 * MIB, gtt=12 * MIB, memory=6 * MIB, swap=64 * MIB, placement="vram system") as vdev:
        bo, content = await with_tail(vdev, MIB, MIB + 132 * PAGE)
        await shrink(vdev.ttm, stored, OperationContext(no_wait_gpu=True))
        if interrupted:
            # It leaves a restore that has not ended, perhaps with pages of what is in vram still.
            fail = vdev.ttm.inject["store_read"]
            fail.probability, fail.times = 100, 1
            assert await outcome(partial(move, vdev, bo, "gtt")) == errno.EIO
            fail.probability = 0
        await move(vdev, bo, "system")
        assert bo.snapshot().startswith(b"m" * 256)
        await move(vdev, bo, place)
        assert bytes(await access.read(bo, 0, len(content))) == content
        await idle(bo)
        assert bytes(await access.read(bo, 0, len(content))) == content


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.stress) for seed in range(4, 404))])
async def test_appended_tails_under_a_storm(seed: int) -> None:
    """Two BOs that grow, shrink, move and are shrunk, in memory that does not hold them, against their bytes."""
    rng = random.Random(seed)
    async with device(vram=4 * MIB, gtt=12 * MIB, memory=6 * MIB, swap=64 * MIB, placement="vram system") as vdev:
        bos = [(await make(vdev, name, MIB, place="vram"), bytearray(pattern(name, MIB))) for name in "ab"]

        async def pressure(stop: trio.Event) -> None:
            while not stop.is_set():
                await shrink(vdev.ttm, rng.randrange(1, 600), OperationContext(no_wait_gpu=True))
                await trio.sleep(0.002)

        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pressure, stop)
            for number in range(60):
                bo, model = rng.choice(bos)
                act = rng.choice(["append", "append", "write", "read", "cut", "move"])
                if act == "append" and len(model) < 4 * MIB:
                    data = rng.randbytes(rng.randrange(1, 300 * PAGE))
                    # Both in gtt may be more than all memory: then it fails whole.
                    if await outcome(partial(access.write, bo, len(model), data)) != errno.ENOMEM:
                        model += data
                    assert bo.size == len(model)
                elif act == "write" and model:
                    offset = rng.randrange(len(model))
                    data = bytes([number]) * min(len(model) - offset, rng.randrange(1, 40 * PAGE))
                    await access.write(bo, offset, data)
                    model[offset : offset + len(data)] = data
                elif act == "read" and model:
                    offset = rng.randrange(len(model))
                    got = bytes(await access.read(bo, offset, 64 * PAGE))
                    assert got == model[offset : offset + 64 * PAGE], f"seed {seed}, step {number}"
                elif act == "cut" and rng.random() < 0.3:
                    set_size(bo, size := rng.randrange(len(model) + 1))
                    del model[size:]
                elif act == "move" and len(model) <= 2 * MIB and model:
                    await outcome(partial(move, vdev, bo, rng.choice(["vram gtt", "gtt", "system"])))
            stop.set()
        for bo, model in bos:
            assert await peek(bo, 0, len(model)) == model


async def test_one_with_a_tail_in_the_store_makes_way_although_memory_could_not_hold_it() -> None:
    async with device(vram=4 * MIB, gtt=64 * MIB, memory=32 * MIB, swap=64 * MIB) as vdev:
        bo, content = await with_tail(vdev, MIB, 24 * MIB)
        await shrink(vdev.ttm, 1 << 30, OperationContext())
        stored = bo.need_tt().backed_up_pages
        assert stored == 23 * MIB // PAGE
        pinned = await make(vdev, "pinned", 20 * MIB)
        pinned.pin()
        other = await make(vdev, "b", MIB, place="vram")
        await idle(other)
        wanted = await make(vdev, "c", 3 * MIB)
        await move(vdev, wanted, "vram")
        assert (wanted.mem_type, bo.mem_type, other.mem_type) == ("vram", "system", "vram")
        assert bo.need_tt().backed_up_pages == stored, "it came back for nothing"
        pinned.unpin()
        await idle(bo)
        assert await peek(bo, 0, 24 * MIB) == content


async def test_a_write_across_the_border_beside_a_slow_backup_takes_memory_for_the_tail_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with device(vram=8 * MIB, gtt=16 * MIB, fault_timeout=0.2) as vdev, trio.open_nursery() as nursery:
        bo, content = await with_tail(vdev, MIB, 2 * MIB)
        go_on, store_pages = trio.Event(), store_io.store_pages

        async def slowly(*args: Any, **more: Any) -> Any:
            await go_on.wait()
            return await store_pages(*args, **more)

        monkeypatch.setattr(backup, "store_pages", slowly)
        nursery.start_soon(shrink, vdev.ttm, 1 << 30, OperationContext())
        while not bo.copies:
            await trio.lowlevel.checkpoint()
        await access.write(bo, MIB - 2 * PAGE, b"W" * 4 * PAGE)
        go_on.set()
        await idle(bo)
        assert not len(bo.need_tt().present_in(0, bo.own_pages))
        wanted = content[: MIB - 2 * PAGE] + b"W" * 4 * PAGE + content[MIB + 2 * PAGE :]
        assert await peek(bo, 0, 2 * MIB) == wanted

"""What holds all of a BO is asked for its bytes at once, and only while that is so."""

from tests.core.harness import MIB, PAGE, device, move, pattern
from ttmfs.ttm import access, at_once
from ttmfs.ttm.lifetime import set_size


async def test_a_bo_of_several_runs_is_read_and_written_at_once_where_it_is() -> None:
    async with device(vram=16 * MIB) as vdev:
        bo = vdev.create_bo("a")
        content = bytearray(pattern("a", 8 * MIB))
        for offset in range(0, len(content), MIB):
            await access.write(bo, offset, bytes(content[offset : offset + MIB]))
        for place in ("system", "vram", "gtt", "system"):
            await move(vdev, bo, place)
            assert bytes(await access.read(bo, 3 * PAGE, PAGE)) == content[3 * PAGE : 4 * PAGE]
            await access.read(bo, 0, PAGE)  # the first one waited
            assert bo.whole is (bo.resource if place == "vram" else bo.tt)
            assert isinstance(at_once.try_read(bo, 5 * PAGE + 7, 100), memoryview)
            assert at_once.try_write(bo, 6 * PAGE + 1, place.encode())
            content[6 * PAGE + 1 : 6 * PAGE + 1 + len(place)] = place.encode()
            assert bytes(await access.read(bo, 0, bo.size)) == content
        assert not vdev.selfcheck()


async def test_who_grows_in_vram_or_moves_or_is_cut_is_looked_at_anew() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        await access.write(bo, 0, pattern("a", MIB))
        await move(vdev, bo, "vram")
        for _ in "waits", "at once":
            await access.read(bo, 0, PAGE)
        assert bo.whole is bo.resource
        await access.write(bo, MIB, b"tail")
        await access.read(bo, 0, bo.size)
        assert bo.whole is None
        set_size(bo, PAGE)
        await access.read(bo, 0, PAGE)
        assert not vdev.selfcheck()

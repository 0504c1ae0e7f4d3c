"""Suspend and resume, unplug, imported BOs."""

# ruff: noqa: ASYNC240 - the files are in memory
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.harness import MIB, PAGE, check, device, idle, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.imported import import_bo
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError
from ttmfs.ttm import access
from ttmfs.ttm.context import OperationContext


async def test_suspend_empties_every_region_and_resume_brings_all_back() -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"b{n}", place=place) for n, place in enumerate(("vram", "gtt", "vram", "system"))]
        bos[2].pin()
        await idle(*bos)
        places = [(bo.mem_type, bo.resource.start if bo.resource else None) for bo in bos]
        result = await vdev.power.suspend(OperationContext())
        assert result["suspended"] == 3
        assert {bo.mem_type for bo in bos} == {"system"}
        assert vdev.ttm.managers["vram"].usage == vdev.ttm.managers["gtt"].usage == 0
        for call in (move(vdev, bos[0], "vram"), calls.evict_one(vdev, bos[0], OperationContext())):
            with pytest.raises(TtmError, match="suspended") as caught:
                await call
            assert caught.value.errno == errno.ENODEV
        for bo in bos:
            await check(bo)
        with pytest.raises(TtmError):
            await vdev.power.suspend(OperationContext())
        result = await vdev.power.resume(OperationContext())
        assert (result["restored"], result["failed"]) == (3, 0)
        assert [(bo.mem_type, bo.resource.start if bo.resource else None) for bo in bos] == places
        assert bos[2].pin_count == 1
        for bo in bos:
            await check(bo)
        with pytest.raises(TtmError):
            await vdev.power.resume(OperationContext())


async def test_bos_come_and_go_while_suspended() -> None:
    async with device(placement="vram") as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        await vdev.power.suspend(OperationContext())
        vdev.ttm.release(a)
        new = await make(vdev, "new")
        assert new.mem_type == "system"
        result = await vdev.power.resume(OperationContext())
        assert result["restored"] == 1
        await check(new)
        assert new.mem_type == "vram"
        await check(b)
        await check(new)


async def test_a_suspend_that_finds_no_memory_changes_nothing() -> None:
    async with device(vram=8 * MIB, memory=6 * MIB, swap=0) as vdev:
        bos = [await make(vdev, f"b{n}", 2 * MIB, place="vram") for n in range(4)]
        await idle(*bos)
        with pytest.raises(TtmError):
            await vdev.power.suspend(OperationContext())
        assert not vdev.ttm.suspended
        assert [bo.mem_type for bo in bos] == ["vram"] * 4
        for bo in bos:
            await check(bo)


@pytest.fixture
def exporter() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder, "frame")
        path.write_bytes(pattern("frame", 3 * PAGE + 77))
        yield path


async def test_an_imported_bo_is_the_file(exporter: Path) -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        file = await import_bo(vdev, names, "cam", str(exporter), mappable=True, uid=0, gid=0)
        bo = file.bo
        assert bo.size == 3 * PAGE + 77
        assert bytes(await access.read(bo, 0, 1 << 20)) == exporter.read_bytes()
        await access.write(bo, 100, b"hello")
        assert exporter.read_bytes()[100:105] == b"hello"
        exporter.write_bytes(pattern("other", 3 * PAGE + 77))
        assert bytes(await access.read(bo, 0, 1 << 20)) == exporter.read_bytes()
        for place in ("gtt", "vram", "none"):
            with pytest.raises(TtmError) as caught:
                await move(vdev, bo, place)
            assert caught.value.errno == errno.EINVAL
        await move(vdev, bo, "system")
        with pytest.raises(TtmError):
            await calls.swapout_one(vdev, bo, OperationContext())
        await calls.swapout_all(vdev, 1 << 20, OperationContext())
        with pytest.raises(TtmError) as caught:
            vdev.ttm.set_size(bo, 0)
        assert caught.value.errno == errno.EPERM
        with pytest.raises(TtmError):
            await access.write(bo, bo.size, b"more")
        assert vdev.pool.in_use_pages == 0
        names.unlink(names.root, b"cam")
        assert vdev.ttm.num_bos == 0
        assert exporter.stat().st_size == 3 * PAGE + 77


async def test_not_mappable_is_eio_and_a_truncated_file_too(exporter: Path) -> None:
    async with device(fault_timeout=0.5) as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        hidden = (await import_bo(vdev, names, "hidden", str(exporter), mappable=False, uid=0, gid=0)).bo
        seen = (await import_bo(vdev, names, "seen", str(exporter), mappable=True, uid=0, gid=0)).bo
        with pytest.raises(TtmError) as caught:
            await access.read(hidden, 0, 10)
        assert caught.value.errno == errno.EIO
        with pytest.raises(TtmError):
            await access.write(hidden, 0, b"x")
        await access.read(seen, 0, 10)
        os.truncate(exporter, 10)
        for request in (access.read(seen, 0, 2 * PAGE), access.write(seen, 2 * PAGE, b"x")):
            with pytest.raises(TtmError) as caught:
                await request
            assert caught.value.errno == errno.EIO


async def test_what_cannot_be_imported(exporter: Path) -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        empty = exporter.with_name("empty")
        empty.touch()
        os.mkfifo(exporter.with_name("fifo"))
        cases = [
            ("x", "/nowhere/at/all", errno.ENOENT),
            ("x", str(empty), errno.EINVAL),
            ("x", str(exporter.parent), errno.EISDIR),
            ("x", str(exporter.with_name("fifo")), errno.EINVAL),
            ("x", "/dev/null", errno.EINVAL),
            ("no/folder", str(exporter), errno.ENOENT),
            ("..", str(exporter), errno.EINVAL),
            ("n" * 300, str(exporter), errno.ENAMETOOLONG),
            ("x", "nul\0", errno.EINVAL),
        ]
        for name, path, code in cases:
            with pytest.raises(TtmError) as caught:
                await import_bo(vdev, names, name, path, mappable=True, uid=0, gid=0)
            assert caught.value.errno == code, (name, path)
        await import_bo(vdev, names, "x", str(exporter), mappable=True, uid=0, gid=0)
        with pytest.raises(TtmError) as caught:
            await import_bo(vdev, names, "x", str(exporter), mappable=True, uid=0, gid=0)
        assert caught.value.errno == errno.EEXIST
        assert len(names.files) == 1

"""Imported BOs: the bytes of another file, whoever owns it and whatever its owner does with it."""

# ruff: noqa: ASYNC240 - the files are in memory
import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.harness import PAGE, device, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.imported import import_bo
from ttmfs.driver.jobs import Job
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.memory.foreign_file import ForeignFile
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.context import OperationContext


@pytest.fixture
def exporter() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = Path(folder, "frame")
        path.write_bytes(pattern("frame", 3 * PAGE + 77))
        yield path


async def test_an_imported_bo_has_the_owner_and_the_mode_of_the_file(exporter: Path) -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        for mode in (0o600, 0o640, 0o4777):
            exporter.chmod(mode)
            file = await import_bo(vdev, names, f"cam{mode}", str(exporter), mappable=True)
            owner = exporter.stat()
            assert (file.mode, file.uid, file.gid) == (stat.S_IFREG | mode & 0o777, owner.st_uid, owner.st_gid)


async def test_nothing_of_an_imported_bo_is_as_large_as_it_says(exporter: Path) -> None:
    os.truncate(exporter, 1 << 42)
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        bo = (await import_bo(vdev, names, "cam", str(exporter), mappable=True)).bo
        assert bo.size == 1 << 42
        assert bo.tt is not None
        assert bo.tt.num_leaves == 0
        await access.write(bo, (1 << 42) - 5, b"hello")
        assert bytes(await access.read(bo, (1 << 42) - 6, 100)) == b"\0hello"
        assert bo.tt.runs() == 1


async def test_an_exporter_that_does_not_answer_is_eio_in_time(exporter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def wait(*_arguments: object) -> bytearray:
        released.wait(200)
        return bytearray(10)

    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        bo = (await import_bo(vdev, names, "cam", str(exporter), mappable=True)).bo
        fence = (await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())).fence
        assert await fence.wait(200)
        assert not fence.error
        vdev.config.fault_timeout = 0.2
        with monkeypatch.context() as patch:
            patch.setattr(ForeignFile, "read", wait)
            patch.setattr(ForeignFile, "write", wait)
            try:
                for request in (access.read(bo, 0, 10), access.write(bo, 0, b"late")):
                    with pytest.raises(TtmError) as caught:
                        await request
                    assert caught.value.errno == errno.EIO
                fence = (await submit_job(vdev, Job("checksum", srcs=(bo,)), OperationContext())).fence
                assert await fence.wait(200)
                assert fence.error == errno.EIO
            finally:
                released.set()
        names.unlink(names.root, b"cam")
        assert vdev.ttm.num_bos == 0


async def test_an_imported_bo_is_the_file(exporter: Path) -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        file = await import_bo(vdev, names, "cam", str(exporter), mappable=True)
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
            lifetime.set_size(bo, 0)
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
        hidden = (await import_bo(vdev, names, "hidden", str(exporter), mappable=False)).bo
        seen = (await import_bo(vdev, names, "seen", str(exporter), mappable=True)).bo
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
        link = exporter.with_name("link")
        link.symlink_to(exporter)
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
            ("x", str(link), errno.ELOOP),
        ]
        for name, path, code in cases:
            with pytest.raises(TtmError) as caught:
                await import_bo(vdev, names, name, path, mappable=True)
            assert caught.value.errno == code, (name, path)
        await import_bo(vdev, names, "x", str(exporter), mappable=True)
        with pytest.raises(TtmError) as caught:
            await import_bo(vdev, names, "x", str(exporter), mappable=True)
        assert caught.value.errno == errno.EEXIST
        assert len(names.files) == 1

"""NameCache: who takes a name away does not wait for the kernel to hear of it, and what it refuses ends nothing.

The kernel here is a table of the messages that it got, and may be held in one of them.
"""

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from ttmfs.driver.config import Config
from ttmfs.errors import TtmError
from ttmfs.fs.mount import Mount
from ttmfs.fs.requests.inodes import ROOT_INO
from ttmfs.fs.requests.name_cache import NameCache

MIB = 1 << 20
ASKED: Any = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0o022)


class Kernel:
    """A SessionFd: `heard` is what it was told."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.listens = threading.Event()
        self.listens.set()
        self.refuses = False
        """It takes no more messages."""
        self.refused = 0

    def invalidate_entry(self, folder: int, name: bytes) -> bool:
        """SessionFd's."""
        assert self.listens.wait(60)
        if self.refuses:
            self.refused += 1
            raise TtmError(errno.ENOMEM, "the kernel has no memory for a notification")
        self.heard.append((folder, name))
        return True


class Served:
    """A mount without one: its requests, and the kernel that they tell."""

    def __init__(self, mount: Mount, kernel: Kernel, cache: NameCache) -> None:
        self.mount = mount
        self.ask = mount.operations
        self.kernel = kernel
        self.cache = cache
        self.bo_root = mount.machine.names.root.ino

    async def walk(self, path: str) -> int:
        """The number that the last LOOKUP of the way says."""
        ino = ROOT_INO
        for name in path.split("/"):
            ino = (await self.ask.lookup(ino, name.encode(), ASKED)).st_ino
        return ino

    async def fails(self, asked: Awaitable[object]) -> str:
        """The errno that a request is answered with, or "ok"."""
        try:
            await asked
        except pyfuse3.FUSEError as error:
            return errno.errorcode[error.errno]
        return "ok"


@pytest.fixture
def mount() -> Iterator[Mount]:
    mount = Mount("/", Config(vram=8 * MIB, gtt=8 * MIB, memory=16 * MIB))
    names = mount.machine.names
    for name in (b"a", b"b", b"c"):
        names.create(names.root, name, 0o644, 0, 0)
    yield mount
    mount.vdev.close()


@asynccontextmanager
async def serving(mount: Mount) -> AsyncIterator[Served]:
    kernel: Any = Kernel()
    cache = NameCache(kernel, mount.served.inodes)
    mount.machine.names.gone = cache.gone
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        try:
            served = Served(mount, kernel, cache)
            for name in "abc":
                await served.walk(f"bo/{name}")
            yield served
        finally:
            kernel.listens.set()
            nursery.cancel_scope.cancel()


CHANGES = ("unlink", "rename", "replace", "exchange")


async def change(served: Served, how: str) -> None:
    """Takes the name `a` from its BO."""
    root, ask = served.bo_root, served.ask
    if how == "unlink":
        await ask.unlink(root, b"a", ASKED)
    elif how == "rename":
        await ask.rename(root, b"a", root, b"z", 0, ASKED)
    elif how == "replace":
        await ask.rename(root, b"b", root, b"a", 0, ASKED)
    else:
        await ask.rename(root, b"b", root, b"a", pyfuse3.RENAME_EXCHANGE, ASKED)


@pytest.mark.parametrize("how", CHANGES)
async def test_a_name_that_is_gone_is_told_and_nobody_waits_for_that(mount: Mount, how: str) -> None:
    async with serving(mount) as served:
        ask, kernel = served.ask, served.kernel
        objects, gone = await served.walk("objects"), await served.walk("objects/a")
        kernel.listens.clear()
        with trio.fail_after(60):
            await change(served, how)
        if how in ("replace", "exchange"):
            assert (await ask.lookup(objects, b"a", ASKED)).st_ino != gone
        else:
            assert await served.fails(ask.lookup(objects, b"a", ASKED)) == "ENOENT"
        assert kernel.heard == []
        kernel.listens.set()
        with trio.fail_after(60):
            while (objects, b"a") not in kernel.heard:
                await trio.sleep(0.001)


async def test_what_the_kernel_refuses_ends_nothing(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(mount) as served:
        await served.walk("objects/a")
        served.kernel.refuses = True
        await change(served, "replace")
        with trio.fail_after(60):
            while not served.kernel.refused:
                await trio.sleep(0.001)
        served.kernel.refuses = False
        objects, _ = await served.walk("objects"), await served.walk("objects/c")
        await served.ask.unlink(served.bo_root, b"c", ASKED)
        with trio.fail_after(60):
            while (objects, b"c") not in served.kernel.heard:
                await trio.sleep(0.001)
    assert "no memory for a notification" in caplog.text


async def test_without_a_further_thread_it_is_told_all_the_same(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(mount) as served:
        objects, _ = await served.walk("objects"), await served.walk("objects/a")
        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
        await change(served, "unlink")
        with trio.fail_after(60):
            while (objects, b"a") not in served.kernel.heard:
                await trio.sleep(0.001)

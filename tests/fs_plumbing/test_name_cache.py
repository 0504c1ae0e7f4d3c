"""NameCache: who takes a name away is answered when the kernel has heard; if it does not hear, the daemon knows better.

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
        self.refuses = self.one_more = False
        """It takes no more messages; it takes one."""
        self.refused = 0

    def invalidate_entry(self, folder: int, name: bytes) -> bool:
        """SessionFd's."""
        assert self.listens.wait(60)
        if self.one_more:
            self.listens.clear()
            self.one_more = False
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


async def settled() -> None:
    """Whatever can go on has."""
    for _ in range(50):
        await trio.lowlevel.checkpoint()


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
async def test_until_the_kernel_has_heard_it_is_sent_to_ask_for_names_anew(mount: Mount, how: str) -> None:
    async with serving(mount) as served:
        ask, kernel, file = served.ask, served.kernel, mount.machine.names.root.children[b"a"].entry.ino
        objects, gone = await served.walk("objects"), await served.walk("objects/a")
        kernel.listens.clear()
        with trio.fail_after(60):
            await change(served, how)
        for asked in (
            ask.getattr(gone, ASKED),
            ask.lookup(gone, b"status", ASKED),
            ask.lookup(gone, b"validate", ASKED),
            ask.opendir(gone, ASKED),
        ):
            assert await served.fails(asked) == "ESTALE"
        if how in ("replace", "exchange"):
            now = (await ask.lookup(objects, b"a", ASKED)).st_ino
            assert now != gone
            assert (await ask.lookup(now, b"status", ASKED)).st_ino
        else:
            assert await served.fails(ask.lookup(objects, b"a", ASKED)) == "ENOENT"
        kernel.listens.set()
        while (objects, b"a") not in kernel.heard:
            await trio.sleep(0.001)
        await settled()
        # Who stands in there is where he was, if there is such a BO.
        if how in ("unlink", "replace"):
            await ask.forget([(file, 1)])
        in_there = {"unlink": "ENOENT", "replace": "ESTALE"}.get(how, "ok")
        with trio.fail_after(60):
            while await served.fails(ask.lookup(gone, b"status", ASKED)) != in_there:
                await trio.sleep(0.001)


async def test_a_name_that_its_bo_has_again_is_no_stale_one(mount: Mount) -> None:
    async with serving(mount) as served:
        ask, root = served.ask, served.bo_root
        objects, known = await served.walk("objects"), await served.walk("objects/a")
        served.kernel.listens.clear()
        await ask.rename(root, b"a", root, b"z", 0, ASKED)
        await ask.rename(root, b"z", root, b"a", 0, ASKED)
        assert (await ask.lookup(objects, b"a", ASKED)).st_ino == known
        assert (await ask.lookup(known, b"status", ASKED)).st_ino


async def test_to_have_heard_of_an_earlier_loss_is_not_to_have_heard_of_this_one(mount: Mount) -> None:
    async with serving(mount) as served:
        ask, root = served.ask, served.bo_root
        known, kernel = await served.walk("objects/a"), served.kernel
        kernel.listens.clear()
        await ask.rename(root, b"a", root, b"z", 0, ASKED)
        await ask.rename(root, b"z", root, b"a", 0, ASKED)
        assert await served.walk("objects/a") == known
        await ask.rename(root, b"a", root, b"y", 0, ASKED)
        kernel.one_more = True
        kernel.listens.set()
        while kernel.one_more:
            await trio.sleep(0.001)
        await settled()
        assert await served.fails(ask.getattr(known, ASKED)) == "ESTALE"


async def test_what_the_kernel_refuses_stays_stale(mount: Mount) -> None:
    async with serving(mount) as served:
        gone = await served.walk("objects/a")
        served.kernel.refuses = True
        await change(served, "replace")
        assert await served.fails(served.ask.getattr(gone, ASKED)) == "ESTALE"
        while not served.kernel.refused:
            await trio.sleep(0.001)
        await trio.sleep(0.01)
        assert await served.fails(served.ask.getattr(gone, ASKED)) == "ESTALE"
        served.kernel.refuses = False
        assert await served.walk("objects/a") != gone
        # The daemon goes on telling.
        objects, other = await served.walk("objects"), await served.walk("objects/c")
        await served.ask.unlink(served.bo_root, b"c", ASKED)
        while (objects, b"c") not in served.kernel.heard:
            await trio.sleep(0.001)
        assert other != gone

"""Clients: every byte that a region's manager counts is accounted to exactly one of them, at every moment."""

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.core.harness import MIB, PAGE, device, idle, make
from ttmfs.driver import calls
from ttmfs.driver.clients import Client
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.driver.submit import submit_job
from ttmfs.driver.usage import RegionUsage, Usages, add_bo, in_flight, is_clients
from ttmfs.errors import TtmError
from ttmfs.fs.tree.fdinfo import client_text, fdinfo, gem_info, size_text
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext


@asynccontextmanager
async def namespace(**options: Any) -> AsyncIterator[tuple[VirtualDevice, Namespace]]:
    async with device(**options) as vdev:
        yield vdev, Namespace(vdev, uid=0, gid=0)


def create(names: Namespace, name: str, thread: int = 0, uid: int = 0) -> BoFile:
    file = names.create(names.root, name.encode(), 0o644, uid, 0)
    names.clients.adopt(file, thread)
    return file


async def test_who_has_a_bo_open_is_a_client_until_it_is_closed() -> None:
    async with namespace() as (vdev, names):
        file = create(names, "a")
        gone: list[str] = []
        names.clients.gone = lambda client: gone.append(client.file_name)
        process = sleeper()
        try:
            first = names.clients.opened(file, process.pid, 7)
            second = names.clients.opened(file, process.pid, 7)
            assert first is not None
            assert first is second
            assert (first.uid, first.opens[file], first.files) == (7, 2, {})
            assert "ttmfs-open:\t1\n" in await client_text(vdev, names, first)
            names.clients.closed(file, first)
            assert first in list(names.clients)
            names.clients.closed(file, second)
            assert first not in list(names.clients)
            assert gone == [str(process.pid)]
            again = names.clients.opened(file, process.pid, 7)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        # Somebody whom it was handed to has it open still; it is nobody's that is known.
        assert again not in list(names.clients)
        names.clients.closed(file, again)
        assert gone == [str(process.pid)] * 2
        assert names.clients.opened(file, 0, 7) is None
        names.clients.closed(file, None)


def sleeper() -> "subprocess.Popen[bytes]":
    """A process that lives until its input ends."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    return process


def with_a_thread() -> "tuple[subprocess.Popen[bytes], int]":
    """A process whose second thread lives until its input ends, and that thread."""
    code = (
        "import threading, sys\n"
        "def run(): print(threading.get_native_id(), flush=True); sys.stdin.read()\n"
        "threading.Thread(target=run).start()"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate(timeout=10)


def all_usages(vdev: VirtualDevice, names: Namespace) -> dict[str, Usages]:
    """By client, without an await: one moment. Whose BO it is is told by the files, all the rest is the kernel's."""
    moving = in_flight(vdev)
    found: dict[str, Usages] = {}

    def add(client: Client, bo: BufferObject) -> None:
        usages = found.setdefault(client.file_name, {name: RegionUsage() for name in vdev.ttm.managers})
        add_bo(usages, bo, moving)

    seen = set()
    for client in names.clients:
        for file in client.files.values():
            add(client, file.bo)
            assert file.ino not in seen, "accounted twice"
            seen.add(file.ino)
    assert seen == set(names.files)
    others = [item.bo for manager in vdev.ttm.managers.values() for item in manager.lru]
    others += [item.bo for item in vdev.ttm.unevictable]
    others += [resource.bo for manager in vdev.ttm.managers.values() for resource in manager.unassigned]
    for bo in {id(bo): bo for bo in others if not is_clients(names, bo)}.values():
        add(names.clients.kernel, bo)
    return found


def check_sum(vdev: VirtualDevice, names: Namespace) -> None:
    usages = all_usages(vdev, names).values()
    for region, manager in vdev.ttm.managers.items():
        total = sum(by_region[region].total for by_region in usages)
        assert total == manager.usage, f"{region}: clients have {total} bytes, the manager {manager.usage}"
        for by_region in usages:
            use = by_region[region]
            assert max(use.shared, use.active + use.purgeable) <= use.resident


class Watcher:
    """Checks the sum whenever it gets to run: between any two steps of what goes on."""

    def __init__(self, vdev: VirtualDevice, names: Namespace) -> None:
        self.vdev, self.names = vdev, names
        self.checks = 0
        self.kernel = 0

    async def run(self) -> None:
        while True:
            check_sum(self.vdev, self.names)
            self.checks += 1
            self.kernel += "kernel" in all_usages(self.vdev, self.names)
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(4))
async def test_the_clients_add_up_to_the_managers_at_every_step(seed: int) -> None:
    rng = random.Random(seed)
    processes = [sleeper() for _ in range(3)]
    try:
        async with namespace(vram=2 * MIB, gtt=4 * MIB, copy_latency=0.0005) as (vdev, names):
            watcher = Watcher(vdev, names)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher.run)
                for number in range(150):
                    await step(rng, vdev, names, processes, number)
                    check_sum(vdev, names)
                    await trio.lowlevel.checkpoint()
                    if number == 75:
                        end(processes[0])
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert watcher.checks > 150
            assert watcher.kernel, "no ghost was ever seen: this shows nothing about them"
    finally:
        for process in processes:
            end(process)


async def step(
    rng: random.Random,
    vdev: VirtualDevice,
    names: Namespace,
    processes: "list[subprocess.Popen[bytes]]",
    number: int,
) -> None:
    files = list(names.files.values())
    what = rng.choice(("create", "create", "validate", "validate", "validate", "evict", "write", "unlink", "swapout",
                       "truncate", "job", "rename", "pin", "none"))  # fmt: skip
    if what == "create" or not files:
        process = rng.choice(processes)
        file = create(names, f"bo{number}", process.pid if process.poll() is None else 0, rng.choice((0, 7)))
        await access.write(file.bo, 0, bytes(rng.randrange(1, 160) * PAGE))
        return
    file = rng.choice(files)
    bo, ctx = file.bo, OperationContext()
    try:
        if what == "validate":
            places = rng.choice((["vram"], ["gtt"], ["system"], ["vram", "gtt"], ["vram:contiguous"]))
            await calls.validate_bo(vdev, bo, vdev.parse_placement(places), ctx)
        elif what == "evict":
            await calls.evict_one(vdev, bo, ctx)
        elif what == "write":
            await access.write(bo, rng.randrange(bo.size + PAGE), b"x" * rng.randrange(1, 3 * PAGE))
        elif what == "unlink":
            assert file.parent is not None
            names.unlink(file.parent, file.name)
        elif what == "swapout":
            await calls.swapout_one(vdev, bo, ctx)
        elif what == "truncate":
            lifetime.set_size(bo, rng.randrange(bo.size + 1))
        elif what == "job":
            await submit_job(vdev, Job("busy", srcs=(bo,), seconds=0.001), ctx)
        elif what == "rename":
            names.rename(names.root, file.name, names.root, b"renamed%d" % number, replace=True)
        elif what == "pin":
            await calls.pin(vdev, bo)
            await trio.lowlevel.checkpoint()
            await calls.unpin(vdev, bo)
        else:
            await calls.validate_bo(vdev, bo, (), ctx)
    except TtmError:
        pass


async def test_a_bo_is_its_creators_then_its_users() -> None:
    process = sleeper()
    try:
        async with namespace() as (vdev, names):
            file = create(names, "a", process.pid, 1234)
            bo = file.bo
            await access.write(bo, 0, bytes(MIB))
            assert [client.file_name for client in names.clients] == [str(process.pid), "kernel"]
            before = names.clients.find(str(process.pid))
            assert before is not None
            end(process)
            assert [client.file_name for client in names.clients] == ["uid-1234", "kernel"]
            after = names.clients.find("uid-1234")
            assert after is not None
            assert after.id != before.id
            assert list(after.files) == [file.ino]
            names.unlink(names.root, b"a")
            assert [client.file_name for client in names.clients] == ["kernel"]
            check_sum(vdev, names)
    finally:
        end(process)


async def test_a_thread_is_accounted_to_its_process() -> None:
    async with namespace() as (_vdev, names):
        process, thread = with_a_thread()
        try:
            assert thread != process.pid
            create(names, "a", thread)
            assert [client.file_name for client in names.clients] == [str(process.pid), "kernel"]
        finally:
            end(process)


async def test_what_an_fdinfo_says() -> None:
    async with namespace() as (vdev, names):
        file = create(names, "a b", os.getpid())
        other = create(names, "c", os.getpid())
        await access.write(file.bo, 0, bytes(3 * MIB))
        await calls.validate_bo(vdev, file.bo, vdev.parse_placement(["vram"]), OperationContext())
        await idle(file.bo)
        await access.write(other.bo, 0, bytes(5 * PAGE))
        other.bo.madvise = "dontneed"
        other.opens = 2
        client = names.clients.find(str(os.getpid()))
        assert client is not None
        lines = (await client_text(vdev, names, client)).splitlines()
        assert lines[:2] == ["drm-driver:\tttmfs", f"drm-client-id:\t{client.id}"]
        values = dict(line.split(":\t") for line in lines)
        assert all("\t" in line for line in lines)
        assert values["drm-resident-vram"] == values["drm-total-vram"] == "3 MiB"
        assert values["drm-resident-system"] == values["drm-purgeable-system"] == "20 KiB"
        assert values["drm-shared-system"] == "20 KiB"
        assert values["drm-total-gtt"] == values["drm-active-vram"] == "0"
        await submit_job(vdev, Job("busy", srcs=(other.bo,), seconds=0.01), OperationContext())
        values = dict(line.split(":\t") for line in (await client_text(vdev, names, client)).splitlines())
        assert (values["drm-active-system"], values["drm-purgeable-system"]) == ("20 KiB", "0")
        await idle(other.bo)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1024, "1 KiB"),
        (1536, "1536"),
        (MIB, "1 MiB"),
        (5 << 30, "5120 MiB"),
        (MIB + 1024, "1025 KiB"),
    ],
)
def test_sizes_are_divided_while_nothing_is_left_over(size: int, text: str) -> None:
    assert size_text(size) == text


def test_the_name_of_a_client_is_one_word() -> None:
    text = fdinfo(Client(3, "9", "a b\n", 0, 9), {})
    head = "drm-driver:\tttmfs\ndrm-client-id:\t3\ndrm-client-name:\ta\\040b\\012\n"
    assert text == head + "drm-engine-copy:\t0 ns\ndrm-engine-compute:\t0 ns\n"


async def test_what_engines_do_is_accounted_to_whose_bo_it_is() -> None:
    async with namespace(vram=4 * MIB, copy_latency=0.5) as (vdev, names):
        mine, other = create(names, "a", os.getpid()), create(names, "b")
        for file in (mine, other):
            await access.write(file.bo, 0, bytes(MIB))
        await calls.validate_bo(vdev, mine.bo, vdev.parse_placement(["gtt"]), OperationContext())
        await calls.validate_bo(vdev, mine.bo, vdev.parse_placement(["vram"]), OperationContext())
        await submit_job(vdev, Job("fill", dst=mine.bo, value=7), OperationContext())
        await idle(mine.bo)
        assert mine.client is not None
        assert other.client is not None
        assert mine.client.engine_ns["copy"] >= 500_000_000
        assert mine.client.engine_ns["compute"] > 0
        assert other.client.engine_ns == {"copy": 0, "compute": 0}
        text = await client_text(vdev, names, mine.client)
        assert f"drm-engine-copy:\t{mine.client.engine_ns['copy']} ns" in text.splitlines()


async def test_gem_info_has_amdgpus_lines() -> None:
    async with namespace(vram=4 * MIB, visible_vram=MIB) as (vdev, names):
        file = create(names, "a")
        await access.write(file.bo, 0, bytes(2 * MIB))
        await calls.validate_bo(vdev, file.bo, vdev.parse_placement(["vram"]), OperationContext())
        await idle(file.bo)
        file.bo.pin()
        assert (await gem_info(vdev, names)).splitlines() == [
            "pid        0 command uid-0:",
            "\t\t0x00000001:      2097152 byte VRAM pin count 1",
            "pid        0 command ttmfs:",
        ]
        file.bo.unpin()


async def test_nothing_is_kept_of_who_made_what_is_gone() -> None:
    async with namespace() as (vdev, names):
        for number in range(50):
            create(names, f"bo{number}", os.getpid())
            names.unlink(names.root, b"bo%d" % number)
        assert not names.files
        assert not names.clients._processes
        assert not names.clients._users
        await make(vdev, "without a file")
        check_sum(vdev, names)

"""An unprivileged mount keeps few requests waiting: whoever is hurried for that may not fail for it."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.driver.conftest import MakeDevice
from ttmfs.driver import calls
from ttmfs.driver.engine import CopyEngine
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.request import Request
from ttmfs.units import PAGE_SIZE

MIB = 1 << 20


async def test_a_hurried_write_waits_for_bytes_that_move(
    device: MakeDevice, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    move = CopyEngine._move_bytes
    release = trio.Event()

    async def held(self: CopyEngine, copy: Any, **how: Any) -> None:
        await release.wait()
        await move(self, copy, **how)

    async with device() as vdev:
        bo = vdev.create_bo("a")
        await access.write(bo, 0, b"\1" * MIB)
        await calls.validate_bo(vdev, bo, vdev.parse_placement(["gtt"]), OperationContext())
        monkeypatch.setattr(CopyEngine, "_move_bytes", held)
        await calls.validate_bo(vdev, bo, vdev.parse_placement(["vram"]), OperationContext())
        await trio.testing.wait_all_tasks_blocked()
        assert bo.state == "moving"
        async with trio.open_nursery() as nursery:
            for page in range(4):
                # It was hurried while it waited for an earlier copy, say, and now meets this one.
                request = Request(bo)
                request.hurry()
                data = bytes([page + 2]) * PAGE_SIZE
                nursery.start_soon(access._write_slowly, bo, page * PAGE_SIZE, data, request)
                await trio.testing.wait_all_tasks_blocked()
            release.set()
        await bo.resv.wait(Usage.KERNEL)
        for page in range(4):
            assert bytes(await access.read(bo, page * PAGE_SIZE, PAGE_SIZE)) == bytes([page + 2]) * PAGE_SIZE


@pytest.mark.parametrize("write", [False, True])
async def test_a_hurried_request_of_a_reserved_bo_without_memory_is_served(
    device: MakeDevice, autojump_clock: MockClock, write: bool
) -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, MIB)
        vdev.ttm.max_parked = 1
        await bo.resv.lock()
        try:
            async with trio.open_nursery() as nursery:
                for page in range(3):
                    if write:
                        nursery.start_soon(access.write, bo, page * PAGE_SIZE, b"\5" * PAGE_SIZE)
                    else:
                        nursery.start_soon(access.read, bo, page * PAGE_SIZE, PAGE_SIZE)
                    await trio.testing.wait_all_tasks_blocked()
                bo.unreserve()
        finally:
            if bo.resv.locked:
                bo.unreserve()
        expected = (b"\5" if write else b"\0") * 3 * PAGE_SIZE
        assert bytes(await access.read(bo, 0, 3 * PAGE_SIZE)) == expected

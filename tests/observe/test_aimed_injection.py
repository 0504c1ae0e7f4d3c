"""Fault injection that is aimed at a BO or at a process hits nobody else, and counts nobody else's calls."""

import contextlib
import errno
from collections.abc import Awaitable, Callable

import pytest

from tests.core.harness import PAGE, device, make, move
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.observe.asker import ASKER
from ttmfs.observe.inject import KNOW_NO_BO, KNOW_NO_PID, PLACES, Injection
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

SIZE = 16 * PAGE


def armed(place: str, **aim: str) -> Injection:
    inject = Injection()
    for key, text in {"probability": "100", "times": "-1", **aim}.items():
        inject[place].set(key, text)
    return inject


def test_only_the_named_bo_is_hit_and_only_its_calls_count() -> None:
    attr = armed("page_alloc", bo="a b\n", interval="2", space="3")["page_alloc"]
    assert [attr.should_fail(2, bo=bo) for bo in ("x", "", "a b\n")] == [False] * 3
    # Three units of its own are spared, in two calls; then each second call fails.
    assert [attr.should_fail(2, bo="a b") for _ in range(6)] == [False, False, False, True, False, True]


def test_only_the_named_process_is_hit() -> None:
    inject = armed("move", pid="42")
    token = ASKER.set(41)
    try:
        inject.check("move", errno.EIO, "moving a")
        ASKER.set(42)
        with pytest.raises(TtmError, match="moving a failed"):
            inject.check("move", errno.EIO, "moving a")
        inject["move"].set("pid", "0")
        ASKER.set(41)
        with pytest.raises(TtmError):
            inject.check("move", errno.EIO, "moving a")
    finally:
        ASKER.reset(token)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_aimed_says_so(place: str) -> None:
    attr = Injection()[place]
    for key, value, refused in (("bo", "a", KNOW_NO_BO), ("pid", "7", KNOW_NO_PID)):
        if place in refused:
            with pytest.raises(TtmError, match=f"fail_{place} is reached") as found:
                attr.set(key, value)
            assert found.value.errno == errno.EINVAL
        else:
            attr.set(key, value)
            assert str(getattr(attr, key)) == value
        attr.set(key, "" if key == "bo" else "0")


@pytest.mark.parametrize("text", ["", "-1", "x", "9" * 12])
def test_what_is_no_process_id_is_refused(text: str) -> None:
    with pytest.raises(TtmError, match="say a number from 0"):
        Injection()["move"].set("pid", text)


REACHED = ("page_alloc", "resource_alloc", "tt_create", "unmap", "move", "ghost", "engine", "work_alloc", "store_write")


@pytest.mark.parametrize("place", [*REACHED, "store_read", "interrupt"])
async def test_each_place_says_for_which_bo_it_is_reached(place: str) -> None:
    async with device() as vdev:
        bos = {name: await make(vdev, name, SIZE) for name in ("a", "b")}
        attr = vdev.ttm.inject[place]
        attr.set("bo", "a")
        attr.set("probability", "100")
        for name, times in (("b", 1), ("a", 0)):
            bo = bos[name]
            for work in (_to("vram"), _store, _to("system"), _idle, _out, _back):
                if name == "b":
                    await work(vdev, bo)
                else:
                    with contextlib.suppress(TtmError):
                        await work(vdev, bo)
            assert attr.times == times, f"{place} and {name}"


def _to(place: str) -> Callable[[VirtualDevice, BufferObject], Awaitable[object]]:
    return lambda vdev, bo: move(vdev, bo, place)


async def _store(_vdev: VirtualDevice, bo: BufferObject) -> None:
    await access.write(bo, 0, b"x" * SIZE)


async def _idle(vdev: VirtualDevice, bo: BufferObject) -> None:
    await calls.wait_bo(vdev, bo, Usage.BOOKKEEP, 10)


async def _out(vdev: VirtualDevice, bo: BufferObject) -> None:
    await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())


async def _back(vdev: VirtualDevice, bo: BufferObject) -> None:
    await calls.restore(vdev, bo, OperationContext())

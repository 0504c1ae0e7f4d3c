"""Drivers from outside that do what no driver may: an errno and a sentence, every byte right, the device goes on."""

import contextlib
import errno
import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, check, device, fails, idle, make, move
from ttmfs.driver.drivers import find_driver, make_driver
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.ttm import access
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.shrinker import shrink

HEAD = """
import trio
from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.fault import default_fault, vm_reserve
from ttmfs.ttm.funcs import FaultResult, Multihop
from ttmfs.ttm.placement import Place

class Own(DefaultDriver):
"""
RAISES = "raise KeyError('x')"
EXITS = "raise SystemExit(3)"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def driver(folder: Path, body: str) -> str:
    path = folder / "own.py"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in body.splitlines()))
    return f"{path}:Own"


@pytest.mark.parametrize("does", [RAISES, EXITS])
@pytest.mark.parametrize("hook", ["evict_flags(self, bo)", "eviction_valuable(self, bo, place)"])
async def test_an_eviction_fails_and_the_background_goes_on(tmp_path: Path, hook: str, does: str) -> None:
    async with device(driver=driver(tmp_path, f"def {hook}: {does}"), pages_limit=16 * MIB) as vdev:
        bos = [await make(vdev, str(number), place="vram") for number in range(4)]
        new = await make(vdev, "new")
        with pytest.raises(TtmError, match=r"the driver's Own\.\w+ failed: (KeyError|SystemExit)"):
            await move(vdev, new, "vram")
        await trio.sleep(0.01)
        await shrink(vdev.ttm, 256, OperationContext())
        for bo in (*bos, new):
            await check(bo)


@pytest.mark.parametrize("says", ["None", "'vram'", "('vram',)", "5"])
async def test_a_placement_that_is_none_is_said(tmp_path: Path, says: str) -> None:
    async with device(driver=driver(tmp_path, f"def evict_flags(self, bo): return {says}")) as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        new = await make(vdev, "new")
        with pytest.raises(TtmError, match="which is no tuple of places"):
            await move(vdev, new, "vram")
        await check(bo)


@pytest.mark.parametrize("does", [RAISES, EXITS, "await trio.sleep(0); raise KeyError(5)"])
async def test_a_move_that_fails_leaves_everything_as_it_was(tmp_path: Path, does: str) -> None:
    async with device(driver=driver(tmp_path, f"async def move(self, *what, **how): {does}")) as vdev:
        bo = await make(vdev, "a")
        with pytest.raises(TtmError, match=r"the driver's Own\.move failed"):
            await move(vdev, bo, "vram")
        await check(bo)


@pytest.mark.parametrize("does", ["return None", "await trio.sleep(0)"])
async def test_a_move_that_did_not_move_is_said(tmp_path: Path, does: str) -> None:
    async with device(driver=driver(tmp_path, f"async def move(self, *what, **how): {does}")) as vdev:
        bo = await make(vdev, "a")
        with pytest.raises(TtmError, match=r"the driver's Own\.move says that it has moved, and 'a' is not in vram"):
            await move(vdev, bo, "vram")
        assert vdev.ttm.managers["vram"].usage == 0
        await check(bo)


@pytest.mark.parametrize("does", [RAISES, EXITS, "raise Multihop(())"])
async def test_a_move_that_fails_when_it_has_moved_is_one(tmp_path: Path, does: str) -> None:
    body = f"async def move(self, *what, **how):\n    await super().move(*what, **how)\n    {does}"
    async with device(driver=driver(tmp_path, body)) as vdev:
        bo = await make(vdev, "a")
        await move(vdev, bo, "vram")
        assert bo.mem_type == "vram"
        assert "Own.move failed after it had moved" in bo.last_error
        await check(bo)


async def test_a_hop_for_a_hop_is_an_error(tmp_path: Path) -> None:
    hop = "raise Multihop((Place('gtt'),))"
    async with device(driver=driver(tmp_path, f"async def move(self, *what, **how): {hop}")) as vdev:
        bo = await make(vdev, "a")
        with pytest.raises(TtmError, match="hop to gtt asks for a hop to gtt: one is all there may be"):
            await move(vdev, bo, "vram")
        assert vdev.ttm.managers["vram"].usage == vdev.ttm.managers["gtt"].usage == 0
        await check(bo)


@pytest.mark.parametrize("hop", ["'vram'", "None", "(5,)"])
async def test_a_hop_that_is_no_placement_is_said(tmp_path: Path, hop: str) -> None:
    async with device(driver=driver(tmp_path, f"async def move(self, *what, **how): raise Multihop({hop})")) as vdev:
        bo = await make(vdev, "a")
        with pytest.raises(TtmError, match=r"Own\.move says .*, which is no tuple of places"):
            await move(vdev, bo, "vram")
        await check(bo)


@pytest.mark.parametrize("answer", ["NOPAGE", "RETRY", "SIGBUS"])
async def test_what_a_fault_leaves_reserved_others_have(tmp_path: Path, answer: str, autojump_clock: MockClock) -> None:
    body = f"async def fault(self, vmf):\n    await vm_reserve(vmf)\n    return FaultResult.{answer}"
    async with device(driver=driver(tmp_path, body), fault_timeout=1) as vdev:
        bo = vdev.create_bo("a")
        set_size(bo, MIB)
        with contextlib.suppress(TtmError):
            await access.read(bo, 0, PAGE)
        assert not bo.resv.locked
        await move(vdev, bo, "vram")


async def test_only_a_move_asks_for_a_hop(tmp_path: Path) -> None:
    async with device(driver=driver(tmp_path, "def evict_flags(self, bo): raise Multihop(())")) as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        new = await make(vdev, "new")
        with pytest.raises(TtmError, match=r"the driver's Own\.evict_flags failed: Multihop"):
            await move(vdev, new, "vram")
        await check(bo)


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        (RAISES, "KeyError"),
        (EXITS, "SystemExit"),
        ("return None", "no FaultResult"),
        ("return 'OK'", "no FaultResult"),
        ("await vm_reserve(vmf); raise KeyError(5)", "KeyError"),
        ("await vm_reserve(vmf); return 5", "no FaultResult"),
        ("await vm_reserve(vmf); await trio.sleep_forever()", ""),
    ],
)
async def test_a_fault_that_fails_is_one(
    tmp_path: Path, does: str, sentence: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    body = f"async def fault(self, vmf):\n    if vmf.bo.name == 'good': return await default_fault(vmf)\n    {does}"
    async with device(driver=driver(tmp_path, body)) as vdev:
        for name in ("good", "bad"):
            bo = vdev.create_bo(name)
            set_size(bo, MIB)
            if name == "bad" and sentence:
                with pytest.raises(TtmError, match=sentence):
                    await access.read(bo, 0, PAGE)
            else:
                assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)
            assert not bo.resv.locked


@pytest.mark.parametrize("does", [RAISES, EXITS])
@pytest.mark.parametrize("hook", ["delete_mem_notify", "swap_notify"])
async def test_a_notification_that_fails_changes_nothing(tmp_path: Path, hook: str, does: str) -> None:
    async with device(driver=driver(tmp_path, f"def {hook}(self, bo): {does}")) as vdev:
        bo, other = await make(vdev, "a"), await make(vdev, "b", place="vram")
        await idle(other)
        release(other)
        assert not vdev.ttm.managers["vram"].usage
        await check(bo)
        release(bo)


async def test_a_bo_that_the_driver_does_not_take_is_none(tmp_path: Path) -> None:
    async with device(driver=driver(tmp_path, f"def bo_created(self, bo): {RAISES}")) as vdev:
        with fails(errno.EIO):
            vdev.create_bo("a")
        assert not len(vdev.ttm.bos)


async def test_a_job_that_cannot_be_placed_fails(tmp_path: Path) -> None:
    async with device(driver=driver(tmp_path, f"async def validate_for_job(self, bo, ctx): {RAISES}")) as vdev:
        bo = await make(vdev, "a")
        with fails(errno.EIO):
            await submit_job(vdev, Job("fill", dst=bo, value=1), OperationContext())
        await check(bo)


@pytest.mark.parametrize("text", [EXITS, f"class Own:\n    pass\n{EXITS}", "import nothing_of_this_name"])
def test_what_ends_the_program_at_its_top_is_no_driver(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(TtmError, match="it cannot be loaded"):
        find_driver(f"{tmp_path / 'own.py'}:Own")


async def test_nor_what_ends_it_when_it_is_made(tmp_path: Path) -> None:
    async with device() as vdev:
        with pytest.raises(TtmError, match="it cannot be made: SystemExit"):
            make_driver(driver(tmp_path, f"def __init__(self, vdev): {EXITS}"), vdev)

"""Drivers from outside: what is loaded, what is refused and how; and the amdgpu-like one."""

import errno
import sys
from pathlib import Path

import pytest

from tests.core.harness import MIB, PAGE, check, device, idle, make
from ttmfs import clock
from ttmfs.driver import calls
from ttmfs.driver.amdgpu import AmdgpuDriver, MoveRate
from ttmfs.driver.drivers import find_driver
from ttmfs.driver.jobs import Job
from ttmfs.driver.policy import DefaultDriver
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

EXAMPLE = Path(__file__).parents[2] / "docs/examples/keep_small.py"
OWN = """
from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.fault import default_fault

served = []

class Own(DefaultDriver):
    async def fault(self, vmf):
        served.append(vmf.first)
        return await default_fault(vmf)

class Broken(DefaultDriver):
    def __init__(self, vdev):
        raise KeyError("what")

nothing = 3
"""


def test_drivers_are_found_by_name_module_and_path(tmp_path: Path) -> None:
    assert find_driver("amdgpu") is AmdgpuDriver
    assert find_driver("ttmfs.driver.amdgpu:AmdgpuDriver") is AmdgpuDriver
    assert issubclass(find_driver(f"{EXAMPLE}:KeepSmall"), DefaultDriver)


def install(folder: Path, points: str) -> None:
    """What pip leaves of a package with these entry points, and its module."""
    (folder / "own_drivers.py").write_text(OWN)
    about = folder / "own_drivers-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-drivers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[ttmfs.drivers]\n{points}\n")


async def test_an_installed_package_registers_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "own = own_drivers:Own\ngone = own_drivers:Gone\nthing = own_drivers:nothing")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_drivers", raising=False)
    async with device(driver="own") as vdev:
        assert type(vdev.funcs).__module__ == "own_drivers"
        bo = await make(vdev, "hole", 4 * PAGE)
        await access.read(bo, 0, PAGE)
    assert sys.modules["own_drivers"].served, "its own handler was asked"
    for name, sentence in (("gone", "cannot be loaded: AttributeError"), ("thing", "derive the class from")):
        with pytest.raises(TtmError, match=sentence) as caught:
            find_driver(name)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(TtmError, match="did you mean own"):
        find_driver("ownn")
    monkeypatch.delitem(sys.modules, "own_drivers")


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("amdgp", errno.EINVAL, "did you mean amdgpu"),
        ("nobody.at.all:Own", errno.EINVAL, "cannot be loaded: ModuleNotFoundError"),
        ("json:loads", errno.EINVAL, "derive the class from"),
        ("{path}:nothing", errno.EINVAL, "derive the class from"),
        ("{path}:Missing", errno.EINVAL, "has no class Missing"),
        ("{path}x.py:Own", errno.ENOENT, "No such file"),
        ("{path}:Broken", errno.EINVAL, "cannot be made: KeyError: 'what'"),
        ("{bad}:Own", errno.EINVAL, "bad.py:1"),
        ("{raises}:Own", errno.EINVAL, "cannot be loaded: ZeroDivisionError"),
        (":", errno.EINVAL, "cannot be loaded"),
    ],
)
async def test_what_is_no_driver_is_refused_with_a_reason(tmp_path: Path, text: str, code: int, sentence: str) -> None:
    files = {"path": OWN, "bad": "class (:", "raises": "1 / 0"}
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    words = text.format(**{name: tmp_path / f"{name}.py" for name in files})
    with pytest.raises(TtmError) as caught:
        async with device(driver=words):
            raise AssertionError("it was made")
    assert caught.value.errno == code
    assert sentence in caught.value.message


async def test_a_driver_of_a_file_serves_faults_and_moves(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    async with device(driver=f"{tmp_path / 'own.py'}:Own") as vdev:
        bo = await make(vdev, "a", MIB, place="vram")
        await calls.evict_one(vdev, bo, OperationContext())
        await check(bo)
        hole = await make(vdev, "hole", 4 * PAGE)
        await access.read(hole, 0, PAGE)
        await idle(bo, hole)
        assert type(vdev.funcs).fault.__globals__["served"], "its own handler was asked"


def test_the_move_rate_saves_up_to_a_bound_and_goes_into_debt() -> None:
    now = 0
    with clock.replaced(lambda: now, lambda: now):
        rate = MoveRate(8)
        full = {"free": 0, "total": 64 * MIB}
        assert rate.threshold(**full) == 0
        now += 1_000_000  # 1 ms
        assert rate.threshold(**full) == 8000
        rate.moved(80_000)
        assert rate.threshold(**full) == 0
        now += 9_000_000
        assert rate.threshold(**full) == 0
        now += 1_000_000
        assert rate.threshold(**full) == 8000
        now += 10**12
        assert rate.threshold(**full) == 200_000 * 8
        rate.moved(10 * MIB)
        # An eighth is free: a quarter of that, whatever was moved.
        assert rate.threshold(free=8 * MIB, total=64 * MIB) == 2 * MIB


async def job(vdev: object, bo: BufferObject) -> int:
    ctx = OperationContext()
    queued = await submit_job(vdev, Job("add", dst=bo, srcs=(bo,)), ctx)  # type: ignore[arg-type]
    await queued.fence.wait()
    assert not queued.fence.error
    return ctx.done.bytes_moved


async def test_jobs_of_amdgpu_bring_bos_home_at_the_move_rate() -> None:
    now = 0
    with clock.replaced(lambda: now, lambda: now):
        async with device(driver="amdgpu", vram=4 * MIB) as vdev:
            filler = await make(vdev, "filler", 4 * MIB - 64 * PAGE, place="vram")
            bo = await make(vdev, "a", MIB, place="gtt")
            bo.placement = vdev.parse_placement(["vram", "gtt"])
            assert await job(vdev, bo) == 0
            assert bo.mem_type == "gtt", "nothing saved, little free: gtt is as good"
            now += 1_000_000
            assert await job(vdev, bo) > 0
            assert (bo.mem_type, filler.mem_type) == ("vram", "gtt")
            await idle(bo, filler)
            await calls.validate_bo(vdev, bo, vdev.parse_placement(["gtt"]), OperationContext())
            await calls.validate_bo(vdev, filler, vdev.parse_placement(["vram"]), OperationContext())
            now += 1_000_000
            await job(vdev, bo)
            assert bo.mem_type == "gtt", "in debt"
            await check(filler)


async def test_a_job_of_amdgpu_that_finds_no_room_in_vram_works_in_gtt() -> None:
    async with device(driver="amdgpu", vram=4 * MIB) as vdev:
        filler = await make(vdev, "filler", 4 * MIB, place="vram")
        await calls.pin(vdev, filler)
        bo = await make(vdev, "a", MIB)
        bo.placement = vdev.parse_placement(["vram"])
        vdev.funcs.rate.saved = 200_000  # type: ignore[attr-defined]
        await job(vdev, bo)
        assert bo.mem_type == "gtt"
        await calls.unpin(vdev, filler)


async def test_a_fault_beyond_the_window_of_amdgpu_evicts_nobody() -> None:
    async with device(driver="amdgpu", vram=4 * MIB, visible_vram=MIB) as vdev:
        window = await make(vdev, "window", MIB, place="vram@0-255")
        bo = await make(vdev, "a", 256 * PAGE, place="vram@256-1023")
        await check(bo)
        assert (window.mem_type, bo.mem_type) == ("vram", "gtt")
        await calls.evict_one(vdev, window, OperationContext())
        await idle(window, bo)
        # A client needs it: jobs keep it within reach. What no client has touched goes to the other end.
        bo.placement = other_placement = vdev.parse_placement(["vram"])
        await job(vdev, bo)
        assert bo.resource is not None
        assert (bo.resource.mem_type, bo.resource.start) == ("vram", 0)
        other = await make(vdev, "b", PAGE)
        other.placement = other_placement
        await job(vdev, other)
        assert other.resource is not None
        assert other.resource.start == 1023

"""ttm-top: the screen driven by its keys on a real mount, --once, pictures, and what it does not read."""

import asyncio
import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.mount.mount_harness import MIB
from tests.mount.mount_harness import Device as Mounted
from ttm_tools.bolist import BoList, place_colour
from ttm_tools.device import Device
from ttm_tools.topmodel import COLUMNS, Model, Rate, Reading, Row, fits
from ttm_tools.topparts import bar
from ttm_tools.topview import Top

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]


def drive(mount: str, script: Callable[[Pilot[Any], Top], Any], **options: Any) -> Top:
    """Run the screen without a terminal, and a script that presses keys, in an event loop of its own."""
    with Device(mount, read_seconds=options.pop("read_seconds", 5.0)) as device, Device(mount) as commands:
        app = Top(device, commands, 0.1, options.pop("sort", 0))

        async def whole() -> None:
            async with app.run_test(size=(120, 30)) as pilot:
                await until(pilot, lambda: app.model.samples > 0)
                await script(pilot, app)

        asyncio.run(whole())
    return app


async def until(pilot: Pilot[Any], condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        await pilot.pause(0.02)


def listed(app: Top) -> list[str]:
    return [row.name for row in app.query_one(BoList).rows]


def message(app: Top) -> str:
    return str(app.query_one("#message", Static).content)


def test_a_bo_of_several_names_has_one_row(device: Mounted) -> None:
    device.make("first", MIB, 1)
    device.make("pinned", MIB, 1)
    device.shell.do("os.mkdir(path('bo/d')); os.link(path('bo/first'), path('bo/a'))")
    device.shell.do("os.link(path('bo/a'), path('bo/d/z')); os.link(path('bo/pinned'), path('bo/also'))")
    # On no LRU, so that only its names say that it is one.
    assert device.command("objects/pinned/pin", "\n") == "ok"

    async def script(pilot: Pilot[Any], app: Top) -> None:
        assert listed(app) in (["first", "pinned"], ["also", "first"])
        samples = app.model.samples
        await until(pilot, lambda: app.model.samples > samples + 2)
        assert len(listed(app)) == 2

    drive(device.mountpoint, script)


def test_keys_steer_the_selected_bo(device: Mounted) -> None:
    device.make("a", MIB, 1)
    device.make("b c", MIB, 1)

    async def script(pilot: Pilot[Any], app: Top) -> None:
        assert listed(app) == ["a", "b c"]
        await pilot.press("down", "v")
        await until(pilot, lambda: "done" in message(app))
        assert device.status("b c")["mem_type"] == "vram"
        assert device.status("a")["mem_type"] == "system"
        await pilot.press("p")
        await until(pilot, lambda: "pin b c: done" in message(app))
        assert device.status("b c")["pin_count"] == 1
        await pilot.press("e")
        await until(pilot, lambda: "evict b c: E" in message(app))
        assert "pinned" in message(app)
        await pilot.press("u")
        await until(pilot, lambda: "unpin b c: done" in message(app))
        await pilot.press("g")
        await until(pilot, lambda: "validate gtt b c: done" in message(app))
        assert device.status("b c")["mem_type"] == "gtt"
        await until(pilot, lambda: app.model.rows["b c"].place == "gtt")

    drive(device.mountpoint, script)


def test_sorting_and_filtering(device: Mounted) -> None:
    for name, size in (("tex1", 1), ("tex2", 3), ("mesh", 2)):
        device.make(name, size * MIB, 1)
    assert device.command("objects/tex1/validate", "vram") == "ok"

    async def script(pilot: Pilot[Any], app: Top) -> None:
        await pilot.press("Z")
        assert listed(app) == ["tex2", "mesh", "tex1"]
        await pilot.press("Z")
        assert listed(app) == ["tex1", "mesh", "tex2"]
        await pilot.press("M")
        await until(pilot, lambda: listed(app) == ["tex1", "mesh", "tex2"] and app.query_one(BoList).descending)
        await pilot.press("N", "slash", "t", "e", "x", "enter")
        assert listed(app) == ["tex1", "tex2"]
        await pilot.press("slash", "*", "1", "enter")
        await until(pilot, lambda: listed(app) == ["tex1"])
        await pilot.press("escape")
        assert listed(app) == ["mesh", "tex1", "tex2"]

    drive(device.mountpoint, script)


def test_rates_and_bars(device: Mounted) -> None:
    device.make("a", 8 * MIB, 1, "vram")

    async def script(pilot: Pilot[Any], app: Top) -> None:
        assert "50%" in str(app.query_one("#regions", Static).content)
        before = app.model.samples
        assert device.command("objects/a/evict", "\n") == "ok"
        await until(pilot, lambda: app.model.samples > before + 2)
        moved = next(rate for rate in app.model.rates if rate.name == "moved")
        assert max(moved.history) > 0

    drive(device.mountpoint, script)


def test_a_bo_that_goes_away(device: Mounted) -> None:
    for name in "abc":
        device.make(name, MIB, 1)

    async def script(pilot: Pilot[Any], app: Top) -> None:
        await pilot.press("end")
        assert app.query_one(BoList).selected == "c"
        device.shell.do("os.unlink(path('bo/a'))")
        await until(pilot, lambda: listed(app) == ["b", "c"])
        assert app.query_one(BoList).selected == "c"
        device.shell.do("os.unlink(path('bo/c'))")
        await until(pilot, lambda: listed(app) == ["b"])
        assert app.query_one(BoList).selected == "b"
        await pilot.press("d")
        await until(pilot, lambda: "defrag b: done" in message(app))  # else it could come behind what `e` says
        device.shell.do("os.unlink(path('bo/b'))")
        await until(pilot, lambda: listed(app) == [])
        # What became of the defrag is said too, sooner or later: not after what comes now.
        await until(pilot, lambda: "defrag b: " in message(app))
        await pilot.press("e")
        await until(pilot, lambda: "no BO is selected" in message(app))

    drive(device.mountpoint, script)


def test_ten_thousand_bos_are_not_all_read(device: Mounted) -> None:
    device.shell.do("[open(path(f'bo/b{n:05}'), 'wb').close() for n in range(10000)]", 60)
    with Device(device.mountpoint) as reader:
        model = Model(reader)
        model.take(model.read([], False))
        assert len(model.rows) == 10000
        wanted = [f"b{number:05}" for number in range(5000, 5030)]
        reading = model.read(wanted, False)
        model.take(reading)
        assert set(wanted) <= set(reading.statuses)
        assert len(reading.statuses) <= 30 + 500
        assert len(model.ordered(COLUMNS[1], True, "")) == 10000


def test_a_daemon_that_hangs_is_said_and_waited_for(mounted: Callable[..., Mounted]) -> None:
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")
    device.make("a", MIB, 1)

    async def script(pilot: Pilot[Any], app: Top) -> None:
        os.kill(device.daemon.pid, signal.SIGSTOP)
        try:
            await until(pilot, lambda: "does not answer" in message(app))
        finally:
            os.kill(device.daemon.pid, signal.SIGCONT)
        samples = app.model.samples
        await until(pilot, lambda: app.model.samples > samples)
        assert listed(app) == ["a"]

    drive(device.mountpoint, script, read_seconds=0.5)


def test_a_daemon_that_dies_ends_it(mounted: Callable[..., Mounted]) -> None:
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")

    async def script(pilot: Pilot[Any], app: Top) -> None:
        device.daemon.popen.kill()
        await until(pilot, lambda: app.return_value is not None)

    app = drive(device.mountpoint, script)
    assert "has ended" in str(app.return_value)
    assert app.return_code == 1


def test_once_is_for_scripts(device: Mounted, run: Run) -> None:
    device.make("a", MIB, 1, "vram")
    device.make("b", 2 * MIB, 1)
    done = run("top", device.mountpoint, "--once", "--interval", "0.1", "--sort", "moves", "-n", "1")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[:4] for row in rows if row[:2] == ["region", "vram"]] == [["region", "vram", str(16 * MIB), str(MIB)]]
    assert [row[1:5] for row in rows if row[0] == "bo"][1:] == [["a", str(MIB), "vram", "256"]]
    assert {row[1] for row in rows if row[0] == "rate"} >= {"faults", "moves"}


def test_a_picture(device: Mounted, run: Run, tmp_path: Path) -> None:
    device.make("texture", MIB, 1, "vram")
    path = tmp_path / "top.svg"
    done = run("top", device.mountpoint, "--screenshot", str(path), "--interval", "0.1", "--size", "110x30")
    assert done.returncode == 0, done.stderr
    text = "".join(ET.parse(path).getroot().itertext()).replace("\xa0", " ")
    for word in ("texture", "vram", "faults", "evict", "FENCES"):
        assert word in text
    assert run("top", device.mountpoint, "--screenshot", str(path), "--size", "big").returncode == 2


# -- parts -----------------------------------------------------------------------------------------------------------


def test_bars() -> None:
    assert bar(0.5, 4) == "██  "
    assert bar(0.0, 4) == "    "
    assert bar(1e-9, 4) == "▏   "
    assert bar(7.0, 4) == "████"
    assert place_colour("vram") != place_colour("stolen")


def test_rates_are_differences() -> None:
    rate = Rate("faults", ("faults", "count"))
    for when, count in ((1.0, 10), (2.0, 30), (4.0, 30), (5.0, 2)):
        rate.feed(when, {"faults": {"count": count}})
    assert list(rate.history) == [20, 0, 0]


def test_filters() -> None:
    assert fits("mesh/tex1", "tex")
    assert fits("mesh/tex1", "*1")
    assert not fits("mesh/tex1", "tex*")


def test_what_is_not_read_yet_is_a_dot() -> None:
    row = Row("a")
    assert [column.text(row) for column in COLUMNS[1:]] == ["·"] * (len(COLUMNS) - 1)
    reading = Reading(1.0, {}, ["a"], {"a": ("vram", MIB)}, {})
    model = Model.__new__(Model)
    model.rows, model.rates, model.samples = {}, [], 0
    model.take(reading)
    assert COLUMNS[1].text(model.rows["a"]) == "1M"
    assert COLUMNS[2].text(model.rows["a"]) == "vram"


def test_a_refresh_that_comes_when_the_screen_is_gone_is_no_failure(device: Mounted) -> None:
    device.make("a", MIB, 1)

    async def script(pilot: Pilot[Any], app: Top) -> None:
        for part in ("#head", BoList):
            await app.query_one(part).remove()
            samples = app.model.samples
            app.tick()
            await until(pilot, lambda: not app._reading)
            assert app.model.samples >= samples
        assert app.is_running

    drive(device.mountpoint, script)

"""Groups in ttm-ls and ttm-top: columns, lines for scripts, and a screen."""

from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, Device
from tests.tools.test_tools_top import drive, until
from ttm_tools.bolist import columns_for
from ttm_tools.topgroups import Groups, groups_text
from ttm_tools.topview import Top

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]


def put(device: Device, name: str, text: str) -> None:
    device.shell.do(f"open(path({name!r}), 'w').write({text!r})")


@pytest.fixture
def grouped(device: Device) -> Iterator[Device]:
    device.shell.do("os.mkdir(path('groups/game')); os.mkdir(path('groups/browser'))")
    put(device, "groups/game/dmem.low", "vram 8M")
    device.make("tex0", 4 * MIB, 1, "vram")
    device.make("tab0", MIB, 1, "vram")
    put(device, "objects/tex0/group", "/game")
    put(device, "objects/tab0/group", "/browser")
    yield device
    # The next test has the same mount.
    device.shell.do("os.unlink(path('bo/tex0')); os.unlink(path('bo/tab0'))")
    device.shell.do("os.rmdir(path('groups/game')); os.rmdir(path('groups/browser'))")


def test_columns_and_lines_for_scripts(grouped: Device, run: Run) -> None:
    header, *rows = [line.split("\t") for line in run("ls", "-l", grouped.mountpoint).stdout.splitlines()]
    assert {row[0]: row[header.index("group")] for row in rows} == {"tex0": "/game", "tab0": "/browser"}
    header, *rows = [line.split("\t") for line in run("ls", "--groups", grouped.mountpoint).stdout.splitlines()]
    found = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert found["/game", "vram"]["current"] == found["/game", "vram"]["peak"] == str(4 * MIB)
    assert found["/game", "vram"]["effective_low"] == str(8 * MIB)
    assert found["/", "vram"]["current"] == str(5 * MIB)
    once = run("top", "--once", "--interval", "0.1", "--sort", "group", grouped.mountpoint).stdout.splitlines()
    assert [line.split("\t")[1] for line in once if line.startswith("bo\t")] == ["name", "tab0", "tex0"]
    assert f"group\t/browser\tvram\t{MIB}\t{MIB}\t0\t0" in "\n".join(once)
    assert run("ls", "--groups", grouped.mountpoint, "tex*").returncode == 2


def test_a_column_where_there_are_groups_and_a_screen_of_them(grouped: Device) -> None:
    async def script(pilot: Any, app: Top) -> None:
        await until(pilot, lambda: app.model.samples)
        assert "GROUP" in [column.name for _, column in columns_for(160, grouped=True)]
        await pilot.press("G")
        await until(pilot, lambda: isinstance(app.screen, Groups))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Groups))

    drive(grouped.mountpoint, script)
    game = {"current": 4, "peak": 4, "min": 0, "low": 8, "effective_min": 0, "effective_low": 8, "max": 16}
    counts = {"evictions": 3, "low_events": 0, "max_events": 0}
    idle = dict.fromkeys((*game, *counts), 0) | {"max": 16}
    stats = {"regions": {"vram": {"size": 16}}, "groups": {"/": {"vram": idle}, "/game": {"vram": game | counts},
             "/idle": {"vram": idle}}}  # fmt: skip
    _head, _blank, root, line = groups_text(stats, 120).plain.splitlines()
    assert root.startswith("/ ")
    assert line.split()[:2] == ["/game", "vram"]
    assert line.index("│") - line.index("█") == (120 - 24 - 66) // 2
    assert line.endswith("3 evicted")


def test_without_groups_nothing_is_in_the_way(device: Device, run: Run) -> None:
    assert "GROUP" not in [column.name for _, column in columns_for(200)]
    assert "group\t" not in run("top", "--once", "--interval", "0.1", device.mountpoint).stdout

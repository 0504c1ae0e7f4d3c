"""ttm-top's screen: what is on it at three sizes, without colours, its keys, one BO alone, no terminal, a browser.

The screens are of a device that is made up, and stand in tests/data as text. TTMFS_SNAPSHOTS=1 writes them anew (look
at the difference); with TTMFS_PICTURES set to a folder the pictures of the documents are written there.
"""

import asyncio
import http.client
import os
import select
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import HelpPanel, Static

from tests.docs.docs_console import REPOSITORY
from tests.mount.mount_harness import MIB
from tests.mount.mount_harness import Device as Mounted
from tests.tools.web_tools import PATIENCE
from ttm_tools.bolist import NAME, columns_for
from ttm_tools.device import Device
from ttm_tools.top import picture_of
from ttm_tools.topdetail import Detail, detail_text, read, strip, turn_text
from ttm_tools.topparts import header_line
from ttm_tools.topview import Top

DATA = REPOSITORY / "tests" / "data"
MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
MIBS = 1 << 20


class MadeUp:
    """A device that thrashes, the same way each time."""

    mount = "/tmp/gpu"

    def __init__(self) -> None:
        self.reads = 0
        self.bos = {f"tex{number:02}": number for number in range(20)} | {"frame": 21, "shaders/blur": 22}

    def regions(self) -> list[str]:
        return ["system", "gtt", "vram"]

    def stats(self) -> dict[str, Any]:
        self.reads += 1
        steps = self.reads**2
        regions = {
            "system": {"size": 1024 * MIBS, "used": 203 * MIBS, "visible_size": 1024 * MIBS, "bos": 8},
            "gtt": {"size": 512 * MIBS, "used": 160 * MIBS, "visible_size": 512 * MIBS, "bos": 7},
            "vram": {
                "size": 256 * MIBS, "used": 231 * MIBS, "bos": 7, "visible_size": 128 * MIBS, "visible_used": 120 * MIBS
            },
        }  # fmt: skip
        return {
            "regions": regions,
            "bos": {"count": len(self.bos), "ghosts": 2, "zombies": 0},
            "fences": {"pending": 3},
            "requests": {"waiting": 1, "read": 300 * steps, "write": 40 * steps},
            "faults": {"count": 280 * steps},
            "moves": {"count": 12 * steps, "bytes": 12 * steps * MIBS, "evictions": 6 * steps, "failed": 0},
        }

    def names_of_each(self) -> list[list[str]]:
        return [[name] for name in sorted(self.bos)]

    def place(self, number: int) -> str:
        return ("system", "gtt", "vram")[number % 3]

    def lru(self, region: str) -> list[tuple[int, str, int]]:
        return [(1, name, (4 + n) * MIBS) for name, n in self.bos.items() if self.place(n) == region]

    def statuses(self, names: list[str]) -> dict[str, dict[str, Any]]:
        return {name: self.json(f"objects/{name}/status.json") for name in names}

    def json(self, path: str) -> dict[str, Any]:
        name = path.removeprefix("objects/").removesuffix("/status.json")
        number = self.bos[name]
        pages = (4 + number) * 256
        return {
            "name": name, "size": pages * 4096, "mem_type": self.place(number), "populated_pages": pages - 7 * number,
            "page_orders": {"9": pages >> 9, "0": number} if number % 3 < 2 else {}, "pin_count": number // 20,
            "priority": 1, "fences": ["1:9"] if number == 5 else [], "moves": 7 * number, "evictions": 3 * number,
            "faults": 997 * number, "last_error": "",
        }  # fmt: skip

    def text(self, path: str) -> str:
        if path == "debug/recorder":
            raise PermissionError(13, "it is for the owner only")
        return "v" * 700 + "." * 200 + "b" * 124 + "\n"


def lines_of(svg: str) -> list[str]:
    """The text of a screen, line by line."""
    found: dict[int, dict[int, str]] = {}
    for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        clip = node.get("clip-path", "")
        if "-line-" in clip:
            line = found.setdefault(int(clip.rsplit("-", 1)[1].rstrip(")")), {})
            line[round(float(node.get("x", "0")) / 12.2)] = (node.text or "").replace("\xa0", " ")
    out = []
    for number in range(max(found) + 1):
        text = ""
        for column, part in sorted(found.get(number, {}).items()):
            text = text.ljust(column) + part
        out.append(text.rstrip())
    return out


def on_screen(size: tuple[int, int], script: Callable[[Pilot[Any], Top], Any]) -> Top:
    """Run the made-up screen; its clock is one second a reading."""
    device: Any = MadeUp()
    app = Top(device, device, 3600, 0)
    ticks = iter(range(1, 1000))
    read = app.model.read

    def timed(wanted: list[str], sweep: bool) -> Any:
        reading = read(wanted, sweep)
        object.__setattr__(reading, "when", float(next(ticks)))
        return reading

    app.model.read = timed  # type: ignore[method-assign]

    async def whole() -> None:
        async with app.run_test(size=size) as pilot:
            while app.model.samples < 9:
                samples = app.model.samples
                app.tick()
                await until(pilot, lambda: not app._reading)
                assert app.model.samples > samples
            await pilot.pause()
            await script(pilot, app)

    asyncio.run(whole())
    return app


async def until(pilot: Pilot[Any], condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "never came"
        await pilot.pause(0.01)


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (160, 45)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screen_at_three_sizes(size: tuple[int, int]) -> None:
    shown: list[str] = []

    async def script(_pilot: Pilot[Any], app: Top) -> None:
        shown.append(picture_of(app))

    on_screen(size, script)
    lines = lines_of(shown[0])
    name = f"ttm-top-{size[0]}x{size[1]}"
    path = DATA / f"{name}.txt"
    if os.environ.get("TTMFS_SNAPSHOTS"):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if folder := os.environ.get("TTMFS_PICTURES"):
        (Path(folder) / f"{name}.svg").write_text(shown[0], encoding="utf-8")
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    assert lines == path.read_text(encoding="utf-8").splitlines()
    (header,) = (line for line in lines if "NAME" in line)
    for word in ("SIZE", "PLACE", "EVICT", "FAULTS"):
        assert word in header
    assert "q quit" in lines[-1]
    assert "? keys" in lines[-1]


def test_columns_go_one_after_the_other() -> None:
    before = 0
    for width in range(40, 200):
        columns = [column for _number, column in columns_for(width)]
        assert len(columns) >= before
        before = len(columns)
        assert {"NAME", "SIZE", "PLACE", "EVICT", "FAULTS"} <= {column.name for column in columns}
        if width >= 80:
            assert sum(column.width + 1 for column in columns if column.width) + NAME + 3 <= width
    assert before == 10


def test_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(pilot: Pilot[Any], app: Top) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, Detail))

    app = on_screen((80, 24), script)
    assert app.no_color
    assert app.return_code in (0, None)


def test_keys_and_one_bo_alone() -> None:
    async def script(pilot: Pilot[Any], app: Top) -> None:
        await pilot.press("question_mark")
        await until(pilot, lambda: app.screen.query(HelpPanel))
        await pilot.press("question_mark")
        await until(pilot, lambda: not app.screen.query(HelpPanel))
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: isinstance(app.screen, Detail))
        text = app.screen.query_one("#sheet", Static)
        await until(pilot, lambda: "who goes next" in str(text.content))
        for words in ("tex00", "hole 200, in the store 124, vram 700", "from system: it goes next", "4M (4194304)"):
            assert words in str(text.content)
        samples = app.model.samples
        app.tick()  # the list goes on beneath
        await until(pilot, lambda: app.model.samples > samples)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Detail))

    on_screen((80, 24), script)


def test_words_about_one_bo() -> None:
    status = {"name": "a", "mem_type": "vram", "pin_count": 0, "priority": 1, "size": 4096, "fences": ["1:2"]}
    assert turn_text(status, (0, 3, "a")) == "from vram: it goes next (priority 1)"
    assert turn_text(status, (2, 3, "b\n")) == "from vram: 2 of 3 go before it, b\\012 first (priority 1)"
    assert "too many" in turn_text(status, None)
    assert "pinned" in turn_text({**status, "pin_count": 2}, (0, 3, "a"))
    assert "not on the LRU" in turn_text(status, (-1, 3, "b"))
    assert "nowhere" in turn_text({**status, "mem_type": "none"}, None)
    assert strip("ssssvvvv", 4).plain == "ssvv"
    assert strip("", 4).plain == ""
    assert strip("s.", 80).plain == "s."
    for width in (60, 140):
        text = detail_text(status, "svv", (0, 1, "a"), width).plain
        assert "1:2" in text
        assert "system 1, vram 2" in text
        assert "why\n" not in text
        text = detail_text(status, "svv", (0, 1, "a"), width, ["'a' was evicted\n", "'a' moved"]).plain
        assert "why\n'a' was evicted\\012\n'a' moved\n" in text


@pytest.mark.mount
def test_one_bo_is_read_with_why_it_is_there(device: Mounted) -> None:
    device.make("a", 1 << 20, 7, "vram")
    assert device.command("objects/a/evict", "\n") == "ok"
    with Device(device.mountpoint) as mounted:
        status, letters, _turn, why = read(mounted, "a")
    assert (status["mem_type"], set(letters)) == ("gtt", {"g"})
    assert "vram to gtt" in why[0]


@pytest.mark.mount
def test_no_terminal(device: Mounted, run: Callable[..., Any]) -> None:
    done = run("top", device.mountpoint)
    assert done.returncode == 2
    assert "not a terminal" in done.stderr
    assert "--once" in done.stderr


@pytest.mark.mount
def test_in_a_browser_only_its_own_page_is_answered(device: Mounted) -> None:
    pytest.importorskip("textual_serve", reason="textual-serve is not installed: pip install 'ttmfs[web]'")
    device.make("a", MIB, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ttm_tools.top", device.mountpoint, "--serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/")
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip

    def ask(path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            data = answer.fp.read(300) if answer.status == 101 else answer.read()
        finally:
            connection.close()
        return answer.status, data

    try:
        assert server.stdout is not None
        assert select.select([server.stdout], [], [], PATIENCE)[0]
        line = server.stdout.readline()
        assert line == f"ttm-top: http://127.0.0.1:{port}/\n"
        end = time.monotonic() + PATIENCE
        while True:
            try:
                status, page = ask("/")
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.02)
        assert status == 200
        assert b"https://" not in page
        for path in ("/", "/ws", "/static/js/textual.js"):
            assert ask(path, Host="evil.example", **upgrade)[0] == 403
            assert ask(path, Origin="http://evil.example", **upgrade)[0] == 403
        status, data = ask("/ws?width=80&height=24", Origin=f"http://127.0.0.1:{port}", **upgrade)
        assert status == 101
        assert len(data) == 300
    finally:
        server.terminate()
        server.wait(PATIENCE)
        assert server.stdout is not None
        server.stdout.close()


def test_the_head_says_what_is_out_of_the_ordinary() -> None:
    says = ["engines paused", "policy evict vram fifo"]
    plain = header_line("/tmp/gpu", {"state": {"says": []}}).plain
    found = header_line("/tmp/gpu", {"state": {"says": says}}).plain
    assert found == plain.replace("gpu", "gpu    engines paused, policy evict vram fifo ", 1)
    assert header_line("/tmp/gpu", {}).plain == plain, "a device that does not say it yet"

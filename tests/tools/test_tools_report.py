"""ttm-report: one file, of a recording and of a mount, that needs nothing else and shows odd names as they are."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device
from ttm_tools.htmlpage import Page
from ttm_tools.mapsample import maps_in
from ttm_tools.traceformat import parse

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]
ODD = '<b>&"x'


class Seen(HTMLParser):
    """Headings, cells, pictures, and everything that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.add(tag)
        found = dict(attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            value = found.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
        if tag == "img":
            assert found["alt"]
            self.pictures.append(found["alt"] or "")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, _tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "h2":
            self.headings.append(data)
        elif self._inside == "td":
            self.cells[-1] += data


def whole(text: str) -> Seen:
    """A report, looked at: nothing in it comes from elsewhere."""
    assert not re.search(r"https?://|url\(|@import", text)
    found = Seen(text)
    assert "b" not in found.tags
    return found


@pytest.mark.mount
def test_a_report_of_a_run_and_of_a_mount(device: Device, run: Run, tmp_path: Path) -> None:
    device.make(ODD, MIB, 1)
    for number in range(3):
        device.make(f"tex{number}", 8 * MIB, 1)
    trace, out, now = tmp_path / "run.trace", tmp_path / "run.html", tmp_path / "now.html"
    work = 'for n in 0 1 2; do echo vram > "$TTMFS_MOUNT/objects/tex$n/validate"; done; sleep 0.6'
    done = run("trace", "record", "-m", device.mountpoint, "-o", str(trace), "--", "bash", "-c", work)
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    (one, before), (other, after) = maps_in(lines)
    assert one < parse(lines).events[0].when < other
    pages = [{region.name: region.pages_of() for region in regions} for regions in (before, after)]
    assert pages[0]["vram"] == {}
    assert pages[1]["vram"] == {"tex1": 2048, "tex2": 2048}
    assert parse(lines).odd_lines == 0

    done = run("report", str(trace), "-o", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    found = whole(out.read_text())
    assert {"Curves", "Maps", "What has changed", "Recording", "Times", "Moves", "All events"} <= set(found.headings)
    assert len(found.pictures) == 4
    assert "+2048" in found.cells
    assert "evict" in found.cells

    assert device.command(f"objects/{ODD}/validate", "nowhere") == "EINVAL"
    done = run("report", device.mountpoint, "-o", str(now))
    assert done.returncode == 0, done.stderr
    found = whole(now.read_text())
    assert {"Regions", "Maps", "Buffer objects", "Numbers", "What has failed"} <= set(found.headings)
    assert ODD in found.cells
    assert "moves.count" in found.cells

    (tmp_path / "no.trace").write_text("nothing\n")
    done = run("report", str(tmp_path / "no.trace"), "-o", str(out))
    assert done.returncode == 2
    assert "ttm-trace record" in done.stderr
    done = run("report", str(tmp_path / "nothing"), "-o", str(out))
    assert done.returncode == 2


def test_maps_that_are_broken_are_left_out() -> None:
    good = '# map: {"when":1.5,"region":"vram","pages":8,"visible":8,"used":0,"owners":["a"],"runs":[0,4,2,0]}'
    bad = [
        "# map: nonsense",
        "# map: []",
        "# map: {}",
        good.replace("[0,4,2,0]", "[0,4,2,1]"),
        good.replace("[0,4,2,0]", "[0,9,2,0]"),
        good.replace("[0,4,2,0]", "[0,4,2]"),
        good.replace('"pages":8', '"pages":"x"'),
    ]
    assert maps_in(bad) == []
    ((when, (region,)),) = maps_in([*bad, good, "# sample: 1 {}"])
    assert (when, region.pages_of()) == (1.5, {"a": 4})


def test_text_is_text() -> None:
    page = Page("a <script> \udcff")
    page.section("<i>")
    page.say("</p><b>")
    page.table(("<u>", "n"), [("<b>\n", 1), ("&amp;", 2.5)], searched=True)
    text = page.html()
    text.encode()
    found = whole(text)
    assert found.headings == ["<i>"]
    assert found.cells == ["<b>\\012", "1", "&amp;", "2.5"]
    assert text.count("<script>") == 1

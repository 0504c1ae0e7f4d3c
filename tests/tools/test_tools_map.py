"""ttm-map: the map's text, the figures made of it, the pictures."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.mount.mount_harness import MIB, Device
from ttm_tools import colours, mapdiff, mapletters
from ttm_tools.errors import MountError
from ttm_tools.map import as_json, drawn, watch
from ttm_tools.pagemap import FREE, POOL, Region, fragmentation, parse_map
from ttm_tools.picture import draw, legend, terminal

MOUNT_OPTIONS = ("--vram", "16M", "--visible-vram", "8M", "--gtt", "32M", "--memory", "64M")
Run = CompletedProcess[str]
HEADER = "first\tpages\torder\tbo"


def region(*rows: str, pages: int = 2048, visible: int | None = None) -> Region:
    size = pages * 4096
    return parse_map("vram", [HEADER, *rows], size, size if visible is None else visible * 4096, 4096)


def test_runs_become_pages() -> None:
    found = region("0\t512\t9\ttex0", "512\t3\t0\tframe\\0401", "600\t8\t3\t(ghost)", pages=1024)
    assert found.owners == ["tex0", "frame 1", "(ghost)"]
    pages = found.by_page(found.order)
    assert (pages[:512] == 9).all()
    assert (pages[512:515] == 0).all()
    assert (pages[515:600] == FREE).all()
    assert (pages[600:608] == 3).all()
    assert (pages[608:] == FREE).all()
    assert found.pages_of() == {"tex0": 512, "(ghost)": 8, "frame 1": 3}
    assert found.pages_by_order() == {9: 512, 3: 8, 0: 3}


@pytest.mark.parametrize(
    "rows",
    [
        ("0\t8\t3\ta", "4\t8\t3\tb"),
        ("8\t8\t3\ta", "0\t8\t3\tb"),
        ("2040\t16\t0\ta",),
        ("0\t0\t0\ta",),
        ("0\t8\t3",),
        ("zero\t8\t3\ta",),
    ],
)
def test_a_map_that_cannot_be(rows: tuple[str, ...]) -> None:
    with pytest.raises(MountError, match="regions/vram/map"):
        region(*rows)
    with pytest.raises(MountError, match="another version"):
        parse_map("vram", ["page\tbo"], 4096, 4096, 0)


def test_figures_of_fragmentation() -> None:
    # 2048 pages: taken 0..511 whole, one page in the middle of 512..1023, the rest free.
    broken = fragmentation(region("0\t512\t9\ta", "700\t1\t0\tb"))
    assert (broken.free, broken.runs, broken.largest) == (2048 - 513, 2, 2048 - 701)
    assert broken.unusable == pytest.approx(511 / 1535)
    assert broken.beneficial == pytest.approx(512 / 513)
    assert fragmentation(region("0\t512\t9\ta", f"700\t1\t0\t{POOL}")).runs == 1
    assert fragmentation(region("0\t2048\t9\ta")).unusable == 0
    assert fragmentation(region()).free == 2048


@st.composite
def maps(draw_: st.DrawFn) -> tuple[list[str], int]:
    rows, at = [], 0
    for _ in range(draw_(st.integers(0, 12))):
        at += draw_(st.integers(0, 700))
        count = draw_(st.integers(1, 700))
        rows.append(f"{at}\t{count}\t{draw_(st.integers(0, 10))}\t{draw_(st.sampled_from(['a', 'b', '(pool)']))}")
        at += count
    return rows, max(1, at + draw_(st.integers(0, 600)))


@settings(deadline=None)
@given(maps())
def test_figures_agree_with_counting_pages(made: tuple[list[str], int]) -> None:
    rows, pages = made
    found = region(*rows, pages=pages)
    taken = np.zeros(pages, bool)
    for row in rows:
        first, count, _order, name = row.split("\t")
        taken[int(first) : int(first) + int(count)] = name != POOL
    broken = fragmentation(found)
    assert broken.free == int((~taken).sum())
    usable = sum(512 for start in range(0, pages - 511, 512) if not taken[start : start + 512].any())
    assert broken.unusable == pytest.approx(1 - usable / broken.free if broken.free else 0)
    edges = np.diff(np.concatenate(([0], (~taken).astype(int), [0])))
    assert broken.runs == int((edges == 1).sum())


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(1, 300), st.sampled_from(["bo", "order"]))
def test_a_cell_has_the_mean_colour_of_its_pages(made: tuple[list[str], int], most: int, by: str) -> None:
    rows, pages = made
    found = region(*rows, pages=pages)
    fine, one = colours.cells(found, by, pages, {})
    coarse, per_cell = colours.cells(found, by, most, {})
    assert one == 1
    assert len(coarse) == -(-pages // per_cell) <= most
    for number in range(len(coarse)):
        assert coarse[number] == pytest.approx(fine[number * per_cell : (number + 1) * per_cell].mean(axis=0), abs=1e-3)


def test_colours_stand_apart_and_stay() -> None:
    names = [f"tex{number}" for number in range(14)]
    found = colours.spread(names)
    assert colours.spread(names) == found
    assert len(set(found.values())) == len(names)


def test_many_bos_are_counted_not_named() -> None:
    found = region(*(f"{number}\t1\t0\tb{number:03}" for number in range(100)), "200\t5\t0\t(pool)")
    names, more = legend([found])
    assert names[-1] == POOL
    assert len(names) - 1 + more == 100


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("by", ["bo", "order"])
def test_pictures_have_the_colours(tmp_path: Path, suffix: str, by: str) -> None:
    found = region("0\t512\t9\t$x_$", "512\t256\t0\t_hidden", "1500\t8\t3\t(ghost)", visible=1000)
    path = tmp_path / f"map.{suffix}"
    draw([found, region(pages=4096)], str(path), by, "title")
    if suffix == "svg":
        assert "<svg" in path.read_text()
        return
    image = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int).reshape(-1, 3)
    wanted = colours.of_order(9) if by == "order" else colours.spread(legend([found])[0])["$x_$"]
    near = (np.abs(image - np.array(wanted) * 255) <= 2).all(axis=1)
    assert near.mean() > 0.02


def test_the_terminal_shows_every_cell() -> None:
    console = Console(width=80, record=True, color_system="truecolor", force_terminal=True, file=io.StringIO())
    found = region("0\t512\t9\ta", "512\t512\t0\tb", visible=1024)
    for part in terminal([found], "bo", 80, 8):
        console.print(part)
    text = console.export_text()
    assert "vram" in text
    assert "the CPU sees" in text
    # 2048 pages in 78 columns and at most 8 lines of two rows: 2 pages a cell, 1024 cells.
    assert text.count("▀") == sum(min(78, 1024 - start) for start in range(0, 1024, 156))


@pytest.mark.mount
def test_on_a_mount(device: Device, run: Callable[..., Run], tmp_path: Path) -> None:
    device.make("tex0", 4 * MIB, 1, "vram")
    device.make("frame 1", 2 * MIB, 1, "vram")
    device.make("sys", MIB, 1)
    done = run("map", device.mountpoint, "--json")
    assert done.returncode == 0, done.stderr
    regions = {value["region"]: value for value in map(json.loads, done.stdout.splitlines())}
    assert regions["vram"]["pages_by_bo"] == {"tex0": 1024, "frame 1": 512}
    assert regions["vram"]["visible_pages"] == 2048
    assert regions["vram"]["free_pages"] == 4096 - 1536
    assert regions["system"]["pages_by_bo"]["sys"] == 256
    path = tmp_path / "map.png"
    done = run("map", device.mountpoint, "-o", str(path), "--by", "order")
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes().startswith(b"\x89PNG")
    done = run("map", device.mountpoint, "-r", "vram")
    assert "tex0" in done.stdout
    assert "frame" in done.stdout


def test_letters_stand_for_most_of_a_cell() -> None:
    found = region("0\t600\t9\ta", "600\t8\t3\t(ghost)", "608\t300\t0\tb", "1024\t4\t2\t(pool)", visible=1024)
    letters = mapletters.letters_of([found])
    assert letters == {"a": "A", "b": "B", "(ghost)": "#", "(pool)": "%"}
    assert mapletters.cells(found, "bo", 2048, letters)[0][598:610] == "AA########BB"
    assert mapletters.cells(found, "bo", 8, letters) == ("AABB....", 256)
    assert mapletters.cells(found, "order", 2048, letters)[0][598:610] == "99########00"
    assert mapletters.cells(found, "order", 8, letters) == ("9900....", 256)
    text = mapletters.lines([found], "bo", 34, 8)
    # 2048 pages in 8 lines of 32 letters: 8 pages a letter, and the CPU sees half of them.
    assert text[1:4] == ["A" * 32, "A" * 32, "A" * 11 + "#" + "B" * 20]
    assert text[5] == "-- the CPU sees no further than this line --"
    assert text[10:] == ["one letter is 32K, a line 1M", "", "A a   B b   # (ghost)   % (pool)   . free"]
    assert mapletters.lines([found], "order", 34, 8)[-1].startswith("9 order 9   3 order 3   2 order 2   0 ")


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(1, 300))
def test_a_letter_is_that_of_no_fewer_pages_than_any_other(made: tuple[list[str], int], most: int) -> None:
    rows, pages = made
    found = region(*rows, pages=pages)
    letters = mapletters.letters_of([found])
    fine, one = mapletters.cells(found, "bo", pages, letters)
    coarse, per_cell = mapletters.cells(found, "bo", most, letters)
    assert (one, len(fine)) == (1, pages)
    assert len(coarse) == -(-pages // per_cell) <= most
    for number, letter in enumerate(coarse):
        part = fine[number * per_cell : (number + 1) * per_cell]
        assert part.count(letter) == max(map(part.count, set(part)))


def test_many_bos_share_a_letter() -> None:
    found = region(*(f"{number}\t1\t0\tb{number:03}" for number in range(100)))
    text = mapletters.lines([found], "bo", 80, 99)
    assert "* others" in text[-1]
    assert "z b051" in text[-1]


def test_what_has_changed(tmp_path: Path) -> None:
    before = {"vram": as_json(region("0\t512\t9\ta", "512\t8\t3\tb"))}
    after = {
        "vram": as_json(region("0\t512\t9\ta", "600\t24\t3\tc")),
        "gtt": {**as_json(region("0\t1\t0\ta")), "region": "gtt"},
    }
    assert mapdiff.compare(before, before) == []
    rows = mapdiff.rows(mapdiff.compare(before, {"vram": after["vram"]}))
    assert ("vram", "bo", "c", "0", "24", "+24") in rows
    assert ("vram", "bo", "b", "8", "0", "-8") in rows
    assert ("vram", "order", "3", "8", "24", "+16") in rows
    assert ("vram", "figure", "free_pages", "1528", "1512", "-16") in rows
    assert not [row for row in rows if row[2] in ("a", "9")]
    assert [each for each in mapdiff.compare(before, after) if each.region == "gtt" and each.name == "a"]
    path = tmp_path / "before.json"
    path.write_text("".join(json.dumps(value) + "\n" for value in after.values()))
    assert mapdiff.compare(mapdiff.read(str(path)), after) == []
    for text in ("", "no json", "[]", '{"region": "vram"}', "7"):
        path.write_text(text)
        with pytest.raises(MountError, match="is not what `ttm-map --json"):
            mapdiff.read(str(path))


def test_watching_goes_on_while_a_mount_hangs_and_ends_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttm_tools.map.time.sleep", lambda seconds: None)
    out = io.StringIO()
    console = Console(width=80, height=40, color_system="truecolor", force_terminal=True, file=out)
    answers: Iterator[Any] = iter(
        [[region("0\t512\t9\ta")], MountError("it hangs", hung=True), MountError("it has ended")]
    )

    def read() -> list[Region]:
        answer = next(answers)
        if isinstance(answer, MountError):
            raise answer
        return [*answer]

    with pytest.raises(MountError, match="has ended"):
        watch(read, lambda found, rows: drawn(found, "bo", console, rows, False), console, 1.0)
    text = out.getvalue()
    assert "it hangs" in text
    assert text.count("one cell is") >= 2


@pytest.mark.mount
def test_letters_and_changes_on_a_mount(device: Device, run: Callable[..., Run], tmp_path: Path) -> None:
    device.make("tex0", 4 * MIB, 1, "vram")
    path = tmp_path / "before.json"
    path.write_text(run("map", device.mountpoint, "--json").stdout)
    done = run("map", device.mountpoint, "-r", "vram")
    assert "A tex0" in done.stdout
    assert done.stdout.count("A") > 100
    assert "▀" not in done.stdout
    head, *changes = run("map", device.mountpoint, "--diff", str(path)).stdout.splitlines()
    assert head == "region\twhat\tname\tbefore\tafter\tchange"
    # What is pooled in system is given back by and by.
    assert not [line for line in changes if not line.startswith("system\t")]
    device.make("tex1", 2 * MIB, 1, "vram")
    done = run("map", device.mountpoint, "--diff", str(path))
    assert "vram\tbo\ttex1\t0\t512\t+512" in done.stdout.splitlines()
    lines = run("map", device.mountpoint, "--diff", str(path), "--json").stdout.splitlines()
    assert {"region": "vram", "what": "bo", "name": "tex1", "before": 0, "after": 512} in map(json.loads, lines)
    for words, why in (
        (("--watch",), "not a terminal"),
        (("--diff", "/dev/null"), "is not what"),
        (("--diff", str(path), "--watch"), "say one of"),
    ):
        done = run("map", device.mountpoint, *words)
        assert done.returncode == 2
        assert why in done.stderr


@pytest.mark.mount
def test_what_is_no_region_or_no_format(device: Device, run: Callable[..., Run]) -> None:
    done = run("map", device.mountpoint, "-r", "nowhere")
    assert done.returncode == 2
    assert "'nowhere' is no region" in done.stderr
    done = run("map", device.mountpoint, "-o", "map.txt")
    assert done.returncode == 2
    assert ".png, .svg" in done.stderr

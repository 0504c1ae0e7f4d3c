"""The library of pages.c: its sums are numpy's, nothing beyond an arena is touched, what does not fit is not loaded."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ttmfs.errors import TtmError
from ttmfs.memory import native
from ttmfs.memory.arena import Arena
from ttmfs.memory.stores import checksums

SOURCE = Path(native.__file__).with_name("pages.c")
PAGES = 300
rng = np.random.default_rng(3)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> native.Native:
    """Built here as scripts/setup builds it, so that what is tested is pages.c as it is."""
    made = build(tmp_path_factory.mktemp("native") / "pages.so", SOURCE)
    found = native.load(made)
    assert found is not None
    return found


def build(made: Path, source: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-O2", *warnings, "-shared", "-fPIC", "-o", made, source], check=True, timeout=60)
    return made


def arena(name: str) -> Arena:
    made = Arena(name, PAGES)
    made.mem[:] = rng.integers(0, 256, made.mem.shape, dtype=np.uint8)
    return made


RUN = np.arange(20, 220, dtype=np.uint32)
SCATTERED = rng.permutation(PAGES)[:200]


@pytest.mark.parametrize("dst", [RUN, SCATTERED], ids=["to a run", "to single pages"])
@pytest.mark.parametrize("src", [RUN, SCATTERED[::-1]], ids=["of a run", "of single pages"])
def test_copies_and_sums_are_those_of_numpy(
    library: native.Native,
    monkeypatch: pytest.MonkeyPatch,
    dst: np.ndarray[tuple[int], np.dtype[np.uint32]],
    src: np.ndarray[tuple[int], np.dtype[np.uint32]],
) -> None:
    source, target, other = arena("source"), arena("target"), arena("other")
    other.mem[:] = target.mem
    sums, wanted, alone = (np.zeros(len(src), np.uint32) for _ in range(3))
    monkeypatch.setattr(checksums, "_native", None)
    checksums.copy_and_sum(target, dst, source, src, wanted)
    monkeypatch.setattr(checksums, "_native", library)
    checksums.copy_and_sum(other, dst, source, src, sums)
    checksums.page_sums(source, src, alone)
    assert np.array_equal(other.mem, target.mem)
    assert np.array_equal(other.mem[dst], source.mem[src])
    assert sums.tolist() == wanted.tolist() == alone.tolist()
    library.copy_pages(other, src, target, dst)
    assert np.array_equal(other.mem[src], source.mem[src])


@pytest.mark.parametrize("count", range(1, 6))
def test_few_pages_leave_all_others_alone(library: native.Native, count: int) -> None:
    """Of single pages the library looks some ahead: not beyond the last."""
    source, target = arena("source"), arena("target")
    expected = target.mem.copy()
    to, of = SCATTERED[:count], SCATTERED[::-1][:count]
    expected[to] = source.mem[of]
    sums, alone = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
    library.copy_and_sum(target, to, source, of, checksums._KEYS, sums)
    library.sum_pages(target, to, checksums._KEYS, alone)
    assert np.array_equal(target.mem, expected)
    assert sums.tolist() == alone.tolist()


def test_sums_of_the_largest_words(library: native.Native, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Arena("source", 3)
    source.mem[:] = 0xFF
    pages = np.array([2, 0], np.uint32)
    sums, wanted = np.zeros(2, np.uint32), np.zeros(2, np.uint32)
    monkeypatch.setattr(checksums, "_native", None)
    checksums.page_sums(source, pages, wanted)
    library.sum_pages(source, pages, checksums._KEYS, sums)
    assert sums.tolist() == wanted.tolist()


@pytest.mark.parametrize("pages", [[3, PAGES], [PAGES - 1, PAGES], [-1, 0], [5, -2]])
def test_nothing_beyond_an_arena_is_touched(library: native.Native, pages: list[int]) -> None:
    one, other = arena("one"), arena("other")
    before = one.mem.copy(), other.mem.copy()
    numbers, fine = np.array(pages), np.array([7, 9])
    out = np.zeros(2, np.uint32)
    calls: list[Callable[[], None]] = [
        lambda: library.copy_pages(one, numbers, other, fine),
        lambda: library.copy_pages(one, fine, other, numbers),
        lambda: library.copy_and_sum(one, numbers, other, fine, checksums._KEYS, out),
        lambda: library.sum_pages(one, numbers, checksums._KEYS, out),
    ]
    for call in calls:
        with pytest.raises(IndexError, match="is not in"):
            call()
    assert np.array_equal(one.mem, before[0])
    assert np.array_equal(other.mem, before[1])


def test_an_arena_that_is_closed_has_no_pages(library: native.Native) -> None:
    one, closed = arena("one"), arena("closed")
    closed.close()
    for ends in ((one, closed), (closed, one)):
        with pytest.raises(TtmError, match="'closed' is closed"):
            library.copy_pages(ends[0], RUN, ends[1], RUN)


def test_what_does_not_fit_is_not_loaded(library: native.Native, tmp_path: Path) -> None:
    del library
    assert native.load(tmp_path / "none.so") is None
    (tmp_path / "text.so").write_text("no library")
    assert native.load(tmp_path / "text.so") is None
    text = SOURCE.read_text()
    for name, changed in (
        ("version", text.replace(f"return {native.VERSION};", "return 999;")),
        ("function", text.replace("ttmfs_sum_pages", "ttmfs_other")),
    ):
        assert changed != text
        (tmp_path / f"{name}.c").write_text(changed)
        assert native.load(build(tmp_path / f"{name}.so", tmp_path / f"{name}.c")) is None

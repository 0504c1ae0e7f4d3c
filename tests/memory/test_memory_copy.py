"""Runs and the page copy, against a byte-for-byte model."""

import errno
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttmfs.errors import TtmError
from ttmfs.memory import copy
from ttmfs.memory.arena import Arena
from ttmfs.memory.native import NATIVE
from ttmfs.memory.runs import common_runs, expand, is_run, unique_sorted


@pytest.fixture(params=["native", "numpy"], autouse=True, scope="module")
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to copy pages pass the same tests."""
    if request.param == "native" and NATIVE is None:
        pytest.skip("scripts/setup has built no library here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "_native", NATIVE if request.param == "native" else None)
        yield request.param


PAGES = 96
rng = np.random.default_rng(7)
SOURCE = Arena("source", PAGES)
SOURCE.mem[:] = rng.integers(0, 256, (PAGES, 4096), dtype=np.uint8)

page_lists = st.one_of(
    st.lists(st.integers(0, PAGES - 1), max_size=PAGES, unique=True),
    st.integers(0, PAGES).flatmap(lambda n: st.integers(0, PAGES - n).map(lambda s: list(range(s, s + n)))),
    # A few runs, one after the other in any order.
    st.lists(st.integers(0, 7), max_size=8, unique=True).map(lambda x: [i * 12 + j for i in x for j in range(11)]),
)


@given(pages=page_lists)
@settings(deadline=None)
def test_runs_are_maximal_and_cover(pages: list[int]) -> None:
    index, first, length = copy.runs(np.array(pages, np.uint32))
    assert index.dtype == first.dtype == length.dtype == np.int64
    rebuilt = [p + i for p, n in zip(first.tolist(), length.tolist(), strict=True) for i in range(n)]
    assert rebuilt == pages
    assert [pages[i] for i in index.tolist()] == first.tolist()
    for i in range(1, len(index)):
        assert first[i] != first[i - 1] + length[i - 1]
    assert is_run(np.array(pages, np.uint32)) == (len(first) <= 1)
    assert expand(first, length).tolist() == pages


@given(dst=page_lists, src=page_lists)
@settings(deadline=None, max_examples=150)
def test_copy_pages_equals_a_naive_copy(dst: list[int], src: list[int]) -> None:
    size = min(len(dst), len(src))
    dst, src = dst[:size], src[:size]
    arena = Arena("target", PAGES)
    arena.mem[:] = 0xEE
    expected = arena.mem.copy()
    for d, s in zip(dst, src, strict=True):
        expected[d] = SOURCE.mem[s]
    copy.copy_pages(arena, np.array(dst, np.uint32), SOURCE, np.array(src, np.uint32))
    assert np.array_equal(arena.mem, expected)
    arena.close()


def test_copy_long_runs_and_long_scatters() -> None:
    src, dst = Arena("src", 1024), Arena("dst", 1024)
    src.mem[:] = np.arange(1024, dtype=np.uint16).view(np.uint8).reshape(1024, 2).repeat(2048, axis=1)
    runs_of = np.concatenate((np.arange(512, 1024), np.arange(512))).astype(np.uint32)
    copy.copy_pages(dst, np.arange(1024, dtype=np.uint32), src, runs_of)
    assert np.array_equal(dst.mem, src.mem[runs_of])
    scattered = rng.permutation(1024).astype(np.uint32)
    back = rng.permutation(1024).astype(np.uint32)
    copy.copy_pages(dst, back, src, scattered)
    assert np.array_equal(dst.mem[back], src.mem[scattered])


@pytest.mark.parametrize("count", [0, 1, 8, 9, 90])
def test_copy_of_a_run(count: int) -> None:
    arena = Arena("target", PAGES)
    copy.copy_run(arena, 5, SOURCE, 3, count)
    assert np.array_equal(arena.mem[5 : 5 + count], SOURCE.mem[3 : 3 + count])
    assert not arena.mem[:5].any()
    assert not arena.mem[5 + count :].any()


@pytest.mark.parametrize(("dst", "src", "count"), [(90, 0, 7), (0, PAGES - 20, 21), (-1, 0, 20), (0, -1, 20)])
def test_a_run_that_leaves_its_arena_is_refused(dst: int, src: int, count: int) -> None:
    arena = Arena("target", PAGES)
    with pytest.raises(TtmError, match="are not in"):
        copy.copy_run(arena, dst, SOURCE, src, count)
    arena.close()
    with pytest.raises(TtmError, match="are not in 'target'"):
        copy.copy_run(arena, 0, SOURCE, 0, 20)


def test_copy_refuses_bad_arguments_and_changes_nothing() -> None:
    arena = Arena("target", 8)
    for dst, src in (([1, 2], [1]), ([1, 8], [1, 2]), ([1, 2], [1, PAGES]), ([0], [-1])):
        with pytest.raises(TtmError) as error:
            copy.copy_pages(arena, np.array(dst), SOURCE, np.array(src))
        assert error.value.errno == errno.EINVAL
    with pytest.raises(TtmError):
        copy.zero_pages(arena, np.array([3, 9]))
    assert not arena.mem.any()


@given(pages=page_lists, data=st.data())
@settings(deadline=None, max_examples=150)
def test_gather_and_scatter_equal_a_naive_model(pages: list[int], data: st.DataObject) -> None:
    numbers = np.array(pages, np.uint32)
    total = len(pages) * 4096
    offset = data.draw(st.integers(0, total))
    size = data.draw(st.integers(0, total - offset))
    flat = SOURCE.mem[numbers].tobytes()
    assert bytes(copy.gather(SOURCE, numbers, offset, size)) == flat[offset : offset + size]

    arena = Arena("target", PAGES)
    arena.mem[:] = 0x11
    payload = flat[total - size :] if size else b""
    expected = np.frombuffer(bytearray(b"\x11" * total), np.uint8).copy()
    expected[offset : offset + size] = np.frombuffer(payload, np.uint8)
    copy.scatter(arena, numbers, offset, memoryview(payload))
    assert arena.mem[numbers].tobytes() == expected.tobytes()
    others = np.setdiff1d(np.arange(PAGES), numbers)
    assert (arena.mem[others] == 0x11).all()
    arena.close()


def test_gather_of_a_run_is_the_arenas_own_memory() -> None:
    arena = Arena("a", 4)
    view = copy.gather(arena, np.array([1, 2]), 4095, 2)
    arena.mem[1, 4095] = 5
    arena.mem[2, 0] = 6
    assert bytes(view) == b"\x05\x06"


def test_gather_and_scatter_stay_inside() -> None:
    arena = Arena("a", 4)
    for pages, offset, size in (([1], 1, 4096), ([1], -1, 1), ([1], 0, -1), ([], 0, 1), ([4], 0, 1)):
        with pytest.raises(TtmError):
            copy.gather(arena, np.array(pages, np.int64), offset, size)
        if size >= 0:
            with pytest.raises(TtmError):
                copy.scatter(arena, np.array(pages, np.int64), offset, b"x" * size)
    assert not arena.mem.any()


def test_zero_pages() -> None:
    arena = Arena("a", 8)
    arena.mem[:] = 1
    copy.zero_pages(arena, np.array([6, 2, 3], np.uint32))
    assert [int(arena.mem[i].max()) for i in range(8)] == [1, 1, 0, 0, 1, 1, 0, 1]


def test_steps_cover_everything_once() -> None:
    for total in (0, 1, 63, 64, 65, 1000):
        steps = list(copy.iter_steps(total))
        assert [i for s in steps for i in range(s.start, s.stop)] == list(range(total))
        assert all(0 < s.stop - s.start <= 64 for s in steps)
    assert [s.stop for s in copy.iter_steps(10, 4)] == [4, 8, 10]


def test_common_runs_break_where_either_breaks() -> None:
    index, length = common_runs(np.array([1, 2, 3, 7, 8]), np.array([4, 5, 8, 9, 10]))
    assert index.tolist() == [0, 2, 3]
    assert length.tolist() == [2, 1, 2]
    assert unique_sorted(np.array([1, 1, 2, 5, 5])).tolist() == [1, 2, 5]

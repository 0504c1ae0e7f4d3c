"""Arena: fresh memory is zero and free of charge, goes back to the host, and stays inside its bounds."""

import errno

import numpy as np
import pytest

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena


def resident_kib() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_base_is_aligned_to_two_mib_and_reads_zero() -> None:
    arena = Arena("a", 1000)
    assert arena.mem.shape == (1000, 4096)
    assert arena.mem.ctypes.data % (2 << 20) == 0
    assert not arena.mem[::100].any()
    assert arena.buf.nbytes == 1000 * 4096
    assert not arena.buf.readonly
    arena.buf[4096] = 7
    assert arena.mem[1, 0] == 7
    arena.close()


def test_a_huge_arena_costs_nothing_until_it_is_touched() -> None:
    before = resident_kib()
    arena = Arena("big", 64 << 18)  # 64 GiB
    assert resident_kib() - before < 4096
    arena.mem[-1, -1] = 1
    assert arena.mem[-1, -1] == 1
    arena.close()


def test_no_pages_at_all() -> None:
    arena = Arena("none", 0)
    assert arena.mem.shape == (0, 4096)
    assert len(arena.view(0, 0)) == 0
    arena.give_back(0, 0)
    arena.zero(np.empty(0, np.uint32))
    with pytest.raises(TtmError) as error:
        arena.view(0, 1)
    assert error.value.errno == errno.EINVAL
    arena.close()


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(TtmError) as error:
        Arena("no", -1)
    assert error.value.errno == errno.EINVAL


def test_an_impossible_size_is_enomem() -> None:
    with pytest.raises(TtmError) as error:
        Arena("no", 1 << 50)
    assert error.value.errno == errno.ENOMEM


def test_give_back_returns_host_memory_and_zeros() -> None:
    arena = Arena("a", 8192)
    arena.mem[:] = 5
    full = resident_kib()
    arena.give_back(512, 7680)
    assert full - resident_kib() > 28 << 10
    assert not arena.mem[512:].any()
    assert (arena.mem[:512] == 5).all()
    arena.close()


@pytest.mark.parametrize("pages", [[3], [0, 1, 2, 3, 4, 5], [9, 7, 5, 3, 1], [0, 1, 2, 3, 4, 8, 9, 10, 11], [15, 0]])
def test_zero_fills_exactly_these_pages(pages: list[int]) -> None:
    arena = Arena("a", 16)
    arena.mem[:] = 9
    arena.zero(np.array(pages, np.uint32))
    for page in range(16):
        assert (arena.mem[page] == (0 if page in pages else 9)).all()
    arena.close()


def test_zero_many_scattered_pages() -> None:
    arena = Arena("a", 600)
    arena.mem[:] = 9
    arena.zero(np.arange(0, 600, 2, dtype=np.uint32))
    assert not arena.mem[::2].any()
    assert (arena.mem[1::2] == 9).all()
    arena.close()


def test_view_is_the_arena_itself_and_checked() -> None:
    arena = Arena("a", 4)
    view = arena.view(1, 2)
    assert view.nbytes == 8192
    view[0] = 3
    assert arena.mem[1, 0] == 3
    for first, count in ((-1, 1), (3, 2), (0, 5), (1, -1)):
        with pytest.raises(TtmError):
            arena.view(first, count)
        with pytest.raises(TtmError):
            arena.give_back(first, count)


def test_close_with_a_view_still_held() -> None:
    arena = Arena("a", 4)
    view = arena.view(0, 1)
    view[0] = 3
    arena.close()
    assert arena.num_pages == 0
    assert view[0] == 0  # given back, not unmapped under the holder's feet
    arena.close()

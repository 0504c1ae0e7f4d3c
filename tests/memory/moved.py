"""Frames that change hands between memory and the shmem store, counted."""

import pytest

from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.frames import can_move
from ttmfs.memory.stores import shmem


class Moved:
    """Frames that went into the store, and out of it."""

    def __init__(self) -> None:
        self.out = self.back = 0


def count_moves(patch: pytest.MonkeyPatch) -> Moved:
    """From now on."""
    count, real = Moved(), frames.move_frame

    def move(dst: Arena, dst_page: int, src: Arena, src_page: int) -> None:
        if dst.name == "shmem store":
            count.out += 1
        else:
            count.back += 1
        real(dst, dst_page, src, src_page)

    patch.setattr(shmem, "move_frame", move)
    return count


def host_moves() -> bool:
    """Does it at all here?"""
    pair = Arena("a", FRAME_PAGES), Arena("b", FRAME_PAGES)
    able = can_move(*pair)
    for arena in pair:
        arena.close()
    return able


def need_moves() -> None:
    """Skip the test where it does not."""
    if not host_moves():
        pytest.skip("this host does not move frames (Linux before 5.7)")

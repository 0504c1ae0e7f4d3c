"""What tests of frames that change hands start with: memory full of noise, a store, whether the host moves frames."""

from collections.abc import Iterator

import pytest

from tests.memory import frame_noise
from tests.memory.framestore import FRAMES, Store, fill
from tests.memory.moved import Moved, count_moves, need_moves
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.stores import shmem


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    return count_moves(monkeypatch)


@pytest.fixture(params=["moving", "copying"])
def moving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether frames change hands; otherwise the host is one that cannot do it."""
    if request.param == "copying":
        monkeypatch.setattr(shmem, "can_move", lambda *_: False)
        return False
    need_moves()
    return True


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Memory full of noise."""
    memory = Arena("memory", FRAMES * FRAME_PAGES)
    fill(memory)
    yield memory
    memory.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.check()
    made.end()


@pytest.fixture
def arenas() -> Iterator[tuple[Arena, Arena]]:
    """Two of a few frames each, given back afterwards."""
    pair = Arena("first", frame_noise.FRAMES * FRAME_PAGES), Arena("second", frame_noise.FRAMES * FRAME_PAGES)
    yield pair
    for arena in pair:
        arena.close()

"""A ShmemStore that is given whole frames, what its handles must stand for, and memory to give from."""

import numpy as np

from tests.memory.host_memory import resident_pages
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.stores import LoadError, ShmemStore
from ttmfs.memory.stores.slots import TOUCHED
from ttmfs.units import PAGE_SIZE

FRAMES = 6
SIZE = 16 << 20
Pages = np.ndarray[tuple[int], np.dtype[np.uint32]]


def frame(*numbers: int, shift: int = 0) -> Pages:
    """The pages of these frames, in order."""
    parts = [np.arange(n * FRAME_PAGES + shift, (n + 1) * FRAME_PAGES + shift, dtype=np.uint32) for n in numbers]
    return np.concatenate(parts)


def loose(first: int, count: int) -> Pages:
    return np.arange(first, first + count, dtype=np.uint32)


def fill(memory: Arena, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    memory.mem.view(np.uint64)[:] = rng.integers(0, 1 << 63, (memory.num_pages, PAGE_SIZE // 8), dtype=np.uint64)


class Store:
    """A store, what its handles stand for, and what a user that gives and takes does."""

    def __init__(self, size: int = SIZE) -> None:
        self.store = ShmemStore(size)
        self.model: dict[int, np.ndarray] = {}

    def give(self, memory: Arena, pages: Pages, unchanged: np.ndarray | None = None) -> Pages:
        """Handles; the pages that are stored are scribbled over, as whoever gets them next does."""
        rows = memory.mem[pages].copy()
        transfer = self.store.begin_store(len(pages), gives=True)
        self.store.write(transfer, memory, pages)
        handles = self.store.end_store(transfer, None if unchanged is None else unchanged.copy())
        for handle, row in zip(handles.tolist(), rows, strict=False):
            if handle:
                assert handle not in self.model
                self.model[handle] = row
        memory.mem[pages[: len(handles)][handles != 0]] = 0xAA
        return handles

    def take(self, memory: Arena, handles: Pages, pages: Pages) -> int:
        """How many came back, all of them right. They are dropped."""
        error: LoadError | None = None
        transfer = self.store.begin_load(handles, takes=True)
        self.store.read(transfer, memory, pages)
        try:
            loaded = self.store.end_load(transfer)
        except LoadError as failure:
            loaded, error = failure.loaded, failure
        self.store.drop(handles[:loaded])
        for handle, page in zip(handles[:loaded].tolist(), pages.tolist(), strict=False):
            assert (memory.mem[page] == self.model.pop(handle)).all(), f"handle {handle} on page {page}"
        if error is not None:
            raise error
        return loaded

    def look(self, memory: Arena, handles: Pages) -> None:
        """They can be loaded, all of them right, and stay."""
        self.store.load(handles, memory, np.arange(len(handles), dtype=np.uint32))
        for page, handle in enumerate(handles.tolist()):
            assert (memory.mem[page] == self.model[handle]).all(), f"handle {handle}"

    def check(self) -> None:
        """Its books are right, and the host holds memory for no 2 MiB in which these say that there is none."""
        store = self.store
        store.check()
        assert store.slots.stored == store.slots.used == len(self.model)
        touched = set((np.flatnonzero(store.slots._state & TOUCHED) // FRAME_PAGES).tolist())
        for slab in set(range(store.slots.num_slots // FRAME_PAGES)) - touched:
            assert resident_pages(store._arena, slab * FRAME_PAGES, FRAME_PAGES) == 0, f"slab {slab}"

    def end(self) -> None:
        """Nothing is stored; nothing is left."""
        if self.model:
            self.store.drop(np.array(list(self.model), np.uint32))
            self.model.clear()
        self.store.writeback()
        assert resident_pages(self.store._arena) == 0
        assert (self.store.used, self.store.waste, self.store.slots.used) == (0, 0, 0)
        self.store.check()
        self.store.close()


def scratch(pages: int = FRAMES * FRAME_PAGES) -> Arena:
    return Arena("scratch", pages)

"""Every store against a dictionary: hypothesis stores, loads, drops, fails, interleaves; every page stays exact."""

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.memory.test_stores import KINDS, MiB
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.stores import LoadError, SwapStore, ZstdFileStore, make_store
from ttmfs.memory.stores.slots import SLAB, SLAB_SHIFT
from ttmfs.units import PAGE_SIZE

PAGES = 1500


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model: dict[int, bytes] = {}
        self.store: SwapStore | None = None
        self.under_way: list[tuple[Any, np.ndarray]] = []
        self.upkeep: list[Any] = []

    @initialize(kind=st.sampled_from(KINDS), size=st.sampled_from([40 * PAGE_SIZE, MiB, 5 * MiB, 16 * MiB]))
    def start(self, kind: str, size: int) -> None:
        self.source, self.target = Arena("source", PAGES), Arena("target", PAGES)
        path = self.folder / "store"
        if kind == "zstd+file":
            self.store = ZstdFileStore(str(path), size, memory_size=4 * MiB)
        else:
            self.store = make_store(f"{kind}:{path}" if kind == "file" else kind, size)

    def teardown(self) -> None:
        if self.store is not None:
            while self.upkeep:
                self.store.end_upkeep(self.upkeep.pop())
            for transfer, _ in self.under_way:
                self.store.cancel_store(transfer)
            if self.model:
                self.store.drop(np.array(list(self.model), np.uint32))
            self.store.check()
            assert self.store.used == 0
            if (path := self.folder / "store").exists():
                self.store.writeback()
                assert path.stat().st_blocks == 0
            self.store.close()
            self.source.close()
            self.target.close()
        shutil.rmtree(self.folder)

    def fill(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        pages = rng.permutation(PAGES)[:count].astype(np.uint32)
        if seed & 1:
            pages = np.arange(count, dtype=np.uint32)
        rows = rng.integers(0, 256, (count, PAGE_SIZE), dtype=np.uint8)
        sort = rng.integers(0, 4, count) if seed & 2 else np.ones(count)
        rows[sort == 2] &= 3
        rows[sort == 3] = 0
        self.source.mem[pages] = rows
        return pages

    def enter(self, handles: np.ndarray, pages: np.ndarray) -> None:
        assert len(handles) <= len(pages)
        for handle, page in zip(handles.tolist(), pages.tolist(), strict=False):
            assert handle
            assert handle not in self.model
            self.model[handle] = self.source.mem[page].tobytes()

    @rule(count=st.one_of(st.integers(1, 30), st.integers(1, PAGES)), seed=st.integers(0, 1 << 20), sync=st.booleans())
    def put(self, count: int, seed: int, sync: bool) -> None:
        assert self.store is not None
        pages = self.fill(count, seed)
        try:
            handles = self.store.store(self.source, pages, writeback=sync)
        except TtmError as error:
            if error.errno != errno.ENOSPC or (self.store.available_pages and not (self.upkeep or self.under_way)):
                raise
        else:
            assert handles.size
            self.enter(handles, pages)

    @rule(count=st.integers(1, 200), nth=st.integers(0, 250), code=st.sampled_from([1, errno.EIO, errno.ENOSPC]))
    def put_failing(self, count: int, nth: int, code: int) -> None:
        assert self.store is not None
        pages = self.fill(count, nth)
        seen = 0

        def fail(_number: int) -> int:
            nonlocal seen
            seen += 1
            return code if seen == nth + 1 else 0

        self.store.fail_write = fail
        try:
            self.enter(self.store.store(self.source, pages), pages)
        except TtmError as error:
            if error.errno not in {errno.EIO, errno.ENOSPC}:
                raise
        finally:
            self.store.fail_write = None

    @rule(count=st.one_of(st.integers(1, 700), st.integers(1, PAGES)), seed=st.integers(0, 99), changed=st.booleans())
    def give(self, count: int, seed: int, changed: bool) -> None:
        """The pages are the store's to take, and some have changed before it does."""
        assert self.store is not None
        if not self.store.available_pages:
            return
        transfer = self.store.begin_store(count, gives=True)
        pages = self.fill(count, seed)
        before = self.source.mem[pages]
        self.store.write(transfer, self.source, pages)
        unchanged = np.arange(count) % 600 != seed if changed else None
        try:
            handles = self.store.end_store(transfer, None if unchanged is None else unchanged.copy())
        except TtmError as error:
            if error.errno != errno.ENOSPC:
                raise
            handles = np.zeros(0, np.uint32)
        stored = np.flatnonzero(handles)
        assert unchanged is None or unchanged[stored].all()
        for at in stored.tolist():
            assert int(handles[at]) not in self.model
            self.model[int(handles[at])] = before[at].tobytes()
        left = np.delete(np.arange(count), stored)
        assert (self.source.mem[pages[left]] == before[left]).all()
        if unchanged is None:
            assert stored.size == len(handles)

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99), ordered=st.booleans())
    @precondition(lambda self: self.model)
    def take(self, share: float, seed: int, ordered: bool) -> None:
        """What comes back is dropped, so that it need not be copied."""
        assert self.store is not None
        handles = self.some(share, seed, ordered)
        if ordered and seed & 1:
            # From the begin of a frame on, if there is one.
            handles = handles[handles > (int(handles[0]) + SLAB - 2) >> SLAB_SHIFT << SLAB_SHIFT]
        handles = handles[:PAGES]
        pages = np.arange(len(handles), dtype=np.uint32)
        if not ordered:
            pages = np.random.default_rng(seed).permutation(PAGES)[: len(handles)].astype(np.uint32)
        transfer = self.store.begin_load(handles, takes=True)
        self.store.read(transfer, self.target, pages)
        assert self.store.end_load(transfer) == len(handles)
        self.store.drop(handles, upkeep=seed % 3 > 0)
        for handle, page in zip(handles.tolist(), pages.tolist(), strict=True):
            assert self.target.mem[page].tobytes() == self.model.pop(handle), f"handle {handle}"

    @rule(count=st.integers(1, 700), seed=st.integers(0, 99))
    @precondition(lambda self: len(self.under_way) < 3)
    def begin(self, count: int, seed: int) -> None:
        assert self.store is not None
        if self.store.available_pages:
            transfer = self.store.begin_store(count)
            pages = self.fill(len(transfer.slots), seed)
            self.store.write(transfer, self.source, pages)
            self.under_way.append((transfer, self.source.mem[pages].copy()))

    @rule(cancel=st.booleans())
    @precondition(lambda self: self.under_way)
    def end(self, cancel: bool) -> None:
        assert self.store is not None
        transfer, rows = self.under_way.pop(0)
        if cancel:
            self.store.cancel_store(transfer)
            return
        try:
            handles = self.store.end_store(transfer)
        except TtmError as error:
            if error.errno != errno.ENOSPC:
                raise
        else:
            for handle, row in zip(handles.tolist(), rows, strict=False):
                assert handle not in self.model
                self.model[handle] = row.tobytes()

    def some(self, share: float, seed: int, ordered: bool) -> np.ndarray:
        handles = np.array(sorted(self.model), np.uint32)
        count = max(1, int(share * len(handles)))
        rng = np.random.default_rng(seed)
        if ordered:
            first = int(rng.integers(0, len(handles) - count + 1))
            return handles[first : first + count]
        return rng.permutation(handles)[:count]

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99), ordered=st.booleans(), fail=st.booleans())
    @precondition(lambda self: self.model)
    def get(self, share: float, seed: int, ordered: bool, fail: bool) -> None:
        assert self.store is not None
        handles = self.some(share, seed, ordered)[:PAGES]
        pages = np.random.default_rng(seed).permutation(PAGES)[: len(handles)].astype(np.uint32)
        failing = seed % len(handles)
        first = self.store._read_number
        self.store.fail_read = (lambda number: number - first == failing) if fail else None
        loaded = len(handles)
        try:
            self.store.load(handles, self.target, pages)
            assert not fail
        except LoadError as error:
            assert fail
            loaded = error.loaded
            assert loaded == failing
        finally:
            self.store.fail_read = None
        for handle, page in zip(handles[:loaded].tolist(), pages.tolist(), strict=False):
            assert self.target.mem[page].tobytes() == self.model[handle], f"handle {handle}"

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99), ordered=st.booleans(), upkeep=st.booleans())
    @precondition(lambda self: self.model)
    def forget(self, share: float, seed: int, ordered: bool, upkeep: bool) -> None:
        assert self.store is not None
        handles = self.some(share, seed, ordered)
        self.store.drop(handles, upkeep=upkeep)
        for handle in handles.tolist():
            del self.model[handle]

    @rule(flush=st.booleans())
    @precondition(lambda self: len(self.upkeep) < 2)
    def begin_upkeep(self, flush: bool) -> None:
        assert self.store is not None
        work = self.store.begin_upkeep(flush)
        if work is not None:
            self.store.run_upkeep(work)
            self.upkeep.append(work)

    @rule()
    @precondition(lambda self: self.upkeep)
    def end_upkeep(self) -> None:
        assert self.store is not None
        self.store.end_upkeep(self.upkeep.pop(0))

    @invariant()
    def books(self) -> None:
        if self.store is not None:
            assert self.store.statistics().pages == len(self.model)
            assert self.store.used <= self.store.size
            if not self.under_way and not self.upkeep:
                self.store.check()


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(deadline=None, max_examples=40, stateful_step_count=20)

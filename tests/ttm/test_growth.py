"""Sizes while WRITEs beyond the end are under way: a model of what a file's size must be, however they end."""

from contextlib import AbstractContextManager

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ttmfs.ttm.growth import Growth, growing, settled_size

SIZES = st.integers(0, 40)


class File:
    """Grows and shrinks, and knows how large it ever was."""

    def __init__(self) -> None:
        self.size = 0
        self.growth: Growth | None = None

    def resize(self, size: int) -> None:
        if size > 35:
            raise OverflowError
        self.size = size

    def truncate(self, size: int) -> None:
        self.resize(size)
        if self.growth is not None:
            self.growth.settled = size


class Machine(RuleBasedStateMachine):
    """`settled` is the model: what is there without the WRITEs that may still fail."""

    def __init__(self) -> None:
        super().__init__()
        self.file = File()
        self.settled = 0
        self.under_way: list[tuple[int, AbstractContextManager[None]]] = []

    @rule(end=SIZES)
    def begin(self, end: int) -> None:
        if end <= self.file.size:
            return
        write = growing(self.file, end, self.file.resize)
        try:
            write.__enter__()
        except OverflowError:
            return
        self.under_way.append((end, write))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100), works=st.booleans())
    def end(self, which: int, works: bool) -> None:
        end, write = self.under_way.pop(which % len(self.under_way))
        if works:
            # Its bytes come after a truncate that happened meanwhile.
            self.file.resize(max(end, self.file.size))
            write.__exit__(None, None, None)
            self.settled = max(self.settled, end)
            return
        error = ValueError()
        assert not write.__exit__(ValueError, error, None)

    @rule(size=st.integers(0, 35))
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        self.settled = size

    @invariant()
    def size_is_right(self) -> None:
        assert settled_size(self.file) == self.settled
        assert self.file.size >= self.settled
        if not self.under_way:
            assert self.file.size == self.settled
            assert self.file.growth is None


TestGrowth = Machine.TestCase
TestGrowth.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)

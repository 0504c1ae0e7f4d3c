"""Listings beside whatever changes a folder: each name that was there throughout comes once, none that is gone ever."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ttmfs.driver.entries import FIRST_NUMBER, File, Folder, Symlink
from ttmfs.fs.kernel.rights import FolderOf
from ttmfs.fs.tree.listing import FixedNames, Listing
from ttmfs.fs.tree.mirrors import FolderNames
from ttmfs.fs.tree.nodes import VirtualDir

NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"g"])


@dataclass
class Pass:
    """One listing from its start: what it has handed out, and what was there all the time."""

    listing: Listing
    position: int = 0
    seen: list[bytes] = field(default_factory=list)
    throughout: set[bytes] = field(default_factory=set)


class ListingMachine(RuleBasedStateMachine):
    """A folder that is changed while several listings of it, and of what stands for it in objects/, are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Folder(1, 0o040755, 0, 0, is_root=True)
        self.model: dict[bytes, File | Symlink] = {}
        self.passes: list[Pass] = []
        self.inos = 10

    def _new(self, *, link: bool) -> File | Symlink:
        self.inos += 1
        return Symlink(self.inos, 0, 0, b"x") if link else File(self.inos, 0o100644, 0, 0)

    def _gone(self, name: bytes) -> None:
        for one in self.passes:
            one.throughout.discard(name)

    @rule(name=NAMES, link=st.booleans())
    def put(self, name: bytes, link: bool) -> None:
        """A new name, or one that is replaced."""
        entry = self._new(link=link)
        entry.added(self.folder.put(name, entry))
        self.model[name] = entry

    @rule(name=NAMES)
    def take(self, name: bytes) -> None:
        """unlink."""
        if self.model.pop(name, None) is not None:
            self.folder.take(name)
            self._gone(name)

    @rule(name=NAMES, to=NAMES)
    def rename(self, name: bytes, to: bytes) -> None:
        """Within the folder."""
        if name == to or name not in self.model:
            return
        entry = self.model[to] = self.model.pop(name)
        entry.renamed(self.folder.take(name), self.folder.put(to, entry))
        self._gone(name)

    @rule(virtual=st.booleans())
    def begin(self, virtual: bool) -> None:
        """opendir."""
        node = VirtualDir("", self._find, FolderNames(self.folder), FolderOf(self.folder)) if virtual else self.folder
        self.passes.append(Pass(Listing(node), throughout=self._listed(virtual)))

    def _find(self, name: str) -> File | None:
        entry = self.model.get(name.encode())
        assert isinstance(entry, File)
        return entry

    def _listed(self, virtual: bool) -> set[bytes]:
        return {name for name, entry in self.model.items() if not virtual or isinstance(entry, File)}

    @rule(which=st.integers(0, 9), count=st.integers(1, 4))
    def go_on(self, which: int, count: int) -> None:
        """One READDIRPLUS with room for so many."""
        if not self.passes:
            return
        one = self.passes[which % len(self.passes)]
        virtual = isinstance(one.listing.node, VirtualDir)
        rows = list(one.listing.after(one.position))
        for number, name, node in rows[:count]:
            assert number > one.position
            assert number >= FIRST_NUMBER
            assert self.model[name] is node, "a name that is gone, or what it meant before"
            assert name not in one.seen
            one.seen.append(name)
            one.position = number
        if len(rows) <= count:
            missed = one.throughout & self._listed(virtual) - set(one.seen)
            assert not missed, "a name that was there throughout was skipped"

    @rule(which=st.integers(0, 9))
    def rewind(self, which: int) -> None:
        """rewinddir."""
        if self.passes:
            one = self.passes[which % len(self.passes)]
            one.listing.rewind()
            one.position, one.seen = 0, []
            one.throughout = self._listed(isinstance(one.listing.node, VirtualDir))

    @invariant()
    def the_folder_is_the_model(self) -> None:
        """A listing from the start shows all there is."""
        assert {name: node for _, name, node in Listing(self.folder).after(0)} == self.model
        assert FolderNames(self.folder).folders == len(self._listed(True))
        # Names that are gone are not kept for long.
        assert len(self.folder._order) <= 2 * len(self.model) + 1


TestListing = ListingMachine.TestCase
TestListing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_whoever_renames_what_is_listed_comes_to_an_end() -> None:
    folder = Folder(1, 0o040755, 0, 0, is_root=True)
    for number in range(5):
        entry = File(10 + number, 0o100644, 0, 0)
        entry.added(folder.put(b"%d" % number, entry))
    listing = Listing(folder)
    seen: list[bytes] = []
    position = 0
    while rows := list(listing.after(position))[:1]:
        position, name, node = rows[0]
        assert isinstance(node, File)
        node.renamed(folder.take(name), folder.put(name + b"x", node))
        seen.append(name)
        assert len(seen) < 10
    assert seen == [b"0", b"1", b"2", b"3", b"4"]
    listing.rewind()
    assert [name for _, name, _ in listing.after(0)] == [b"0x", b"1x", b"2x", b"3x", b"4x"]


def test_names_that_never_change_have_numbers_too() -> None:
    names = FixedNames(("a", "b", "c"), folders=1)
    assert list(names.after(0)) == list(names.after(2)) == [(3, "a"), (4, "b"), (5, "c")]
    assert list(names.after(4)) == [(5, "c")]
    assert not list(names.after(names.last))

"""The namespace against a model of what POSIX says of names: any order of calls has the same outcomes and tree."""

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.entries import Entry, Folder, Symlink
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.errors import TtmError

MIB = 1 << 20
NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"n" * 256])
WHERE = st.integers(0, 50)


@dataclass(eq=False)
class Thing:
    """What the model has for one entry."""

    kind: str
    entry: Entry
    children: "dict[bytes, Thing]" = field(default_factory=dict)
    names: "list[tuple[Thing, bytes]]" = field(default_factory=list)
    opens: int = 0
    known: bool = False


class NamesMachine(RuleBasedStateMachine):
    """One namespace, of a device that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.vdev = VirtualDevice(Config(memory=MIB, vram=0, gtt=0, swap=0))
        self.names = Namespace(self.vdev, uid=0, gid=0)
        self.root = Thing("folder", self.names.root)
        self.things = [self.root]

    def teardown(self) -> None:
        self.vdev.close()

    # -- the model -------------------------------------------------------------------------------------------------

    def folder(self, number: int) -> Thing:
        """Any folder, removed ones too: a descriptor of one may be left."""
        folders = [thing for thing in self.things if thing.kind == "folder"]
        return folders[number % len(folders)]

    def below(self, thing: Thing) -> list[Thing]:
        """A thing and all in it."""
        return [thing, *(inner for child in thing.children.values() for inner in self.below(child))]

    def why_not(self, parent: Thing, name: bytes) -> int:
        """The errno of making a name."""
        if len(name) > 255:
            return errno.ENAMETOOLONG
        if name in parent.children:
            return errno.EEXIST
        return 0 if parent is self.root or parent.names else errno.ENOENT

    def lost(self, parent: Thing, name: bytes) -> None:
        thing = parent.children.pop(name)
        thing.names.remove((parent, name))

    def attempt(self, expected: int, call: Callable[[], object]) -> object:
        """What the call returned; None when it failed, as it had to."""
        if not expected:
            return call()
        with pytest.raises(TtmError) as failed:
            call()
        assert failed.value.errno == expected
        return None

    # -- calls -----------------------------------------------------------------------------------------------------

    @rule(where=WHERE, name=NAMES, kind=st.sampled_from(["file", "file", "folder", "link"]))
    def make(self, where: int, name: bytes, kind: str) -> None:
        """creat, mkdir, symlink."""
        parent = self.folder(where)
        folder = parent.entry
        assert isinstance(folder, Folder)
        calls: dict[str, Callable[[], Entry]] = {
            "file": lambda: self.names.create(folder, name, 0o644, 0, 0),
            "folder": lambda: self.names.mkdir(folder, name, 0o755, 0, 0),
            "link": lambda: self.names.symlink(folder, name, b"target", 0, 0),
        }
        entry = self.attempt(self.why_not(parent, name), calls[kind])
        if entry is not None:
            assert isinstance(entry, Entry)
            thing = Thing(kind, entry, names=[(parent, name)])
            parent.children[name] = thing
            self.things.append(thing)

    @rule(what=WHERE, where=WHERE, name=NAMES)
    def link(self, what: int, where: int, name: bytes) -> None:
        """link."""
        thing, parent = self.things[what % len(self.things)], self.folder(where)
        expected = self.why_not(parent, name)
        if thing.kind == "folder":
            expected = errno.EPERM
        elif not thing.names:
            expected = errno.ENOENT
        folder = parent.entry
        assert isinstance(folder, Folder)
        self.attempt(expected, lambda: self.names.link(thing.entry, folder, name))
        if not expected:
            parent.children[name] = thing
            thing.names.append((parent, name))

    @rule(where=WHERE, name=NAMES, folder=st.booleans())
    def remove(self, where: int, name: bytes, folder: bool) -> None:
        """unlink, rmdir."""
        parent = self.folder(where)
        thing = parent.children.get(name)
        expected = 0
        if thing is None:
            expected = errno.ENAMETOOLONG if len(name) > 255 else errno.ENOENT
        elif folder:
            expected = errno.ENOTDIR if thing.kind != "folder" else errno.ENOTEMPTY if thing.children else 0
        elif thing.kind == "folder":
            expected = errno.EISDIR
        here = parent.entry
        assert isinstance(here, Folder)
        self.attempt(expected, lambda: (self.names.rmdir if folder else self.names.unlink)(here, name))
        if not expected:
            self.lost(parent, name)

    @rule(where=WHERE, name=NAMES, to=WHERE, to_name=NAMES, replace=st.booleans())
    def rename(self, where: int, name: bytes, to: int, to_name: bytes, replace: bool) -> None:
        """rename, RENAME_NOREPLACE."""
        parent, new = self.folder(where), self.folder(to)
        thing, target = parent.children.get(name), new.children.get(to_name)
        expected = self._renames(thing, target, new, to_name, replace)
        here, there = parent.entry, new.entry
        assert isinstance(here, Folder)
        assert isinstance(there, Folder)
        if thing is None and len(name) > 255:
            expected = errno.ENAMETOOLONG
        self.attempt(expected, lambda: self.names.rename(here, name, there, to_name, replace=replace))
        if not expected and thing is not None and thing is not target:
            if target is not None:
                self.lost(new, to_name)
            del parent.children[name]
            new.children[to_name] = thing
            thing.names[thing.names.index((parent, name))] = (new, to_name)

    def _renames(self, thing: Thing | None, target: Thing | None, new: Thing, to_name: bytes, replace: bool) -> int:
        if thing is None:
            return errno.ENOENT
        if target is None:
            made = self.why_not(new, to_name)
            return made or (errno.EINVAL if new in self.below(thing) else 0)
        if not replace:
            return errno.EEXIST
        if target is thing:
            return 0
        if new in self.below(thing):
            return errno.EINVAL
        if target.kind == "folder":
            return errno.EISDIR if thing.kind != "folder" else errno.ENOTEMPTY if target.children else 0
        return errno.ENOTDIR if thing.kind == "folder" else 0

    @rule(where=WHERE, name=NAMES, to=WHERE, to_name=NAMES)
    def exchange(self, where: int, name: bytes, to: int, to_name: bytes) -> None:
        """RENAME_EXCHANGE."""
        parent, new = self.folder(where), self.folder(to)
        first, second = parent.children.get(name), new.children.get(to_name)
        here, there = parent.entry, new.entry
        assert isinstance(here, Folder)
        assert isinstance(there, Folder)
        expected = 0
        if first is None or second is None:
            missing = name if first is None else to_name
            expected = errno.ENAMETOOLONG if len(missing) > 255 else errno.ENOENT
        elif first is not second and (new in self.below(first) or parent in self.below(second)):
            expected = errno.EINVAL
        self.attempt(expected, lambda: self.names.exchange(here, name, there, to_name))
        if not expected and first is not None and second is not None and first is not second:
            parent.children[name], new.children[to_name] = second, first
            first.names[first.names.index((parent, name))] = (new, to_name)
            second.names[second.names.index((new, to_name))] = (parent, name)

    # -- who holds a file ------------------------------------------------------------------------------------------

    @rule(what=WHERE, opens=st.integers(-1, 1), known=st.booleans())
    def hold(self, what: int, opens: int, known: bool) -> None:
        """OPEN, RELEASE, LOOKUP, FORGET."""
        thing = self.things[what % len(self.things)]
        file = thing.entry
        if not isinstance(file, BoFile) or not (thing.names or thing.opens or thing.known):
            return
        thing.opens = file.opens = max(0, thing.opens + opens)
        thing.known = file.known = known
        self.names.drop_if_unused(file)

    # -- what must be so -------------------------------------------------------------------------------------------

    @invariant()
    def the_tree_is_the_models(self) -> None:
        """Names, link counts, paths, and which BOs exist."""
        alive = set()
        for thing in self.things:
            entry = thing.entry
            if isinstance(entry, Folder):
                assert {name: dentry.entry for name, dentry in entry.children.items()} == {
                    name: child.entry for name, child in thing.children.items()
                }
                subfolders = sum(child.kind == "folder" for child in thing.children.values())
                assert entry.nlink == (2 + subfolders if thing is self.root or thing.names else 0)
                assert entry.symlinks == sum(child.kind == "link" for child in thing.children.values())
            else:
                assert entry.nlink == len(thing.names)
            if thing.names:
                assert entry.path == self.path(thing)
            if thing.kind == "file" and (thing.names or thing.opens or thing.known):
                alive.add(entry.ino)
        assert set(self.names.files) == alive
        assert self.vdev.ttm.num_bos == len(alive)

    def path(self, thing: Thing) -> str:
        """That of its oldest name."""
        parent, name = thing.names[0]
        return name.decode() if parent is self.root else f"{self.path(parent)}/{name.decode()}"

    @invariant()
    def every_path_finds_its_bo(self) -> None:
        """Whichever of its names is said; a link or a folder is none."""
        for thing in self.things:
            for parent, name in thing.names:
                path = name.decode() if parent is self.root else f"{self.path(parent)}/{name.decode()}"
                if thing.kind == "file":
                    assert self.names.find(path) is thing.entry
                else:
                    code = errno.ENOENT if isinstance(thing.entry, Symlink) else errno.EISDIR
                    self.attempt(code, partial(self.names.find, path))


TestNames = NamesMachine.TestCase
TestNames.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def namespace() -> Namespace:
    return Namespace(VirtualDevice(Config(memory=MIB, vram=0, gtt=0, swap=0)), uid=0, gid=0)


def test_a_folder_that_is_very_deep_is_renamed() -> None:
    names = namespace()
    deepest = names.root
    for _ in range(1100):
        deepest = names.mkdir(deepest, b"d", 0o755, 0, 0)
    file = names.create(deepest, b"f", 0o644, 0, 0)
    names.rename(names.root, b"d", names.root, b"e", replace=True)
    assert file.bo.name == "e/" + "d/" * 1099 + "f"
    names.vdev.close()


def test_of_a_path_without_end_the_last_4096_bytes_are_told() -> None:
    names = namespace()
    folder = names.root
    for depth in range(40):
        file = names.create(folder, b"f", 0o644, 0, 0)
        whole = ("d" * 255 + "/") * depth + "f"
        assert file.bo.name == (whole if depth <= 15 else "…/" + whole[-15 * 256 - 1 :]), f"{depth} folders deep"
        folder = names.mkdir(folder, b"d" * 255, 0o755, 0, 0)
    assert names.find(whole) is file, "commands find it all the same"
    names.unlink(file.names[0].folder, b"f")
    assert file.path == "…/" + whole[-15 * 256 - 1 :]
    names.vdev.close()


def test_a_file_has_1024_names_and_no_more() -> None:
    names = namespace()
    file = names.create(names.root, b"f", 0o644, 0, 0)
    for number in range(1023):
        names.link(file, names.root, b"f%d" % number)
    with pytest.raises(TtmError) as refused:
        names.link(file, names.root, b"one more")
    assert refused.value.errno == errno.EMLINK
    names.unlink(names.root, b"f7")
    names.link(file, names.root, b"one more")
    names.vdev.close()


def test_a_folder_hands_its_group_on() -> None:
    names = namespace()
    team = names.mkdir(names.root, b"team", 0o2775, 1, 77)
    assert names.create(team, b"f", 0o6644, 2, 2).gid == 77
    assert names.create(team, b"g", 0o6644, 2, 2).mode == stat.S_IFREG | 0o644
    sub = names.mkdir(team, b"sub", 0o755, 2, 2)
    assert (sub.gid, sub.mode) == (77, stat.S_IFDIR | 0o2755)
    assert names.symlink(sub, b"l", b"x", 2, 2).gid == 77
    assert names.create(names.root, b"other", 0o644, 2, 2).gid == 2
    names.vdev.close()


def test_a_file_goes_with_the_last_of_name_open_and_knowledge() -> None:
    names = namespace()
    for left in ("names", "opens", "known"):
        file = names.create(names.root, b"f", 0o644, 0, 0)
        file.opens, file.known = 1, True
        for what in {"names", "opens", "known"} - {left}:
            if what == "names":
                names.unlink(names.root, b"f")
            else:
                setattr(file, what, 0)
            names.drop_if_unused(file)
            assert names.files == {file.ino: file}
        file.opens, file.known = 0, False
        if left == "names":
            names.unlink(names.root, b"f")
        names.drop_if_unused(file)
        assert not names.files
        assert not names.vdev.ttm.num_bos
    names.vdev.close()


def test_an_unlinked_bo_keeps_the_name_that_it_had_last() -> None:
    names = namespace()
    folder = names.mkdir(names.root, b"d", 0o755, 0, 0)
    file = names.create(folder, b"f", 0o644, 0, 0)
    file.opens = 1
    names.unlink(folder, b"f")
    assert file.bo.name == "d/f"
    names.vdev.close()

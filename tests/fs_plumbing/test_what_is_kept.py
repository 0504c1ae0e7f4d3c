"""What the kernel may keep of the virtual tree: only what never changes, and of that enough for short ways."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from ttmfs.driver.config import Config
from ttmfs.fs.mount import Mount
from ttmfs.fs.requests.inodes import ROOT_INO

MIB = 1 << 20
KEPT = ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns")
ASKED: Any = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0o022)


@pytest.fixture
def mount() -> Iterator[Mount]:
    mount = Mount("/", Config(vram=8 * MIB, gtt=8 * MIB, memory=16 * MIB))
    names = mount.machine.names
    names.create(names.root, b"a", 0o644, 0, 0)
    yield mount
    mount.vdev.close()


async def looked_up(mount: Mount, path: str) -> Any:
    """The reply to the last LOOKUP of the way."""
    ino, attr = ROOT_INO, None
    for name in path.split("/"):
        attr = await mount.operations.lookup(ino, name.encode(), ASKED)
        ino = attr.st_ino
    return attr


@pytest.mark.parametrize(
    "path", ["ctl", "regions", "regions/vram", "pool", "swap", "fences", "debug", "debug/ttm", "policies"]
)
async def test_folders_that_stay_are_kept(mount: Mount, path: str) -> None:
    attr = await looked_up(mount, path)
    assert (attr.entry_timeout, attr.attr_timeout) == (300, 300)
    # Nothing of them moves when something else is made.
    names = mount.machine.names
    names.create(names.root, b"b", 0o644, 0, 0)
    later = await mount.operations.getattr(attr.st_ino, ASKED)
    assert [getattr(later, key) for key in KEPT] == [getattr(attr, key) for key in KEPT]


async def test_the_root_is_kept(mount: Mount) -> None:
    attr = await mount.operations.getattr(ROOT_INO, ASKED)
    assert attr.attr_timeout == 300


@pytest.mark.parametrize("path", ["objects", "svm_objects", "clients"])
async def test_of_folders_whose_content_changes_only_the_names_are_kept(mount: Mount, path: str) -> None:
    attr = await looked_up(mount, path)
    assert (attr.entry_timeout, attr.attr_timeout) == (300, 0)


@pytest.mark.parametrize(
    "path",
    ["objects/a", "objects/d", "objects/a/evict", "ctl/evict", "stats", "trace_pipe", "groups/made", "pool/pages"],
)
async def test_nothing_else_is(mount: Mount, path: str) -> None:
    """Of a file not even what never changes: the number that LOOKUP says is not its st_ino. Of a folder that stands for
    one of bo/ nothing, or who may not look into the one would see what is in the other."""
    names = mount.machine.names
    names.mkdir(names.root, b"d", 0o700, 0, 0)
    if path == "groups/made":
        groups = await looked_up(mount, "groups")
        await mount.operations.mkdir(groups.st_ino, b"made", 0o755, ASKED)
    attr = await looked_up(mount, path)
    assert (attr.entry_timeout, attr.attr_timeout) == (0, 0)


READS, WRITES = os.O_RDONLY, os.O_WRONLY | os.O_TRUNC


@pytest.mark.parametrize("path", ["objects/a/evict", "ctl/evict", "objects/a/status", "stats"])
async def test_the_number_of_a_file_that_was_closed_goes_to_who_looks_next_and_to_nobody_beside(
    mount: Mount, path: str
) -> None:
    ask = mount.operations
    flags = WRITES if path.endswith("evict") else READS
    first = (await looked_up(mount, path)).st_ino
    opened = await ask.open(first, flags, ASKED)
    others = [(await looked_up(mount, path)).st_ino for _ in range(2)]
    assert len({first, *others}) == 3, "while it is open, and while others may be about to open theirs"
    again = await ask.open(first, flags, ASKED)
    await ask.release(opened.fh)
    assert (await looked_up(mount, path)).st_ino not in (first, *others), "/proc/self/fd opens one number twice"
    await ask.release(again.fh)
    assert mount.tree.selfcheck() == []
    assert (await looked_up(mount, path)).st_ino == first
    assert (await looked_up(mount, path)).st_ino != first, "somebody may be about to open it"
    await ask.release((await ask.open(first, flags, ASKED)).fh)
    await ask.forget([(first, 2)])
    assert mount.tree.selfcheck() == []
    assert (await looked_up(mount, path)).st_ino != first, "the kernel does not know it any more"


async def test_the_number_of_a_file_that_did_not_open_is_free(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = mount.operations
    ino = (await looked_up(mount, "objects/a/status")).st_ino
    with pytest.raises(pyfuse3.FUSEError):
        await ask.open(ino, os.O_WRONLY, ASKED)
    monkeypatch.setattr(mount.tree.lengths, "note", failing)
    stats = (await looked_up(mount, "ctl/selfcheck")).st_ino
    with pytest.raises(pyfuse3.FUSEError):
        await ask.open(stats, READS, ASKED)
    assert (await looked_up(mount, "ctl/selfcheck")).st_ino == stats
    assert mount.tree.selfcheck() == []


async def test_who_gets_the_number_of_another_gets_what_the_name_means_now(mount: Mount) -> None:
    ask, names = mount.operations, mount.machine.names
    ino = (await looked_up(mount, "objects/a/status")).st_ino
    await ask.release((await ask.open(ino, READS, ASKED)).fh)
    names.rename(names.root, b"a", names.root, b"z", replace=True)
    names.create(names.root, b"a", 0o644, 0, 0)
    assert (await looked_up(mount, "objects/a/status")).st_ino != ino
    names.unlink(names.root, b"a")
    names.rename(names.root, b"z", names.root, b"a", replace=True)
    assert (await looked_up(mount, "objects/a/status")).st_ino == ino


def failing(*_arguments: object) -> None:
    raise MemoryError("made to fail")

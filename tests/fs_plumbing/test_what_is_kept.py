"""What the kernel may keep of the virtual tree: only what never changes, and of that enough for short ways."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize("path", ["objects/a", "objects/d/a", "svm_objects/s"])
async def test_folders_whose_end_is_told_are_kept(mount: Mount, path: str) -> None:
    names, spaces = mount.machine.names, mount.spaces
    names.create(names.mkdir(names.root, b"d", 0o755, 0, 0), b"a", 0o644, 0, 0)
    spaces.create(spaces.root, b"s", 0o644, 0, 0)
    attr = await looked_up(mount, path)
    assert (attr.entry_timeout, attr.attr_timeout) == (300, 300)
    names.create(names.root, b"b", 0o644, 0, 0)
    later = await mount.operations.getattr(attr.st_ino, ASKED)
    assert [getattr(later, key) for key in KEPT] == [getattr(attr, key) for key in KEPT]


@pytest.mark.parametrize(
    "path", ["objects/d", "objects/a/evict", "ctl/evict", "stats", "trace_pipe", "groups/made", "pool/pages"]
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

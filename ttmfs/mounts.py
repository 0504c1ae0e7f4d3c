"""Mounts: which ttmfs mounts there are, and which one is meant. Only the mount table is read, never a mount."""

import os
import shlex
from collections.abc import Iterator
from typing import Final

import click
from click.shell_completion import CompletionItem

from ttmfs.fs.kernel import tuning

VARIABLE: Final = "TTMFS_MOUNT"


def all_mounts() -> list[str]:
    """Mount points of ttmfs, in the order in which they were mounted."""
    return tuning.mountpoints("fuse.ttmfs")


def listed() -> str:
    """Where ttmfs is mounted, as the end of a sentence."""
    mounts = all_mounts()
    return f"ttmfs is mounted on {shlex.join(mounts)}" if mounts else "ttmfs is not mounted anywhere"


def meant(given: str | None) -> str:
    """The mount point: `given`, else $TTMFS_MOUNT, else the only one. click.ClickException when that is none."""
    path = given or os.environ.get(VARIABLE)
    mounts = all_mounts()
    if path is None:
        if len(mounts) == 1:
            return mounts[0]
        if mounts:
            raise click.ClickException(f"which mount? {listed()}: say MOUNTPOINT, or set ${VARIABLE}")
        raise click.ClickException(f"{listed()}: `ttmfs mount MOUNTPOINT` mounts it")
    return os.path.abspath(path)


def connection(path: str) -> int:
    """The FUSE connection of a ttmfs mount. ClickException when `path` is none."""
    try:
        if tuning.filesystem_type(path) == "fuse.ttmfs":
            return tuning.connection_number(path)
    except OSError:
        pass
    raise click.ClickException(f"{path} is no ttmfs mount: {listed()}")


def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Mount points, for the shell."""
    return [CompletionItem(path) for path in all_mounts() if path.startswith(incomplete)]


def rows() -> Iterator[tuple[str, str, int]]:
    """(mount point, source, FUSE connection) of each."""
    for path in all_mounts():
        yield path, tuning.source_of(path), tuning.connection_number(path)

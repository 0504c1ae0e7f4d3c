"""Check of names, for selfcheck: every name leads to what has it, every file has a reason to be there, every BO a file.

Yields sentences about what is wrong, and None wherever others may run: each name, file and BO is right by itself.
"""

import os
from collections.abc import Iterator
from typing import TypeVar

from ttmfs.driver.entries import Dentry, Entry, File, Folder
from ttmfs.driver.names import Names
from ttmfs.driver.namespace import BoFile, Namespace

_AT_ONCE = 64
"""Names, files or BOs between two pauses."""

F = TypeVar("F", bound=File)
T = TypeVar("T")


def check_names(names: Names[F]) -> Iterator[str | None]:
    """All names below one root, and all files."""
    folders = [names.root]
    while folders:
        folder = folders.pop()
        for dentry in _with_pauses(list(folder.children.values())):
            # Unless it was taken away while others ran.
            if dentry is not None and folder.children.get(dentry.name) is dentry:
                yield from _wrong_name(names, folder, dentry)
                if isinstance(dentry.entry, Folder):
                    folders.append(dentry.entry)
            elif dentry is None:
                yield None
    for file in _with_pauses(list(names.files.values())):
        if file is None:
            yield None
        elif names.files.get(file.ino) is file:
            yield from _wrong_file(file)


def check_bos(names: Namespace) -> Iterator[str | None]:
    """All BOs that the device has of files."""
    for bo in _with_pauses(list(names.vdev.ttm.bos)):
        if bo is None:
            yield None
        elif not bo.deleted and (bo.private is None or isinstance(bo.private, BoFile)):
            file = bo.private
            if file is None or names.files.get(file.ino) is not file:
                yield f"BO {bo.name}: no file has it"
    for file in names.files.values():
        if file.bo.deleted:
            yield f"{_called(file)}: its BO is gone"


def _with_pauses(items: list[T]) -> Iterator[T | None]:
    for number, item in enumerate(items):
        if number and not number % _AT_ONCE:
            yield None
        yield item


def _wrong_name(names: Names[F], folder: Folder, dentry: Dentry) -> Iterator[str]:
    entry = dentry.entry
    where = f"name {os.fsdecode(dentry.name)!r} in folder {folder.ino}"
    if dentry.folder is not folder or dentry not in entry.names:
        yield f"{where} leads to inode {entry.ino}, which has not that name"
    if isinstance(entry, File) and names.files.get(entry.ino) is not entry:
        yield f"{where} leads to inode {entry.ino}, which is no file any more"


def _wrong_file(file: File) -> Iterator[str]:
    for dentry in file.names:
        if dentry.folder.children.get(dentry.name) is not dentry:
            yield f"{_called(file)} has the name {os.fsdecode(dentry.name)!r}, which leads elsewhere"
    if file.unlinked and not file.opens and not file.known:
        yield f"{_called(file)} has no name, nobody has it open or knows it, and it is there"
    if not 0 <= file.write_opens <= file.opens:
        yield f"{_called(file)} is open {file.opens} times, {file.write_opens} of them for writing"


def _called(file: Entry) -> str:
    return f"inode {file.ino} ({file.path})"

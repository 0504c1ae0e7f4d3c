"""Mirrors: the folders below objects/ and svm_objects/, one for each name below bo/ and svm/.

A folder of the kernel's is in one place only, so a BO with several names has a folder for each. Their keys say for what
name of what entry they stand: another BO under the same name is another folder.
"""

import os
from collections.abc import Iterator

from ttmfs.driver.entries import Dentry, Entry, Folder, Symlink


def folder_key(folder: Folder) -> str:
    """The key of the folder of folders that stands for `folder`."""
    return f"folder{folder.ino}"


def entry_key(entry: Entry, folder: Folder, name: bytes) -> str:
    """The key of the folder that stands for a name of a BO or an address space, or for a folder."""
    return folder_key(entry) if isinstance(entry, Folder) else f"entry{entry.ino} {folder.ino} {os.fsdecode(name)}"


def dentry_key(dentry: Dentry) -> str:
    """The same for a name that may be gone by now."""
    return entry_key(dentry.entry, dentry.folder, dentry.name)


class FolderNames:
    """The names of the mirror of a folder: those of the folder, but for symbolic links."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @property
    def last(self) -> int:
        """That of the folder."""
        return self._folder.last

    @property
    def folders(self) -> int:
        """All of them."""
        return len(self._folder.children) - self._folder.symlinks

    def after(self, number: int) -> Iterator[tuple[int, str]]:
        """With the numbers that they have in the folder."""
        for dentry in self._folder.after(number):
            if not isinstance(dentry.entry, Symlink):
                yield dentry.number, os.fsdecode(dentry.name)

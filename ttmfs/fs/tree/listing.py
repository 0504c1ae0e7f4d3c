"""Listing: an open folder of the mount, read as it is at each moment.

Names have numbers that grow (`.` is 1 and `..` is 2), and a READDIRPLUS goes on after the number that it is told: a
listing may be left and taken up again anywhere, and names that are made or removed meanwhile hide and repeat no other.
What is made after it began is not in it, or who lists a folder and renames what is listed would never be done; going
back to the start begins anew.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

from ttmfs.driver.entries import FIRST_NUMBER, Folder
from ttmfs.fs.tree.nodes import NameTable, Node, VirtualDir


class FixedNames:
    """Names that never change, the first `folders` of them folders."""

    def __init__(self, names: Iterable[str], *, folders: int = 0) -> None:
        self.names: Sequence[str] = tuple(names)
        self.folders = folders
        self.last = FIRST_NUMBER - 1 + len(self.names)

    def after(self, number: int) -> Iterator[tuple[int, str]]:
        """In the order given."""
        begin = max(number + 1 - FIRST_NUMBER, 0)
        return enumerate(self.names[begin:], FIRST_NUMBER + begin)


class Listing:
    """One open folder."""

    def __init__(self, node: Folder | VirtualDir) -> None:
        self.node = node
        self._last = 0
        self.rewind()

    @property
    def _table(self) -> Folder | NameTable:
        return self.node if isinstance(self.node, Folder) else self.node.names

    def rewind(self) -> None:
        """It begins now."""
        self._last = self._table.last

    def after(self, start: int) -> Iterator[tuple[int, bytes, Node]]:
        """(number, name, node) of what is there now, after number `start`. Change no name before the last is taken."""
        for number, name, node in self._now(start):
            if number > self._last:
                return
            if node is not None:
                yield number, name, node

    def _now(self, start: int) -> Iterator[tuple[int, bytes, Node | None]]:
        node = self.node
        if isinstance(node, Folder):
            for dentry in node.after(start):
                yield dentry.number, dentry.name, dentry.entry
        else:
            for number, name in node.names.after(start):
                yield number, os.fsencode(name), node.child(name)

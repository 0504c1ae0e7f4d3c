"""Inodes: which node an inode number means, and for how long (FUSE lookup counts).

BO files and folders bring their own numbers. Virtual nodes get theirs at LOOKUP: what has a key keeps one as long as
the kernel knows it, what has none (a file that can be written) gets a fresh one each time. Numbers are never reused.
"""

import errno
from itertools import count
from typing import Final

from ttmfs.driver.entries import FIRST_INO, Entry
from ttmfs.errors import TtmError
from ttmfs.fs.nodes import Node, VirtualDir, VirtualFile

ROOT_INO: Final = 1
_FIRST_VIRTUAL: Final = 1 << 40
assert _FIRST_VIRTUAL > FIRST_INO


class Inodes:
    """The table of one mount."""

    def __init__(self, root: VirtualDir) -> None:
        self._nodes: dict[int, Node] = {ROOT_INO: root}
        self._lookups: dict[int, int] = {ROOT_INO: 1}
        self._root = root
        self._by_key: dict[str, int] = {}
        self._fresh = count(_FIRST_VIRTUAL)

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: int) -> Node:
        """TtmError(ESTALE) for a number that means nothing any more."""
        node = self._nodes.get(ino)
        if node is None:
            raise TtmError(errno.ESTALE, f"inode {ino} is not known")
        return node

    def find(self, key: str) -> int | None:
        """The number of the node with this key, if the kernel knows it."""
        return self._by_key.get(key)

    def number(self, node: Node) -> int:
        """The inode number that a reply shall carry for `node`."""
        if isinstance(node, Entry):
            return node.ino
        if node is self._root:
            return ROOT_INO
        known = self._by_key.get(_key(node))
        return known if known is not None else next(self._fresh)

    def looked_up(self, ino: int, node: Node) -> None:
        """A reply told the kernel about `node`: it will FORGET as often."""
        if ino not in self._nodes:
            self._nodes[ino] = node
            if isinstance(node, Entry):
                node.known = True
            elif _key(node):
                self._by_key[_key(node)] = ino
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: int, lookups: int) -> Node | None:
        """FORGET. The node, if the kernel does not know it any more."""
        left = self._lookups.get(ino, 0) - lookups
        if left > 0 or ino == ROOT_INO:
            self._lookups[ino] = max(left, 1)
            return None
        self._lookups.pop(ino, None)
        node = self._nodes.pop(ino, None)
        if isinstance(node, Entry):
            node.known = False
        elif node is not None:
            self._by_key.pop(_key(node), None)
        return node


def _key(node: Node) -> str:
    return node.key if isinstance(node, (VirtualDir, VirtualFile)) else ""

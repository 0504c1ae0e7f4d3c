"""Inodes: which node an inode number means, and for how long (FUSE lookup counts).

BO files and folders bring their own numbers, virtual nodes have one that is made of their key: it is the same whenever
somebody looks. A virtual file has that as st_ino only. Every LOOKUP of it tells the kernel another number, or two who
have it open would share one inode: its lock, which writers hold while a command runs, its size and its page cache. But
a number that somebody had for himself, and has closed, goes to whoever looks the same file up next, and to nobody
beside: the kernel, which has kept the name with that number, asks once then, and not twice. Otherwise numbers are never
reused.
"""

import errno
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from typing import Final

from ttmfs.driver.entries import FIRST_INO, Entry
from ttmfs.errors import TtmError
from ttmfs.fs.tree.nodes import Node, VirtualDir, VirtualFile

ROOT_INO: Final = 1
_FIRST_FRESH: Final = 1 << 40
_OF_KEYS: Final = 1 << 60
"""From here on numbers are made of keys."""

assert FIRST_INO < _FIRST_FRESH < _OF_KEYS


class Inodes:
    """The table of one mount."""

    def __init__(self, root: VirtualDir) -> None:
        self._nodes: dict[int, Node] = {ROOT_INO: root}
        self._lookups: dict[int, int] = {ROOT_INO: 1}
        self._root = root
        self._fresh = count(_FIRST_FRESH)
        self._opens: Counter[int] = Counter()
        """Of virtual files."""
        self._free: dict[str, int] = {}
        """Numbers of virtual files that nobody has open any more and nobody has looked up since, by their keys."""

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
        ino = _made_of(key)
        node = self._nodes.get(ino)
        return ino if node is not None and _key(node) == key else None

    def number(self, node: Node) -> int:
        """st_ino of `node`."""
        if isinstance(node, Entry):
            return node.ino
        if node is self._root:
            return ROOT_INO
        key = _key(node)
        ino = _made_of(key)
        known = self._nodes.get(ino)
        # Two keys that make the same number: as good as never, but then the later node must not pass for the other.
        return ino if known is None or _key(known) == key else next(self._fresh)

    def number_to_look_up(self, node: Node) -> int:
        """What a LOOKUP tells the kernel, which must follow: a virtual file has this number for whoever asks."""
        if not isinstance(node, VirtualFile):
            return self.number(node)
        ino = self._free.pop(node.key, None)
        if ino is None:
            return next(self._fresh)
        self._nodes[ino] = node
        return ino

    def opened(self, ino: int) -> None:
        """An OPEN of a virtual file."""
        self._opens[ino] += 1

    def closed(self, ino: int) -> None:
        """Its RELEASE."""
        self._opens[ino] -= 1
        if self._opens[ino]:
            return
        del self._opens[ino]
        node = self._nodes.get(ino)
        if isinstance(node, VirtualFile):
            self._free[node.key] = ino

    def looked_up(self, ino: int, node: Node) -> None:
        """A reply told the kernel about `node`: it will FORGET as often."""
        if ino not in self._nodes:
            self._nodes[ino] = node
            if isinstance(node, Entry):
                node.known = True
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: int, lookups: int) -> Node | None:
        """FORGET. The node, if the kernel does not know it any more."""
        left = self._lookups.get(ino, 0) - lookups
        if left > 0 or ino == ROOT_INO:
            self._lookups[ino] = max(left, 1)
            return None
        self._lookups.pop(ino, None)
        node = self._nodes.pop(ino, None)
        if isinstance(node, VirtualFile) and self._free.get(node.key) == ino:
            del self._free[node.key]
        if isinstance(node, Entry):
            node.known = False
        return node

    def knows(self, entry: Entry) -> bool:
        """Was the kernel told of it, and has it not forgotten it?"""
        return self._nodes.get(entry.ino) is entry

    def check(self) -> Iterator[str]:
        """Sentences about what is wrong with the table."""
        for ino in self._nodes.keys() ^ self._lookups.keys():
            yield f"inode {ino} is known, or is counted as known: not both"
        for key, ino in self._free.items():
            if _key(self._nodes.get(ino)) != key or ino in self._opens:
                yield f"inode {ino} is free for {key!r}, and is another, or open"
        for ino, node in self._nodes.items():
            if self._lookups.get(ino, 1) <= 0:
                yield f"inode {ino} is known, and was looked up {self._lookups[ino]} times"
            if isinstance(node, Entry) and (node.ino != ino or not node.known):
                yield f"inode {ino} means inode {node.ino} ({node.path}), which does not say that it is known"


def _key(node: Node | None) -> str:
    return node.key if isinstance(node, (VirtualDir, VirtualFile)) else ""


def _made_of(key: str) -> int:
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return _OF_KEYS | (int.from_bytes(digest, "little") & (_OF_KEYS - 1))

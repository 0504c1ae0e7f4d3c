"""Replies: what LOOKUP, GETATTR and READDIRPLUS say of a node, and for how long the kernel may trust it."""

from typing import Final

import pyfuse3

from ttmfs import clock
from ttmfs.driver.entries import Entry, Symlink
from ttmfs.driver.namespace import BoFile
from ttmfs.fs.kernel.rights import Fixed
from ttmfs.fs.requests.served import Served
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.nodes import Node, VirtualDir
from ttmfs.svm.names import SpaceFile
from ttmfs.ttm.growth import settled_size
from ttmfs.units import PAGE_SIZE

LONG_TIMEOUT: Final = 300.0
"""Seconds that the kernel may trust names and attributes below bo/: only requests that it sent change them. And of
folders that stay, to which the way of every command leads: with nothing kept each open costs a request a folder."""


class Replies:
    """Attributes of nodes, of one mount."""

    def __init__(self, served: Served) -> None:
        self._inodes = served.inodes
        self._names = served.names
        self._born = clock.wall_ns()
        """When it was mounted: the time of what never changes."""

    def attributes(self, node: Node, ino: int, length: int = 0) -> pyfuse3.EntryAttributes:
        """`length` is that of a virtual file. The kernel asks for it (GETATTR) before it opens one, or shows it."""
        attr = pyfuse3.EntryAttributes()
        attr.st_ino = pyfuse3.InodeT(ino)
        attr.st_mode = pyfuse3.ModeT(node.mode)
        attr.st_uid = node.uid
        attr.st_gid = node.gid
        attr.st_blksize = PAGE_SIZE
        if isinstance(node, Entry):
            attr.entry_timeout = attr.attr_timeout = LONG_TIMEOUT
            attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns = node.atime, node.mtime, node.ctime
            attr.st_nlink = node.nlink
            attr.st_size = attr.st_blocks = 0
            node.shown = 0
            if isinstance(node, BoFile):
                attr.st_size = settled_size(node.bo)
                node.shown = node.bo.held_pages
                attr.st_blocks = node.shown * (PAGE_SIZE // 512)
            elif isinstance(node, SpaceFile):
                attr.st_size = settled_size(node.space)
                attr.st_blocks = node.space.num_blocks() * (PAGE_SIZE // 512)
            elif isinstance(node, Symlink):
                attr.st_size = len(node.target)
            return attr
        lasting = _is_lasting(node)
        attr.entry_timeout = LONG_TIMEOUT if isinstance(node, VirtualDir) and node.stays else 0
        attr.attr_timeout = LONG_TIMEOUT if lasting else 0
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = self._born if lasting else self._names.root.ctime
        attr.st_nlink = 2 + node.names.folders if isinstance(node, VirtualDir) else 1
        attr.st_size = length
        attr.st_blocks = (length + 511) >> 9
        return attr

    def looked_up(self, node: Node, ino: int | None = None) -> pyfuse3.EntryAttributes:
        """Attributes for a reply that counts as a LOOKUP."""
        ino = self._inodes.number_to_look_up(node) if ino is None else ino
        self._inodes.looked_up(ino, node)
        return self.attributes(node, ino)


def _is_lasting(node: Node) -> bool:
    """Does nothing of its attributes ever change?

    Never so of a virtual file: LOOKUP says a number that is not its st_ino, which only GETATTR does.
    """
    return (
        isinstance(node, VirtualDir)
        and node.stays
        and isinstance(node.names, FixedNames)
        and isinstance(node.rights, Fixed)
    )

"""ListRequests: OPENDIR, READDIRPLUS and RELEASEDIR."""

import errno

import pyfuse3

from ttmfs.driver.entries import Folder
from ttmfs.errors import TtmError
from ttmfs.fs.requests.guard import at_once
from ttmfs.fs.requests.inodes import ROOT_INO
from ttmfs.fs.requests.replies import Replies
from ttmfs.fs.requests.served import Served
from ttmfs.fs.tree.listing import Listing
from ttmfs.fs.tree.nodes import VirtualDir


class ListRequests:
    """Listing folders. The kernel plants what a READDIRPLUS names among the names that it knows: each is told as the
    folder has it at that moment. The kernel changes no name of a folder while it lists it.
    """

    def __init__(self, served: Served, replies: Replies) -> None:
        self.served = served
        self._replies = replies
        self.counters = served.counters

    @at_once
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Nothing is read yet."""
        node = self.served.inodes.get(inode)
        if not isinstance(node, (Folder, VirtualDir)):
            raise TtmError(errno.ENOTDIR, "not a folder")
        return self.served.new_handle(Listing(node))

    @at_once
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS: the names after number `start_id`. `.` and `..` count as no LOOKUP."""
        listing = self.served.handles.get(fh)
        if not isinstance(listing, Listing):
            raise TtmError(errno.EBADF, "no such handle")
        if not start_id:
            listing.rewind()
        own_ino = self.served.inodes.number(listing.node)
        for number, name, ino in ((1, b".", own_ino), (2, b"..", self._above(listing.node))):
            attr = self._replies.attributes(listing.node, ino)
            if number > start_id and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attr, number):
                return
        for number, name, node in listing.after(start_id):
            ino = self.served.inodes.number(node)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self._replies.attributes(node, ino), number):
                return
            if isinstance(node, VirtualDir):
                node.above = own_ino
            self.served.inodes.looked_up(ino, node)

    @staticmethod
    def _above(node: Folder | VirtualDir) -> int:
        """Inode number of the folder that it is in."""
        if isinstance(node, VirtualDir):
            return node.above or ROOT_INO
        parent = node.parent
        return ROOT_INO if parent is None or parent is node else parent.ino

    @at_once
    async def releasedir(self, fh: int) -> None:
        """The descriptor is gone."""
        self.served.handles.pop(fh, None)

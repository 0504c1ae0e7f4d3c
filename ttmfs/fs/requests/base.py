"""Served: what the requests of one mount share: its tree, the inodes, the open handles, and what failed.

The requests themselves are its subclasses, one concept each: InodeRequests, OpenRequests, NameRequests, and READ and
WRITE in TtmOperations.
"""

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count

import pyfuse3

from ttmfs import clock
from ttmfs.driver.clients import Client
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
from ttmfs.fs.commands.results import TEXTS_LIMIT, KeptResults
from ttmfs.fs.commands.runner import note_want
from ttmfs.fs.requests.inode_check import check_inodes, check_opens
from ttmfs.fs.requests.inodes import Inodes
from ttmfs.fs.requests.space_handle import SpaceHandle
from ttmfs.fs.tree.device import Tree
from ttmfs.fs.tree.listing import Listing
from ttmfs.fs.tree.nodes import Handle
from ttmfs.observe import points
from ttmfs.ttm.bo import BufferObject


class BoHandle:
    """An open BO file."""

    __slots__ = ("bo", "client", "file", "own", "pid", "writes")

    def __init__(self, file: BoFile, *, pid: int, writes: bool, own: bool, client: Client | None = None) -> None:
        self.file = file
        self.bo: BufferObject = file.bo
        self.pid = pid
        """Who has opened it: READs and WRITEs do not say who asks."""
        self.client = client
        """The same as a client of the device, if it is one."""
        self.writes = writes
        self.own = own
        """Opened by the daemon itself, to flush it."""


class Served(pyfuse3.Operations):
    """One mount, serving one Tree. `set_read_ahead(kb)` is called just before an OPEN is answered."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, tree: Tree, set_read_ahead: Callable[[int], object]) -> None:
        super().__init__()
        self.tree = tree
        self.machine = tree.machine
        self.names = tree.machine.names
        self.spaces = tree.spaces
        self.ttm = tree.machine.vdev.ttm
        self.counters = self.ttm.counters.requests
        self.inodes = Inodes(tree.root)
        self.set_read_ahead = set_read_ahead
        self.texts = KeptResults(TEXTS_LIMIT)
        self._readers: dict[int, int] = {}
        """User ids of those who have a text open that is counted, by handle."""
        self.openers: dict[int, int] = {}
        """Process ids of those who have a virtual file open for writing, by handle."""
        self.born = clock.wall_ns()
        """When it was mounted: the time of what never changes."""
        self.closing = False
        self._handles: dict[int, BoHandle | SpaceHandle | Handle | Listing] = {}
        self._next_handle = count(1)
        tree.checks.append(self._check)

    def _check(self) -> Iterator[str | None]:
        """Its part of selfcheck."""
        files = [*self.names.files.values(), *self.spaces.files.values()]
        yield from check_inodes(self.inodes, files)
        handles = [handle for handle in self._handles.values() if isinstance(handle, BoHandle | SpaceHandle)]
        yield from check_opens(files, ((handle.file, handle.writes) for handle in handles))

    def _failed(self, name: str, what: str, error: OSError, uid: int) -> None:
        self.tree.runner.error_log.add(f"{what} {name}", error, uid)
        note_want(self.ttm.recorder, name, error)
        points.error(self.ttm.trace, name, request=what, errno=error.errno, why=error.strerror)

    def _virtual(self, fh: int) -> Handle:
        handle = self._handles.get(fh)
        if handle is None or isinstance(handle, (BoHandle, SpaceHandle, Listing)):
            raise TtmError(errno.EBADF, "no such handle")
        return handle

    def _check_open(self) -> None:
        if self.closing:
            raise TtmError(errno.ESHUTDOWN, "the mount is being taken down")

    def _new_handle(self, handle: BoHandle | SpaceHandle | Handle | Listing) -> int:
        fh = next(self._next_handle)
        self._handles[fh] = handle
        return fh


def is_own(pid: int) -> bool:
    """Is this the id of one of the daemon's own threads?"""
    return os.path.exists(f"/proc/self/task/{pid}")

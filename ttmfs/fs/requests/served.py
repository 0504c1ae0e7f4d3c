"""Served: what the requests of one mount share: its tree, the inodes, the open handles, and what failed."""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from itertools import count

from ttmfs.driver.clients import Client
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
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


async def _nobody_is_told(ino: int, size: int) -> None:
    """There is no mount."""


class Served:
    """One Tree, as it is served. `set_read_ahead(kb)` is called just before an OPEN is answered, `extend(ino, size)`
    too, of a text that is longer than the kernel was told."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.machine = tree.machine
        self.names = tree.machine.names
        self.spaces = tree.spaces
        self.ttm = tree.machine.vdev.ttm
        self.counters = self.ttm.counters.requests
        self.inodes = Inodes(tree.root)
        self.set_read_ahead: Callable[[int], object] = lambda kb: None
        self.extend: Callable[[int, int], Awaitable[None]] = _nobody_is_told
        self.openers: dict[int, int] = {}
        """Process ids of those who have a virtual file open for writing, by handle."""
        self.closing = False
        self.handles: dict[int, BoHandle | SpaceHandle | Handle | Listing] = {}
        self._next_handle = count(1)
        tree.checks.append(self._check)

    def _check(self) -> Iterator[str | None]:
        """Its part of selfcheck."""
        files = [*self.names.files.values(), *self.spaces.files.values()]
        yield from check_inodes(self.inodes, files)
        handles = [handle for handle in self.handles.values() if isinstance(handle, BoHandle | SpaceHandle)]
        yield from check_opens(files, ((handle.file, handle.writes) for handle in handles))

    def failed(self, name: str, what: str, error: OSError, uid: int) -> None:
        """A request for `name` failed: `what`. For errors.log and whoever records."""
        self.tree.runner.error_log.add(f"{what} {name}", error, uid)
        note_want(self.ttm.recorder, name, error)
        points.error(self.ttm.trace, name, request=what, errno=error.errno, why=error.strerror)

    def virtual(self, fh: int) -> Handle:
        """The open virtual file. TtmError EBADF: it is none."""
        handle = self.handles.get(fh)
        if handle is None or isinstance(handle, (BoHandle, SpaceHandle, Listing)):
            raise TtmError(errno.EBADF, "no such handle")
        return handle

    def check_open(self) -> None:
        """TtmError ESHUTDOWN: nothing is opened any more."""
        if self.closing:
            raise TtmError(errno.ESHUTDOWN, "the mount is being taken down")

    def new_handle(self, handle: BoHandle | SpaceHandle | Handle | Listing) -> int:
        """Its number, from now on until RELEASE."""
        fh = next(self._next_handle)
        self.handles[fh] = handle
        return fh


def is_own(pid: int) -> bool:
    """Is this the id of one of the daemon's own threads?"""
    return os.path.exists(f"/proc/self/task/{pid}")

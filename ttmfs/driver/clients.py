"""Clients: to whom a BO is accounted (what an open DRM file is to a driver's fdinfo).

A BO belongs to exactly one client: the process that created it, or, when that process is gone (or was never known), its
user. BOs that belong to nobody's file (ghosts, zombies, what address spaces have in a region) are the kernel's.
Who has BOs open, made by whomever, is a client too. An open file lasts as long as its last descriptor and its last
mapping, so who maps a BO has it open; what a process inherits or is handed counts for the one that had opened it.
Processes are looked for in /proc when clients are listed; a reused pid is another process, by its start time.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from ttmfs import clock
from ttmfs.ttm.bo import BufferObject

KERNEL: Final = "kernel"
ENGINES: Final = ("copy", "compute")
"""Classes of engines (drm-engine-*)."""
_THREADS_KEPT_SECONDS: Final = 0.1
_NOT_SEEN: Final = -1
_Process = tuple[int, int]


class ClientFile(Protocol):
    """A BO with a file, as far as its client is concerned."""

    ino: int
    uid: int
    bo: BufferObject
    client: "Client | None"


@dataclass(slots=True, eq=False)
class Client:
    """`id` is never reused. `file_name` is its name in clients/: a pid, `uid-N` or `kernel`; `command` says who.

    `pid` is 0 for a user and for the kernel. `files` are its BO files by inode number, `opens` those that it has open,
    and how often.
    """

    id: int
    file_name: str
    command: str
    uid: int
    pid: int = 0
    started: int = 0
    files: dict[int, ClientFile] = field(default_factory=dict)
    opens: Counter[ClientFile] = field(default_factory=Counter)
    engine_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENGINES, 0))
    """How long engines of each class have worked on its BOs, in nanoseconds; it only grows."""


class Clients:
    """All clients of one device that have BOs, or have some open, and the kernel."""

    def __init__(self) -> None:
        self._ids = count(1)
        self.kernel = Client(next(self._ids), KERNEL, "ttmfs", 0)
        self._processes: dict[_Process, Client] = {}
        self._users: dict[int, Client] = {}
        self._threads: dict[int, _Process | None] = {}
        self._threads_until = 0.0
        self.gone: Callable[[Client], object] = lambda client: None
        """Is told of each client that is one no longer."""

    def adopt(self, file: ClientFile, thread: int = 0) -> None:
        """The BO was created by this thread (0: by nobody that is known); it leaves the client that it had."""
        # First: a client that loses its last BO is forgotten, and it may be the one that gets this one.
        self.drop(file)
        client = self._client_of(thread, file.uid) or self._user(file.uid)
        file.client = client
        client.files[file.ino] = file

    def worked(self, engine: str, bo: BufferObject, ns: int) -> None:
        """An engine has worked on a BO, whoever asked for that: it is its client's, or the kernel's."""
        client = getattr(bo.private, "client", None)
        (client if isinstance(client, Client) else self.kernel).engine_ns[engine] += ns

    def opened(self, file: ClientFile, thread: int, uid: int) -> Client | None:
        """This thread has opened the BO; its client, for `closed`. None when its process is gone, or not known."""
        client = self._client_of(thread, uid)
        if client is not None:
            client.opens[file] += 1
        return client

    def closed(self, file: ClientFile, client: Client | None) -> None:
        """The last descriptor and mapping of one open are gone; a client that has nothing any more is forgotten."""
        if client is None:
            return
        client.opens[file] -= 1
        if not client.opens[file]:
            del client.opens[file]
            self._forget_if_unused(client)

    def _client_of(self, thread: int, uid: int) -> Client | None:
        process = self._process_of(thread) if thread > 0 else None
        if process is None:
            return None
        client = self._processes.get(process)
        if client is None:
            pid, started = process
            client = self._processes[process] = Client(next(self._ids), str(pid), _command(pid), uid, pid, started)
        return client

    def drop(self, file: ClientFile) -> None:
        """The BO is no longer its client's; a client without BOs is forgotten."""
        client, file.client = file.client, None
        if client is None:
            return
        client.files.pop(file.ino, None)
        self._forget_if_unused(client)

    def _forget_if_unused(self, client: Client) -> None:
        if client.files or client.opens:
            return
        if client.pid:
            forgotten = self._processes.pop((client.pid, client.started), None)
        else:
            forgotten = self._users.pop(client.uid, None)
        # One whose process has ended is none any more since that was found.
        if forgotten is not None:
            self.gone(client)

    def _user(self, uid: int) -> Client:
        client = self._users.get(uid)
        if client is None:
            client = self._users[uid] = Client(next(self._ids), f"uid-{uid}", f"uid-{uid}", uid)
        return client

    def __iter__(self) -> Iterator[Client]:
        """All of them, the kernel last. BOs of processes that are gone pass to their users first."""
        for process, client in list(self._processes.items()):
            if _started(process[0]) not in (process[1], _NOT_SEEN):
                del self._processes[process]
                if client.files:
                    user = self._user(client.uid)
                    for file in client.files.values():
                        file.client = user
                    user.files.update(client.files)
                    client.files.clear()
                self.gone(client)
        return iter([*self._processes.values(), *self._users.values(), self.kernel])

    def find(self, file_name: str) -> Client | None:
        """The client of a name in clients/."""
        return next((client for client in self if client.file_name == file_name), None)

    def _process_of(self, thread: int) -> _Process | None:
        """(pid, start time) of the process that a thread is of; None when it is gone. Remembered for a moment."""
        now = clock.monotonic()
        if now >= self._threads_until:
            self._threads.clear()
            self._threads_until = now + _THREADS_KEPT_SECONDS
        if thread not in self._threads:
            pid = process_id(thread)
            started = _started(pid)
            self._threads[thread] = (pid, started) if started > 0 else None
        return self._threads[thread]


def process_id(thread: int) -> int:
    """The process that a thread is of; 0 when it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            return next((int(line[5:]) for line in status if line.startswith(b"Tgid:")), 0)
    except (OSError, ValueError):
        return 0


def out_of_descriptors(error: OSError) -> bool:
    """Could nothing be opened? Then it says nothing of what was to be."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def _started(pid: int) -> int:
    """Start time of a process in clock ticks; 0 when there is none, or only what is left of one (a zombie).

    _NOT_SEEN while the daemon has no descriptor left to look with.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except OSError as error:
        return _NOT_SEEN if out_of_descriptors(error) else 0
    except (ValueError, IndexError):
        return 0


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return os.fsdecode(comm.read().rstrip(b"\n"))
    except OSError:
        return "-"

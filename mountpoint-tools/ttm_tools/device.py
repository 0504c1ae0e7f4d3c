"""A mounted device: its files as values. Every call is bounded in time and fails with words a person can act on."""

import errno
import json
import os
from collections.abc import Iterable
from typing import Any, Final

from ttm_tools.access import Access, NotAnswered, Stream
from ttm_tools.errors import CommandFailed, MountError
from ttm_tools.mounts import TYPE, mountpoints, unescape

READ_SECONDS: Final = 10.0
"""How long a read may take before the mount counts as hung. Files are answered in milliseconds."""

COMMAND_SECONDS: Final = 90.0
"""The same for commands: the device bounds them itself, by default at 60 s."""

_LIMIT: Final = 256 << 20
_STATUS_LIMIT: Final = 64 << 10
_BATCH: Final = 256
_COMMANDS: Final = ("write", "transact", "make", "pread", "pwrite", "unlink", "mkdir", "rmdir")
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EACCES)


class Device:
    """One mount, through one child process: calls run one after another.

    Who reads while a command may take long has a second Device for the commands.
    """

    def __init__(
        self, mount: str, read_seconds: float = READ_SECONDS, command_seconds: float = COMMAND_SECONDS
    ) -> None:
        self.mount = mount
        self.read_seconds = read_seconds
        self.command_seconds = command_seconds
        self._access = Access()

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the child process go."""
        self._access.close()

    # -- files -----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> bytes:
        """The path of a name below the mount."""
        return os.fsencode(os.path.join(self.mount, name))

    def text(self, name: str) -> str:
        """A file below the mount. MountError, or OSError when the device says no (ENOENT: it has no such file)."""
        data: bytes = self._call("read", self.path(name), _LIMIT, seconds=self.read_seconds)
        return data.decode("utf-8", "surrogateescape")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object. MountError when it is none."""
        text = self.text(name)
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise MountError(f"{self.mount}/{name} is no JSON object: is this mount of another version?")
        return value

    def stats(self) -> dict[str, Any]:
        """MNT/stats."""
        return self.json("stats")

    def entries(self, folder: str) -> list[str]:
        """The names in a folder below the mount. OSError when there is none."""
        return [os.fsdecode(name) for name in self._call("names", self.path(folder), seconds=self.read_seconds)]

    def regions(self) -> list[str]:
        """The names of the memory regions, system first."""
        order = {"system": 0, "gtt": 1, "vram": 2}
        return sorted(self.entries("regions"), key=lambda name: (order.get(name, 3), name))

    def drain(self, name: str) -> str:
        """What is in a consuming file (trace_pipe) by now."""
        data: bytes = self._call("drain", self.path(name), seconds=self.read_seconds)
        return data.decode("utf-8", "surrogateescape")

    def file(self, what: str, name: str, *arguments: object) -> Any:
        """One of toucher's calls on a file below the mount, as `pread`. OSError, MountError."""
        return self._call(what, self.path(name), *arguments, seconds=self.command_seconds)

    def stream(self, name: str) -> Stream:
        """A consuming file (trace_pipe)."""
        try:
            return Stream(os.path.join(self.mount, name))
        except (OSError, NotAnswered) as error:
            raise self._explained(error) from None

    # -- BOs -------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of all BOs: paths below bo/."""
        return [os.fsdecode(name) for name in self._call("walk", self.path("bo"), seconds=self.read_seconds)]

    def names_of_each(self) -> list[list[str]]:
        """The names of each BO, which may be several (hard links), in the order in which they are listed."""
        found: dict[int, list[str]] = {}
        for ino, name in self._call("walk_inodes", self.path("bo"), seconds=self.read_seconds):
            found.setdefault(ino, []).append(os.fsdecode(name))
        return list(found.values())

    def statuses(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """status.json of BOs; those that are gone meanwhile are left out."""
        wanted = list(names)
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            folders = [os.fsencode(name) for name in batch]
            answers = self._call(
                "read_many", self.path("objects"), folders, b"status.json", _STATUS_LIMIT, seconds=self.read_seconds
            )
            for name, answer in zip(batch, answers, strict=True):
                if isinstance(answer, bytes):
                    # One that fills the whole read is read on its own, to its end.
                    long = len(answer) == _STATUS_LIMIT
                    found[name] = self.json(f"objects/{name}/status.json") if long else json.loads(answer)
                elif answer not in (errno.ENOENT, errno.ESTALE, errno.EACCES):
                    raise self._explained(OSError(answer, os.strerror(answer)))
        return found

    def lru(self, region: str) -> list[tuple[int, str, int]]:
        """(priority, BO, bytes) of what is on a region's LRU, first victim first. Pinned BOs are not on it."""
        found = []
        for line in self.text(f"regions/{region}/lru").splitlines()[1:]:
            priority, rest = line.split("\t", 1)
            name, _, size = rest.rpartition("\t")
            if priority.isdecimal() and size.isdecimal():
                found.append((int(priority), unescape(name), int(size)))
        return found

    # -- commands --------------------------------------------------------------------------------------------------

    def command(self, name: str, words: str = "") -> list[dict[str, Any]]:
        """Write words into a command file below the mount; the results. CommandFailed with the reason, MountError."""
        data = (words + "\n").encode("utf-8", "surrogateescape")
        try:
            code, out = self._call("transact", self.path(name), data, seconds=self.command_seconds)
        except OSError as error:
            word = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise CommandFailed(word, self._no_such_command(name, error)) from None
        results = [json.loads(line) for line in out.splitlines() if line.startswith(b"{")]
        if code:
            if code in (errno.ENOTCONN, errno.ECONNABORTED):
                raise self._explained(OSError(code, os.strerror(code)))
            why = str(results[-1].get("error", "")) if results else ""
            raise CommandFailed(errno.errorcode.get(code, str(code)), why or os.strerror(code))
        return results

    def write(self, name: str, words: str) -> None:
        """Write words into a command or attribute file. OSError with the device's errno, or MountError."""
        data = (words + "\n").encode("utf-8", "surrogateescape")
        self._call("write", self.path(name), data, seconds=self.command_seconds)

    def last_error(self) -> str:
        """The last line of error_log; "" when nothing has failed."""
        lines = self.text("error_log").splitlines()
        return lines[-1] if lines else ""

    def _no_such_command(self, name: str, error: OSError) -> str:
        parts = name.split("/")
        if error.errno == errno.ENOENT and parts[0] == "objects":
            return f"{'/'.join(parts[1:-1])} is gone, or this device has no command {parts[-1]}"
        return error.strerror or str(error)

    # -- what went wrong -------------------------------------------------------------------------------------------

    def _call(self, what: str, *arguments: object, seconds: float) -> Any:
        try:
            return self._access.call(what, *arguments, seconds=seconds)
        except (EOFError, BrokenPipeError):
            raise MountError("the process that reads the mount was ended by somebody; run this again") from None
        except (OSError, NotAnswered) as error:
            explained = self._explained(error)
            if what in _COMMANDS and isinstance(error, PermissionError):
                explained = error
            raise explained from None

    def _explained(self, error: OSError | NotAnswered) -> Exception:
        """MountError for what concerns the whole mount; the error itself when it concerns one file."""
        mount = self.mount
        if isinstance(error, NotAnswered):
            return MountError(
                f"{mount} does not answer (for {error.seconds:.0f} s): a watchdog frees it 30 s after its daemon hung; "
                f"`ttmfs umount --force {mount}` does it at once, and loses what its clients have not written back",
                hung=True,
            )
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return MountError(
                f"the daemon of {mount} has ended (its BOs are gone): "
                f"`ttmfs umount --force {mount}` or `umount -l {mount}` takes the rest down"
            )
        if error.errno in _GONE and mountpoints().get(mount) != TYPE:
            return MountError(f"{mount} is no ttmfs mount any more: somebody has unmounted it")
        if error.errno in (errno.EACCES, errno.EPERM):
            return MountError(
                f"{mount}: {error.strerror}. It belongs to another user: ask as that user, or have it mounted "
                "with --allow-other"
            )
        return error

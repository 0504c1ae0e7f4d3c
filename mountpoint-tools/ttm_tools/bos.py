"""Buffer objects as Python objects: commands, attributes, bytes, and processes that map them.

Everything here goes through the mount, in child processes under a time limit (ttm_tools.access); only `mmap` maps the
BO into this very process.
"""

import errno
import mmap
import os
from dataclasses import dataclass
from signal import Signals
from typing import Any, Final, Literal

from ttm_tools.access import Access, NotAnswered
from ttm_tools.device import Device as Files
from ttm_tools.errors import CommandFailed, MountError

Usage = Literal["kernel", "write", "read", "bookkeep"]
TOUCH_SECONDS: Final = 60.0


def size_in_bytes(size: int | str) -> int:
    """`4096`, `"64K"`, `"1.5M"`: K, M, G, T are binary. ValueError for anything else."""
    if isinstance(size, int):
        return size
    text = size.strip().upper()
    shift = 10 * (1 + "KMGT".index(text[-1])) if text and text[-1] in "KMGT" else 0
    value = (float if "." in text else int)(text[:-1] if shift else text)
    return int(value * (1 << shift))


@dataclass(frozen=True, slots=True)
class Touch:
    """How a touch of a mapping ended: the bytes read or stored, seconds it took, and the signal that ended the process
    (SIGBUS: the fault could not be served), None for none."""

    data: bytes
    seconds: float
    signal: Signals | None = None


class Client:
    """A process of its own that has a BO mapped MAP_SHARED. A context manager; `close` ends the process.

    SIGBUS ends the process and is told as `Touch.signal`; the next touch is another process's.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._access = Access()
        self._access.call("pid", seconds=TOUCH_SECONDS)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and the mapping with it."""
        self._access.close()

    @property
    def pid(self) -> int:
        """Its process id, as `fail_*/pid` takes it."""
        return self._access.pid

    def touch(
        self, offset: int = 0, length: int = 1, write: bytes | None = None, seconds: float = TOUCH_SECONDS
    ) -> Touch:
        """Read `length` bytes at `offset` through the mapping, or store `write` there; wait until that has ended.

        OSError(ENXIO) beyond the end; MountError when it takes longer than `seconds`.
        """
        self.start(offset, length, write)
        return self.result(seconds)

    def start(self, offset: int = 0, length: int = 1, write: bytes | None = None) -> None:
        """As `touch`, without waiting: `result` does."""
        self._access.post("touch", self._path, offset, length, write)

    def result(self, seconds: float = TOUCH_SECONDS) -> Touch:
        """How the touch that was started has ended. MountError when it has not after `seconds`; may be asked again."""
        try:
            data, took = self._access.value(seconds)
        except NotAnswered as error:
            raise MountError(f"the touch has not ended after {error.seconds:.1f} s", hung=True) from None
        except (EOFError, BrokenPipeError):
            number = self._access.ended_by()
            if not number:
                raise MountError("the client's process has ended") from None
            return Touch(b"", 0.0, Signals(number))
        return Touch(data, took)


class BufferObject:
    """One BO of a device, by its name. Made by `Device.bo`.

    What the device refuses is a CommandFailed, an OSError with the device's errno and sentence; what concerns the whole
    mount (it hangs, it is gone) a MountError.
    """

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self.name = name

    def __repr__(self) -> str:
        return f"<BO {self.name!r} of {self._files.mount}>"

    @property
    def path(self) -> str:
        """Its file, for any program."""
        return os.path.join(self._files.mount, "bo", self.name)

    # -- commands --------------------------------------------------------------------------------------------------

    def command(self, name: str, words: str = "") -> dict[str, Any]:
        """Write `words` into objects/NAME/`name`; the result, as in `{"ok": True, "bytes_moved": 4096}`."""
        results = self._files.command(f"objects/{self.name}/{name}", words)
        return results[-1] if results else {}

    def validate(self, places: str, *, no_wait_gpu: bool = False) -> dict[str, Any]:
        """Move it to the first of `places` that can be had, as in `"vram gtt"` (ttm_bo_validate)."""
        return self.command("validate", places + _no_wait(no_wait_gpu))

    def evict(self, *, no_wait_gpu: bool = False) -> dict[str, Any]:
        """Out of its region, as the driver says: vram to gtt, gtt to system."""
        return self.command("evict", _no_wait(no_wait_gpu))

    def defrag(self, *, no_wait_gpu: bool = False) -> dict[str, Any]:
        """Back it anew at the beneficial order."""
        return self.command("defrag", _no_wait(no_wait_gpu))

    def backup(self, *, purge: bool = False, writeback: bool = False, no_wait_gpu: bool = False) -> dict[str, Any]:
        """Its pages to the swap store; `purge` drops the content instead."""
        words = f"{' purge' * purge}{' writeback' * writeback}{_no_wait(no_wait_gpu)}"
        return self.command("backup", words)

    def restore(self) -> dict[str, Any]:
        """All its pages back from the swap store."""
        return self.command("restore")

    def swapout(self, *, no_wait_gpu: bool = False) -> dict[str, Any]:
        """All its pages to swap, by the older whole-object mechanism."""
        return self.command("swapout", _no_wait(no_wait_gpu))

    def pin(self) -> dict[str, Any]:
        """Count a pin: a pinned BO is never moved or evicted."""
        return self.command("pin")

    def unpin(self) -> dict[str, Any]:
        """Take one pin back."""
        return self.command("unpin")

    def unmap(self, offset: int = 0, length: int = 0) -> dict[str, Any]:
        """Drop what clients have cached of it (`length` 0: all); their next touch faults."""
        return self.command("unmap", f"{offset} {length}" if length else "")

    def wait(self, usage: Usage = "bookkeep", seconds: float | None = None) -> dict[str, Any]:
        """Until its fences of that usage are signaled (`kernel`: its moves). ETIME if they are not."""
        return self.command("wait", usage if seconds is None else f"{usage} {seconds:f}")

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> dict[str, Any]:
        """objects/NAME/status.json, read now: mem_type, populated_pages, pin_count, evictions, last_error and more."""
        return self._files.json(f"objects/{self.name}/status.json")

    @property
    def snapshot(self) -> str:
        """A letter for each page: `.` unpopulated, `s` system, `g` gtt, `v` vram, `b` in the store, `m` moving."""
        return self._files.text(f"objects/{self.name}/snapshot").rstrip("\n")

    def __getitem__(self, attribute: str) -> str:
        """An attribute that can be set: placement, priority, prefault, madvise, caching."""
        return self._files.text(f"objects/{self.name}/{attribute}").rstrip("\n")

    def __setitem__(self, attribute: str, value: object) -> None:
        """Set it, as in `bo["priority"] = 0`."""
        self._files.command(f"objects/{self.name}/{attribute}", str(value))

    # -- bytes -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._files.file("size_of", f"bo/{self.name}"))

    @size.setter
    def size(self, size: int | str) -> None:
        self._files.file("make", f"bo/{self.name}", size_in_bytes(size))

    def read(self, size: int = -1, offset: int = 0) -> bytes:
        """`size` bytes (-1: all that follow) from `offset`."""
        data: bytes = self._bytes("pread", size, offset)
        return data

    def write(self, data: bytes, offset: int = 0) -> None:
        """All of `data` at `offset`; the BO grows when it ends behind its end."""
        self._bytes("pwrite", data, offset)

    def _bytes(self, what: str, *arguments: object) -> Any:
        try:
            return self._files.file(what, f"bo/{self.name}", *arguments)
        except OSError as error:
            raise self._with_the_devices_words(error) from None

    def _with_the_devices_words(self, error: OSError) -> OSError:
        """What error_log says of it, if its last line is of this BO and this errno."""
        code = errno.errorcode.get(error.errno or 0, "EIO")
        fields = self._files.last_error().split("\t")
        if len(fields) >= 4 and fields[1] == code and self.name in fields[2]:
            return CommandFailed(code, fields[3])
        return error

    def client(self) -> Client:
        """A process of its own that maps it."""
        return Client(os.fsencode(self.path))

    def touch(
        self, offset: int = 0, length: int = 1, write: bytes | None = None, seconds: float = TOUCH_SECONDS
    ) -> Touch:
        """A new process maps it, reads `length` bytes at `offset` or stores `write` there, and ends."""
        with self.client() as client:
            return client.touch(offset, length, write, seconds)

    def mmap(self) -> mmap.mmap:
        """A MAP_SHARED mapping in this process. A fault that cannot be served kills this process with SIGBUS, and a
        mount that hangs holds it: where that matters, `touch` and `client` do it in another one."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return mmap.mmap(fd, 0)
        finally:
            os.close(fd)

    def unlink(self) -> None:
        """Destroy it when nobody has it open or mapped any more."""
        self._files.file("unlink", f"bo/{self.name}")


def _no_wait(no_wait_gpu: bool) -> str:
    return " no_wait_gpu" if no_wait_gpu else ""

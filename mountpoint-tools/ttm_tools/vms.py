"""VMs: address spaces of the device in which BOs and memory of other files are bound (vm/NAME/).

    vm = dev.vm("game")
    vm.own(dev.bo("a", placement="vram"))
    vm.bind("1G", dev.bo("a", size="1M"))
    print(vm.exec("checksum 1G 1M").result["value"])
"""

import os
from typing import Any, Final, NamedTuple

from ttm_tools.bos import BufferObject, size_in_bytes
from ttm_tools.device import Device as Files
from ttm_tools.fence import Fence
from ttm_tools.mounts import unescape
from ttm_tools.words import as_word

USERPTR: Final = "userptr"


class Mapping(NamedTuple):
    """Bytes [start, end) of a VM mean those of `bo` from `offset` on; `access` is rw or ro.

    `mem_type` is where the BO is, or `userptr`: then `bo` is the path of another file.
    """

    start: int
    end: int
    bo: str
    offset: int
    access: str
    mem_type: str


class Bound(NamedTuple):
    """What a VM knows of a BO, or of another file (`mem_type` userptr).

    `state`: `new` no job could use it yet, `usable`, `evicted` since one could, `unbound`; `rebinds`: how often it has
    come back for a job.
    """

    bo: str
    bytes: int
    mem_type: str
    local: bool
    mappings: int
    state: str
    rebinds: int


class Vm:
    """One VM of a device, by its name. Made by `Device.vm`. What it refuses is a CommandFailed."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self.name = name

    def __repr__(self) -> str:
        return f"<VM {self.name!r} of {self._files.mount}>"

    def command(self, name: str, words: str = "") -> dict[str, Any]:
        """Write `words` into vm/NAME/`name`; the result."""
        results = self._files.command(f"vm/{self.name}/{name}", words)
        return results[-1] if results else {}

    def own(self, bo: BufferObject) -> None:
        """Make a BO that was not used yet local to it: it shares the VM's reservation, and is bound here only."""
        bo["vm"] = as_word(self.name)

    def bind(
        self, address: int | str, bo: BufferObject | str, offset: int | str = 0, length: int | str | None = None,
        *, read_only: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Bytes of a BO are at these addresses, in place of what was; `length` None: to its end, in whole pages."""
        name, at = (bo if isinstance(bo, str) else bo.name), size_in_bytes(offset)
        if length is None:
            rest = self._files.file("size_of", f"bo/{name}") - at
            length = -(-rest // 4096) * 4096
        return self.command("bind", _words(address, as_word(name), at, length, read_only))

    def userptr(
        self, address: int | str, path: str | os.PathLike[str], offset: int | str, length: int | str,
        *, read_only: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Bytes of a file elsewhere are; `access` in the result says whether it is bound rw or ro."""
        word = as_word(os.path.realpath(path))
        return self.command(USERPTR, _words(address, word, size_in_bytes(offset), length, read_only))

    def unbind(self, address: int | str, length: int | str) -> dict[str, Any]:
        """Nothing is bound there any more."""
        return self.command("unbind", f"{size_in_bytes(address)} {size_in_bytes(length)}")

    def exec(self, operation: str, *, queue: str = "", wait: bool = True) -> Fence:
        """A job at its addresses, as in `"fill 1G 64K 7"`, `"read 1G 16"`: its fence, whose `result` has `rebound`, and
        where it was waited for `data` (hexadecimal) or `value`."""
        words = [f"queue={queue}"] * bool(queue) + [operation] + ["nowait"] * (not wait)
        return Fence(self._files, self.command("exec", " ".join(words)))

    @property
    def maps(self) -> list[Mapping]:
        """What is bound, by address."""
        return [
            Mapping(int(start, 0), int(end, 0), unescape(bo), int(offset, 0), access, mem_type)
            for start, end, bo, offset, access, mem_type in _rows(self._files.text(f"vm/{self.name}/maps"))
        ]

    @property
    def bos(self) -> list[Bound]:
        """BOs and files that are bound, and local BOs."""
        return [
            Bound(unescape(bo), int(size), mem_type, local == "1", int(mappings), state, int(rebinds))
            for bo, size, mem_type, local, mappings, state, rebinds in _rows(self._files.text(f"vm/{self.name}/bos"))
        ]

    @property
    def stats(self) -> dict[str, Any]:
        """vm/NAME/stats, read now."""
        return self._files.json(f"vm/{self.name}/stats")

    @property
    def allow_res_evict(self) -> bool:
        """May a job evict local BOs that it does not touch for those that it does?"""
        return self._files.text(f"vm/{self.name}/allow_res_evict").strip() == "1"

    @allow_res_evict.setter
    def allow_res_evict(self, allow: bool) -> None:
        self.command("allow_res_evict", str(int(allow)))

    def remove(self) -> None:
        """It goes, and what is bound is not any more. OSError: EBUSY while BOs are local to it."""
        self._files.file("rmdir", f"vm/{self.name}")


def _words(address: int | str, what: str, offset: int, length: int | str, read_only: bool) -> str:
    words = f"{size_in_bytes(address)} {what} {offset} {size_in_bytes(length)}"
    return f"{words} ro" if read_only else words


def _rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()[1:]]


def who_has(files: Files, name: str) -> list[tuple[str, Bound]]:
    """The VMs that a BO is bound in, or local to, as far as this user may read them."""
    found = []
    try:
        vms = files.entries("vm")
    except OSError:
        return []
    for vm in vms:
        try:
            found += [(vm, bound) for bound in Vm(files, vm).bos if bound.bo == name and bound.mem_type != USERPTR]
        except OSError:
            continue  # removed meanwhile, or another's
    return found

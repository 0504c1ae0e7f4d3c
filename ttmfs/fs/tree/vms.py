"""The nodes of vm/: a folder for each VM, made by mkdir; who may write the folder may bind, unbind and exec in it.

What is bound was the binder's to give: a BO that he may read, or, unless it is bound `ro`, read and write.
"""

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ttmfs.driver.namespace import BoFile
from ttmfs.driver.userptr import USERPTR, UserptrTT
from ttmfs.driver.vm import Mapping, Vm
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.commands.handles import TextHandle
from ttmfs.fs.commands.quoting import escape, for_shell, unescape
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.vms import VM_COMMANDS, OpenedVm
from ttmfs.fs.kernel.rights import WRITE, AttributeOf, Owner, Rights, may
from ttmfs.fs.tree.command_file import command_file
from ttmfs.fs.tree.made import MadeDir, OwnRights
from ttmfs.fs.tree.nodes import Lengths, Node, VirtualFile
from ttmfs.fs.tree.slow_text import paced_lines, slow_file
from ttmfs.ttm.bo import BufferObject
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

VM: Final = "vm"
"""The name of the folder, and of what says in objects/NAME/ which one a BO is local to."""

_ALLOW: Final = "allow_res_evict"
_FILES: Final = (*VM_COMMANDS, _ALLOW, "maps", "bos", "stats")
_MAPS_HEAD: Final = b"start\tend\tbo\toffset\taccess\tmem_type\n"
_BOS_HEAD: Final = b"bo\tbytes\tmem_type\tlocal\tmappings\tstate\trebinds\n"


@dataclass(frozen=True, slots=True)
class _ReadersOf:
    """A text about a VM: for who may read its folder."""

    folder: OwnRights

    @property
    def uid(self) -> int:
        return self.folder.uid

    @property
    def gid(self) -> int:
        return self.folder.gid

    @property
    def bits(self) -> int:
        return self.folder.bits & 0o444


class _WritersOf(_ReadersOf):
    """What uses a VM, and the answer: both for who may write its folder."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        writers = self.folder.bits & 0o222
        return writers | writers << 1


class VmDir(MadeDir):
    """vm/NAME."""

    def __init__(self, tree: "VmTree", vm: Vm, rights: OwnRights, key: str) -> None:
        super().__init__(key, _FILES, rights, gone=lambda: vm.removed)
        self.vm = vm
        self._tree = tree

    def make(self, name: str, rights: OwnRights) -> MadeDir:
        """TtmError(EPERM), always."""
        raise TtmError(errno.EPERM, f"{name[:80]!r}: a VM has no folders")

    async def unmake(self, folder: MadeDir) -> None:
        """There are none."""
        raise AssertionError(folder)

    def file(self, name: str) -> Node | None:
        """A command, a table, or the setting."""
        vm, tree, readers = self.vm, self._tree, _ReadersOf(self.own)
        if vm.removed:
            return None
        command = VM_COMMANDS.get(name)
        if command is not None:
            path = for_shell(f"{VM}/{vm.name}/{name}")
            return tree.command(vm, command, lambda: command.help(path), _WritersOf(self.own))
        if name == _ALLOW:
            setting = Command(name, "0|1", "", (), _set_allow)
            return tree.command(vm, setting, lambda: f"{vm.allow_res_evict:d}\n", _WritersOf(self.own))
        if name == "stats":
            return VirtualFile(lambda _opening: TextHandle(lambda: json.dumps(_stats(vm)) + "\n"), readers)
        return slow_file(lambda: _maps(vm) if name == "maps" else _bos(vm), readers, tree.lengths)


class VmsDir(MadeDir):
    """vm/: it says who may make VMs, and with the sticky bit that they remove their own only."""

    def __init__(self, tree: "VmTree", rights: OwnRights) -> None:
        super().__init__(VM, (), rights)
        self._tree = tree

    def make(self, name: str, rights: OwnRights) -> VmDir:
        """A new VM. TtmError: EINVAL for a name with a newline, ENOSPC, EDQUOT."""
        if "\n" in name:
            raise TtmError(errno.EINVAL, f"{name[:80]!r} is no name for a VM")
        return self._tree.folder(name, rights)

    async def unmake(self, folder: MadeDir) -> None:
        """TtmError(EBUSY) while BOs are local to it."""
        assert isinstance(folder, VmDir)
        self._tree.machine.vdev.vms.remove(folder.vm.name)

    def file(self, name: str) -> None:
        """There are none."""
        raise AssertionError(name)


class VmTree:
    """Builds them for one mount, whose `owner` is the mounting user."""

    def __init__(self, machine: Machine, runner: Runner, lengths: Lengths, owner: Owner) -> None:
        self.machine = machine
        self.lengths = lengths
        self._runner = runner
        self._made = 0
        self.root = VmsDir(self, OwnRights(0o755, owner.uid, owner.gid))

    def folder(self, name: str, rights: OwnRights) -> VmDir:
        """That of a new VM. No two ever have the same key, or one that is gone would pass for it."""
        self._made += 1
        return VmDir(self, self.machine.vdev.vms.make(name, rights.uid), rights, f"{VM}{self._made}")

    def command(self, vm: Vm, command: Command, text: Callable[[], str], rights: Rights) -> VirtualFile:
        """A file in its folder that runs what is written to it."""
        return command_file(self._runner, command, text, rights, name=f"{VM}/{vm.name}", target=OpenedVm(vm))

    def object_file(self, file: BoFile) -> VirtualFile:
        """objects/NAME/vm: the VM that the BO is local to, an empty line for none; written before its first use."""
        bo = file.bo

        async def adopt(machine: Machine, words: list[str]) -> Result:
            if len(words) != 1:
                raise TtmError(errno.EINVAL, "say the name of one VM, as mkdir vm/NAME made it")
            name, vms = unescape(words[0]), machine.vdev.vms
            vm, folder = vms.get(name), self.root.below(name)
            assert folder is not None
            if machine.caller is not None and not may(machine.caller, folder, WRITE):
                raise TtmError(errno.EACCES, f"you may not write the folder of the VM {name}")
            bo.check_alive()
            await vms.adopt(bo, vm)
            return {"vm": vm.name}

        def text() -> str:
            home = self.machine.vdev.vms.home(bo)
            return "\n" if home is None else escape(home.name) + "\n"

        command = Command(f"objects/{bo.name}/{VM}", "NAME", "", (), adopt)
        return command_file(self._runner, command, text, AttributeOf(file))


async def _set_allow(machine: Machine, opened: OpenedVm, words: list[str]) -> Result:
    del machine
    if words not in (["0"], ["1"]):
        raise TtmError(errno.EINVAL, "say 1 to let a job evict other BOs that are local to its VM, or 0")
    opened.vm.allow_res_evict = words == ["1"]
    return {_ALLOW: opened.vm.allow_res_evict}


def _stats(vm: Vm) -> dict[str, Any]:
    mappings = list(vm)
    return {
        "mappings": len(mappings),
        "bound_bytes": sum(mapping.end - mapping.first for mapping in mappings) * PAGE_SIZE,
        "bos": len(vm.bos),
        "local_bos": len(vm.locals),
        "userptrs": vm.userptrs,
        "evicted_bos": len(vm.evicted()),
        "execs": vm.execs,
        "rebound": vm.rebound,
    }


def _place(bo: BufferObject) -> str:
    return USERPTR if isinstance(bo.tt, UserptrTT) else bo.mem_type


def _offset(mapping: Mapping) -> int:
    """In the BO, or in the file that is bound."""
    tt = mapping.bo.tt
    return (mapping.page << PAGE_SHIFT) + (tt.offset if isinstance(tt, UserptrTT) else 0)


async def _maps(vm: Vm) -> bytes:
    """The table by address: bytes, hexadecimal, END not included."""
    return _MAPS_HEAD + await paced_lines(
        list(vm),
        lambda mapping: (
            f"{mapping.first << PAGE_SHIFT:#x}\t{mapping.end << PAGE_SHIFT:#x}\t{escape(mapping.bo.name)}\t"
            f"{_offset(mapping):#x}\t{'ro' if mapping.read_only else 'rw'}\t{_place(mapping.bo)}\n"
        ),
    )


async def _bos(vm: Vm) -> bytes:
    """Those that are bound, then local ones that are not."""
    bos = list(dict.fromkeys((*vm.bos, *vm.locals)))

    def line(bo: BufferObject) -> str:
        bound = vm.bos.get(bo)
        mappings, rebinds = (0, 0) if bound is None else (bound.mappings, bound.rebinds)
        cells = (escape(bo.name), bo.size, _place(bo), int(bo in vm.locals), mappings, vm.state(bo), rebinds)
        return "\t".join(map(str, cells)) + "\n"

    return _BOS_HEAD + await paced_lines(bos, line)

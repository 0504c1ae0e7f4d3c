"""Commands of vm/NAME/: what is bound where, and the jobs of a VM, as a table like `objects_and_ctl.py`.

Addresses, offsets and lengths are bytes, written as sizes are (`4096`, `0x1000`, `64K`, `2M`).
"""

import errno
import os
from collections.abc import Mapping
from typing import Final

from ttmfs.driver.calls import check_device
from ttmfs.driver.userptr import Asked
from ttmfs.driver.vm import Vm
from ttmfs.driver.vm_exec import exec_vm
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.commands.gpu_words import GPU_OPERATIONS, parse_range, take_operation
from ttmfs.fs.commands.quoting import unescape
from ttmfs.fs.kernel.processes import sees_our_files
from ttmfs.fs.kernel.rights import READ, WRITE
from ttmfs.memory.as_caller import Caller
from ttmfs.observe.asker import ASKER
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release
from ttmfs.units import PAGE_MASK, PAGE_SIZE, parse_size


class OpenedVm:
    """What a command works on."""

    __slots__ = ("_vm", "last_error")

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.last_error = ""

    @property
    def vm(self) -> Vm:
        """TtmError(ENOENT) once it was removed."""
        if self._vm.removed:
            raise TtmError(errno.ENOENT, f"the VM {self._vm.name} was removed")
        return self._vm


async def _bind(machine: Machine, opened: OpenedVm, words: list[str]) -> Result:
    read_only = words[4:] == ["ro"]
    if len(words) != 4 and not read_only:
        raise TtmError(errno.EINVAL, "say ADDR BO OFFSET LEN [ro]: where, what, from where on, how many bytes of it")
    vm, bo = opened.vm, machine.bo(unescape(words[1]), READ if read_only else READ | WRITE)
    bo.check_alive()
    machine.vdev.vms.may_bind(bo, vm)
    address, offset, length = (parse_size(words[index]) for index in (0, 2, 3))
    replaced = vm.bind(address, bo, offset, length, read_only=read_only)
    return {"mappings": len(vm), "replaced_pages": replaced}


async def _userptr(machine: Machine, opened: OpenedVm, words: list[str]) -> Result:
    if len(words) != 4 and words[4:] != ["ro"]:
        raise TtmError(errno.EINVAL, "say ADDR PATH OFFSET LEN [ro]: where, which file, from where on, how many bytes")
    check_device(machine.vdev)
    address, offset, length = (parse_size(words[index]) for index in (0, 2, 3))
    if offset & PAGE_MASK:
        raise TtmError(errno.EINVAL, f"OFFSET {words[2][:80]} is not a multiple of {PAGE_SIZE}")
    opened.vm.pages(address, length)
    opened.vm.check_room(userptrs=1)
    caller = machine.caller
    if caller is not None and not sees_our_files(ASKER.get()):
        raise TtmError(errno.EPERM, "your root or mounts are not those of the daemon: PATH would name another file")
    who = Caller(os.geteuid(), os.getegid()) if caller is None else Caller(caller.uid, caller.gid)
    asked = Asked(who, unescape(words[1]), offset, length, read_only=len(words) == 5)
    bo, read_only = await machine.vdev.userptrs.make(machine.vdev.funcs, asked)
    try:
        vm = opened.vm
        vm.check_room(userptrs=1)
        replaced = vm.bind(address, bo, 0, length, read_only=read_only)
    except TtmError:
        release(bo)
        raise
    access = "ro" if read_only else "rw"
    return {"mappings": len(vm), "replaced_pages": replaced, "size": bo.size, "access": access}


async def _unbind(machine: Machine, opened: OpenedVm, words: list[str]) -> Result:
    del machine
    vm = opened.vm
    pages = vm.unbind(*parse_range(words, "ADDR LEN"))
    return {"mappings": len(vm), "pages": pages}


def _take_queue(machine: Machine, words: list[str]) -> tuple[list[str], str]:
    queues = [word.removeprefix("queue=") for word in words if word.startswith("queue=")]
    if len(queues) > 1:
        raise TtmError(errno.EINVAL, "queue= is given twice")
    return [word for word in words if not word.startswith("queue=")], machine.queue(*queues)


async def _exec(machine: Machine, opened: OpenedVm, words: list[str]) -> Result:
    words, queue = _take_queue(machine, words)
    asked, wait = take_operation(words, True, False)
    vm, caller, ctx = opened.vm, machine.caller, OperationContext()
    operation, uid = asked.operation, 0 if caller is None else caller.uid
    job = await exec_vm(machine.vdev, vm, operation, asked.address, asked.length, ctx, queue=queue, uid=uid)
    result: Result = {
        "fence": job.fence.name,
        "point": f"{queue}:{job.point}",
        "bytes_moved": ctx.done.bytes_moved,
        "evictions": ctx.done.evictions,
        "rebound": job.rebound,
    }
    if not wait:
        return result
    await job.fence.wait()
    if job.fence.error:
        raise TtmError(job.fence.error, f"{asked.kind} at {asked.address:#x} in {vm.name} failed on the engine")
    if isinstance(operation.result, bytearray):
        result["data"] = operation.result.hex()
    elif asked.kind in ("atomic_add", "checksum"):
        result["value"] = operation.result
    return result


VM_COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            "bind",
            "ADDR BO OFFSET LEN [ro]",
            "Bytes of the BO are at these addresses from now on, in place of what was; ro: the device may only read "
            "them (EPERM). ADDR, OFFSET and LEN in whole pages; waits for nothing.",
            ("1G tex0 0 64K", "0x40010000 tex0 64K 64K ro"),
            _bind,
        ),
        Command(
            "userptr",
            "ADDR PATH OFFSET LEN [ro]",
            "Bytes of a file of another file system are at these addresses, in place of what was. It is opened as you "
            "would open it, for reading only if you may not write it, or with ro; no link in PATH is followed. A file "
            "that was cut short is EIO for jobs that touch it.",
            ("2G /dev/shm/frame 0 64K", "2G /dev/shm/frame 64K 64K ro"),
            _userptr,
        ),
        Command(
            "unbind",
            "ADDR LEN",
            "Nothing is bound there any more (EFAULT). Jobs that run keep their memory until they end.",
            ("1G 64K",),
            _unbind,
        ),
        Command(
            "exec",
            "[queue=NAME] " + " | ".join(operation.usage for operation in GPU_OPERATIONS.values()),
            "A job at the VM's addresses. What of the bound BOs was evicted is brought back first: the result has "
            "`rebound`, bytes_moved, and `data` (hexadecimal) of read, `value` of checksum and atomic_add; with nowait "
            "its fence, at once (ctl/wait).",
            ("fill 1G 64K 7", "queue=render checksum 1G 64K", "read 0x40000000 16"),
            _exec,
        ),
    )
}

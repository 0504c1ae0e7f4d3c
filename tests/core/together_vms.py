"""The actor of `together` that has a VM: jobs at its addresses over local BOs and another one, with a model."""

import zlib

import trio

from tests.core.together_machine import Machine
from tests.svm.page_cache import PAGE
from ttmfs.driver import calls
from ttmfs.driver.operation import Operation
from ttmfs.driver.vm import Vm
from ttmfs.driver.vm_exec import exec_vm
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

_PAGES = 24
"""Of each BO; they are bound beside each other, so that jobs touch several."""
_SIZE = _PAGES * PAGE


async def vm_jobs(machine: Machine, steps: int) -> None:
    """Some jobs in a VM of its own, which is gone at the end."""
    rng, vdev = machine.rng, machine.vdev
    vm = vdev.vms.make("together")
    bos = [vdev.create_bo(f"vm{n}", machine.account) for n in range(3)]
    for bo in bos[:2]:
        await vdev.vms.adopt(bo, vm)
    for index, bo in enumerate(bos):
        lifetime.set_size(bo, _SIZE)
        bo.placement = vdev.parse_placement(rng.choice(("vram gtt", "gtt", "vram", "system")).split())
        vm.bind(index * _SIZE, bo, 0, _SIZE, read_only=False)
    model = bytearray(_SIZE * len(bos))
    for _ in range(steps):
        start = rng.randrange(len(model))
        length = rng.randrange(1, min(rng.choice((100, 2 * PAGE, 2 * _SIZE)), len(model) - start) + 1)
        what = rng.choice(("fill", "write", "checksum", "read", "load", "store", "bind"))
        machine.log.append(f"vm {what} {start:#x}+{length}")
        began = trio.current_time()
        try:
            await _step(machine, vm, bos, model, what, start, length)
            machine.count(f"vm {what}")
        except TtmError as error:
            machine.expect(f"vm {what}", error, "ENOMEM", "EBUSY", "ENOSPC", *(("EIO",) if machine.faults else ()))
            for index in range(start // _SIZE, (start + length - 1) // _SIZE + 1):
                model[index * _SIZE : (index + 1) * _SIZE] = await _made_known(machine, bos[index])
        machine.took("vm", began)
        for _ in range(rng.randrange(3)):
            await trio.lowlevel.checkpoint()
    for bo in bos:
        vdev.destroy_bo(bo)
    vdev.vms.remove(vm.name)


async def _step(
    machine: Machine, vm: Vm, bos: list[BufferObject], model: bytearray, what: str, start: int, length: int
) -> None:
    rng = machine.rng
    part = slice(start, start + length)
    if what in ("load", "store"):
        index, offset = divmod(start, _SIZE)
        length = min(length, _SIZE - offset)
        if what == "load":
            got = bytes(await access.read(bos[index], offset, length))
            assert got == model[start : start + length], f"a client sees wrong bytes at {start:#x}+{length}"
            return
        data = rng.randbytes(length)
        await access.write(bos[index], offset, data)
        model[start : start + length] = data
    elif what == "bind":
        index, page = start // _SIZE, start % _SIZE // PAGE
        vm.unbind(index * _SIZE + page * PAGE, PAGE)
        await trio.lowlevel.checkpoint()
        vm.bind(index * _SIZE, bos[index], 0, _SIZE, read_only=False)
        vm.allow_res_evict = rng.random() < 0.5
    else:
        data = rng.randbytes(length) if what == "write" else b""
        operation = Operation(what, value=rng.randrange(256), data=data)
        queue = rng.choice(("default", "render"))
        job = await exec_vm(machine.vdev, vm, operation, start, length, OperationContext(), queue=queue)
        await job.fence.wait()
        if job.fence.error:
            raise TtmError(job.fence.error, "the job of the VM failed")
        found = {"read": bytes(model[part]), "checksum": zlib.crc32(model[part])}.get(what)
        assert found is None or operation.result == found, f"a job finds wrong bytes at {start:#x}+{length}"
        if operation.writes:
            model[part] = data or bytes([operation.value]) * length


async def _made_known(machine: Machine, bo: BufferObject) -> bytes:
    """What a call that failed has left there is written again."""
    data = bytes([machine.rng.randrange(256)]) * _SIZE
    for _ in range(200):
        try:
            if bo.unknown_state:
                # Lost and said so: made anew.
                await calls.validate_bo(machine.vdev, bo, (), OperationContext())
            await access.write(bo, 0, data)
            return data
        except TtmError as again:
            machine.expect("vm store", again, "ENOMEM", "EBUSY", "ENOSPC")
            await trio.lowlevel.checkpoint()
    raise AssertionError(f"{bo.name} cannot be written any more")

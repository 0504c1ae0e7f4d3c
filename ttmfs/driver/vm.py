"""VMs: GPU address spaces that userspace lays out itself (drm_gpuvm, xe_vm, amdgpu_vm).

A VM is a table of *mappings*: pages of its addresses that mean pages of a BO. Binding where something is bound replaces
that part of it. A BO may be *local* to one VM from before its first use on: then it has the VM's reservation, and moves
through the LRU with the VM's other BOs as one bulk. Others are external: they may be bound in several VMs.

The table changes at once and waits for nobody: a job that runs has captured the memory that it works on, and its fence
keeps that alive. A BO that is destroyed is bound nowhere any more, as amdgpu has it when a handle is closed.
"""

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from ttmfs.driver.userptr import UserptrTT, whereabouts
from ttmfs.errors import TtmError, called
from ttmfs.observe import points
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.lifetime import release
from ttmfs.ttm.lru import LruBulkMove
from ttmfs.ttm.shared import SharedReservation, share
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, pages_of

MAX_ADDRESS: Final = 1 << 48
"""Bytes that a VM can address."""
MAX_MAPPINGS: Final = 1 << 14
"""Mappings of one VM."""
MAX_PIECES: Final = 1 << 10
"""Mappings that one operation may touch: they are looked up on the loop, several times."""
MAX_USERPTRS: Final = 256
"""Pieces of other files that are bound in one VM."""
MAX_VMS: Final = 256
"""VMs of a device."""
MAX_VMS_OF_A_USER: Final = 32
"""Those that one user has made who is neither root nor the one who mounted: nobody takes them all."""
MAX_VMS_OF_USERS: Final = 224
"""Those of all such users: nor do they together."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Pages [first, end) of a VM mean the pages of `bo` from `page` on (drm_gpuva)."""

    first: int
    end: int
    bo: BufferObject
    page: int
    read_only: bool

    def part(self, first: int, end: int) -> "Mapping":
        """What is left of it within these pages."""
        return replace(self, first=first, end=end, page=self.page + first - self.first)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a BO that an operation touches: `size` from `offset` on; `address` is where the VM has them."""

    address: int
    bo: BufferObject
    offset: int
    size: int
    read_only: bool


@dataclass(slots=True)
class Bound:
    """What a VM knows of a BO that is bound in it (drm_gpuvm_bo)."""

    mappings: int = 0
    seen: object = None
    """Its `whereabouts` when a job last could use it; None before the first."""
    rebinds: int = 0
    """How often it had to be brought back, or found anew, since."""

    def evicted(self, bo: BufferObject) -> bool:
        """Has it moved, or lost memory, since a job last could use it?"""
        if self.seen is None:
            return False
        return whereabouts(bo) is not self.seen or (bo.own_pages < bo.num_pages and not _is_whole(bo))


def _is_whole(bo: BufferObject) -> bool:
    return bo.tt is not None and bo.has_memory(0, bo.num_pages)


class Vm:
    """One VM. `bulk` moves its local BOs as one; `allow_res_evict`: those that a job does not touch may go for it."""

    def __init__(self, name: str, ttm: Device, uid: int = 0) -> None:
        self.name = name
        self.uid = uid
        """Who has made it."""
        self.resv = SharedReservation(ttm.ww_class)
        self.bulk = LruBulkMove()
        self.allow_res_evict = False
        self.locals: dict[BufferObject, None] = {}
        self.bos: dict[BufferObject, Bound] = {}
        self.userptrs = 0
        """Those of `bos` that are memory of other files, and there for this VM only."""
        self.removed = False
        self.execs = self.rebound = 0
        """Jobs so far, and BOs that had to come back for them."""
        self._trace = ttm.trace
        self._mappings: list[Mapping] = []
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[Mapping]:
        """By address."""
        return iter(tuple(self._mappings))

    def __len__(self) -> int:
        """Mappings."""
        return len(self._mappings)

    # -- the table -----------------------------------------------------------------------------------------------

    def bind(self, address: int, bo: BufferObject, offset: int, length: int, *, read_only: bool) -> int:
        """Map bytes of a BO; returns the pages that were bound before and mean something else now.

        TtmError: EINVAL not whole pages, or not within the BO; EFAULT beyond MAX_ADDRESS; ENOSPC too many mappings.
        """
        first, end = self.pages(address, length)
        if offset & PAGE_MASK:
            raise TtmError(errno.EINVAL, f"OFFSET {offset:#x} is not a multiple of {PAGE_MASK + 1}")
        if offset + length > bo.num_pages << PAGE_SHIFT:
            raise TtmError(errno.EINVAL, f"{offset:#x}+{length:#x} is not within the {bo.size} bytes of {bo.name!r}")
        self.check_room()
        replaced = self._punch(first, end, Mapping(first, end, bo, offset >> PAGE_SHIFT, read_only))
        points.vm_bind(self._trace, bo, vm=self.name, address=address, offset=offset, bytes=length, ro=read_only)
        return replaced

    def check_room(self, userptrs: int = 0) -> None:
        """TtmError(ENOSPC): it may have no more mappings, or not so many more of other files."""
        if len(self) + 2 > MAX_MAPPINGS:
            raise TtmError(errno.ENOSPC, f"{self.name} has {len(self)} mappings: unbind some")
        if userptrs and self.userptrs + userptrs > MAX_USERPTRS:
            raise TtmError(errno.ENOSPC, f"{self.name} has {self.userptrs} pieces of other files bound: unbind some")

    def unbind(self, address: int, length: int) -> int:
        """Nothing is bound there any more; returns the pages that were. Waits for nothing. TtmError as `bind`."""
        first, end = self.pages(address, length)
        if len(self) + 1 > MAX_MAPPINGS and self._lies_within_one(first, end):
            raise TtmError(errno.ENOSPC, f"{self.name} has {len(self)} mappings: unbind whole ones first")
        pages = self._punch(first, end)
        points.vm_unbind(self._trace, vm=self.name, address=address, bytes=length)
        return pages

    def _lies_within_one(self, first: int, end: int) -> bool:
        """Does one mapping reach beyond these pages on both sides, so that it becomes two without them?"""
        index = bisect_left(self._starts, first) - 1
        return index >= 0 and self._mappings[index].end > end

    def pieces(self, address: int, length: int, *, write: bool) -> list[Piece]:
        """What lies at these bytes, in order.

        TtmError: EFAULT naming the first byte where nothing is bound, or that is beyond the end of its BO; EPERM for a
        write to what is bound read-only; E2BIG for more than MAX_PIECES.
        """
        found: list[Piece] = []
        at, end = address, address + length
        index = max(bisect_right(self._starts, address >> PAGE_SHIFT) - 1, 0)
        while at < end:
            mapping = self._mappings[index] if index < len(self._mappings) else None
            if mapping is None or not mapping.first << PAGE_SHIFT <= at < mapping.end << PAGE_SHIFT:
                raise TtmError(errno.EFAULT, f"nothing is bound at {at:#x} in {self.name}: see its maps")
            if write and mapping.read_only:
                raise TtmError(errno.EPERM, f"{at:#x} in {self.name} is bound read-only")
            size = min(end, mapping.end << PAGE_SHIFT) - at
            offset = (mapping.page << PAGE_SHIFT) + at - (mapping.first << PAGE_SHIFT)
            if offset + size > mapping.bo.size:
                beyond = at + max(mapping.bo.size - offset, 0)
                raise TtmError(errno.EFAULT, f"{beyond:#x} in {self.name} is beyond the end of {mapping.bo.name!r}")
            if len(found) == MAX_PIECES:
                said = f"{address:#x}+{length:#x} touches more than {MAX_PIECES} mappings of {self.name}"
                raise TtmError(errno.E2BIG, f"{said}: say it in parts")
            found.append(Piece(at, mapping.bo, offset, size, mapping.read_only))
            at += size
            index += 1
        return found

    def evicted(self) -> list[BufferObject]:
        """Bound BOs that have moved, or lost memory, since a job last could use them; in the order of binding."""
        return [bo for bo, bound in self.bos.items() if bound.evicted(bo)]

    def to_bring_back(self) -> list[BufferObject]:
        """Those of them that come back for any job: other files are looked at by those that touch them."""
        return [bo for bo in self.evicted() if not isinstance(bo.tt, UserptrTT)]

    def state(self, bo: BufferObject) -> str:
        """`evicted` since a job last could use it, `usable`, or `new`: bound, and no job has; `unbound`."""
        bound = self.bos.get(bo)
        if bound is None:
            return "unbound"
        return "new" if bound.seen is None else "evicted" if bound.evicted(bo) else "usable"

    def forget(self, bo: BufferObject) -> None:
        """It is destroyed."""
        self.locals.pop(bo, None)
        if bo in self.bos:
            self._splice(0, len(self), [mapping for mapping in self if mapping.bo is not bo])

    def clear(self) -> None:
        """Nothing is bound any more."""
        self._splice(0, len(self), [])

    def pages(self, address: int, length: int) -> tuple[int, int]:
        """[first, end) of these bytes. TtmError: EINVAL not whole pages, EFAULT beyond MAX_ADDRESS."""
        if address & PAGE_MASK or length & PAGE_MASK or not length:
            raise TtmError(errno.EINVAL, f"ADDR and LEN are multiples of {PAGE_MASK + 1}, and LEN is not 0")
        if address + length > MAX_ADDRESS:
            raise TtmError(errno.EFAULT, f"{address + length:#x} is beyond {MAX_ADDRESS:#x}, where addresses end")
        return address >> PAGE_SHIFT, pages_of(address + length)

    def _punch(self, first: int, end: int, *new: Mapping) -> int:
        """Take pages [first, end) out of all mappings, with `new` in their place; how many there were."""
        index = bisect_right(self._starts, first)
        if index and self._mappings[index - 1].end > first:
            index -= 1
        stop = max(bisect_left(self._starts, end), index)
        left: list[Mapping] = []
        right: list[Mapping] = []
        pages = 0
        for old in self._mappings[index:stop]:
            pages += min(end, old.end) - max(first, old.first)
            if old.first < first:
                left.append(old.part(old.first, first))
            if end < old.end:
                right.append(old.part(end, old.end))
        self._splice(index, stop, [*left, *new, *right])
        return pages

    def _splice(self, index: int, stop: int, new: list[Mapping]) -> None:
        """Put `new` where mappings [index, stop) are. Those first that come: a BO is not unbound in between."""
        for mapping in new:
            if mapping.bo not in self.bos:
                self.bos[mapping.bo] = Bound()
                self.userptrs += isinstance(mapping.bo.tt, UserptrTT)
            self.bos[mapping.bo].mappings += 1
        for mapping in self._mappings[index:stop]:
            bound = self.bos[mapping.bo]
            bound.mappings -= 1
            if not bound.mappings:
                del self.bos[mapping.bo]
                if isinstance(mapping.bo.tt, UserptrTT):
                    self.userptrs -= 1
                    release(mapping.bo)
        self._mappings[index:stop] = new
        self._starts[index:stop] = [mapping.first for mapping in new]

    # -- jobs ----------------------------------------------------------------------------------------------------

    def usable(self, bos: Iterable[BufferObject], lost: Container[BufferObject]) -> int:
        """Jobs can use them where they are now; how many of them were `lost` before."""
        rebound = 0
        for bo in bos:
            bound = self.bos[bo]
            if bo in lost:
                bound.rebinds += 1
                points.vm_rebind(self._trace, bo, vm=self.name, region=bo.mem_type)
                rebound += 1
            bound.seen = whereabouts(bo)
        self.rebound += rebound
        return rebound

    def check(self) -> Iterator[str]:
        """What is wrong with it."""
        for sentence in self.bulk.check():
            yield f"vm {self.name}: {sentence}"
        counts: dict[BufferObject, int] = {}
        before = 0
        for mapping in self:
            if not before <= mapping.first < mapping.end:
                yield f"vm {self.name}: the mapping at page {mapping.first:#x} is out of order"
            before = mapping.end
            counts[mapping.bo] = counts.get(mapping.bo, 0) + 1
        if self.userptrs != sum(isinstance(bo.tt, UserptrTT) for bo in self.bos):
            yield f"vm {self.name}: {self.userptrs} of its BOs are said to be other files"
        if counts != {bo: bound.mappings for bo, bound in self.bos.items()}:
            yield f"vm {self.name}: its BOs do not agree with its mappings"
        for bo in {*self.bos, *self.locals}:
            if bo.deleted:
                yield f"vm {self.name}: {called(bo.name)} is destroyed and still here"
            if (bo.resv is self.resv) != (bo in self.locals) or (bo.bulk is self.bulk) != (bo in self.locals):
                yield f"vm {self.name}: {bo.name} has the wrong reservation, or bulk move"


class Vms:
    """The VMs of a device by name, and which one a BO is local to."""

    def __init__(self, ttm: Device) -> None:
        self._ttm = ttm
        self._vms: dict[str, Vm] = {}
        self._local: dict[BufferObject, Vm] = {}
        self._execs = self._rebound = 0
        """Of those that were removed."""

    def __iter__(self) -> Iterator[Vm]:
        """In the order in which they were made."""
        return iter(tuple(self._vms.values()))

    def __len__(self) -> int:
        return len(self._vms)

    def get(self, name: str) -> Vm:
        """The VM of a name. TtmError(ENOENT)."""
        vm = self._vms.get(name)
        if vm is None:
            raise TtmError(errno.ENOENT, f"there is no VM {name[:80]!r}: mkdir vm/{name[:80]} makes one")
        return vm

    def make(self, name: str, uid: int = 0) -> Vm:
        """A new one of a user. TtmError: EEXIST, ENOSPC the device has no more, EDQUOT the user may have no more."""
        if name in self._vms:
            raise TtmError(errno.EEXIST, f"there is a VM {name[:80]!r} already")
        if len(self._vms) >= MAX_VMS:
            raise TtmError(errno.ENOSPC, f"there are {MAX_VMS} VMs, and a device has no more: rmdir one")
        exempt = self._ttm.accounts.exempt
        if uid not in exempt:
            if sum(vm.uid == uid for vm in self) >= MAX_VMS_OF_A_USER:
                said = f"you have made {MAX_VMS_OF_A_USER} VMs, and a user has no more: rmdir one"
                raise TtmError(errno.EDQUOT, said)
            if sum(vm.uid not in exempt for vm in self) >= MAX_VMS_OF_USERS:
                said = f"users have made {MAX_VMS_OF_USERS} VMs, and the rest is for who owns the device: rmdir one"
                raise TtmError(errno.ENOSPC, said)
        vm = self._vms[name] = Vm(name, self._ttm, uid)
        return vm

    def remove(self, name: str) -> None:
        """It goes, and all that is bound in it is no more; its jobs run on. TtmError: ENOENT, EBUSY with local BOs."""
        vm = self.get(name)
        if vm.locals:
            some = ", ".join(repr(bo.name) for bo in list(vm.locals)[:3])
            raise TtmError(errno.EBUSY, f"{len(vm.locals)} BOs are local to {name} ({some}): unlink them first")
        vm.clear()
        vm.bulk.fini()
        vm.removed = True
        self._execs += vm.execs
        self._rebound += vm.rebound
        del self._vms[name]

    def home(self, bo: BufferObject) -> Vm | None:
        """Which one the BO is local to."""
        return self._local.get(bo)

    async def adopt(self, bo: BufferObject, vm: Vm) -> None:
        """Make the BO local to a VM, for good. TtmError: EBUSY it is used, bound, or another VM's; ENOENT."""
        if self._is_at_home(bo, vm):
            return
        await vm.resv.lock()
        try:
            if vm.removed:
                raise TtmError(errno.ENOENT, f"the VM {vm.name} was removed")
            bo.check_alive()
            if self._is_at_home(bo, vm):  # meanwhile
                return
            if any(bo in other.bos for other in self):
                raise TtmError(errno.EBUSY, f"{bo.name!r} is bound: say which VM it is local to before it is")
            share(bo, vm.resv, vm.bulk)
            vm.locals[bo] = None
            self._local[bo] = vm
        finally:
            vm.resv.unlock()

    def _is_at_home(self, bo: BufferObject, vm: Vm) -> bool:
        """Is it local to this one? TtmError(EBUSY): to another one."""
        home = self.home(bo)
        if home is not None and home is not vm:
            raise TtmError(errno.EBUSY, f"{bo.name!r} is local to {home.name}, for as long as there is either")
        return home is vm

    def may_bind(self, bo: BufferObject, vm: Vm) -> None:
        """TtmError(EINVAL): it is local to another VM."""
        home = self.home(bo)
        if home is not None and home is not vm:
            raise TtmError(errno.EINVAL, f"{bo.name!r} is local to the VM {home.name}: it is bound there only")

    def forget(self, bo: BufferObject) -> None:
        """The BO is destroyed: it is nowhere bound any more."""
        self._local.pop(bo, None)
        for vm in self._vms.values():
            vm.forget(bo)

    def stats(self) -> dict[str, int]:
        """What `stats` says of them."""
        return {
            "count": len(self),
            "mappings": sum(map(len, self)),
            "local_bos": len(self._local),
            "execs": self._execs + sum(vm.execs for vm in self),
            "rebound": self._rebound + sum(vm.rebound for vm in self),
        }

    def check(self) -> Iterator[str | None]:
        """What is wrong with them; None where others may run."""
        for vm in self:
            yield from vm.check()
            yield None
        if self._local != {bo: vm for vm in self for bo in vm.locals}:
            yield "vms: which BO is local to which is not what the VMs say"

"""The tracepoints: one function an event, called wherever that happens, which records it if the trace is on.

EVENTS, the table in `ctl/trace` and in the documents, is made of these functions: the name is the event's, the first
sentence of the docstring says what happened, the parameters after the star are the facts in the order of a line, and a
line `fact: words` below the sentence explains one. Times are microseconds (`_us`), sizes bytes or pages as named,
`fence` is CONTEXT:SEQNO, regions and places are named as in commands. What costs something to say is said in here,
behind the test: a caller passes what it has at hand.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from ttmfs.observe.trace import Trace, bo_word


class Named(Protocol):
    """What has a name: a BO, a job, an address space; a fence, a timeline."""

    @property
    def name(self) -> str:
        """For people."""
        ...


def bo_create(trace: Trace, bo: Named, *, ino: int, uid: int) -> None:
    """A BO was made.

    uid: 0, and ino 0: by the device itself
    """
    if trace.on:
        trace.emit("bo_create", bo.name, ino=ino, uid=uid)


def bo_destroy(trace: Trace, bo: Named, *, bytes: int, region: str, zombie: bool) -> None:
    """The last reference to a BO is gone.

    zombie: it is busy, its space goes later
    """
    if trace.on:
        trace.emit("bo_destroy", bo.name, bytes=bytes, region=region, zombie=int(zombie))


def fault(
    trace: Trace, bo: Named, now: int, *,
    op: str, offset: int, pages: int, prefault: int, retries: int, waits: Iterable[str], prot: str, latency_us: int,
) -> None:  # fmt: skip
    """A READ was answered, or (op=write) a WRITE that could not be at once.

    prefault: pages added beyond those
    retries: the BO was reserved
    waits: what for, in order
    prot: r, w or rw, as the driver's handler maps the pages; - when it was not asked
    """
    # Called with a trace that is on, by those who had to look before they took the time (`now`, monotonic ns).
    facts: dict[str, object] = {
        "op": op,
        "offset": offset,
        "pages": pages,
        "prefault": prefault,
        "retries": retries,
        "waits": ",".join(waits) or "-",
        "prot": prot,
        "latency_us": latency_us,
    }
    trace.record(now / 1e9, "fault", bo.name, facts)


def io_mem_evict(trace: Trace, bo: Named, *, for_bo: str) -> None:
    """The I/O mapping of a BO was taken from it, by unmapping it, for that of another (ttm_mem_io_evict)."""
    if trace.on:
        trace.emit("io_mem_evict", bo.name, for_bo=for_bo)


def gate_wait(trace: Trace, bo: Named, *, why: str, wait_us: int, done: bool) -> None:
    """A READ or WRITE was parked on its BO.

    why: reservation, move, clear, copy
    done: 0: an unmap or its time ended the wait
    """
    if trace.on:
        trace.emit("gate_wait", bo.name, why=why, wait_us=wait_us, done=int(done))


def space_wait(trace: Trace, bo: str, *, why: str, wait_us: int) -> None:
    """An allocation waited for space that others have for the moment.

    why: held: a victim was reserved, claim: it is another's turn, changed
    """
    if trace.on:
        trace.emit("space_wait", bo, why=why, wait_us=wait_us)


def error(trace: Trace, bo: str, *, request: str, errno: int | None, why: str | None) -> None:
    """A READ, a WRITE or a command failed."""
    if trace.on:
        trace.emit("error", bo, request=request, errno=errno, why=why)


def validate(trace: Trace, bo: Named, *, placement: Iterable[object]) -> None:
    """A BO is to satisfy a placement."""
    if trace.on:
        trace.emit("validate", bo.name, placement=" ".join(map(str, placement)) or "none")


def validated(trace: Trace, bo: Named, *, result: str, errno: int | None, region: str) -> None:
    """How that ended.

    result: moved, compatible, gutted, error
    """
    if trace.on:
        trace.emit("validated", bo.name, result=result, errno=errno, region=region)


def place_tried(
    trace: Trace, bo: Named, *, place: object, pages: int, evicting: bool, why: str, detail: str
) -> None:
    """A place was asked for room.

    evicting: 0: first pass
    why: ok, full, never_fits, busy, claimed, limit (of a user), over_max (of a group)
    """
    if trace.on:
        trace.emit(
            "place_tried", bo.name, place=str(place), pages=pages, evicting=int(evicting), why=why, detail=detail
        )


def evict(
    trace: Trace, bo: Named, *, region: str, dst: str, for_bo: str, position: int, priority: int, pages: int
) -> None:
    """A BO has to leave.

    position: passed over or evicted before it in this walk
    """
    if trace.on:
        trace.emit(
            "evict",
            bo.name,
            region=region,
            dst=dst,
            for_bo=for_bo or "-",
            position=position,
            priority=priority,
            pages=pages,
        )


def dmem_charge(trace: Trace, bo: Named, *, region: str, group: str, bytes: int, current: int) -> None:
    """Space that a BO got was charged to its group.

    group: - for the root
    current: of the group, with it
    """
    if trace.on:
        trace.emit("dmem_charge", bo.name, region=region, group=group or "-", bytes=bytes, current=current)


def dmem_over_max(trace: Trace, bo: Named, *, region: str, group: str, bytes: int, max: int) -> None:
    """A BO could have no more space: its group, or one above it, would be over its max.

    bytes: that group's current
    """
    if trace.on:
        trace.emit("dmem_over_max", bo.name, region=region, group=group or "-", bytes=bytes, max=max)


def dmem_spared(trace: Trace, bo: Named, *, region: str, group: str, for_bo: str, why: str) -> None:
    """An allocation passed over the BOs of a group, this one first.

    why: min or low protects it, own: it is the one that is to have more, outside: of the group that is over its max
    """
    if trace.on:
        trace.emit("dmem_spared", bo.name, region=region, group=group or "-", for_bo=for_bo or "-", why=why)


def move_start(trace: Trace, bo: Named, *, src: str, dst: str, bytes: int, evict: bool, defrag: bool) -> None:
    """TTM begins to move a BO."""
    if trace.on:
        trace.emit("move_start", bo.name, src=src, dst=dst, bytes=bytes, evict=int(evict), defrag=int(defrag))


def move_end(
    trace: Trace, bo: Named, *, src: str, dst: str, bytes: int, evict: bool, fence: Named | None, errno: int | str
) -> None:
    """That call is over.

    fence: the copy, - when there is none
    errno: or multihop, when it goes by another region first
    """
    if trace.on:
        name = "-" if fence is None else fence.name
        trace.emit("move_end", bo.name, src=src, dst=dst, bytes=bytes, evict=int(evict), fence=name, errno=errno)


def unmap(trace: Trace, bo: Named, *, first: int, pages: int, unmap_us: int) -> None:
    """The CPU's cached pages of a BO were dropped.

    pages: 0: to the end
    """
    if trace.on:
        trace.emit("unmap", bo.name, first=first, pages=pages, unmap_us=unmap_us)


def populate(trace: Trace, bo: Named, *, pages: int, why: str) -> None:
    """Pages got memory.

    why: fault, move, job
    """
    if trace.on and pages > 0:
        trace.emit("populate", bo.name, pages=pages, why=why)


def copy_start(trace: Trace, bo: Named, *, engine: str, fence: Named, pages: int) -> None:
    """A copy engine begins."""
    if trace.on:
        trace.emit("copy_start", bo.name, engine=engine, fence=fence.name, pages=pages)


def copy_end(trace: Trace, bo: Named, *, engine: str, fence: Named, pages: int, errno: int) -> None:
    """It is done."""
    if trace.on:
        trace.emit("copy_end", bo.name, engine=engine, fence=fence.name, pages=pages, errno=errno)


def use(
    trace: Trace, bo: Named, *, why: str, region: str, bytes: int, first: int, pages: int, call: int
) -> None:
    """A BO was used, and TTM knows it: a READ or WRITE answered at once counts if a policy of its region defines used.

    why: fault, write, read, job, validate
    region: where it is then
    call: the same for all BOs of one call
    """
    if trace.on:
        trace.emit("use", bo.name, why=why, region=region, bytes=bytes, first=first, pages=pages, call=call)


def promote(trace: Trace, bo: Named, *, src: str, dst: str, bytes: int, why: str) -> None:
    """A BO came home.

    why: tick, job
    """
    if trace.on:
        trace.emit("promote", bo.name, src=src, dst=dst, bytes=bytes, why=why)


def policy_ejected(trace: Trace, *, kind: str, region: str, why: object) -> None:
    """A policy failed and is asked no more."""
    if trace.on:
        trace.emit("policy_ejected", kind=kind, region=region, why=str(why))


def job(trace: Trace, bo: str, *, fence: Named, kind: str, bytes: int, bos: Iterable[Named], queue: str) -> None:
    """A job was submitted."""
    if trace.on:
        names = ",".join(bo_word(each.name) for each in bos)
        trace.emit("job", bo, fence=fence.name, kind=kind, bytes=bytes, bos=names, queue=queue)


def vm_bind(trace: Trace, bo: Named, *, vm: str, address: int, offset: int, bytes: int, ro: bool) -> None:
    """Bytes of a BO were bound in a VM.

    offset: in the BO
    """
    if trace.on:
        trace.emit("vm_bind", bo.name, vm=bo_word(vm), address=f"{address:#x}", offset=offset, bytes=bytes, ro=int(ro))


def vm_unbind(trace: Trace, *, vm: str, address: int, bytes: int) -> None:
    """Nothing is bound there in a VM any more."""
    if trace.on:
        trace.emit("vm_unbind", vm=bo_word(vm), address=f"{address:#x}", bytes=bytes)


def vm_rebind(trace: Trace, bo: Named, *, vm: str, region: str) -> None:
    """A bound BO that had moved, or lost memory, is one that jobs of a VM can use again."""
    if trace.on:
        trace.emit("vm_rebind", bo.name, vm=bo_word(vm), region=region)


def job_start(trace: Trace, bo: Named, *, engine: str, fence: Named, kind: str) -> None:
    """A compute engine begins a job."""
    if trace.on:
        trace.emit("job_start", bo.name, engine=engine, fence=fence.name, kind=kind)


def job_end(trace: Trace, bo: Named, *, engine: str, fence: Named, kind: str, errno: int) -> None:
    """It is done."""
    if trace.on:
        trace.emit("job_end", bo.name, engine=engine, fence=fence.name, kind=kind, errno=errno)


def fence_emit(trace: Trace, *, fence: Named, timeline: Named, what: str) -> None:
    """A fence was made."""
    if trace.on:
        trace.emit("fence_emit", fence=fence.name, timeline=timeline.name, what=what)


def fence_signal(trace: Trace, *, fence: Named, timeline: Named | None, what: str, errno: int) -> None:
    """It has signaled."""
    if trace.on:
        name = "-" if timeline is None else timeline.name
        trace.emit("fence_signal", fence=fence.name, timeline=name, what=what, errno=errno)


def defrag(trace: Trace, bo: Named, *, result: str, errno: int, listed: int) -> None:
    """An attempt to re-back a BO at the beneficial order.

    result: moved, nothing, error
    """
    if trace.on:
        trace.emit("defrag", bo.name, result=result, errno=errno, listed=listed)


def swapout(trace: Trace, bo: Named, *, pages: int) -> None:
    """The pages of a BO went to swap."""
    if trace.on:
        trace.emit("swapout", bo.name, pages=pages)


def backup(trace: Trace, bo: Named, *, first: int, pages: int, left: int) -> None:
    """Pages of a BO went to the store.

    left: still in memory
    """
    if trace.on:
        trace.emit("backup", bo.name, first=first, pages=pages, left=left)


def restore(trace: Trace, bo: Named, *, pages: int, left: int) -> None:
    """Pages of a BO came back from the store.

    left: still there
    """
    if trace.on:
        trace.emit("restore", bo.name, pages=pages, left=left)


def purge(trace: Trace, bo: Named, *, pages: int) -> None:
    """The content of a BO was dropped."""
    if trace.on:
        trace.emit("purge", bo.name, pages=pages)


def shrink(trace: Trace, *, pages: int, stored: int, purged: int, failed: int) -> None:
    """The shrinker ran.

    pages: asked for
    """
    if trace.on:
        trace.emit("shrink", pages=pages, stored=stored, purged=purged, failed=failed)


def suspend(trace: Trace, *, moved: int, bytes: int, errno: int) -> None:
    """Every BO went to system."""
    if trace.on:
        trace.emit("suspend", moved=moved, bytes=bytes, errno=errno)


def resume(trace: Trace, *, restored: int, failed: int, bytes: int) -> None:
    """They came back."""
    if trace.on:
        trace.emit("resume", restored=restored, failed=failed, bytes=bytes)


def unplug(trace: Trace) -> None:
    """The device is gone."""
    if trace.on:
        trace.emit("unplug")


def svm_range(trace: Trace, space: Named, *, first: int, pages: int) -> None:
    """The device has a new range of an address space, which stands for the BO."""
    if trace.on:
        trace.emit("svm_range", space.name, first=first, pages=pages)


def svm_fault(trace: Trace, space: Named, *, first: int, pages: int, write: bool, atomic: bool) -> None:
    """A fault of the device was served or, told by cpu=1 offset pages latency_us, a READ of a client."""
    if trace.on:
        trace.emit("svm_fault", space.name, first=first, pages=pages, write=int(write), atomic=int(atomic))


def svm_cpu_fault(trace: Trace, space: Named, *, offset: int, pages: int, latency_us: int) -> None:
    """The other svm_fault."""
    if trace.on:
        trace.emit("svm_fault", space.name, cpu=1, offset=offset, pages=pages, latency_us=latency_us)


def svm_migrate(trace: Trace, space: Named, *, first: int, dir: str, bytes: int, why: str) -> None:
    """Pages of a range went to the device or came back.

    dir: in, out
    """
    if trace.on:
        trace.emit("svm_migrate", space.name, first=first, dir=dir, bytes=bytes, why=why)


def svm_backup(trace: Trace, space: Named, *, first: int, pages: int, left: int) -> None:
    """Pages of an address space went to the store.

    left: still in memory
    """
    if trace.on:
        trace.emit("svm_backup", space.name, first=first, pages=pages, left=left)


def svm_restore(trace: Trace, space: Named, *, first: int, pages: int, left: int) -> None:
    """Pages of an address space came back from the store.

    left: still there
    """
    if trace.on:
        trace.emit("svm_restore", space.name, first=first, pages=pages, left=left)


def svm_invalidate(trace: Trace, space: Named, *, first: int, pages: int, ranges: int, why: str) -> None:
    """What the device knew of pages is void."""
    if trace.on:
        trace.emit("svm_invalidate", space.name, first=first, pages=pages, ranges=ranges, why=why)


_OTHER_FORMS: Final = (svm_cpu_fault,)
"""They record an event that another function has the row of."""


def _row(point: Callable[..., None]) -> str:
    """The sentence, and the facts: commas where words explain one."""
    sentence, *lines = (inspect.getdoc(point) or "").splitlines()
    glosses = dict(line.split(": ", 1) for line in lines if line)
    facts = [name for name, parameter in inspect.signature(point).parameters.items() if parameter.kind is _FACT]
    if missing := [name for name in glosses if name not in facts]:
        raise AssertionError(f"{point.__name__} explains what it has not: {missing}")
    told = [f"{fact} ({glosses[fact]})" if fact in glosses else fact for fact in facts]
    return f"{sentence.removesuffix('.')}: {', '.join(told)}" if told else sentence.removesuffix(".")


_FACT: Final = inspect.Parameter.KEYWORD_ONLY

EVENTS: Final[Mapping[str, str]] = {
    name: _row(point)
    for name, point in tuple(globals().items())
    if inspect.isfunction(point) and point.__module__ == __name__ and not name.startswith("_")
    and point not in _OTHER_FORMS
}  # fmt: skip
"""Every event, in the order above: what happened, and its facts."""

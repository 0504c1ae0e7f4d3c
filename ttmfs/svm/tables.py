"""Address spaces as texts and tables, and which system pages they hold, for maps of memory. Changes nothing."""

from collections.abc import Callable, Iterator
from typing import Final

from ttmfs.svm.counters import label_of
from ttmfs.svm.pages import Pages
from ttmfs.svm.ranges import Range
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.spaces import Svm
from ttmfs.ttm.placement import SYSTEM
from ttmfs.units import PAGE_SHIFT

RANGES_HEAD: Final = "start\tend\tsize\tlocation\tbo\tflags\tseq\n"
"""Start and end are hexadecimal bytes."""


def location(space: AddressSpace, found: Range) -> tuple[str, list[str]]:
    """(The region that holds all of a range, or `mixed`; names of its BOs)."""
    chunk = space.chunks.get(found.chunk)
    if chunk is None:
        return "system", []
    mask = found.mask
    inside = chunk.vram() & mask
    bos = [devmem.bo for devmem in chunk.allocs if devmem.present & mask]
    regions = {bo.mem_type for bo in bos} | ({SYSTEM} if inside != mask else set())
    return (regions.pop() if len(regions) == 1 else "mixed"), [bo.name for bo in bos]


def range_row(space: AddressSpace, found: Range, written: Callable[[str], str] = str) -> str:
    """A range's line of the table; `written` makes one word of a BO's name."""
    where, bos = location(space, found)
    names = " ".join(map(written, bos)) or "-"
    return (
        f"{found.first << PAGE_SHIFT:#x}\t{found.end << PAGE_SHIFT:#x}\t{label_of(found.num_pages)}\t"
        f"{where}\t{names}\t{found.flags}\t{found.seq}\n"
    )


def ranges_text(space: AddressSpace) -> str:
    """The table of ranges: RANGES_HEAD and a row each."""
    return RANGES_HEAD + "".join(range_row(space, found) for found in space.table.ranges.values())


def notifiers_text(space: AddressSpace) -> str:
    """The notifiers: start and end (hexadecimal bytes), ranges, sequence number."""
    size = space.table.notifier_pages << PAGE_SHIFT
    rows = ["start\tend\tranges\tseq"]
    for number, notifier in space.table.notifiers.items():
        rows.append(f"{number * size:#x}\t{(number + 1) * size:#x}\t{notifier.ranges}\t{notifier.seq}")
    return "\n".join(rows) + "\n"


def counts(space: AddressSpace) -> dict[str, int]:
    """What svm_objects/NAME/status says besides name and size; `*_pages` are pages."""
    return {
        "backed_up_pages": space.stored_pages,
        "vram_pages": sum(chunk.vram().bit_count() for chunk in space.chunks.values()),
        "ranges": len(space.table),
        "notifiers": len(space.table.notifiers),
        "gpu_faults": space.gpu_faults,
        "cpu_faults": space.cpu_faults,
        "migrations_in": space.migrations_in,
        "migrations_out": space.migrations_out,
        "bytes_moved": space.bytes_moved,
    }


def owned_pages(svm: Svm) -> Iterator[tuple[str, Pages]]:
    """(`svm:NAME`, page numbers) in small pieces, as they are when each is asked for; what is in VRAM is BOs."""
    for space in list(svm.spaces):
        label = f"svm:{space.name}"
        for chunk in list(space.chunks.values()):
            if chunk.pages.present:
                yield label, chunk.pages.numbers(chunk.pages.present)
            for move in chunk.moves:
                yield label, move.system_pages()

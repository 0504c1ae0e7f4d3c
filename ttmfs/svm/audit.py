"""Audit of address spaces, for selfcheck: each page in one place, allocations that somebody has, counts that are right.

Whose the pages of the system arena are the device's audit finds out (ttmfs.ttm.audit).
"""

from collections.abc import Iterator

from ttmfs.svm.chunk import Chunk, DevMem
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.spaces import Svm
from ttmfs.svm.tables import location
from ttmfs.ttm.device import Device

_AT_ONCE = 64
"""Chunks between two pauses."""


def check_svm(svm: Svm) -> list[str]:
    """Sentences about what is wrong, none when all is well."""
    return [sentence for sentence in svm_check_steps(svm) if sentence is not None]


def svm_check_steps(svm: Svm) -> Iterator[str | None]:
    """As `check_svm`, with a None wherever others may run before it goes on."""
    for space in list(svm.spaces):
        yield from _check_space(space)
        yield None
    yield from _check_allocations(svm.vdev.ttm)


def _check_space(space: AddressSpace) -> Iterator[str | None]:
    for sentence in space.table.check():
        yield f"svm {space.name}: {sentence}"
    counted = space.num_blocks()
    if counted != sum(chunk.counted for chunk in space.chunks.values()):
        yield f"svm {space.name}: {counted} pages are counted, and chunks say otherwise"
    for count, chunk in enumerate(list(space.chunks.values())):
        if count and not count % _AT_ONCE:
            yield None
        for sentence in _wrong_chunk(chunk):
            yield f"svm {space.name}: {sentence}"
    for count, found in enumerate(list(space.table.ranges.values())):
        if count and not count % _AT_ONCE:
            yield None
        if found.bound and location(space, found)[0] == "mixed":
            yield f"svm {space.name}: the range at page {found.first} is bound, but not in one place"


def _wrong_chunk(chunk: Chunk) -> Iterator[str]:
    seen = 0
    for mask in (chunk.pages.present, chunk.in_store, chunk.moving_in(), *(devmem.present for devmem in chunk.allocs)):
        if mask & seen:
            yield f"chunk {chunk.number} has a page in two places"
        seen |= mask
    for devmem in chunk.allocs:
        if devmem.dead or not devmem.present:
            yield f"{devmem.bo.name} is listed, but dead or empty"
    if chunk.counted >= 0 and chunk.counted != chunk.populated().bit_count():
        yield f"chunk {chunk.number} has {chunk.populated().bit_count()} pages, counted are {chunk.counted}"


def _check_allocations(device: Device) -> Iterator[str]:
    """VRAM that no chunk has, and that nobody prepares."""
    for bo in device.bos:
        devmem = bo.private
        if not isinstance(devmem, DevMem) or devmem.dead or devmem in devmem.chunk.allocs or devmem.chunk.users:
            continue
        if not any(move.devmem is devmem for move in devmem.chunk.moves):
            yield f"{bo.name} is memory of an address space that has it not"

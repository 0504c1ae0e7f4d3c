"""Leaving: what is recorded of a BO that has to go, before it does."""

from contextvars import Token

from ttmfs.observe import points
from ttmfs.observe.asker import WHY
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.placement import format_placement


def note_eviction(bo: BufferObject, for_bo: str, position: int) -> Token[str]:
    """Have the recorder keep why a BO goes; what is done for that says so too, until WHY is reset to the token."""
    says, why = f"{bo.name!r} has to leave {bo.mem_type}", WHY.get()
    if for_bo:
        before = "nobody" if not position else "1 BO" if position == 1 else f"{position} BOs"
        says = f"{says}: room for {for_bo!r}, and {before} stood before it in the order of eviction"
        why = ", ".join(filter(None, (f"room for {for_bo!r}", why)))
    bo.device.recorder.note("evict", bo.name, says, for_bo)
    return WHY.set(why)


def trace_evict(bo: BufferObject, for_bo: str, position: int) -> None:
    """Record the event, with where it goes. The trace is on."""
    if bo.deleted:
        dst = "freed"
    elif bo.external:
        dst = "refused"
    else:
        dst = format_placement(bo.funcs.evict_flags(bo)) or "purged"
    facts = {"position": position, "priority": bo.priority, "pages": bo.num_pages}
    points.evict(bo.device.trace, bo, region=bo.mem_type, dst=dst, for_bo=for_bo, **facts)

"""The events that can be traced: one table, a name and a sentence each.

The sentence says what happened and names the facts that the event carries besides `bo`. `ctl/trace` takes these names,
shows this table when it is read and refuses any other word; what emits an event must have it here. Times are
microseconds (`_us`), sizes bytes or pages as named, `fence` is CONTEXT:SEQNO, regions and places are named as in
commands.
"""

from collections.abc import Mapping
from typing import Final

EVENTS: Final[Mapping[str, str]] = {
    "bo_create": "a BO was made: ino uid (0 0: by the device itself)",
    "bo_destroy": "the last reference to a BO is gone: bytes, region, zombie (it is busy: its space goes later)",
    "fault": "a READ was answered, or (op=write) a WRITE that could not be at once: op offset pages, prefault "
    "(pages added beyond those), retries (the BO was reserved), waits (what for, in order), latency_us",
    "gate_wait": "a READ or WRITE was parked on its BO: why (reservation, move, clear, copy), wait_us, "
    "done (0: an unmap or its time ended the wait)",
    "space_wait": "an allocation waited for space that others have for the moment: why (held: a victim was reserved, "
    "claim: it is another's turn, changed), wait_us",
    "error": "a READ, a WRITE or a command failed: request errno why",
    "validate": "a BO is to satisfy a placement: placement",
    "validated": "how that ended: result (moved, compatible, gutted, error), errno, region",
    "place_tried": "a place was asked for room: place, pages, evicting (0 first pass), why "
    "(ok, full, never_fits, busy, claimed), detail",
    "evict": "a BO has to leave: region, dst, for_bo, position (passed over or evicted before it in this walk), "
    "priority, pages",
    "move_start": "TTM begins to move a BO: src dst bytes evict defrag",
    "move_end": "that call is over: src dst bytes evict, fence (the copy, - when there is none), errno",
    "unmap": "the CPU's cached pages of a BO were dropped: first, pages (0: to the end), unmap_us",
    "populate": "pages got memory: pages, why (fault, move, job)",
    "copy_start": "a copy engine begins: engine fence pages",
    "copy_end": "it is done: engine fence pages errno",
    "use": "a BO was used, and TTM knows it, not by a READ or WRITE that was answered at once: why (fault, write, "
    "job, validate), region (where it is then), bytes, first, pages, call (the same for all BOs of one call)",
    "promote": "a BO came home: src dst bytes why (tick, job)",
    "policy_ejected": "a policy failed and is asked no more: kind region why",
    "job": "a job was submitted: fence kind bytes bos",
    "job_start": "the compute engine begins a job: engine fence kind",
    "job_end": "it is done: engine fence kind errno",
    "fence_emit": "a fence was made: fence timeline what",
    "fence_signal": "it has signaled: fence timeline what errno",
    "defrag": "an attempt to re-back a BO at the beneficial order: result (moved, nothing, error), errno, listed",
    "swapout": "the pages of a BO went to swap: pages",
    "backup": "pages of a BO went to the store: first, pages, left (still in memory)",
    "restore": "pages of a BO came back from the store: pages, left (still there)",
    "purge": "the content of a BO was dropped: pages",
    "shrink": "the shrinker ran",
    "suspend": "every BO went to system: moved, bytes, errno",
    "resume": "they came back: restored, failed, bytes",
    "unplug": "the device is gone",
    "svm_range": "the device has a new range of an address space (bo is the space): first, pages",
    "svm_fault": "a fault of the device was served: first, pages, write, atomic",
    "svm_migrate": "pages of a range went to the device or came back: first, dir (in, out), bytes, why",
    "svm_invalidate": "what the device knew of pages is void: first, pages, ranges, why",
}

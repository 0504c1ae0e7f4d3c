"""Text of ftrace's layout: what a ttmfs mount recorded, and what the drivers of xe, amdgpu and i915 say in the kernel.

    TASK-PID   [CPU] flags  SECONDS: event: facts

**ttmfs** (`trace`, `trace_pipe`, `ttm-trace record`). If there are `use` events, these are the requests: of whole BOs
outside of system memory, if there are such, else the pages that they name. Of one call they belong together, and the
moves that it made are read too, so that another run can be compared with them. Else uses of
whole BOs outside of system memory are taken from `validated` and `job` (a job and the validations before it are one
use of each BO); else, where only faults were recorded, pages from `fault` and `svm_fault`.

**Kernel.** There is no event for every use, so what is nearest to it is taken: `amdgpu_bo_list_set` (a submission's
BOs), `xe_bo_validate`, `xe_bo_cpu_fault`, `i915_gem_object_fault`, `…_pread`, `…_pwrite`, and moves *into* local
memory. xe's events of Linux 6.12 and newer name no BO, only `xe_bo_move` does; lines without one count as skipped.
"""

import re
from collections.abc import Iterator
from typing import Final

from ttmfs.replay.trace import Builder, Trace
from ttmfs.units import PAGE_SIZE, pages_of

SVM_UNIT: Final = (2 << 20) // PAGE_SIZE
"""Pages of an address space that are a BO of their own when they are in vram."""

_RAM: Final = ("system", "gtt")
"""Regions of system memory: what is used there takes no room in the region that is replayed."""

_LINE: Final = re.compile(
    r"\s*(?:\S.*?-\d+\s+(?:\([^)]*\)\s+)?(?:\[\d+\]\s+)?(?:[^\s\d]\S*\s+)?)?\d+\.\d+:\s+(?P<event>[A-Za-z_]\w*):\s+(?P<facts>.*)"
)
_FACT: Final = re.compile(r'([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|[^\s,]+)')
_KERNEL: Final = re.compile(r"\b(?:xe_bo|amdgpu_bo|i915_gem_object)_\w+: ")
_XE_MOVE: Final = re.compile(r"migrate object (\S+) \[size (\d+)\] from (\S+) to (\S+)")
_I915_FAULT: Final = re.compile(r"obj=(\S+?),.*?(?:index=|page index=)(\d+)")
_AMDGPU_VRAM: Final = "2"
"""TTM_PL_VRAM."""


def _events(data: bytes, builder: Builder) -> Iterator[tuple[str, str]]:
    """(event, facts) of all lines; the others, but for comments, are counted."""
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        if not line.strip() or line.startswith(("#", "CPU:")):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            builder.skipped += 1
        else:
            yield found["event"], found["facts"]


# -- ttmfs -------------------------------------------------------------------------------------------------------------


def looks_like_ttmfs(head: bytes) -> bool:
    """Its own first line, or an event that says which BO it is of."""
    text = head.decode("utf-8", "replace")
    return b"\0" not in head and (text.startswith("# tracer: ttmfs") or bool(re.search(r": \w+: bo=\S", text)))


def read_ttmfs(path: str, data: bytes, block_bytes: int) -> Trace:
    """See above."""
    del block_bytes
    builder = Builder(path, "ttmfs trace")
    events = [(name, _facts(text)) for name, text in _events(data, builder)]
    there = {name for name, _ in events}
    if "use" in there:
        wanted = frozenset({"use"})
    elif there & {"validated", "job"}:
        wanted = frozenset({"validated", "job"})
    else:
        wanted = frozenset({"fault", "svm_fault"})
    outside = any(name == "use" and facts.get("region", "") not in ("", *_RAM) for name, facts in events)
    reader = _Uses(builder) if outside else _Reader(builder, wanted)
    for name, facts in events:
        _note(builder, name, facts)
        if name == "bo_destroy":
            builder.destroy(facts["bo"], _number(facts, "bytes"))
        else:
            reader.read(name, facts)
    return builder.build()


class _Uses:
    """Of whole BOs, as `use` events say them, and the moves."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def read(self, name: str, facts: dict[str, str]) -> None:
        """One event."""
        bo = facts["bo"]
        if name == "use" and facts.get("region") not in _RAM:
            self._builder.use(bo, call=_number(facts, "call"), one_by_one=facts.get("why") == "job")
        elif name == "move_end" and facts.get("errno") == "0":
            src, dst = facts.get("src", "-"), facts.get("dst", "-")
            if src not in _RAM or dst not in _RAM:
                self._builder.move(f"{bo} {src} {dst}")


class _Reader:
    """Uses as the other events `wanted` let one know of them."""

    def __init__(self, builder: Builder, wanted: frozenset[str]) -> None:
        self._builder = builder
        self._wanted = wanted
        self._validated: set[str] = set()
        self._elsewhere: set[str] = set()

    def read(self, name: str, facts: dict[str, str]) -> None:
        """One event."""
        bo, builder = facts["bo"], self._builder
        if name in ("validated", "move_end") and facts.get("errno") == "0":
            there = facts.get("region", facts.get("dst")) in _RAM
            (self._elsewhere.add if there else self._elsewhere.discard)(bo)
        if name not in self._wanted:
            return
        if name == "validated":
            if facts.get("errno") == "0" and bo not in self._elsewhere:
                self._validated.add(bo)
                builder.use(bo)
        elif name == "job":
            for used in facts.get("bos", "").split(","):
                if used and used not in self._validated and used not in self._elsewhere:
                    builder.use(used)
            self._validated.clear()
        else:
            _use_pages(builder, name, facts)


def _facts(text: str) -> dict[str, str]:
    facts = {key: value.strip('"') for key, value in _TTMFS_FACT.findall(text)}
    facts.setdefault("bo", "")
    return facts


_TTMFS_FACT: Final = re.compile(r'([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|\S+)')


def _number(facts: dict[str, str], key: str) -> int:
    value = facts.get(key, "0")
    return int(value) if value.isdecimal() else 0


def _note(builder: Builder, name: str, facts: dict[str, str]) -> None:
    """What an event says of a BO besides: who made it, how large it is."""
    if name == "bo_create":
        builder.bo(facts["bo"], client=facts.get("uid", ""))
    elif name in ("evict", "place_tried"):
        builder.bo(facts["bo"], _number(facts, "pages") * PAGE_SIZE)
    elif name in ("move_start", "use"):
        builder.bo(facts["bo"], _number(facts, "bytes"))


def _use_pages(builder: Builder, name: str, facts: dict[str, str]) -> None:
    count = _number(facts, "pages")
    if name == "use":
        builder.use(facts["bo"], 0, _number(facts, "first"), count)
    elif name == "fault":
        builder.use(facts["bo"], 0, _number(facts, "offset") // PAGE_SIZE, count)
    else:
        first = _number(facts, "offset") // PAGE_SIZE if "offset" in facts else _number(facts, "first")
        end = first + max(count, 1)
        while first < end:
            unit, within = divmod(first, SVM_UNIT)
            part = min(end - first, SVM_UNIT - within)
            builder.use(f"{facts['bo']}@{unit * SVM_UNIT * PAGE_SIZE:#x}", SVM_UNIT * PAGE_SIZE, within, part)
            first += part


# -- kernel ------------------------------------------------------------------------------------------------------------


def looks_like_kernel(head: bytes) -> bool:
    """Is there an event of one of the drivers?"""
    return b"\0" not in head and bool(_KERNEL.search(head.decode("utf-8", "replace")))


def read_kernel(path: str, data: bytes, block_bytes: int) -> Trace:
    """See above."""
    del block_bytes
    builder = Builder(path, "kernel ftrace")
    for name, text in _events(data, builder):
        if _KERNEL.match(f"{name}: "):
            driver, _, what = name.partition("_")
            understood = {"xe": _xe, "amdgpu": _amdgpu, "i915": _i915}[driver](builder, what, text)
            builder.skipped += not understood
    return builder.build()


def _xe(builder: Builder, what: str, text: str) -> bool:
    if what == "bo_move":
        move = _XE_MOVE.search(text)
        if move is None:
            return False
        bo, size, _, target = move.groups()
        if target.lower().startswith("vram"):
            builder.use(bo, int(size))
        else:
            builder.bo(bo, int(size))
        return True
    facts = dict(_FACT.findall(text))
    if "bo" not in facts:
        return False
    if what in ("bo_validate", "bo_cpu_fault"):
        builder.use(facts["bo"], int(facts.get("size", "0")))
    elif what == "bo_create":
        _create(builder, facts["bo"], int(facts.get("size", "0")))
    return True


def _create(builder: Builder, bo: str, size: int) -> None:
    """A new BO: one that was known under this address is gone."""
    builder.destroy(bo)
    builder.bo(bo, size)


def _amdgpu(builder: Builder, what: str, text: str) -> bool:
    facts = dict(_FACT.findall(text))
    if "bo" not in facts:
        return False
    if what == "bo_list_set":
        builder.use(facts["bo"], int(facts.get("bo_size", "0")))
    elif what == "bo_move" and facts.get("to") == _AMDGPU_VRAM:
        builder.use(facts["bo"], int(facts.get("size", "0")))
    elif what == "bo_create":
        _create(builder, facts["bo"], int(facts.get("pages", "0")) * PAGE_SIZE)
    return True


def _i915(builder: Builder, what: str, text: str) -> bool:
    facts = dict(_FACT.findall(text))
    if "obj" not in facts:
        return False
    bo = facts["obj"]
    if what == "gem_object_create":
        _create(builder, bo, int(facts.get("size", "0"), 0))
    elif what == "gem_object_destroy":
        builder.destroy(bo)
    elif what == "gem_object_fault":
        fault = _I915_FAULT.search(text)
        if fault is None:
            return False
        builder.use(bo, 0, int(fault[2]), 1)
    elif what in ("gem_object_pread", "gem_object_pwrite"):
        offset, length = int(facts["offset"], 0), int(facts["len"], 0)
        builder.use(bo, 0, offset // PAGE_SIZE, max(pages_of(offset % PAGE_SIZE + length), 1))
    return True

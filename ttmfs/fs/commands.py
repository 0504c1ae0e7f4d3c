"""Commands: what may be written into command files, as tables.

The parser, the help text that a command file prints and the mount's README all come from OBJECT_COMMANDS and
CTL_COMMANDS. A command gets its words and returns a dict of plain values, or raises TtmError.
"""

import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.defrag_pass import defrag_pass
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.imported import import_bo
from ttmfs.driver.jobs import Job
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.suspend import unplug
from ttmfs.errors import TtmError
from ttmfs.fs.jobwords import JOB_USAGE, parse_job, run_job
from ttmfs.fs.words import split_names, unescape
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Placement
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, parse_size

Result = dict[str, Any]

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_OPTIONS: Final = ("no_wait_gpu", "interruptible")


@dataclass(frozen=True, slots=True)
class Machine:
    """What commands work on."""

    vdev: VirtualDevice
    names: Namespace

    def bo(self, name: str) -> BufferObject:
        """The BO of a name. TtmError(ENOENT)."""
        return self.names.find(name).bo

    def bos(self, word: str) -> list[BufferObject]:
        """The BOs of NAME[,NAME…]."""
        return [self.bo(name) for name in split_names(word)]


@dataclass(frozen=True, slots=True)
class Command:
    """`usage` is the grammar of the words, `does` a sentence, `examples` lines that work as they stand."""

    name: str
    usage: str
    does: str
    examples: tuple[str, ...]
    run: Callable[..., Awaitable[Result]]

    def help(self, path: str) -> str:
        """What reading the command file prints."""
        lines = [f"{self.name} {self.usage}".rstrip(), f"  {self.does}"]
        lines += [f"  echo {example!r} > {path}" for example in self.examples]
        return "\n".join(lines) + "\n"


# -- words -----------------------------------------------------------------------------------------------------------


def _options(words: list[str], allowed: tuple[str, ...] = _OPTIONS) -> tuple[list[str], OperationContext]:
    """Take the options out of `words`."""
    ctx = OperationContext(no_wait_gpu="no_wait_gpu" in words and "no_wait_gpu" in allowed)
    return [word for word in words if word not in allowed], ctx


def _none(words: list[str]) -> None:
    if words:
        raise TtmError(errno.EINVAL, f"{words[0][:80]!r} is not understood here: this command takes no such word")


def _places(machine: Machine, words: list[str]) -> tuple[Placement, OperationContext]:
    words, ctx = _options(words)
    return machine.vdev.parse_placement(words), ctx


def _page_range(bo: BufferObject, words: list[str]) -> tuple[int, int]:
    """(first page, pages; 0 pages: to the end) from [OFFSET LENGTH] in bytes."""
    if not words:
        return 0, 0
    if len(words) != 2:
        raise TtmError(errno.EINVAL, "say nothing, or OFFSET and LENGTH in bytes, as in 0 64K")
    offset, length = map(parse_size, words)
    if not length or offset + length > max(bo.size, 1):
        raise TtmError(errno.EINVAL, f"{words[0]}+{words[1]} is not within the {bo.size} bytes of the BO")
    first = offset >> PAGE_SHIFT
    return first, ((offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT) - first


def _seconds(word: str) -> float:
    if not _SECONDS.fullmatch(word):
        raise TtmError(errno.EINVAL, f"{word[:80]!r} is no number of seconds")
    return float(word)


# -- objects/NAME/… --------------------------------------------------------------------------------------------------


async def _validate(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    placement, ctx = _places(machine, words)
    return await calls.validate_bo(machine.vdev, bo, placement, ctx)


async def _evict(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = _options(words)
    _none(words)
    return await calls.evict_one(machine.vdev, bo, ctx)


async def _pin(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    _none(words)
    return await calls.pin(machine.vdev, bo)


async def _unpin(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    _none(words)
    return await calls.unpin(machine.vdev, bo)


async def _unmap(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    first, pages = _page_range(bo, words)
    return await calls.unmap(machine.vdev, bo, first, pages)


async def _wait(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    usage = Usage.BOOKKEEP
    rest = list(words)
    if rest and rest[0].upper() in Usage.__members__ and rest[0].islower():
        usage = Usage[rest.pop(0).upper()]
    timeout = machine.vdev.config.fault_timeout
    if rest:
        timeout = _seconds(rest.pop(0))
    _none(rest)
    return await calls.wait_bo(machine.vdev, bo, usage, timeout)


async def _restore(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = _options(words)
    _none(words)
    return await calls.restore(machine.vdev, bo, ctx)


async def _swapout(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = _options(words)
    _none(words)
    return await calls.swapout_one(machine.vdev, bo, ctx)


async def _defrag(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = _options(words)
    _none(words)
    calls.check_device(machine.vdev)
    return await defrag_bo(machine.vdev, bo, ctx)


_PLACES: Final = "PLACE… [no_wait_gpu] [interruptible]"

OBJECT_COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            "validate",
            _PLACES + " | none",
            "Move the BO to the first place that can be had (ttm_bo_validate); none drops its content. "
            "PLACE = REGION[:FLAG[+FLAG…]][@FIRST-LAST], FLAG contiguous topdown temporary desired fallback, "
            "the range in pages.",
            ("vram gtt", "vram:contiguous+topdown", "vram@0-4095 no_wait_gpu", "none"),
            _validate,
        ),
        Command(
            "evict",
            "[no_wait_gpu]",
            "Out of its region, as the driver says: vram to gtt, gtt to system; from system nothing moves.",
            ("",),
            _evict,
        ),
        Command("pin", "", "Count a pin: a pinned BO is never moved or evicted.", ("",), _pin),
        Command("unpin", "", "Take one pin back.", ("",), _unpin),
        Command(
            "unmap",
            "[OFFSET LENGTH]",
            "Zap the CPU's cached pages of it, dirty ones are written back first; the next touch faults.",
            ("", "0 64K"),
            _unmap,
        ),
        Command(
            "wait",
            "[kernel|write|read|bookkeep] [SECONDS]",
            "Until its fences of that usage are signaled (kernel: its moves); ETIME when the time is up.",
            ("", "kernel 5"),
            _wait,
        ),
        Command(
            "swapout",
            "[no_wait_gpu]",
            "All its pages to swap (the older, whole-object mechanism); its next use brings them back.",
            ("",),
            _swapout,
        ),
        Command(
            "defrag",
            "[no_wait_gpu]",
            "Fresh pages at the beneficial order, in place; ENOMEM, and nothing changed, when that is not to be had. "
            "In vram: one run instead of several.",
            ("",),
            _defrag,
        ),
        Command("restore", "", "Give every page memory again.", ("",), _restore),
    )
}


# -- ctl/… -----------------------------------------------------------------------------------------------------------


async def _ctl_validate(machine: Machine, words: list[str]) -> Result:
    if len(words) < 2:
        raise TtmError(errno.EINVAL, "say NAME[,NAME…] PLACE…, as in tex0,tex1 vram gtt")
    bos = machine.bos(words[0])
    placement, ctx = _places(machine, words[1:])
    return await calls.validate_many(machine.vdev, bos, placement, ctx)


async def _ctl_evict(machine: Machine, words: list[str]) -> Result:
    words, ctx = _options(words)
    if not 1 <= len(words) <= 2:
        raise TtmError(errno.EINVAL, f"say REGION [BYTES|all], REGION one of {' '.join(machine.vdev.region_names)}")
    region = words[0]
    if region not in machine.vdev.region_names:
        regions = " ".join(machine.vdev.region_names)
        raise TtmError(errno.EINVAL, f"{region[:80]!r} is no region: say one of {regions}")
    size = None if len(words) == 1 or words[1] == "all" else parse_size(words[1])
    return await calls.evict_region(machine.vdev, region, size, ctx)


async def _ctl_submit(machine: Machine, words: list[str]) -> Result:
    wait = "wait" in words
    words, ctx = _options([word for word in words if word != "wait"])
    job = parse_job(machine.names, machine.vdev, words)
    return await run_job(machine.vdev, job, ctx, wait=wait)


async def _ctl_copy(machine: Machine, words: list[str]) -> Result:
    words, ctx = _options(words)
    if len(words) != 2:
        raise TtmError(errno.EINVAL, "say SRC DST, two BOs")
    job = Job("copy", dst=machine.bo(unescape(words[1])), srcs=(machine.bo(unescape(words[0])),))
    return await run_job(machine.vdev, job, ctx, wait=False)


async def _ctl_wait(machine: Machine, words: list[str]) -> Result:
    if not 1 <= len(words) <= 2:
        raise TtmError(errno.EINVAL, "say FENCE [SECONDS], FENCE as CONTEXT:SEQNO")
    fence = machine.vdev.find_fence(words[0])
    timeout = _seconds(words[1]) if len(words) == 2 else machine.vdev.config.fault_timeout
    if fence is not None and not await fence.wait(timeout):
        raise TtmError(errno.ETIME, f"fence {fence.name} ({fence.what}) is still pending after {timeout:g} s")
    error = machine.vdev.fence_errors.get(words[0])
    if error:
        raise TtmError(error, f"what fence {words[0]} stood for failed: see objects/*/status and the trace")
    return {}


async def _ctl_swapout(machine: Machine, words: list[str]) -> Result:
    words, ctx = _options(words)
    if len(words) != 1:
        raise TtmError(errno.EINVAL, "say BYTES or all")
    pages = 1 << 62 if words[0] == "all" else (parse_size(words[0]) + PAGE_SIZE - 1) >> PAGE_SHIFT
    return await calls.swapout_all(machine.vdev, pages, ctx)


async def _ctl_defrag(machine: Machine, words: list[str]) -> Result:
    calls.check_device(machine.vdev)
    limits = [word for word in words if word.startswith("limit=")]
    names = [word for word in words if not word.startswith("limit=")]
    if len(limits) > 1:
        raise TtmError(errno.EINVAL, "say limit=N once")
    limit = parse_size(limits[0].removeprefix("limit=")) if limits else None
    planned = names == ["all"]
    bos = [file.bo for file in machine.names.files.values()] if planned else [machine.bo(unescape(w)) for w in names]
    return await defrag_pass(machine.vdev, bos if names else None, planned=planned, limit=limit)


async def _ctl_import(machine: Machine, words: list[str]) -> Result:
    if not 2 <= len(words) <= 3 or words[2:] not in ([], ["mappable"]):
        raise TtmError(errno.EINVAL, "say NAME PATH [mappable]")
    calls.check_plugged(machine.vdev)
    path = unescape(words[1])
    if not path.startswith("/"):
        raise TtmError(errno.EINVAL, f"{path[:300]!r} is no absolute path: the daemon has no directory of yours")
    root = machine.names.root
    file = await import_bo(
        machine.vdev, machine.names, unescape(words[0]), path,
        mappable=len(words) == 3, uid=root.uid, gid=root.gid,
    )  # fmt: skip
    return {"size": file.bo.size, "mappable": len(words) == 3}


async def _ctl_suspend(machine: Machine, words: list[str]) -> Result:
    words, ctx = _options(words, ("interruptible",))
    _none(words)
    calls.check_plugged(machine.vdev)
    return await machine.vdev.power.suspend(ctx)


async def _ctl_resume(machine: Machine, words: list[str]) -> Result:
    words, ctx = _options(words, ("interruptible",))
    _none(words)
    calls.check_plugged(machine.vdev)
    return await machine.vdev.power.resume(ctx)


async def _ctl_unplug(machine: Machine, words: list[str]) -> Result:
    _none(words)
    calls.check_plugged(machine.vdev)
    return await unplug(machine.vdev, (file.bo for file in machine.names.files.values()))


CTL_COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            "validate",
            "NAME[,NAME…] " + _PLACES,
            "All of them under one ticket, or none: one that finds no room leaves all where they are.",
            ("tex0,tex1 vram", "tex0 vram gtt"),
            _ctl_validate,
        ),
        Command(
            "evict",
            "REGION [BYTES|all] [no_wait_gpu]",
            "Evict the least recently used first, until BYTES are free that were used, or everything.",
            ("vram 64M", "vram all"),
            _ctl_evict,
        ),
        Command(
            "submit",
            JOB_USAGE,
            "A job of the compute engine over BOs; the result has its fence, and its value with `wait`.",
            ("fill dst=tex0 value=7", "checksum src=tex0 wait", "saxpy a=2.5 x=tex0 y=tex1", "busy seconds=1 bo=tex0"),
            _ctl_submit,
        ),
        Command(
            "swapout",
            "BYTES|all [no_wait_gpu]",
            "The least recently used of system and gtt to swap, until BYTES are out.",
            ("16M", "all"),
            _ctl_swapout,
        ),
        Command(
            "defrag",
            "[NAME…|all] [limit=N]",
            "One pass of defrag: over the list of its worker, over the BOs named, or over all in an order that frees "
            "blocks. The result has how many blocks of each order can be had, and gained.",
            ("", "tex0 tex1", "all limit=16"),
            _ctl_defrag,
        ),
        Command(
            "import",
            "NAME PATH [mappable]",
            "A BO over the memory of another file: never moved, and the CPU reaches it only if it is mappable.",
            ("cam0 /dev/shm/frame mappable",),
            _ctl_import,
        ),
        Command("suspend", "", "Every BO to system; the device refuses work until resume.", ("",), _ctl_suspend),
        Command("resume", "", "Bring the BOs back to where suspend found them.", ("",), _ctl_resume),
        Command(
            "unplug",
            "",
            "The device is gone, for good: READs are zeros, WRITEs are dropped, commands are ENODEV.",
            ("",),
            _ctl_unplug,
        ),
        Command("copy", "SRC DST", "A copy job between two BOs.", ("tex0 tex1",), _ctl_copy),
        Command(
            "wait",
            "FENCE [SECONDS]",
            "Until a fence CONTEXT:SEQNO is signaled; 0 seconds polls; ETIME while it is pending.",
            ("2:1 5",),
            _ctl_wait,
        ),
    )
}


async def run_line(machine: Machine, command: Command, bo: BufferObject | None, words: list[str]) -> Result:
    """Run one line that was split into words."""
    if bo is None:
        return await command.run(machine, words)
    return await command.run(machine, bo, words)

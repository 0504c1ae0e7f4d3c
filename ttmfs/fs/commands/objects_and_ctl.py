"""Commands: what may be written into the command files of objects/ and ctl/, as tables.

The parser, the help text that a command file prints and the mount's README all come from OBJECT_COMMANDS and
CTL_COMMANDS.
"""

import errno
from collections.abc import Mapping
from typing import Final

from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.defrag_pass import defrag_pass
from ttmfs.driver.imported import import_bo
from ttmfs.driver.jobs import Job
from ttmfs.driver.suspend import unplug
from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import (
    Command,
    Machine,
    Result,
    no_more,
    page_range,
    parse_pages,
    parse_places,
    parse_seconds,
    take_backup_flags,
    take_options,
)
from ttmfs.fs.commands.jobs import JOB_USAGE, parse_job, run_job
from ttmfs.fs.commands.quoting import unescape
from ttmfs.fs.kernel.rights import READ, WRITE
from ttmfs.sync.resv import Usage
from ttmfs.ttm.bo import BufferObject
from ttmfs.units import parse_size

# -- objects/NAME/… --------------------------------------------------------------------------------------------------


async def _validate(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    placement, ctx = parse_places(machine, words)
    return await calls.validate_bo(machine.vdev, bo, placement, ctx)


async def _evict(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = take_options(words)
    no_more(words)
    return await calls.evict_one(machine.vdev, bo, ctx)


async def _pin(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    no_more(words)
    return await calls.pin(machine.vdev, bo)


async def _unpin(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    no_more(words)
    return await calls.unpin(machine.vdev, bo)


async def _unmap(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    first, pages = page_range(bo, words)
    return await calls.unmap(machine.vdev, bo, first, pages)


async def _wait(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    usage = Usage.BOOKKEEP
    rest = list(words)
    if rest and rest[0].upper() in Usage.__members__ and rest[0].islower():
        usage = Usage[rest.pop(0).upper()]
    timeout = machine.vdev.config.fault_timeout
    if rest:
        timeout = parse_seconds(rest.pop(0))
    no_more(rest)
    return await calls.wait_bo(machine.vdev, bo, usage, timeout)


async def _restore(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = take_options(words)
    no_more(words)
    return await calls.restore(machine.vdev, bo, ctx)


async def _backup(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = take_options(words)
    words, flags = take_backup_flags(words)
    no_more(words)
    return await calls.backup_one(machine.vdev, bo, flags, ctx)


async def _swapout(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = take_options(words)
    no_more(words)
    return await calls.swapout_one(machine.vdev, bo, ctx)


async def _defrag(machine: Machine, bo: BufferObject, words: list[str]) -> Result:
    words, ctx = take_options(words)
    no_more(words)
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
            "the range in pages. no_wait_gpu: EBUSY where its own move would wait for the device, ENOMEM where room "
            "would be waited for. interruptible: what every command is, said or not: a signal ends it with EINTR.",
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
            asks=True,
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
        Command(
            "backup",
            "[purge] [writeback] [no_wait_gpu]",
            "All its pages to the swap store, page by page: what finds no room stays in memory and the result says so. "
            "purge drops the content instead; writeback returns when it is on the disk.",
            ("", "writeback", "purge"),
            _backup,
        ),
        Command(
            "restore",
            "",
            "All its pages back from the swap store, and memory for every other page. Interrupted, it keeps where it "
            "stands and the next one goes on.",
            ("",),
            _restore,
        ),
    )
}


# -- ctl/… -----------------------------------------------------------------------------------------------------------


async def _ctl_validate(machine: Machine, words: list[str]) -> Result:
    if len(words) < 2:
        raise TtmError(errno.EINVAL, "say NAME[,NAME…] PLACE…, as in tex0,tex1 vram gtt")
    bos = machine.bos(words[0])
    placement, ctx = parse_places(machine, words[1:])
    return await calls.validate_many(machine.vdev, bos, placement, ctx)


async def _ctl_evict(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words)
    if not 1 <= len(words) <= 2:
        raise TtmError(errno.EINVAL, f"say REGION [BYTES|all], REGION one of {' '.join(machine.vdev.region_names)}")
    region = words[0]
    if region not in machine.vdev.region_names:
        raise no_such(region, "region", machine.vdev.region_names)
    size = None if len(words) == 1 or words[1] == "all" else parse_size(words[1])
    return await calls.evict_region(machine.vdev, region, size, ctx)


async def _ctl_submit(machine: Machine, words: list[str]) -> Result:
    wait = "wait" in words
    words, ctx = take_options([word for word in words if word != "wait"])
    job = parse_job(machine, words)
    return await run_job(machine.vdev, job, ctx, wait=wait)


async def _ctl_copy(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words)
    if len(words) != 2:
        raise TtmError(errno.EINVAL, "say SRC DST, two BOs")
    job = Job("copy", dst=machine.bo(unescape(words[1]), WRITE), srcs=(machine.bo(unescape(words[0]), READ),))
    return await run_job(machine.vdev, job, ctx, wait=False)


async def _ctl_wait(machine: Machine, words: list[str]) -> Result:
    if not 1 <= len(words) <= 2:
        raise TtmError(errno.EINVAL, "say FENCE [SECONDS], FENCE as CONTEXT:SEQNO or QUEUE:POINT")
    fence = machine.vdev.find_fence(words[0])
    timeout = parse_seconds(words[1]) if len(words) == 2 else machine.vdev.config.fault_timeout
    if fence is not None and not await fence.wait(timeout):
        raise TtmError(errno.ETIME, f"fence {words[0]} ({fence.what}) is still pending after {timeout:g} s")
    error = machine.vdev.fence_error(words[0])
    if error:
        raise TtmError(error, f"what fence {words[0]} stood for failed: see objects/*/status and the trace")
    return {}


async def _ctl_swapout(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words)
    if len(words) != 1:
        raise TtmError(errno.EINVAL, "say BYTES or all")
    return await calls.swapout_all(machine.vdev, parse_pages(words[0]), ctx)


async def _ctl_shrink(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words)
    words, flags = take_backup_flags(words)
    if len(words) != 1:
        raise TtmError(errno.EINVAL, "say BYTES or all, and perhaps purge or writeback")
    return await calls.shrink_all(machine.vdev, parse_pages(words[0]), flags, ctx)


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
    file = await import_bo(machine.vdev, machine.names, unescape(words[0]), path, mappable=len(words) == 3)
    return {"size": file.bo.size, "mappable": len(words) == 3}


async def _ctl_suspend(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words, ("interruptible",))
    no_more(words)
    calls.check_plugged(machine.vdev)
    return await machine.vdev.power.suspend(ctx)


async def _ctl_resume(machine: Machine, words: list[str]) -> Result:
    words, ctx = take_options(words, ("interruptible",))
    no_more(words)
    calls.check_plugged(machine.vdev)
    return await machine.vdev.power.resume(ctx)


async def _ctl_unplug(machine: Machine, words: list[str]) -> Result:
    no_more(words)
    calls.check_plugged(machine.vdev)
    result = await unplug(machine.vdev, (file.bo for file in machine.names.files.values()))
    await machine.svm.unplug()
    return result


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
            "A job of the compute engines over BOs; the result has its fence, its point in its queue, and its value "
            "with `wait`. Jobs of one queue run in order; those of others pass them by, but for BOs that both use and "
            "after=.",
            (
                "fill dst=tex0 value=7",
                "checksum src=tex0 wait",
                "saxpy a=2.5 x=tex0 y=tex1",
                "busy seconds=1 bo=tex0 queue=render",
                "fill dst=tex1 value=1 queue=copy after=render:1",
            ),
            _ctl_submit,
        ),
        Command(
            "swapout",
            "BYTES|all [no_wait_gpu]",
            "The least recently used of system and gtt to swap, until BYTES are out.",
            ("16M", "all"),
            _ctl_swapout,
        ),
        *(
            Command(
                name,
                "BYTES|all [purge] [writeback] [no_wait_gpu]",
                "The shrinker: what is purgeable (madvise dontneed) is dropped, then the least recently used of system "
                "and gtt go to the swap store, idle ones first, until BYTES have left memory. "
                "purge only drops; writeback returns when what is stored is on the disk.",
                ("16M", "all writeback", "all purge"),
                _ctl_shrink,
            )
            for name in ("backup", "shrink")
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
            "A BO over the memory of another file, with its owner and mode: never moved, and the CPU reaches it only "
            "if it is mappable. A link is not followed; what the file's owner cuts off is EIO.",
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
            "FENCE|QUEUE:POINT [SECONDS]",
            "Until a fence CONTEXT:SEQNO is signaled, or all jobs of a queue up to a point are done; 0 seconds polls; "
            "ETIME while it is pending.",
            ("2:1 5", "render:1"),
            _ctl_wait,
        ),
    )
}

"""The grammar of ctl/submit and of fences: words to a Job."""

import errno
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import DTYPES, Job
from ttmfs.driver.queues import DEFAULT, Priority
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.kernel.rights import READ, WRITE
from ttmfs.sync.fence import Fence
from ttmfs.ttm.context import OperationContext
from ttmfs.units import parse_size

_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "fill": ("dst", "value"),
    "copy": ("src", "dst"),
    "xor": ("src", "dst"),
    "add": ("src", "dst"),
    "saxpy": ("a", "x", "y"),
    "reduce": ("src",),
    "checksum": ("src",),
    "busy": ("seconds", "bo"),
}
_COMMON: Final = ("offset", "bytes", "dtype", "after", "queue", "priority", "point")
_ONLY_READ: Final = ("src", "x")
"""Words that name what is read only; `busy` keeps others from its BOs, as a write does."""
_FLOAT: Final = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")

MOST_BUSY: Final = 3600.0
MOST_BUSY_OF_A_USER: Final = 10.0
"""Seconds that a job may do nothing but keep an engine: as a driver's lockup timeout, so that everybody has a turn."""

JOB_USAGE: Final = (
    "fill dst=BO value=BYTE | copy|xor|add src=BO dst=BO | saxpy a=X x=BO y=BO | reduce|checksum src=BO | "
    "busy seconds=S bo=BO[,BO…]   [offset=N] [bytes=N] [dtype=u8|u32|i64|f32|f64] [after=FENCE|QUEUE:POINT] "
    "[queue=NAME [point=N]] [priority=low|normal|high] [no_wait_gpu] [wait]"
)


class JobWords:
    """The KEY=VALUE words of one job."""

    def __init__(self, machine: Machine, kind: str, words: list[str]) -> None:
        self.machine = machine
        allowed = (*_NEEDS[kind], *_COMMON)
        self.values: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in allowed:
                raise no_such(word, f"word of {kind}", [f"{name}=" for name in allowed])
            if key in self.values:
                raise TtmError(errno.EINVAL, f"{key}= is given twice")
            self.values[key] = value
        missing = [key for key in _NEEDS[kind] if key not in self.values]
        if missing:
            raise TtmError(errno.EINVAL, f"{kind} needs {' '.join(f'{key}=' for key in missing)}")

    def bo(self, key: str) -> Any:
        """One BO."""
        found = self.bos(key)
        if len(found) != 1:
            raise TtmError(errno.EINVAL, f"{key}= takes one BO")
        return found[0]

    def bos(self, key: str) -> tuple[Any, ...]:
        """BO[,BO…]; the caller must be allowed to do with them what the job does."""
        return tuple(self.machine.bos(self.values[key], READ if key in _ONLY_READ else WRITE))

    def number(self, key: str) -> float:
        """A decimal number."""
        text = self.values[key]
        if not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
            raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say a number")
        return float(text)

    def size(self, key: str, default: int | None) -> int | None:
        """A size in bytes."""
        return parse_size(self.values[key]) if key in self.values else default

    def fence(self) -> Fence | None:
        """after=FENCE."""
        return self.machine.vdev.find_fence(self.values["after"]) if "after" in self.values else None

    def queue(self) -> dict[str, Any]:
        """queue=NAME, point=N, priority=WORD, as a Job has them. TtmError: EACCES for what is only for the owner."""
        caller = self.machine.caller
        priority = self.values.get("priority", "normal")
        if not priority.islower() or priority.upper() not in Priority.__members__:
            raise no_such(priority, "priority", [level.name.lower() for level in Priority])
        if priority == "high" and not self.machine.owns():
            raise TtmError(errno.EACCES, "priority=high is for root and the user who mounted")
        return {
            "queue": self.machine.queue(self.values.get("queue", DEFAULT)),
            "uid": 0 if caller is None else caller.uid,
            "priority": Priority[priority.upper()],
            "point": self.size("point", None),
        }


def parse_job(machine: Machine, words: list[str]) -> Job:
    """The job. TtmError: EINVAL naming the word that is wrong, ENOENT for an unknown BO, EACCES for one of others."""
    plain = [word for word in words if "=" not in word]
    kind = plain[0] if plain else ""
    if kind not in _NEEDS:
        raise no_such(kind, "job", _NEEDS)
    words = list(words)
    words.remove(kind)
    given = JobWords(machine, kind, words)
    dtype = given.values.get("dtype", "f32" if kind == "saxpy" else "u8")
    if dtype not in DTYPES:
        raise no_such(dtype, "dtype", DTYPES)
    offset = given.size("offset", 0) or 0
    common: dict[str, Any] = {
        "offset": offset,
        "size": given.size("bytes", None),
        "dtype": dtype,
        "after": given.fence(),
        **given.queue(),
    }
    if kind == "busy":
        seconds = given.number("seconds")
        most = MOST_BUSY if machine.owns() else MOST_BUSY_OF_A_USER
        if not 0 <= seconds <= most:
            raise TtmError(errno.EINVAL, f"seconds={seconds:g}: say 0 to {most:g}")
        return Job(kind, srcs=given.bos("bo"), seconds=seconds, **common)
    if kind == "fill":
        value = parse_size(given.values["value"])
        if value > 255:
            raise TtmError(errno.EINVAL, f"value={value}: a byte is 0 to 255")
        return Job(kind, dst=given.bo("dst"), value=value, **common)
    if kind == "saxpy":
        return Job(kind, dst=given.bo("y"), srcs=(given.bo("x"),), factor=given.number("a"), **common)
    if kind in ("reduce", "checksum"):
        return Job(kind, srcs=(given.bo("src"),), **common)
    return Job(kind, dst=given.bo("dst"), srcs=(given.bo("src"),), **common)


async def run_job(vdev: VirtualDevice, job: Job, ctx: OperationContext, *, wait: bool) -> dict[str, Any]:
    """Submit; with `wait` until it is done, and say its value. TtmError(EIO) when it failed."""
    queued = await submit_job(vdev, job, ctx)
    result: dict[str, Any] = {
        "fence": queued.fence.name,
        "point": f"{job.queue}:{queued.point}",
        "bytes": queued.size,
        "bytes_moved": ctx.done.bytes_moved,
    }
    if wait:
        await queued.fence.wait()
        if queued.fence.error:
            raise TtmError(queued.fence.error, f"job {queued.fence.what} failed on the engine")
        if queued.value is not None:
            result["value"] = queued.value
    return result

"""A device from Python: what scripts, notebooks and tests use. `ttm_tools.Device` is this one.

    with Device.mount(vram="64M") as dev:
        bo = dev.bo("tex0", size="4M", placement="vram")
        bo.write(b"hello")
        bo.evict()
        print(bo.status["mem_type"], dev.stats["moves"]["bytes"])

What the device refuses is an OSError with its errno and its own sentence (CommandFailed); what concerns the whole mount
a MountError. No call waits for ever, whatever the mount does.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ttm_tools.bos import BufferObject, size_in_bytes
from ttm_tools.device import COMMAND_SECONDS, READ_SECONDS
from ttm_tools.device import Device as Files
from ttm_tools.errors import MountError
from ttm_tools.fence import Fence
from ttm_tools.mounting import Option, run, words_of
from ttm_tools.mounts import find_mount, mountpoints
from ttm_tools.traceformat import Event, complete_lines, parse_line
from ttm_tools.vms import Vm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POLL_SECONDS: Final = 0.01
Runner = Callable[[Iterable[str]], None]


class Failure(NamedTuple):
    """A line of error_log: when (local time), the errno's name, what was asked, why it failed, and who had asked
    (COMM-PID, `-` for nobody)."""

    when: str
    code: str
    what: str
    why: str
    who: str


class Settings:
    """Files with values that hold until a `with` block ends; `set` has been called when it is made."""

    def __init__(self, files: Files, values: dict[str, object]) -> None:
        """Write `values` (by path below the mount) in their order; what they were is put back by `undo`, last first."""
        self._files = files
        self._before: list[tuple[str, str]] = []
        try:
            for path, value in values.items():
                before = files.text(path).rstrip("\n")
                files.command(path, str(value))
                self._before.append((path, before))
        except BaseException:
            self.undo()
            raise

    def __enter__(self) -> "Settings":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Put back what was there. A second call does nothing."""
        while self._before:
            self._files.command(*self._before.pop())


class Trace:
    """Events of a device, recorded from `Device.trace` on until the `with` block ends or `stop`.

    Iterating gives what has happened and was not given yet, and ends; `follow` goes on as it happens.
    """

    def __init__(self, files: Files, words: str) -> None:
        self._files = files
        self._before = files.text("ctl/trace").splitlines()[0]
        files.drain("trace_pipe")
        files.command("ctl/trace", words)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Event]:
        return _events([self._files.drain("trace_pipe").encode("utf-8", "surrogateescape")])

    def follow(self) -> Iterator[Event]:
        """Events as they come; ends with the mount."""
        stream = self._files.stream("trace_pipe")
        try:
            yield from _events(iter(stream.read, b""))
        finally:
            stream.close()

    def stop(self) -> None:
        """Record again what was recorded before; what is in the ring can still be iterated."""
        if self._before:
            self._files.command("ctl/trace", self._before)
            self._before = ""


def _events(pieces: Iterable[bytes]) -> Iterator[Event]:
    return (event for line in complete_lines(pieces) if (event := parse_line(line)) is not None)


class Device:
    """A mounted device. A context manager: at the end what `mount` has mounted is unmounted.

    `path` is its mount point.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *,
        read_seconds: float = READ_SECONDS, command_seconds: float = COMMAND_SECONDS,
    ) -> None:  # fmt: skip
        """The device mounted at `path`; None: $TTMFS_MOUNT or the only one there is. MountError when it is none.

        `read_seconds` and `command_seconds`: how long a read and a command may take before the mount counts as hung.
        """
        self.path = find_mount(None if path is None else os.fspath(path))
        self.files = Files(self.path, read_seconds, command_seconds)
        self._unmount: Callable[[], None] | None = None

    @classmethod
    def mount(
        cls, mountpoint: str | os.PathLike[str] | None = None, *, ttmfs: Runner = run, **options: Option
    ) -> "Device":
        """Mount a device (`ttmfs mount`) and return when it is ready; `close` or the end of a `with` block unmounts it.

        `mountpoint`: an empty folder; None: a temporary one, which goes with the mount. `options` are those of
        `ttmfs mount`, with underscores: `vram="64M", visible_vram="16M", sync_moves=True, region=["stolen=16M:range"]`.
        `ttmfs` runs the command's words. MountError with ttmfs' sentence when it cannot be mounted.
        """
        made = mountpoint is None
        path = os.path.realpath(tempfile.mkdtemp(prefix="ttmfs-") if mountpoint is None else os.fspath(mountpoint))
        try:
            ttmfs(["mount", path, *words_of(options)])
            device = cls(path)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            raise

        def unmount() -> None:
            try:
                ttmfs(["umount", path])
            except MountError:
                if path in mountpoints():
                    ttmfs(["umount", "--force", path])
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)

        device._unmount = unmount
        return device

    def __enter__(self) -> "Device":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ttmfs device {self.path}>"

    def close(self) -> None:
        """Let it go, and unmount what was mounted by `mount` (by force, if somebody still uses it)."""
        self.files.close()
        unmount, self._unmount = self._unmount, None
        if unmount is not None:
            unmount()

    # -- BOs -------------------------------------------------------------------------------------------------------

    def bo(self, name: str, size: int | str | None = None, placement: str | None = None) -> BufferObject:
        """The BO of that name; it is made when there is none. `size` (`"4M"`) and `placement` (`"vram gtt"`: where it
        goes at its first use) are set when they are given. CommandFailed for a placement that is none."""
        found = BufferObject(self.files, name)
        self.files.file("make", f"bo/{name}", None if size is None else size_in_bytes(size))
        if placement is not None:
            found["placement"] = placement
        return found

    @property
    def bos(self) -> list[BufferObject]:
        """All there are."""
        return [BufferObject(self.files, name) for name in self.files.names()]

    def vm(self, name: str) -> Vm:
        """The VM of that name; it is made when there is none. OSError as mkdir: EACCES, ENOSPC, EDQUOT."""
        self.files.file("mkdir", f"vm/{name}")
        return Vm(self.files, name)

    @property
    def vms(self) -> list[Vm]:
        """All there are."""
        return [Vm(self.files, name) for name in self.files.entries("vm")]

    # -- commands --------------------------------------------------------------------------------------------------

    def command(self, name: str, words: str = "") -> dict[str, Any]:
        """Write `words` into ctl/`name`; the result, as in `{"ok": True, "bytes_moved": 4096}`."""
        results = self.files.command(f"ctl/{name}", words)
        return results[-1] if results else {}

    def submit(
        self, job: str, *, queue: str = "", priority: str = "", after: "Fence | str" = "", point: int | None = None
    ) -> Fence:
        """Submit a job, as in `"fill dst=a value=7"`: its fence. With `wait` in it `fence.result["value"]` is there.

        It runs in the order of its `queue`, behind `after`: a Fence, or `"QUEUE:POINT"`. `priority` is low, normal or
        high. `point` is its number in the queue, greater than the last; `fence.result["point"]` is what it has got.
        """
        words = {"queue": queue, "point": point, "priority": priority, "after": getattr(after, "name", after)}
        options = [f"{key}={value}" for key, value in words.items() if value not in ("", None)]
        return Fence(self.files, self.command("submit", " ".join([job, *options])))

    def evict(self, region: str, size: int | str | None = None) -> dict[str, Any]:
        """Evict the least recently used of a region until `size` bytes are free that were used; None: all."""
        return self.command("evict", region if size is None else f"{region} {size_in_bytes(size)}")

    # -- settings --------------------------------------------------------------------------------------------------

    def inject(
        self, place: str, probability: int = 100, times: int = -1, *,
        interval: int = 1, space: int = 0, bo: str = "", pid: int = 0,
    ) -> Settings:  # fmt: skip
        """Let debug/fail_`place` fail `probability` percent of its calls, each `interval`-th, at most `times` (-1: no
        limit), the first `space` units never; only calls for the BO named `bo` and on behalf of the process `pid`.

        Until the `with` block ends. CommandFailed for a place that is reached for no BO, or for no process.
        """
        values: dict[str, object] = {"interval": interval, "times": times, "space": space, "bo": bo, "pid": pid}
        values["probability"] = probability
        return Settings(self.files, {f"debug/fail_{place}/{key}": value for key, value in values.items()})

    def pause_engines(self) -> Settings:
        """Hold the copy engines before their next copy, until the `with` block ends."""
        return Settings(self.files, {"debug/pause_engine": 1})

    def configure(self, **knobs: str | float) -> Settings:
        """Set run-time knobs (ctl/config), as in `fault_timeout=0.5, copy_latency=0.1`; a `with` block undoes that.

        CommandFailed for an unknown one or a value that it does not take; nothing has changed then.
        """
        return _Knobs(self.files, knobs)

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def stats(self) -> dict[str, Any]:
        """MNT/stats, read now."""
        return self.files.stats()

    @property
    def error_log(self) -> list[Failure]:
        """The last failed commands and faults, oldest first."""
        lines = self.files.text("error_log").splitlines()
        return [Failure(*[*line.split("\t"), "-"][:5]) for line in lines if line.count("\t") >= 3]

    def trace(self, events: str = "all", bo: str = "") -> Trace:
        """Record `events` (`"evict move_end"`; `cat MNT/ctl/trace` lists them), of one BO if it is named."""
        return Trace(self.files, f"{events} bo={bo}" if bo else events)

    def draw(
        self, *regions: str, by: Literal["bo", "order"] = "bo", path: str | os.PathLike[str] | None = None
    ) -> "Figure":
        """Where the pages are, as ttm-map draws it: a matplotlib Figure, which a notebook shows. No `regions`: all.

        `path` writes it too (.png, .svg, .pdf). MountError for a name that is no region.
        """
        from ttm_tools.map import read_region  # noqa: PLC0415 - matplotlib takes long to load
        from ttm_tools.picture import draw  # noqa: PLC0415

        found = [read_region(self.files, name) for name in regions or self.files.regions()]
        return draw(found, None if path is None else os.fspath(path), by, f"{self.path}: pages by {by}")

    def selfcheck(self) -> list[str]:
        """What is wrong with the device's structures, as sentences; none."""
        lines = self.files.text("ctl/selfcheck").splitlines()
        return [] if lines == ["ok"] else lines

    def until(self, condition: Callable[[], object], seconds: float = 30.0, what: str = "it") -> None:
        """Wait until `condition()` is true, as in `dev.until(lambda: dev.stats["requests"]["waiting"])`.

        TimeoutError when it is not after `seconds`.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not happen in {seconds:g} s")
            time.sleep(_POLL_SECONDS)


class _Knobs(Settings):
    """Knobs of ctl/config."""

    def __init__(self, files: Files, knobs: dict[str, str | float]) -> None:
        lines = files.text("ctl/config").splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        files.command("ctl/config", " ".join(f"{key}={value}" for key, value in knobs.items()))
        self._files = files
        self._before = [("ctl/config", f"{key}={values[key]}") for key in knobs]

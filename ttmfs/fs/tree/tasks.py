"""Who waits for what in this daemon: a picture of all trio tasks, as the kernel's sysrq-t.

It promises to look only: no task runs, nothing is waited for. Tasks that wait in the same place for the same things are
one entry, so thousands of idle session tasks are one line. `kill -USR1 DAEMON` writes it to the daemon's log, after the
stacks of all threads (which come also from a loop that stands still); `debug/tasks` of the mount shows it.
"""

import faulthandler
import gc
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import trio

from ttmfs.sync.fence import Fence
from ttmfs.ttm.bo import BufferObject

log = logging.getLogger(__name__)

_KINDS: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
"""Of what can be awaited: the names of its frame, and of what it awaits itself."""
_DEEPEST: Final = 200
_TRAPS: Final = os.path.join("trio", "_core", "_traps.py")
"""Where every task of trio ends when it waits."""
_PACKAGE: Final = str(Path(__file__).resolve().parents[2]) + os.sep


def tasks_text() -> str:
    """All tasks of the running loop, the longest lived first: how many alike, the task's name, and a line for each of
    its frames from the outermost to what it waits in, with the BOs and fences that these hold.
    """
    alike: dict[tuple[str, ...], int] = {}
    for task in _tasks():
        entry = (_short(task.name), *_frames(task))
        alike[entry] = alike.get(entry, 0) + 1
    lines = [f"{sum(alike.values())} tasks\n"]
    for (name, *frames), count in alike.items():
        lines.append(f"{count}\t{name}\n")
        lines.extend(f"\t{frame}\n" for frame in frames)
    return "".join(lines)


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    left = [root] if root is not None else []
    while left:
        task = left.pop(0)
        yield task
        left.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)


def _frames(task: trio.lowlevel.Task) -> Iterator[str]:
    """Our own frames, and the last one whosesoever it is: that is where it waits."""
    frames = [frame for frame in _awaited(task.coro) if not frame.f_code.co_filename.endswith(_TRAPS)]
    for index, frame in enumerate(frames):
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE) or index == len(frames) - 1:
            where = path.removeprefix(_PACKAGE) if path.startswith(_PACKAGE) else "/".join(Path(path).parts[-2:])
            yield f"{where}:{frame.f_lineno} {frame.f_code.co_qualname}{_holds(frame)}"


def _awaited(coroutine: object) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, outermost first, through compiled ones (pyfuse3) as well."""
    for _ in range(_DEEPEST):
        kind = next((kind for kind in _KINDS if hasattr(coroutine, kind[0])), None)
        if kind is None:
            # What stands for a compiled coroutine while it is awaited names it to nobody but the garbage collector.
            held = [o for o in gc.get_referents(coroutine) if any(hasattr(o, kind[0]) for kind in _KINDS)]
            if len(held) != 1:
                return
            coroutine = held[0]
            continue
        if isinstance(frame := getattr(coroutine, kind[0]), FrameType):
            yield frame
        coroutine = getattr(coroutine, kind[1])


def _holds(frame: FrameType) -> str:
    """The BOs and fences among the local variables of a frame, in words."""
    said = []
    for name, value in frame.f_locals.items():
        if isinstance(value, BufferObject):
            said.append(f"{name}={value.name!r}")
        elif isinstance(value, Fence):
            said.append(f"{name}={repr(value)[1:-1]}")
    return f" ({', '.join(said)})" if said else ""


def _short(name: str) -> str:
    """A task's name without the address of what it is bound to."""
    return re.sub(r" of <([\w.]+) object at 0x\w+>", r" of \1", name)


async def dump_on_signal() -> None:
    """From now on SIGUSR1 writes stacks and tasks to the log, until cancelled."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        # A handler in C, which then calls the receiver's: it answers while the interpreter is busy elsewhere.
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
        try:
            async for _signum in signals:
                log.warning("tasks, because of SIGUSR1:\n%s", tasks_text())
        finally:
            faulthandler.unregister(signal.SIGUSR1)

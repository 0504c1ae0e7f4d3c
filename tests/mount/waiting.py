"""Who waits for what, when something on a mount has not ended in time: the daemon's threads and tasks (SIGUSR1, as
`debug/tasks`), and where each client process stands in the kernel. It only looks, and never hangs: nothing of it goes
through the mount.
"""

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.mount.mount_harness import Device, children
from ttmfs.fs.kernel import tuning

_PATIENCE = 10.0
"""Seconds for the daemon to write it down; stacks of threads come also from a loop that stands still."""
_MARK = "tasks, because of SIGUSR1"


def what_everybody_waits_for(device: Device, clients: Iterable[int]) -> str:
    """All of it as text; `clients` are process ids, their children are looked at too."""
    lines = [f"requests that the kernel has: {_waiting(device.connection)}"]
    for pid in clients:
        with contextlib.suppress(OSError):
            for each in (pid, *children(pid)):
                lines += _stands(each)
    return "\n".join([*lines, _tasks(device)])


def _waiting(connection: int) -> str:
    try:
        return (Path(tuning.FUSECTL, str(connection), "waiting")).read_text().strip()
    except OSError as error:
        return str(error)


def _stands(pid: int) -> Iterator[str]:
    """A line for each thread that is in the kernel for longer than a glance: its state, call, and stack if we may."""
    for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            name, _, rest = (thread / "stat").read_text().partition("(")[2].rpartition(")")
            said = [f"{pid}/{thread.name} {name} {rest.split()[0]}", (thread / "wchan").read_text()]
            with contextlib.suppress(OSError):
                said.append("call " + " ".join((thread / "syscall").read_text().split()[:4]))
            with contextlib.suppress(OSError):
                stack = (thread / "stack").read_text().splitlines()
                said.append(" < ".join(line.partition("] ")[2].partition("+")[0] for line in stack[:8]))
            yield " | ".join(said)


def _tasks(device: Device) -> str:
    """What the daemon says of itself from now on."""
    if not device.alive:
        return "the daemon has ended"
    before = len(device.log())
    device.daemon.popen.send_signal(signal.SIGUSR1)
    end = time.monotonic() + _PATIENCE
    while _MARK not in device.log()[before:] and time.monotonic() < end:
        time.sleep(0.05)
    return device.log()[before:]

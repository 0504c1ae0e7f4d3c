"""Signals of client processes, read from /proc: pyfuse3 hands no interrupts on.

While a thread waits for the answer to its WRITE the kernel runs no handler of it: what is sent to it stays pending, and
is what can be seen here. A command ends for a signal that says "stop" (SIGINT, SIGTERM, SIGHUP, SIGQUIT) and for any
that will kill. It goes on for what the client only takes note of (SIGCHLD, SIGURG, SIGWINCH, the SIGALRM or SIGPROF of
a profiler), as the kernel restarts a call under a handler with SA_RESTART: whether a handler has that flag, /proc does
not say. Stop signals wait until the command has ended.

A WRITE does not say which thread it is of, so the thread that opened the file counts, with what is pending for it alone
and for its process, as far as it does not block it. Once it is gone, each thread of its process counts. SIGKILL counts
wherever it is: the kernel gives it to all threads of a process that dies.
"""

import os
import signal
from dataclasses import dataclass
from typing import Final


def _mask(*numbers: int) -> int:
    return sum(1 << (number - 1) for number in numbers)


_STOP: Final = _mask(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""End a command even where the client catches them."""
_KILL: Final = _mask(signal.SIGKILL)
"""Cannot be caught, blocked or ignored."""
_HARMLESS: Final = _mask(
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""Do not kill a process that does not catch them."""

_FIELDS: Final = (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt")


@dataclass(frozen=True, slots=True)
class Masks:
    """What /proc/TID/status says of one thread; bit n - 1 is signal n."""

    tgid: int
    threads: int
    """Of its process, those that have ended and were not waited for included."""
    ended: bool
    """A zombie, or dead: it waits for nothing."""
    pending: int
    """For the thread alone, and for its process."""
    blocked: int
    ignored: int
    caught: int

    @property
    def deliverable(self) -> int:
        """Signals that the thread will take when it is back from the kernel."""
        return self.pending & (~self.blocked | _KILL)

    @property
    def ending(self) -> int:
        """Those of them that end a command."""
        fatal = ~(self.caught | self.ignored | _HARMLESS)
        return self.deliverable & (_KILL | (_STOP & ~self.ignored) | fatal)


def parse_status(status: bytes) -> Masks:
    """The masks in the text of a status file. ValueError when it is none."""
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    try:
        private, shared, blocked, ignored, caught = (int(fields[name], 16) for name in _FIELDS)
        ended = fields[b"State"].strip()[:1] in b"ZXx"
        tgid, threads = int(fields[b"Tgid"]), int(fields[b"Threads"])
        return Masks(tgid, threads, ended, private | shared, blocked, ignored, caught)
    except KeyError as missing:
        raise ValueError(f"no status of a thread: {missing} is not there") from None


def masks_of(tid: int) -> Masks | None:
    """The masks of a thread as they are now; None when there is no such thread, or it is hidden."""
    try:
        with open(f"/proc/{tid}/status", "rb", buffering=0) as status:
            return parse_status(status.read())
    except (OSError, ValueError):
        return None


def signal_pending(tid: int) -> bool:
    """Will this thread take any signal at all when it is back from the kernel?"""
    masks = masks_of(tid)
    return masks is not None and bool(masks.deliverable)


def sees_our_files(tid: int) -> bool:
    """Has this thread the daemon's root folder and mounts, so that a path is the same file for both? Not if unknown."""
    try:
        theirs, ours = ([os.readlink(f"/proc/{who}/{what}") for what in ("root", "ns/mnt")] for who in (tid, "self"))
        return theirs == ours
    except OSError:
        return False


class Opener:
    """The thread that opened a command file, and its process."""

    __slots__ = ("_tgid", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._tgid = 0
        """0 until its process is known."""

    def told_to_end(self) -> bool:
        """Has it a signal pending that ends a command? Some system calls for each thread of the process."""
        masks = masks_of(self.tid)
        counts = -1
        if masks is not None:
            self._tgid = masks.tgid
            if masks.ending:
                return True
            if not masks.ended:
                if masks.threads == 1:
                    return False
                counts = _KILL
        return self._tgid != 0 and any(_ending(tid) & counts for tid in self._other_threads())

    def _other_threads(self) -> list[int]:
        try:
            tids = [int(name) for name in os.listdir(f"/proc/{self._tgid}/task")]
        except OSError:
            return []
        return [tid for tid in tids if tid != self.tid]


def _ending(tid: int) -> int:
    masks = masks_of(tid)
    return 0 if masks is None or masks.ended else masks.ending

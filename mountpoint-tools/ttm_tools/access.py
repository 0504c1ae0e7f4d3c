"""Access to files that may never answer: a child process does the system calls, and has a time limit.

A process that is inside a FUSE request cannot be killed until the request is answered, and a thread of it keeps the
whole process. So this process never touches the mount; what hangs is a child that nobody waits for. The child is
started at the first call. Standard error of the child goes nowhere: a stuck child must not hold a pipe that somebody
reads to its end.
"""

import contextlib
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

_TOUCHER: Final = str(Path(__file__).with_name("toucher.py"))


class NotAnswered(Exception):  # noqa: N818 - it says what happened
    """A call did not return in its time, or an earlier one has still not returned."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer for {seconds:.0f} s")
        self.seconds = seconds


class Access:
    """One child. Calls are run one after another; threads may share it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._pending = b""
        self._unanswered_since: float | None = None

    def call(self, what: str, /, *arguments: object, seconds: float) -> Any:
        """Run one of toucher's functions; its value.

        OSError with the call's errno, or NotAnswered. After NotAnswered the next calls fail at once until the child
        has answered the one that hangs; that answer is thrown away.
        """
        with self._lock:
            self._post(what, arguments)
            return self._value(seconds)

    def post(self, what: str, /, *arguments: object) -> None:
        """Begin a call; `value` waits for it. NotAnswered when an earlier one has still not returned."""
        with self._lock:
            self._post(what, arguments)

    def value(self, seconds: float) -> Any:
        """What the call that was begun returns: as `call`, but after NotAnswered it may be asked for again."""
        with self._lock:
            return self._value(seconds)

    @property
    def pid(self) -> int:
        """Of the child; 0 before the first call and after `close`."""
        return 0 if self._child is None else self._child.pid

    def ended_by(self) -> int:
        """The number of the signal that has ended the child, 0 for none. After an EOFError or BrokenPipeError."""
        if self._child is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        return max(0, -(self._child.returncode or 0))

    def _post(self, what: str, arguments: tuple[object, ...]) -> None:
        child = self._started()
        self._drop_late_answer(child)
        data = pickle.dumps((what, *arguments))
        self._unanswered_since = time.monotonic()
        assert child.stdin is not None
        # A request fits in the pipe or is read at once: the child reads whole requests while it waits for one.
        child.stdin.write(struct.pack("!Q", len(data)) + data)
        child.stdin.flush()

    def _value(self, seconds: float) -> Any:
        assert self._child is not None
        status, value = self._answer(self._child, time.monotonic() + seconds)
        self._unanswered_since = None
        if status == "errno":
            raise OSError(value, os.strerror(value))
        return value

    def close(self) -> None:
        """Let the child go. It is given a moment to end, and never waited for."""
        child, self._child = self._child, None
        if child is not None:
            let_go(child)

    def _started(self) -> "subprocess.Popen[bytes]":
        child = self._child
        if child is None or (child.poll() is not None):
            self._pending = b""
            self._unanswered_since = None
            child = self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", _TOUCHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # ^C is this process's to handle; a child that dies of it would look like a dead mount.
                start_new_session=True,
            )
        return child

    def _drop_late_answer(self, child: "subprocess.Popen[bytes]") -> None:
        since = self._unanswered_since
        if since is None:
            return
        try:
            self._answer(child, time.monotonic())
        except NotAnswered:
            raise NotAnswered(time.monotonic() - since) from None
        self._unanswered_since = None

    def _answer(self, child: "subprocess.Popen[bytes]", end: float) -> tuple[str, Any]:
        header = self._exactly(child, 8, end)
        (length,) = struct.unpack("!Q", header)
        try:
            data = self._exactly(child, length, end)
        except NotAnswered:
            self._pending = header + self._pending
            raise
        answer: tuple[str, Any] = pickle.loads(data)
        return answer

    def _exactly(self, child: "subprocess.Popen[bytes]", count: int, end: float) -> bytes:
        assert child.stdout is not None
        started = self._unanswered_since or time.monotonic()
        parts, have = [self._pending], len(self._pending)
        while have < count:
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(child.stdout.fileno(), 1 << 20) if ready else b""
            if not data:
                self._pending = b"".join(parts)
                if ready:
                    raise EOFError("the child process that touches the mount has ended")
                raise NotAnswered(time.monotonic() - started)
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._pending = whole[count:]
        return whole[:count]


class Stream:
    """A trace_pipe, read by a child of its own. `fileno` is readable when there is something, or at its end."""

    def __init__(self, path: str, seconds: float = 5.0) -> None:
        """OSError when it cannot be opened, NotAnswered when that hangs."""
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", _TOUCHER, "stream", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        self._errors = b""
        first = self._error_line(seconds)
        if first != "open":
            self.close()
            if not first:
                raise NotAnswered(seconds)
            number = int(first.removeprefix("errno "))
            raise OSError(number, os.strerror(number))

    def fileno(self) -> int:
        """For select."""
        assert self._child.stdout is not None
        return self._child.stdout.fileno()

    def read(self) -> bytes:
        """What is there; b"" at the end. Blocks while there is nothing."""
        return os.read(self.fileno(), 1 << 20)

    def failure(self) -> int:
        """After the end: the errno that it ended with, or 0."""
        line = self._error_line(0.2)
        return int(line.removeprefix("errno ")) if line.startswith("errno ") else 0

    def finish(self) -> None:
        """No more than what is there by now: `read` gives it, and then b""."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()

    def close(self) -> None:
        """End it."""
        let_go(self._child)

    def _error_line(self, seconds: float) -> str:
        """One line of the child's standard error; "" when there is none in time."""
        assert self._child.stderr is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._errors:
            ready, _, _ = select.select([self._child.stderr], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._child.stderr.fileno(), 4096) if ready else b""
            if not data:
                return ""
            self._errors += data
        line, _, self._errors = self._errors.partition(b"\n")
        return line.decode()


def let_go(child: "subprocess.Popen[bytes]") -> None:
    """Close the pipes of a child, kill it if it has not ended soon, and do not wait for one that is stuck."""
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    for _ in range(2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.3)
            return
        child.kill()
    # Reaped by nobody here: it is inside a request, and ends when that does. Its Popen must not complain of that.
    child.returncode = 0

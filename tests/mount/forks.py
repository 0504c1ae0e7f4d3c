"""Forks: daemons under test, and their clients, as forks of processes that have loaded all they need: that is most of
what the start of one takes.

`Forked` is what subprocess.Popen would be. A process that forks (`daemon.py --forks`) has no threads, keeps nothing of
what it hands on, ends with the test run, and says of each child how it ended.
"""

import contextlib
import functools
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from typing import IO, Any

_LIMIT = 1 << 20


# -- the side of the tests ---------------------------------------------------------------------------------------------


@functools.cache
def _forker(*program: str) -> socket.socket:
    """The connection to the process that forks, begun when it is first asked for, as long as this process lives."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, *program, "--forks", str(theirs.fileno())]
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), cwd="/")
    popen.returncode = 0  # nobody waits for it: it ends when this process has
    return ours


class Forked:
    """A process that runs `program` (options of Python, and a file) with `arguments`. `stderr` is an open file."""

    def __init__(self, program: tuple[str, ...], arguments: list[str], stderr: IO[Any]) -> None:
        self._program = program
        self.returncode: int | None = None
        stdin, to_daemon = os.pipe()
        from_daemon, stdout = os.pipe()
        self._status, status = os.pipe()
        try:
            forker = _forker(*program)
            request = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
            socket.send_fds(forker, [request], [stdin, stdout, stderr.fileno(), status])
        finally:
            for descriptor in (stdin, stdout, status):
                os.close(descriptor)
        self.stdin: IO[bytes] = os.fdopen(to_daemon, "wb")
        self.stdout: IO[bytes] = os.fdopen(from_daemon, "rb", buffering=0)
        self.pid = int(self._told())

    def _told(self) -> str:
        """The next that the forking process says of it: its id, then its status."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self._status, 1)
            if not part:
                raise EOFError("the process that forks has ended")
            line += part
        return line.decode()

    def poll(self) -> int | None:
        """Its status, minus the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. subprocess.TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self._program, timeout or 0.0)
            self.returncode = int(self._told())
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


# -- the side that forks -----------------------------------------------------------------------------------------------


def forked(descriptor: int) -> list[str]:
    """Fork for each that is asked for: returns in the children only, with their arguments; SystemExit at the end."""
    gc.collect()
    gc.freeze()
    selector = selectors.DefaultSelector()
    asked = socket.socket(fileno=descriptor)
    selector.register(asked, selectors.EVENT_READ)
    while True:
        for key, _events in selector.select():
            if key.fileobj is not asked:
                _say_how_it_ended(*key.data)
                selector.unregister(key.fileobj)
                os.close(key.fd)
                continue
            request, descriptors, _flags, _address = socket.recv_fds(asked, _LIMIT, 4)
            if not request:
                raise SystemExit(0)
            child = os.fork()
            if not child:
                # Or they would be closed when they are collected, and whatever has their numbers by then.
                selector.close()
                asked.detach()
                return _become(json.loads(request), descriptors)
            status = descriptors.pop()
            for handed_on in descriptors:
                os.close(handed_on)
            os.write(status, b"%d\n" % child)
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, status))


def _say_how_it_ended(child: int, status: int) -> None:
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(status, b"%d\n" % ended)
    os.close(status)


def _become(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """What a process has that was just begun: its own input, output and environment, and nothing else open."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, 4096)
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments: list[str] = request["arguments"]
    return arguments

"""Starting and, whatever happens, ending the toy servers and clients of these tests.

Nothing here touches a mount point from the test process: a wedged one would hang it.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttmfs.fs.kernel import tuning

HERE = Path(__file__).resolve().parent


class Process:
    """A subprocess that speaks JSON lines."""

    def __init__(self, *command: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        self._pending = b""

    def send(self, message: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(message).encode() + b"\n")
        self.popen.stdin.flush()

    def receive(self, timeout: float = 10.0) -> Any:
        assert self.popen.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("no answer from the subprocess")
            data = os.read(self.popen.stdout.fileno(), 65536)
            if not data:
                raise EOFError("the subprocess ended")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def ask(self, *message: object, timeout: float = 10.0) -> Any:
        self.send(list(message))
        return self.receive(timeout)

    def wait(self, timeout: float) -> int:
        return self.popen.wait(timeout)


class Server(Process):
    """A toy server; `connection` is its FUSE connection, `answers` what came out of turn."""

    def __init__(self, mountpoint: str, options: dict[str, Any]) -> None:
        self.mountpoint = mountpoint
        self.answers: dict[int, Any] = {}
        self._serial = 0
        super().__init__(str(HERE / "toy_server.py"), mountpoint, json.dumps(options))
        self.ready = self.receive(15.0)
        self.connection: int = self.ready["connection"]

    def begin(self, name: str, **arguments: object) -> int:
        self._serial += 1
        self.send([self._serial, name, arguments])
        return self._serial

    def result(self, number: int, timeout: float = 10.0) -> Any:
        while number not in self.answers:
            answer = self.receive(timeout)
            self.answers[answer["id"]] = answer
        return self.answers.pop(number)

    def do(self, name: str, timeout: float = 10.0, **arguments: object) -> Any:
        return self.result(self.begin(name, **arguments), timeout)

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout: float = 10.0) -> dict[str, Any]:
        """The first status for which `condition` holds."""
        end = time.monotonic() + timeout
        while True:
            status: dict[str, Any] = self.do("status")
            if condition(status):
                return status
            assert time.monotonic() < end, f"never came: {status}"
            time.sleep(0.01)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            # Otherwise the connection is gone, and its number may be that of another mount by now.
            if tuning.connection_number(self.mountpoint) == self.connection:
                tuning.abort_connection(self.connection)
                tuning.lazy_unmount(self.mountpoint)
        self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)


def cat(mountpoint: str, name: str, count: int = 16, timeout: float = 5.0) -> bytes:
    """Read `count` bytes of a file through the mount in a killable process."""
    done = subprocess.run(
        ["head", "-c", str(count), f"{mountpoint}/{name}"], capture_output=True, timeout=timeout, check=True
    )
    return done.stdout

"""Devices and clients of the mount tests: started, asked with a time limit, and ended whatever happens.

Nothing here touches a mount point from the test process. A Device is a fork of `daemon.py` with a control channel; a
Client is one of `mount_client.py` that runs snippets in the mount.
"""

import contextlib
import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mount.forks import Forked
from ttmfs.fs.kernel import tuning

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
DAEMON = (str(HERE / "daemon.py"),)
CLIENT = ("-I", "-S", str(HERE / "mount_client.py"))
PAGE = 4096
MIB = 1 << 20

PATIENCE = 4.0
"""The limits in the tests are those of an idle machine. So many times as long an answer may take, and no test is
quicker or slower for it: what comes is not waited for, and what must not come is asked with `Client.waits`."""

STANDARD = ("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")
"""Options of a device that needs no others."""

SUSPICIOUS = re.compile(r"Traceback|handler failed| ERROR |\bfailed$|Exception ignored")
"""What a daemon's log must not contain."""

HARMLESS = re.compile(r"fuse_reply_\* failed with")
"""The connection was aborted before the reply."""


class Hang(AssertionError):  # noqa: N818 - it is a finding
    """Something did not end in its time."""


class Line:
    """A process that speaks JSON lines on its standard input and output."""

    def __init__(self, popen: Forked) -> None:
        self.popen = popen
        self._pending = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, message: object) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()

    def receive(self, timeout: float) -> Any:
        """The next answer. Hang when there is none in time, EOFError when the process ended."""
        assert self.popen.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Hang(f"no answer within {timeout:g} s")
            data = os.read(self.popen.stdout.fileno(), 1 << 20)
            if not data:
                raise EOFError("the subprocess ended")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def close_pipes(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class ClientError(OSError):
    """A client's system call failed."""


class Client(Line):
    """A process that uses the mount."""

    def __init__(self, mountpoint: str) -> None:
        super().__init__(Forked(CLIENT, [mountpoint], sys.__stderr__ or sys.stderr))
        self.receive(20 * PATIENCE)
        self.seconds = 0.0
        """What the last snippet took, on the client's clock."""

    def begin(self, code: str) -> "Client":
        """Start a snippet; `result` waits for it."""
        self.send(code)
        return self

    def result(self, timeout: float = 10.0) -> Any:
        """Its value. ClientError with its errno, Hang when it does not end, EOFError when the process died."""
        answer = self.receive(timeout * PATIENCE)
        self.seconds = answer["seconds"]
        if "traceback" in answer:
            raise AssertionError(answer["traceback"])
        if "errno" in answer:
            raise ClientError(answer["errno"], os.strerror(answer["errno"] or 0))
        return _decode(answer["value"])

    def waits(self, seconds: float = 1.0) -> bool:
        """Whether it has no answer after so many seconds."""
        try:
            self.receive(seconds)
        except Hang:
            return True
        return False

    def do(self, code: str, timeout: float = 10.0) -> Any:
        """Run a snippet."""
        return self.begin(code).result(timeout)

    def errno(self, code: str, timeout: float = 10.0) -> str:
        """The name of the errno that a snippet fails with, or "ok"."""
        try:
            self.do(code, timeout)
        except ClientError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        return "ok"

    def died(self, timeout: float = 10.0) -> int:
        """Wait for the process to end; minus the signal that ended it."""
        return self.popen.wait(timeout * PATIENCE)

    def end(self) -> None:
        self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)
        self.close_pipes()


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return value["bytes"].encode("latin-1")
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


class Device:
    """A mounted device in a subprocess. `options` are those of `ttmfs mount`, `patches` those of rules.py."""

    def __init__(self, *options: str, patches: tuple[str, ...] = ()) -> None:
        self.mountpoint = tempfile.mkdtemp(prefix="ttmfs test ")
        self.log_path = self.mountpoint + ".log"
        self.clients: list[Client] = []
        self.allowed: list[str] = []
        """Regular expressions of log lines that this test expects."""
        self._log_seen = 0
        self._serial = 0
        self._shell: Client | None = None
        self.connection = -1
        with open(self.log_path, "wb") as log:
            self.daemon = Line(Forked(DAEMON, [*patches, "--", self.mountpoint, *options], log))
        try:
            self.connection = self.daemon.receive(30 * PATIENCE)["connection"]
        except BaseException as error:
            log_text = self.log()
            self.end()
            raise AssertionError(f"the daemon did not come up:\n{log_text}") from error

    # -- the daemon ------------------------------------------------------------------------------------------------

    def control(self, what: str, /, *, timeout: float = 10.0, **arguments: object) -> Any:
        """Ask the daemon's control channel (holds.Control)."""
        self._serial += 1
        self.daemon.send([self._serial, what, arguments])
        while (answer := self.daemon.receive(timeout * PATIENCE))["id"] != self._serial:
            pass
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["value"]

    def until(self, condition: Callable[[], Any], timeout: float = 5.0, why: str = "") -> Any:
        """Poll a condition; what it returned when it was true."""
        end = time.monotonic() + timeout * PATIENCE
        while not (value := condition()):
            if time.monotonic() > end:
                raise Hang(f"never came within {timeout * PATIENCE:g} s: {why or condition}")
            time.sleep(0.005)
        return value

    def hold(self, name: str, **how: Any) -> None:
        """Arm a hold."""
        self.control("hold", name=name, **how)

    def until_held(self, name: str, count: int = 1) -> None:
        """Until somebody waits at a hold."""
        self.until(lambda: self.control("held", name=name) >= count, why=f"nobody reached the hold {name}")

    def release(self, name: str) -> None:
        """Let go what is held."""
        self.control("release", name=name)

    def until_parked(self, count: int = 1, timeout: float = 5.0) -> None:
        """Until so many READs and WRITEs wait."""
        self.until(lambda: self.control("parked") >= count, timeout, why=f"{count} parked requests")

    def stats(self) -> dict[str, Any]:
        """The stats object, from the control channel."""
        value: dict[str, Any] = self.control("stats")
        return value

    def status(self, name: str) -> dict[str, Any]:
        """status of one BO, from the control channel."""
        value: dict[str, Any] = self.control("statuses")[name]
        return value

    def rss(self) -> int:
        """Resident bytes of the daemon."""
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS:"))

    @property
    def alive(self) -> bool:
        return self.daemon.popen.poll() is None

    def log(self) -> str:
        """Everything the daemon said so far."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def suspicious(self) -> list[str]:
        """New log lines that no healthy daemon writes, and that this test did not allow."""
        text = self.log()
        new, self._log_seen = text[self._log_seen :], len(text)
        if any(re.search(pattern, new) for pattern in self.allowed):
            return []
        return [line for line in new.splitlines() if SUSPICIOUS.search(line) and not HARMLESS.search(line)]

    # -- clients ---------------------------------------------------------------------------------------------------

    def client(self, code: str = "") -> Client:
        """A new client, which has run `code`."""
        client = Client(self.mountpoint)
        self.clients.append(client)
        if code:
            client.do(code)
        return client

    @property
    def shell(self) -> Client:
        """A client for what needs none of its own."""
        if self._shell is None or self._shell.popen.poll() is not None:
            self._shell = self.client()
        return self._shell

    def command(self, name: str, text: str, timeout: float = 10.0) -> str:
        """Write into a command file; "ok" or the errno's name."""
        code = self.shell.do(f"command({name!r}, {text!r})", timeout)
        return errno.errorcode[code] if code else "ok"

    def begin_command(self, name: str, text: str) -> Client:
        """The same in a client of its own, without waiting: the client's result is the errno, or 0."""
        return self.client().begin(f"command({name!r}, {text!r})")

    def transact(self, name: str, text: str | bytes, timeout: float = 10.0) -> tuple[str, list[dict[str, Any]]]:
        """Write into a command file opened O_RDWR: ("ok" or errno's name, the JSON lines)."""
        code, lines = self.shell.do(f"transact({name!r}, {text!r})", timeout)
        return errno.errorcode[code] if code else "ok", lines

    def make(self, name: str, size: int, fill: int | None = None, place: str = "") -> None:
        """A BO, filled, and validated to a place; waits for its copies."""
        self.shell.do(f"make({'bo/' + name!r}, {size}, {fill})", 30)
        if place:
            assert self.command(f"objects/{name}/validate", place) == "ok"
            assert self.command(f"objects/{name}/wait", "kernel 10", 15) == "ok"

    def remove_all(self) -> None:
        """End all clients and unlink every BO and address space."""
        self.end_clients()
        self.shell.do(
            "def clear(top):\n"
            "    for entry in os.scandir(top):\n"
            "        if entry.is_dir(follow_symlinks=False): clear(entry.path); os.rmdir(entry.path)\n"
            "        else: os.unlink(entry.path)\n"
        )
        self.shell.do("clear(path(b'bo')); clear(path(b'svm'))")

    # -- the end ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Between two tests of one mount: nothing held, nothing paused, no clients, no BOs."""
        for name in ("validate", "inval", "invalled", "copy", "create", "open", "svm_inval", "svm_invalled"):
            self.release(name)
        self.control("restore_handlers")
        assert self.command("debug/pause_engine", "0") == "ok"
        self.remove_all()
        self.allowed.clear()

    def end_clients(self) -> None:
        """SIGKILL all clients."""
        for client in self.clients:
            client.popen.kill()
        for client in self.clients:
            client.end()
        self.clients.clear()
        self._shell = None

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM; the daemon's exit status."""
        self.daemon.popen.send_signal(signal.SIGTERM)
        try:
            return self.daemon.popen.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            raise Hang(f"the daemon did not end within {timeout * PATIENCE:g} s of SIGTERM") from None

    def abort(self) -> None:
        """Fail every request, now and for ever."""
        if self.connection >= 0:
            tuning.abort_connection(self.connection)

    def _mounted(self) -> bool:
        """Is the mount, still or already without its daemon, where it was?"""
        try:
            return tuning.connection_number(self.mountpoint) == self.connection
        except OSError:
            return False

    def end(self) -> None:
        """Abort, detach, kill, wait, remove: never hangs."""
        if self.alive or self._mounted():
            # Otherwise the connection is gone, and its number may be that of another mount by now.
            self.abort()
        with contextlib.suppress(OSError):
            if tuning.connection_number(self.mountpoint) == self.connection:
                tuning.lazy_unmount(self.mountpoint)
        self.end_clients()
        self.daemon.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.popen.wait(5)
        self.daemon.close_pipes()
        with contextlib.suppress(OSError):
            # Only when nothing is mounted there any more.
            tuning.lazy_unmount(self.mountpoint)
        with contextlib.suppress(OSError):
            os.rmdir(self.mountpoint)
        with contextlib.suppress(OSError):
            os.unlink(self.log_path)


def children(pid: int) -> list[int]:
    """All living descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def have_fuse() -> bool:
    """Can this user mount here?"""
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and (os.geteuid() == 0 or shutil.which("fusermount3") is not None)

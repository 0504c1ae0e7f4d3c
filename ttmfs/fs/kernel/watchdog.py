"""The watchdog process: the way out when the daemon can no longer help its clients.

A client in a page fault cannot be killed until its READ is answered, and a daemon that is stopped, stuck or half
dead (a zombie leader with one thread inside an INVAL) answers nothing and does not even close its connection. So a
separate process, which never touches the mount, watches the daemon and then aborts the connection through fusectl
and detaches the mount. It promises that a client waits no longer than `timeout` plus two seconds.

The daemon writes a byte to a pipe every half second. The watchdog acts when

* no byte came for `timeout` seconds (stopped, looping, frozen; time spent in system suspend does not count);
* the pipe ended without the goodbye byte (the daemon is gone);
* the daemon's leader thread is a zombie or gone for a second, or in state D for `timeout` seconds.

On the goodbye byte it ends without doing anything. It imports nothing but the standard library and the equally bare
`ttmfs.fs.kernel.tuning`; run it as `python -m ttmfs.fs.kernel.watchdog`, or from the daemon with the class `Watchdog`.
"""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ttmfs.fs.kernel import tuning

_BEAT = b"."
_GOODBYE = b"q"
_STEP = 0.7
"""Seconds between two looks at the leader when no byte comes: as long as they come, each is the only wake-up."""
_HELD_UP = 1.0
"""Seconds by which a look is late when this process itself did not run."""
_ZOMBIE_GRACE = 1.0
_BEAT_INTERVAL = 0.5


@dataclass(frozen=True)
class Ward:
    """Who is watched.

    `pid` of the daemon and when it was `born` (clock ticks; None: gone already), its `connection` number and
    `mountpoint`, seconds of silence allowed, and the descriptor of the connection's abort file (-1: not available).
    """

    pid: int
    born: int | None
    connection: int
    mountpoint: str
    timeout: float
    abort_fd: int = -1


class Watchdog:
    """The daemon's side. Start it after daemonizing (the pid counts) and when the mount is ready.

    Attributes: `process` the watchdog process, `lost` True when it has died or ended before the daemon did.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", pipe_fd: int) -> None:
        self.process = process
        self.lost = False
        self._pipe_fd = pipe_fd

    @classmethod
    def start(cls, mountpoint: str, *, timeout: float = 20.0, log: str | None = None) -> "Watchdog":
        """Start the process for the mount at `mountpoint` that this process serves.

        `timeout` is in seconds, at least 2 heartbeats (ValueError below 1); `log` a file its one line is appended to
        (it always goes to stderr too, if that is still open). Mounts fusectl if it can. Raises TtmError when nothing
        is mounted there, OSError when no process can be started.
        """
        if timeout < 2 * _BEAT_INTERVAL:
            raise ValueError(f"a watchdog timeout of {timeout} s is shorter than two heartbeats")
        connection = tuning.connection_number(mountpoint)
        read_fd, write_fd = os.pipe()
        abort_fd = -1
        try:
            with contextlib.suppress(OSError):
                abort_fd = tuning.open_abort(connection)
            os.set_blocking(write_fd, False)  # a stopped watchdog must not stop the daemon
            command = [
                sys.executable, "-P", "-m", "ttmfs.fs.kernel.watchdog", "--pipe", str(read_fd),
                "--pid", str(os.getpid()), "--connection", str(connection), "--timeout", str(timeout),
                "--mountpoint", os.path.abspath(mountpoint), "--abort", str(abort_fd),
            ]  # fmt: skip
            if log is not None:
                command += ["--log", os.path.abspath(log)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=True,
                pass_fds=(read_fd,) if abort_fd < 0 else (read_fd, abort_fd),
                start_new_session=True, env=_environment(), cwd="/",
            )  # fmt: skip
        except BaseException:
            os.close(write_fd)
            raise
        finally:
            os.close(read_fd)
            if abort_fd >= 0:
                os.close(abort_fd)
        return cls(process, write_fd)

    def beat(self) -> None:
        """One heartbeat; never blocks. A watchdog that is gone sets `lost`."""
        if self._pipe_fd < 0:
            return
        try:
            os.write(self._pipe_fd, _BEAT)
        except BlockingIOError:
            pass
        except OSError:
            self.lost = True

    async def heartbeat(self, interval: float = _BEAT_INTERVAL) -> None:
        """Beat every `interval` seconds until cancelled: a task of the loop whose health it proves."""
        import trio  # noqa: PLC0415  (the watchdog process itself must not load it)

        while True:
            self.beat()
            await trio.sleep(interval)

    def stop_clean(self, wait: float = 2.0) -> None:
        """Say goodbye: the mount is the daemon's own business from here on. Waits up to `wait` s for the process."""
        if self._pipe_fd < 0:
            return
        with contextlib.suppress(OSError):
            os.set_blocking(self._pipe_fd, False)
            os.write(self._pipe_fd, _GOODBYE)
        os.close(self._pipe_fd)
        self._pipe_fd = -1
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            # It is stopped, or its pipe was full and the goodbye lost: it must not act on the end of the pipe.
            self.process.kill()
            self.process.wait()


def _environment() -> dict[str, str]:
    """This environment, with this process's import path: the package may not be installed."""
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{package_root}:{path}" if path else package_root}


def _leader(pid: int) -> tuple[str, int] | None:
    """State letter and start time (clock ticks) of the leader thread of `pid`, None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (fields[0].decode(), int(fields[19])) if len(fields) > 19 else None


def watch(ward: Ward, pipe_fd: int) -> str | None:
    """Block until the daemon says goodbye (None) or needs help (the reason, as a sentence)."""
    poller = select.poll()
    poller.register(pipe_fd, select.POLLIN)
    now = last_beat = last_alive = last_awake = time.monotonic()
    while True:
        if poller.poll(_STEP * 1000):
            data = os.read(pipe_fd, 65536)
            if _GOODBYE in data:
                return None
            if not data:
                return "the daemon is gone without saying goodbye"
            last_beat = time.monotonic()
        # After the pipe: a watchdog that was itself held up must not take its own delay for the daemon's.
        previous, now = now, time.monotonic()
        own_delay = now - previous
        if own_delay > _STEP + _HELD_UP:
            last_beat, last_alive, last_awake = last_beat + own_delay, last_alive + own_delay, last_awake + own_delay
        leader = _leader(ward.pid)
        state = leader[0] if leader is not None and leader[1] == ward.born else "X"
        if state not in "ZX":
            last_alive = now
        if state != "D":
            last_awake = now
        if now - last_alive > _ZOMBIE_GRACE:
            return "the daemon's leader thread is dead but its connection is held open"
        if now - last_awake > ward.timeout:
            return f"the daemon's leader thread is in an uninterruptible wait for {ward.timeout:g} s"
        if now - last_beat > ward.timeout:
            return f"no heartbeat of the daemon for {ward.timeout:g} s"


def rescue(ward: Ward) -> list[str]:
    """Abort the connection and detach the mount; what was done, as sentences. Never raises, never blocks on it."""
    done = []
    reason = _abort(ward)
    if reason is not None and (where := _where(ward)) is not None:
        done.append(reason)
        reason = tuning.force_unmount(where)
    if reason is None:
        done.append(f"connection {ward.connection} aborted")
    else:
        done.append(reason)
        # No abort is allowed to us: closing the daemon's descriptors is the only way left to free its clients.
        leader = _leader(ward.pid)
        if leader is not None and leader[1] == ward.born:
            with contextlib.suppress(OSError):
                os.kill(ward.pid, signal.SIGKILL)
                done.append(f"killed the daemon (pid {ward.pid})")
    if (where := _where(ward)) is not None:
        reason = tuning.lazy_unmount(where)
        done.append(f"{where} unmounted" if reason is None else reason)
    return done


def _abort(ward: Ward) -> str | None:
    """Abort through the descriptor opened at the start: by now the number may be another connection's."""
    if ward.abort_fd < 0:
        return "the connection's abort file could not be opened"
    try:
        os.write(ward.abort_fd, b"1")
    except OSError as exc:
        return f"connection {ward.connection} could not be aborted: {exc.strerror}"
    return None


def _where(ward: Ward) -> str | None:
    """Where this connection is mounted now: not what was mounted at its old place since, nor what has its number."""
    known = ward.abort_fd >= 0
    if known and not tuning.is_same_connection(ward.abort_fd, ward.connection):
        return None
    if tuning.is_mounted_at(ward.connection, ward.mountpoint):
        return ward.mountpoint
    with contextlib.suppress(OSError):
        return tuning.mountpoint_of(ward.connection) if known else None
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the process: 0 after a goodbye, 1 after a rescue."""
    parser = argparse.ArgumentParser(prog="ttmfs.fs.kernel.watchdog", description="watches a ttmfs daemon")
    parser.add_argument("--pipe", type=int, required=True, help="descriptor the heartbeats come from")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--connection", type=int, required=True)
    parser.add_argument("--mountpoint", required=True)
    parser.add_argument("--abort", type=int, default=-1, help="descriptor of the connection's abort file")
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--log", help="file to append the one line to")
    options = parser.parse_args(argv)
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    leader = _leader(options.pid)
    ward = Ward(
        options.pid, leader[1] if leader else None, options.connection, options.mountpoint, options.timeout,
        options.abort,
    )  # fmt: skip
    reason = watch(ward, options.pipe)
    if reason is None:
        return 0
    line = f"ttmfs watchdog: {reason}: {'; '.join(rescue(ward))}\n"
    if options.log:
        with contextlib.suppress(OSError), open(options.log, "a", encoding="utf-8", errors="replace") as file:
            file.write(line)
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""What the daemon's tasks wait for is told in `debug/tasks`, and in the log at SIGUSR1, which ends nothing."""

import os
import signal

from tests.mount.mount_harness import MIB, Device


def test_who_waits_for_what(device: Device) -> None:
    device.make("tex0", 4 * MIB, 0x41, "vram")
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/tex0/evict", "\n") == "ok"
    waiter = device.begin_command("objects/tex0/wait", "kernel 60")
    text: list[str] = []

    def told() -> bool:
        text[:] = [device.shell.do("open(path('debug/tasks')).read()")]
        return "bo='tex0'" in text[0]

    device.until(told, 20, why="tex0 in debug/tasks")
    assert "pending" in text[0]
    # All the way down, not only the frames of the file system.
    assert all(frame in text[0] for frame in ("fs/commands/runner.py:", "driver/calls.py:", "sync/resv.py:"))
    os.kill(device.daemon.pid, signal.SIGUSR1)
    device.until(lambda: "bo='tex0'" in device.log(), 20, why="tex0 in the log")
    log = device.log()
    assert "tasks, because of SIGUSR1" in log
    assert "Current thread" in log, "the stacks of all threads come too"
    assert device.command("debug/pause_engine", "0") == "ok"
    assert waiter.result(20) == 0

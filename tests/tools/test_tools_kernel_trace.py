"""A recording laid beside the kernel's own trace: while a fault lasts, the kernel has its client asleep."""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device
from ttm_tools.traceformat import parse

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "16M", "--memory", "32M")
Run = Callable[..., CompletedProcess[str]]
LATENCY = 0.5
"""Seconds that the copy takes for which the fault waits."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of the kernel, 0xEFFFFFFC."""
SWITCH = re.compile(
    r"(?P<when>\d+\.\d{6}): sched_switch: .*prev_pid=(?P<before>\d+) .* ==> .* next_pid=(?P<after>\d+) "
)
CLIENT = 'echo $$ > "$CLIENT_PID"; echo > "$TTMFS_MOUNT/objects/a/evict"; exec head -c 1 "$TTMFS_MOUNT/bo/a"'


@pytest.fixture
def kernel_trace() -> Iterator[Path]:
    """A buffer of the kernel's of its own (an ftrace instance), with the clock that the documents name."""
    folder = tempfile.mkdtemp(prefix="ttmfs-tracefs-")
    instance = Path(folder, "instances", f"ttmfs-test-{os.getpid()}")
    try:
        done = subprocess.run(["mount", "-t", "tracefs", "none", folder], capture_output=True, timeout=20, check=False)
        if done.returncode:
            pytest.skip("the kernel's trace is not to be had: it takes root, and a kernel with ftrace")
        try:
            instance.mkdir()
            if os.readlink("/proc/self/ns/pid") != FIRST_PID_NAMESPACE:
                pytest.skip("in a process namespace: the kernel's trace has other process ids than programs have here")
            if not (instance / "events/sched/sched_switch/enable").exists():
                pytest.skip("this kernel has no event sched_switch")
            (instance / "trace_clock").write_text("mono")
            (instance / "events/sched/sched_switch/filter").write_text('prev_comm == "head" || next_comm == "head"')
            yield instance
        finally:
            with contextlib.suppress(OSError):
                instance.rmdir()
            subprocess.run(["umount", "-l", folder], timeout=20, check=False)
    finally:
        os.rmdir(folder)


def asleep(text: str, pid: str) -> list[tuple[float, float]]:
    """When a process had no processor, by the kernel: seconds of its clock."""
    found, since = [], None
    for line in text.splitlines():
        switch = SWITCH.search(line)
        if switch and switch["before"] == pid:
            since = float(switch["when"])
        elif switch and switch["after"] == pid and since is not None:
            found.append((since, float(switch["when"])))
            since = None
    return found


def together(device: Device, run: Run, folder: Path, kernel_trace: Path) -> float:
    """Seconds of a client's longest fault, as recorded, in which the kernel has it asleep at one stretch."""
    recording, pid_file = folder / "a.trace", folder / "pid"
    words = ("record", "fault", "-m", device.mountpoint, "-o", str(recording), "--", "bash", "-c", CLIENT)
    (kernel_trace / "trace").write_text("")
    (kernel_trace / "events/sched/sched_switch/enable").write_text("1")
    done = run("trace", *words, mount=device.mountpoint, CLIENT_PID=str(pid_file))
    (kernel_trace / "events/sched/sched_switch/enable").write_text("0")
    assert done.returncode == 0, done.stderr
    pid = pid_file.read_text().strip()
    faults = [event for event in parse(recording.read_text().splitlines()).events if str(event.pid) == pid]
    longest = max(faults, key=lambda event: int(event.facts["latency_us"]))
    begin, end = longest.when - int(longest.facts["latency_us"]) / 1e6, longest.when
    assert end - begin > LATENCY * 0.6
    naps = asleep((kernel_trace / "trace").read_text(), pid)
    return max((min(end, until) - max(begin, since) for since, until in naps), default=0.0)


def test_a_fault_stands_where_the_kernel_has_its_client_asleep(
    device: Device, run: Run, tmp_path: Path, kernel_trace: Path
) -> None:
    device.make("a", MIB, 7, "vram")
    assert device.command("ctl/config", f"copy_latency={LATENCY}") == "ok"
    # On a machine with much other work the kernel's buffer may lack one end of a nap: once is proof.
    assert any(together(device, run, tmp_path, kernel_trace) > LATENCY * 0.6 for _ in range(4))

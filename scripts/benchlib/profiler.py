"""`scripts/bench SUBCOMMAND --profile FOLDER`: what the daemon does while it is measured.

py-spy if it is there (it names Python functions and those of native code), else perf. Every device that the subcommand
mounts has a file of its own, in the order of mounting. A profiler takes time itself: the rates of such a run are not
to be compared with those of another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.device import Device, ScriptError

from .common import console

SAMPLES_A_SECOND = "250"
END_SECONDS = 120.0


def beside_every_device(folder: Path) -> None:
    """From now on every device of this script is profiled into `folder`. ScriptError when nothing here can do that."""
    tool = _py_spy() or shutil.which("perf")
    if tool is None:
        raise ScriptError(
            f"there is neither py-spy nor perf to profile with: {sys.executable} -m pip install py-spy"
            " (or apt-get install linux-perf)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Python from 3.12 names its functions for perf when told to; older ones ignore this.
    os.environ["PYTHONPERFSUPPORT"] = "1"
    numbers = iter(range(1, 1_000_000))

    @contextlib.contextmanager
    def profiled(device: Device) -> Iterator[None]:
        with _profile(tool, daemon_of(device), folder / f"device-{next(numbers)}"):
            yield

    Device.beside.append(profiled)


def daemon_of(device: Device) -> int:
    """The process that serves the mount: it has the mount in its command line and /dev/fuse open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(device.mount) in words and any(
                os.readlink(fd) == "/dev/fuse" for fd in (process / "fd").iterdir()
            ):
                return int(process.name)
    raise ScriptError(f"no process here serves {device.mount}")


def _py_spy() -> str | None:
    beside_python = Path(sys.executable).parent / "py-spy"
    return str(beside_python) if beside_python.exists() else shutil.which("py-spy")


@contextlib.contextmanager
def _profile(tool: str, pid: int, name: Path) -> Iterator[None]:
    if tool.endswith("py-spy"):
        result = name.with_suffix(".svg")
        options = ["record", "--native", "--rate", SAMPLES_A_SECOND, "--output", str(result)]
    else:
        result = name.with_suffix(".perf")
        options = ["record", "-q", "-g", "-F", SAMPLES_A_SECOND, "--output", str(result)]
    with subprocess.Popen([tool, *options, "--pid", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        try:
            yield
        finally:
            run.send_signal(signal.SIGINT)
            try:
                said, _ = run.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                run.kill()
                said, _ = run.communicate()
    if not result.exists():
        raise ScriptError(f"{tool} wrote no profile: {said.decode(errors='replace').strip()[-800:]}")
    if result.suffix == ".perf":
        result = _readable(tool, result)
    console.print(f"profile: {result}", soft_wrap=True)


def _readable(tool: str, recorded: Path) -> Path:
    report = [tool, "report", "--stdio", "--no-children", "--input", str(recorded)]
    done = subprocess.run(report, capture_output=True, text=True, timeout=END_SECONDS, check=False)
    text = recorded.with_suffix(".txt")
    text.write_text(done.stdout or done.stderr)
    return text

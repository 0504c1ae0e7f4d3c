"""The exerciser of files (tests/exerciser.py) on the BOs of a mounted device, until it has met what it is to meet."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.mount.mount_harness import REPOSITORY, Device

RUNS = 10
"""So often at most: a run on a busy machine gets less done."""


def exercise(device: Device, files: int, *options: str, seconds: int, met: Callable[[dict[str, Any]], bool]) -> None:
    """Run it on BOs e0, e1, … for `seconds`, again and again until `met` says so of the device's statistics.

    AssertionError with its last lines (which name the seed) when it found something, or when RUNS were not enough.
    """
    device.shell.do(f"[os.close(opened('bo/e%d' % n, os.O_CREAT | os.O_RDWR)) for n in range({files})] and None")
    command = [
        sys.executable,
        str(REPOSITORY / "tests" / "exerciser.py"),
        *(f"{device.mountpoint}/bo/e{n}" for n in range(files)),
        *("--ctl", device.mountpoint, "--seconds", str(seconds), *options),
    ]
    verified = accepted = runs = 0
    while not (verified and accepted > 5 and met(device.stats())):
        assert runs < RUNS, f"{runs} runs of {seconds} s have not met it: {device.stats()}"
        runs += 1
        out = _run(device, command, seconds + 140)
        totals = json.loads(out.splitlines()[-1])
        verified += totals["verified_bytes"]
        accepted += totals["ctl"]["counts"].get("ok", 0)
    requests = device.stats()["requests"]
    assert (requests["write_errors"], requests["handler_errors"]) == (0, 0)


def _run(device: Device, command: list[str], patience: float) -> str:
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, _ = runner.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        device.abort()
        runner.kill()
        raise
    assert runner.returncode == 0, out[-6000:]
    return out

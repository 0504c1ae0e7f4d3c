"""What ttm-trace records of programs on a mount, ttmfs replay makes again: the same moves in the same order."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "64M", "--memory", "128M", "--placement", "vram gtt")
VRAM = 8 * MIB
Run = Callable[..., CompletedProcess[str]]

PROGRAM = """
import os, random, sys
top, seed, steps = os.environ["TTMFS_MOUNT"], int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
names = []

def write(file, text):
    fd = os.open(os.path.join(top, file), os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

def make():
    name = f"{seed}-{len(names)}-{rng.random()}"
    with open(os.path.join(top, "bo", name), "wb") as file:
        os.ftruncate(file.fileno(), rng.randrange(1, 9) << 18)
    names.append(name)

for _ in range(12):
    make()
for _ in range(steps):
    some = rng.sample(names, 3)
    what = rng.randrange(6)
    if what < 2:
        write(f"objects/{some[0]}/validate", "vram")
    elif what == 2:
        write("ctl/validate", ",".join(some[:2]) + " vram")
    elif what == 3:
        write("ctl/submit", f"copy dst={some[0]} src={some[1]}")
    elif what == 4:
        with open(os.path.join(top, "bo", some[0]), "rb") as file:
            os.pread(file.fileno(), 4096, 0)
    elif rng.randrange(4) == 0:
        write(f"objects/{some[0]}/wait", "bookkeep 20")
        os.unlink(os.path.join(top, "bo", some[0]))
        names.remove(some[0])
        make()
"""


def replay(trace: Path, evict: str = "lru") -> tuple[dict[str, object], str]:
    """The row, and what is said besides."""
    command = [sys.executable, "-m", "ttmfs", "replay", str(trace), "--size", str(VRAM), "--json"]
    done = subprocess.run(
        [*command, "--evict", evict, "--engine", "device"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    return row, done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def record(run: Run, device: Device, trace: Path, *command: str) -> None:
    arguments = ("record", "--replay", "-m", device.mountpoint, "-o", str(trace))
    done = run("trace", *arguments, "--", *command)
    assert done.returncode == 0, done.stderr


def test_one_client_s_moves_are_made_again_in_order(device: Device, run: Run, tmp_path: Path, program: Path) -> None:
    trace = tmp_path / "day.trace"
    record(run, device, trace, sys.executable, str(program), "3", "200")
    moves = [line for line in trace.read_text().splitlines() if "move_end" in line and "errno=0" in line]
    moves = [line for line in moves if "=vram" in line]
    assert len(moves) > 100
    row, said = replay(trace)
    assert row["differs"] == "", row["differs"]
    assert row["evictions"] == sum("evict=1" in line for line in moves)
    assert "recorded" not in said
    # Another policy makes others.
    assert "moves were recorded" in str(replay(trace, "mru")[0]["differs"])


def test_what_a_policy_did_in_the_mount_it_does_in_a_replay(
    device: Device, run: Run, tmp_path: Path, program: Path
) -> None:
    trace = tmp_path / "day.trace"
    assert device.command("policies/evict", "vram fifo") == "ok"
    record(run, device, trace, sys.executable, str(program), "4", "120")
    assert device.command("policies/evict", "vram lru") == "ok"
    assert replay(trace, "fifo")[0]["differs"] == ""


def test_of_several_clients_the_differences_are_counted(
    device: Device, run: Run, tmp_path: Path, program: Path
) -> None:
    trace = tmp_path / "day.trace"
    both = f"{sys.executable} {program} 5 80 & {sys.executable} {program} 6 80 & wait"
    record(run, device, trace, "bash", "-c", both)
    row, said = replay(trace)
    if row["differs"]:
        assert f"{row['differs']}" in said
    assert int(str(row["requests"])) > 100

"""ttm-storm on a mount: what it counts, what ends it, that it repeats itself, and that no byte changes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]


def fill(device: Device) -> list[str]:
    names = [f"b{number}" for number in range(8)]
    for number, name in enumerate(names):
        device.make(name, 3 * MIB, number + 1)
    return names


def test_a_storm_changes_no_byte_and_takes_its_pins_back(device: Device, run: Run) -> None:
    names = fill(device)
    done = run("storm", device.mountpoint, "--seconds", "30", "--writes", "300", "--seed", "11", "--json")
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)
    assert totals["writes"] == sum(totals["results"].values()) == sum(totals["words"].values())
    assert totals["results"]["ok"] > 20
    assert totals["words"].get("pin")
    assert "seed 11" in done.stderr
    assert sum(device.status(name)["moves"] for name in names) > 0
    for number, name in enumerate(names):
        assert device.status(name)["pin_count"] == 0
        assert device.shell.do(f"sorted(set(os.pread(opened('bo/{name}'), {3 * MIB}, 0)))", 20) == [number + 1]


def test_the_same_seed_writes_the_same_commands(mounted: Callable[..., Device], run: Run) -> None:
    counts = []
    for _ in range(2):
        device = mounted(*MOUNT_OPTIONS)
        fill(device)
        arguments = ("--seconds", "60", "--seed", "5", "--commands", "validate,pin", "--rate", "100000")
        done = run("storm", device.mountpoint, *arguments, "--writes", "60")
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        counts.append({row[1]: row[2] for row in rows if row[0] == "command"})
    assert counts[0] == counts[1]
    assert sum(map(int, counts[0].values())) == 60


def test_an_errno_that_is_no_part_of_it_ends_it(mounted: Callable[..., Device], run: Run) -> None:
    device = mounted(*MOUNT_OPTIONS)
    fill(device)
    assert device.command("ctl/unplug", "\n") == "ok"
    done = run("storm", device.mountpoint, "--seconds", "30", "--commands", "validate", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["results"] == {"ENODEV": 1}
    assert "ENODEV" in done.stderr
    done = run("storm", device.mountpoint, "--seconds", "1", "--commands", "validate", "--allow", "ENODEV")
    assert done.returncode == 0, done.stderr


def test_words_that_it_has_not(device: Device, run: Run) -> None:
    done = run("storm", device.mountpoint, "--seconds", "1")
    assert done.returncode == 2
    assert "no BO" in done.stderr
    fill(device)
    done = run("storm", device.mountpoint, "--commands", "explode")
    assert done.returncode == 2
    assert "'explode' is none of" in done.stderr
    done = run("storm", device.mountpoint, "--allow", "EWHAT")
    assert done.returncode == 2
    done = run("storm", device.mountpoint, "nobody", "--seconds", "1")
    assert done.returncode == 2
    assert "no BO nobody" in done.stderr


def test_term_ends_it_with_its_counts(device: Device) -> None:
    fill(device)
    tool = Path(sys.executable).with_name("ttm-storm")
    with subprocess.Popen(
        [tool, device.mountpoint, "--seconds", "600", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as storm:
        assert storm.stderr is not None
        assert "seed" in storm.stderr.readline()
        before = device.stats()["moves"]["count"]
        device.until(lambda: device.stats()["moves"]["count"] > before, 20, "the storm's first move")
        storm.send_signal(signal.SIGTERM)
        out, err = storm.communicate(timeout=30)
    assert storm.returncode == 0, err
    assert json.loads(out)["writes"] > 0


def test_the_shell_script_is_a_storm_too(device: Device) -> None:
    fill(device)
    script = Path(__file__).resolve().parents[2] / "scripts" / "storm"
    done = subprocess.run(
        [script, device.mountpoint, "1", "b0", "b1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "STORM_WORDS": "validate evict", "STORM_SEED": "3"},
    )
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout.splitlines()[-1])
    assert set(totals["words"]) <= {"validate", "evict"}
    assert totals["results"]["ok"] > 0
    assert totals["unexpected"] == 0

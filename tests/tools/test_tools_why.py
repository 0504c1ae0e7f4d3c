"""ttm-why on a real device: one command says who evicted a BO, for whom, and who had asked."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ttm_tools import Device
from ttm_tools.why import concerns, now

pytestmark = pytest.mark.mount


@pytest.mark.ttmfs(vram="4M", gtt="8M")
def test_one_command_says_why_a_bo_was_evicted(ttmfs_device: Device, run: Callable[..., Any]) -> None:
    for name in ("old one", "new"):
        ttmfs_device.bo(name, size="3M").validate("vram")
    with pytest.raises(OSError, match="ENOMEM"):
        ttmfs_device.bo("huge", size="64M").validate("vram")
    done = run("why", ttmfs_device.path, "old one")
    assert done.returncode == 0, done.stderr
    *_, evicted, moved, last = done.stdout.splitlines()
    who = r"\([^()]+-\d+: room for 'new', new validate vram\)"
    assert re.fullmatch(rf"[\d:]+ 'old one' vram to gtt: was evicted, 3M {who}", moved)
    assert "'old one' has to leave vram: room for 'new', and nobody stood before it" in evicted
    assert last == "old one: 3M in gtt, placement system, evictions: 1"
    assert ttmfs_device.bo("old one").status["last_move"] == moved
    # The one that it was done for knows of it too.
    assert evicted in run("why", "new", mount=ttmfs_device.path).stdout.splitlines()
    huge = run("why", "huge", mount=ttmfs_device.path)
    assert re.search(r"ENOMEM: no room for .*\([^()]+-\d+: huge validate vram\)\n", huge.stdout)
    everything = [json.loads(line) for line in run("why", "--json", mount=ttmfs_device.path).stdout.splitlines()]
    assert {"evict", "move", "error"} <= {entry["kind"] for entry in everything}
    assert len(run("why", "-n", "2", mount=ttmfs_device.path).stdout.splitlines()) == 2
    unknown = run("why", "nobody", mount=ttmfs_device.path)
    assert unknown.returncode == 1
    assert "there is no BO 'nobody'" in unknown.stderr
    # Whoever asks by a command is in error_log too.
    assert re.fullmatch(r".+-\d+", ttmfs_device.error_log[-1].who)


@pytest.mark.ttmfs(vram="4M", gtt="8M")
def test_a_fault_says_whose_file_it_was(ttmfs_device: Device) -> None:
    bo = ttmfs_device.bo("a", size="1M", placement="vram")
    with bo.client() as client:
        with ttmfs_device.trace("fault", bo="a") as trace:
            client.touch(write=b"x")
            (fault, *_) = [event for event in trace if event.name == "fault"]
        assert fault.pid == client.pid
        assert re.search(rf"-{client.pid}: (READ|WRITE) of a\)", bo.status["last_move"])


def test_what_concerns_a_bo_and_where_it_is() -> None:
    assert concerns({"bo": "a", "other": ""}, "a")
    assert concerns({"bo": "b", "other": "a"}, "a")
    assert not concerns({"bo": "b", "other": "c"}, "a")
    status = {
        "name": "a", "size": 4096, "mem_type": "system", "placement": "", "backed_up_pages": 1, "pin_count": 2,
        "fences": ["1:2"], "evictions": 3,
    }  # fmt: skip
    assert now(status) == (
        "a: 4K in system, placement none, 1 pages in the swap store, pinned (2), so nobody moves it, waits for 1:2, "
        "evictions: 3"
    )

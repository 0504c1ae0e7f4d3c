"""ttm-why on a real device: one command says who evicted a BO, for whom, and who had asked."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ttm_tools import CommandFailed, Device
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
    # A path of its file says which mount.
    assert run("why", ttmfs_device.bo("old one").path).stdout == done.stdout
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


@pytest.mark.ttmfs(vram="4M", gtt="8M")
def test_a_vm_says_why_its_bos_do_not_go_for_each_other(ttmfs_device: Device, run: Callable[..., Any]) -> None:
    dev = ttmfs_device
    vm = dev.vm("my game")
    for number, name in enumerate(("a", "b b")):
        vm.own(dev.bo(name, placement="vram"))
        vm.bind(number << 30, dev.bo(name, size="3M"))
    vm.exec("fill 0 3M 1")
    with pytest.raises(OSError, match="3M of that is BOs local to its VM, which go for it only with allow_res_evict"):
        vm.exec("fill 1G 3M 2")
    told = run("why", dev.path, "a").stdout
    assert "local to the VM my game: jobs can use it where it is, mappings: 1, came back for jobs: 0; " in told
    assert "for other BOs of this VM it goes only after allow_res_evict is 1\n" in told
    assert "no room for 'b b'" in told, "the job that has failed was its VM's"
    vm.allow_res_evict = True
    vm.exec("fill 1G 3M 2")
    told = run("why", dev.path, "a").stdout
    assert "'a' has to leave vram: room for 'b b'" in told
    assert "it was evicted, or moved, since a job could use it: the next exec brings it back" in told
    assert "it goes only where a job of the VM does not touch it" in told


@pytest.mark.ttmfs(vram="4M", gtt="8M")
def test_a_vm_from_python(ttmfs_device: Device, tmp_path: Path) -> None:
    dev = ttmfs_device
    vm, bo = dev.vm("game"), dev.bo("a, b", size=5000)
    assert [each.name for each in dev.vms] == ["game"]
    assert dev.vm("game").stats["mappings"] == 0, "it is there already"
    bo.write(b"abcd")
    vm.bind("1G", bo)
    assert vm.exec("read 1G 4").result["data"] == b"abcd".hex()
    file = tmp_path / "a frame"
    file.write_bytes(b"file" * 2048)
    assert vm.userptr("2G", file, "4K", "4K", read_only=True)["access"] == "ro"
    assert [tuple(row) for row in vm.maps] == [
        (1 << 30, (1 << 30) + 8192, "a, b", 0, "rw", "system"),
        (2 << 30, (2 << 30) + 4096, str(file.resolve()), 4096, "ro", "userptr"),
    ]
    assert vm.bos[0] == ("a, b", 5000, "system", False, 1, "usable", 0)
    with pytest.raises(CommandFailed, match="is bound read-only"):
        vm.exec("fill 2G 1 0")
    fence = vm.exec("fill 1G 4 120", queue="render", wait=False)
    fence.wait()
    assert (bo.read(5), fence.result["point"]) == (b"xxxx\0", "render:1")
    assert vm.unbind("1G", "8K")["pages"] == 2
    with pytest.raises(CommandFailed, match="nothing is bound"):
        vm.exec("read 1G 4")
    vm.remove()
    assert dev.vms == []
    assert dev.selfcheck() == []


def test_what_concerns_a_bo_and_where_it_is() -> None:
    assert concerns({"bo": "a", "other": ""}, "a")
    assert concerns({"bo": "b", "other": "a"}, "a")
    assert not concerns({"bo": "b", "other": "c"}, "a")
    assert concerns({"bo": "vm/game", "other": ""}, "a", "game")
    assert not concerns({"bo": "vm/", "other": ""}, "a")
    status = {
        "name": "a", "size": 4096, "mem_type": "system", "placement": "", "backed_up_pages": 1, "pin_count": 2,
        "fences": ["1:2"], "evictions": 3,
    }  # fmt: skip
    assert now(status) == (
        "a: 4K in system, placement none, 1 pages in the swap store, pinned (2), so nobody moves it, waits for 1:2, "
        "evictions: 3"
    )

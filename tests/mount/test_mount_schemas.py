"""What a mount answers is what docs/schemas/ says: stats, status.json, and the results of every command."""

import json
import os
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Device
from tests.schemas import SCHEMAS, faults

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "4M", "--gtt", "8M", "--memory", "16M", "--swap", "16M")
SCRIPT = """\
objects/a/validate vram
objects/a/pin
objects/a/unpin
objects/a/unmap
objects/a/wait
objects/a/evict
objects/a/swapout
objects/a/restore
objects/a/backup
objects/a/defrag
objects/a/validate nowhere
objects/b/madvise normal
ctl/validate a,b vram
ctl/submit fill dst=a value=7
ctl/submit reduce src=a dtype=f32 wait
ctl/submit checksum src=a wait
ctl/copy a b
ctl/evict vram all
ctl/swapout all
ctl/shrink all
ctl/shrink all purge
ctl/defrag
ctl/defrag all
ctl/suspend
ctl/resume
policies/evict vram fifo
svm_objects/heap/gpu fill 0 4K 7
svm_objects/heap/gpu atomic_add 0 1
svm_objects/heap/gpu_read read 0 16
svm_objects/heap/gpu_read checksum 0 4K
svm_objects/heap/prefetch 0 2M vram
svm_objects/heap/madvise 0 4K preferred=system
svm_objects/heap/unmap 0 4K
svm_objects/heap/map 0 4K
objects/local/vm game
vm/game/allow_res_evict 1
vm/game/bind 1G a 0 64K
vm/game/exec fill 1G 4K 7
vm/game/userptr 2G 'THIS FILE' 0 4K ro
vm/game/unbind 1G 4K
ctl/unplug
"""
RARE = {"fallbacks", "restarts", "partial", "why", "mappable", "size", "line", "fences"}
"""Keys of results that none of these lines has to give."""


def test_what_a_mount_answers_is_as_the_schemas_say(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    for name in "ab":
        device.make(name, MIB, 7)
    device.shell.do("make('svm/heap', 4 << 20, 7); make('bo/local', 0); os.mkdir(path('vm/game'))")
    assert device.command("objects/b/madvise", "dontneed") == "ok"
    seen: set[str] = set()
    for line in SCRIPT.replace("THIS FILE", os.path.realpath(__file__)).splitlines():
        name, _, words = line.partition(" ")
        _errno, results = device.transact(name, words + "\n")
        for result in results:
            assert not faults("result", result), line
            assert result["ok"] == ("nowhere" not in line), (line, result)
            seen |= result.keys()
    known = set(json.loads((SCHEMAS / "result.json").read_text(encoding="utf-8"))["properties"])
    assert known - seen <= RARE, "a key that nothing gives"
    assert not faults("stats", device.stats())
    for name, path in (("status", "objects/a"), ("space_status", "svm_objects/heap")):
        assert not faults(name, json.loads(device.shell.do(f"slurp(path('{path}/status.json'))")))


def test_a_device_without_swap_is_as_the_schema_says(mounted: Callable[..., Device]) -> None:
    assert not faults("stats", mounted("--vram", "4M", "--swap", "0").stats())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("result", {}),
        ("result", {"ok": False}),
        ("result", {"ok": True, "bytes_moved": "9"}),
        ("result", {"ok": True, "teapot": 1}),
        ("stats", {}),
        ("status", {"name": 1}),
    ],
)
def test_what_is_wrong_is_found(name: str, value: object) -> None:
    assert faults(name, value)

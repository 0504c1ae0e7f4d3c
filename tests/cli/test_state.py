"""What a device says of its own state: stats.state, `ttmfs status`, and `options` as another mount takes it back."""

import subprocess
import sys
from pathlib import Path

import pytest

from ttm_tools import Device

pytestmark = pytest.mark.mount

ORDINARY = {
    "suspended": False,
    "unplugged": False,
    "engines_paused": False,
    "injecting": [],
    "policies": [],
    "tracing": "off",
    "says": [],
}


def status(device: Device) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ttmfs", "status", device.path], capture_output=True, text=True, timeout=60, check=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith("state")]


def test_what_is_out_of_the_ordinary_is_seen(ttmfs_device: Device) -> None:
    with ttmfs_device.trace("evict"):
        ttmfs_device.files.command("ctl/trace", "off")
        assert ttmfs_device.stats["state"] == ORDINARY
        assert status(ttmfs_device) == []
        with ttmfs_device.inject("move"), ttmfs_device.inject("ghost", times=0), ttmfs_device.pause_engines():
            ttmfs_device.files.command("ctl/trace", "move_end evict")
            found = ttmfs_device.stats["state"]
            says = ["engines paused", "injecting move", "tracing evict move_end"]
            assert found == {
                **ORDINARY, "engines_paused": True, "injecting": ["move"], "tracing": "evict move_end", "says": says
            }  # fmt: skip
            assert status(ttmfs_device) == ["state     engines paused, injecting move, tracing evict move_end"]
            ttmfs_device.files.command("ctl/trace", "off")
        ttmfs_device.command("suspend")
        assert ttmfs_device.stats["state"] == {**ORDINARY, "suspended": True, "says": ["suspended"]}
        ttmfs_device.command("resume")
        assert ttmfs_device.stats["state"] == ORDINARY


def test_policies_in_office_are_seen(ttmfs_device: Device) -> None:
    files = ttmfs_device.files
    chosen = {"evict": "vram clock bits=2", "prefetch": "tree", "promote": "moverate"}
    files.command("ctl/trace", "off")
    try:
        for kind, words in chosen.items():
            files.command(f"policies/{kind}", words)
        policies = [f"{kind} {words}" for kind, words in chosen.items()]
        says = [f"policy {policy}" for policy in policies]
        assert ttmfs_device.stats["state"] == {**ORDINARY, "policies": policies, "says": says}
        assert status(ttmfs_device) == [f"state     {', '.join(says)}"]
    finally:
        for kind, words in {"evict": "vram lru", "prefetch": "none", "promote": "none"}.items():
            files.command(f"policies/{kind}", words)
        assert ttmfs_device.stats["state"] == ORDINARY


@pytest.mark.ttmfs(vram="16M", region=["a=1M:range"], placement="vram gtt", copy_latency=0.001)
def test_options_make_another_device_like_this_one(ttmfs_device: Device, tmp_path: Path) -> None:
    with ttmfs_device.configure(copy_latency=0.25, fault_timeout=3):
        options = ttmfs_device.files.text("options")
    assert 'region = ["a=1048576:range"]\n' in options
    assert "copy_latency = 0.25\n" in options
    file = tmp_path / "like.toml"
    file.write_text(options)
    with Device.mount(config=str(file)) as other:
        assert other.files.text("options") == options

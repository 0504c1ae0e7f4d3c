"""Drivers from outside through a mount: they serve its faults, and what is wrong with one harms nobody else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, STANDARD, Device

pytestmark = pytest.mark.mount

OWN = """
from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.fault import fault_reserved, vm_reserve
from ttmfs.ttm.funcs import FaultResult, Protection
from ttmfs.ttm.placement import SYSTEM, Place


class Own(DefaultDriver):
    \"\"\"Serves one page at a time, evicts to system, and falls over a BO called `bad`.\"\"\"

    async def fault(self, vmf):
        if vmf.bo.name == "bad":
            raise ZeroDivisionError
        result = await vm_reserve(vmf)
        if result is not FaultResult.OK:
            return result
        try:
            return await fault_reserved(vmf, Protection.READ, 0)
        finally:
            vmf.unreserve()

    def evict_flags(self, bo):
        return (Place(SYSTEM),)

    async def move(self, bo, resource, ctx, *, evict, source=None):
        if bo.name == "stuck":
            raise KeyError(bo.name)
        await super().move(bo, resource, ctx, evict=evict, source=source)
"""

FIRMWARE = """
from ttmfs.driver.policy import DefaultDriver
from ttmfs.ttm.placement import Place


class Firmware(DefaultDriver):
    def __init__(self, vdev):
        super().__init__(vdev)
        self.create_kernel_bo("firmware", 1 << 20, Place("vram"))
        self.create_kernel_bo("tables", 1 << 20, Place("vram"), pinned=False)
"""

APERTURE = """
import errno

from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError


class Aperture(DefaultDriver):
    \"\"\"Shows the CPU one BO at a time.\"\"\"

    mapped = None

    def io_mem_reserve(self, resource):
        if self.mapped is not None:
            raise TtmError(errno.EAGAIN, "the aperture is full")
        self.mapped = resource

    def io_mem_free(self, resource):
        assert self.mapped is resource
        self.mapped = None
"""
STORE_IN_TURN = """
for turn in range(1, 31):
    for name, m in maps.items():
        m[slot : slot + 4] = turn.to_bytes(4, "little")
    for name, m in maps.items():
        assert int.from_bytes(m[slot : slot + 4], "little") == turn, (name, turn)
"""


def test_clients_that_store_into_more_than_can_be_mapped_take_it_from_each_other(
    mounted: Callable[..., Device], tmp_path: Path
) -> None:
    (tmp_path / "aperture.py").write_text(APERTURE)
    device = mounted(*STANDARD, "--driver", f"{tmp_path / 'aperture.py'}:Aperture")
    for name in "abc":
        device.make(name, MIB, 0x41, "vram")
    assert device.command("ctl/trace", "io_mem_evict") == "ok"
    clients = [
        device.client(
            f"slot = {number * 4096}\n"
            "maps = {name: mmap.mmap(os.open(path('bo/' + name), os.O_RDWR), 1 << 20) for name in 'abc'}"
        )
        for number in range(2)
    ]
    for client in clients:
        client.begin(STORE_IN_TURN)
    for client in clients:
        client.result(60)
    assert device.shell.do("slurp(path('trace')).count('io_mem_evict:')") > 3
    for name in "abc":
        data = device.shell.do(f"open(path('bo/{name}'), 'rb').read()")
        wanted = bytearray(b"A" * MIB)
        for slot in (0, 4096):
            wanted[slot : slot + 4] = (30).to_bytes(4, "little")
        assert data == wanted


def test_the_kernel_bos_of_a_driver_are_seen_and_no_client_has_them(
    mounted: Callable[..., Device], tmp_path: Path
) -> None:
    (tmp_path / "firmware.py").write_text(FIRMWARE)
    device = mounted(*STANDARD, "--driver", f"{tmp_path / 'firmware.py'}:Firmware")
    assert device.shell.do("os.listdir(path('bo')) + os.listdir(path('objects'))") == []
    assert device.shell.do("slurp(path('regions/vram/used'))").split() == [str(2 * MIB)]
    assert "1048576 byte VRAM VISIBLE pin count 1" in device.shell.do("slurp(path('debug/gem_info'))")
    assert "kernel:firmware" in device.shell.do("slurp(path('regions/vram/map'))")
    assert "kernel:tables" in device.shell.do("slurp(path('regions/vram/lru'))")
    device.make("a", MIB, 0x41, "vram")
    assert device.command("ctl/evict", "vram all") == "ok"
    assert device.shell.do("slurp(path('regions/vram/used'))").split() == [str(MIB)], "what is pinned stays"
    assert "kernel:tables" in device.shell.do("slurp(path('regions/gtt/lru'))")
    assert device.command("ctl/suspend", "\n") == "ok"
    assert device.command("ctl/resume", "\n") == "ok"
    assert device.shell.do("slurp(path('regions/vram/used'))").split() == [str(MIB)]
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [0x41]


def test_a_driver_file_serves_a_mount_and_its_faults_harm_nobody(
    mounted: Callable[..., Device], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    device = mounted(*STANDARD, "--driver", f"{tmp_path / 'own.py'}:Own")
    device.make("a", MIB, 0x41, "vram")
    device.make("stuck", MIB, 0x42)
    assert device.command("objects/a/evict", "\n") == "ok"
    assert device.status("a")["mem_type"] == "system", "where its evict_flags says"
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [0x41]
    device.allowed += ["ZeroDivisionError", "KeyError", "bad", "stuck"]
    device.shell.do("open(path('bo/bad'), 'w').close(); os.truncate(path('bo/bad'), 1 << 20)")
    reader = device.client("fd = opened('bo/bad')")
    with pytest.raises(Exception, match=r"Input/output error|EIO"):
        reader.do("os.pread(fd, 4096, 0)")
    assert device.command("objects/stuck/validate", "vram") != "ok"
    assert device.shell.do("sorted(set(open(path('bo/stuck'), 'rb').read()))") == [0x42]
    assert device.command("objects/a/validate", "vram") == "ok"
    assert device.shell.do("sorted(set(open(path('bo/a'), 'rb').read()))") == [0x41]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [("vmwgfxx", "did you mean vmwgfx"), ("missing.py:Own", "No such file"), ("json:loads", "derive")],
)
def test_what_is_no_driver_is_said_and_nothing_is_mounted(tmp_path: Path, words: str, sentence: str) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ttmfs")), "mount", str(folder), "--driver", words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert sentence in done.stderr
    assert not folder.is_mount()

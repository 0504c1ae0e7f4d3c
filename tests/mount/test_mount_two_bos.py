"""Two BOs at once: a client's pwrite into one takes its bytes from a mapping of the other (H17, H18)."""

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount


def test_pwrite_from_a_mapping_of_another_bo_while_both_move_under_one_ticket(device: Device) -> None:
    """i_rwsem of b is held while a faults: nothing that a's fault waits for may need i_rwsem of b."""
    for name, fill in (("a", 0x41), ("b", 0x42)):
        device.make(name, 2 * MIB, fill, "vram")
    writers = [
        device.client(
            "a = opened('bo/a'); b = opened('bo/b')\n"
            "ma = mmap.mmap(a, 2 << 20)\n"
            "def write_all():\n"
            "    for round in range(30):\n"
            "        os.posix_fadvise(a, 0, 0, os.POSIX_FADV_DONTNEED)\n"
            "        for start in range(0, 2 << 20, 1 << 18):\n"
            "            os.pwrite(b, memoryview(ma)[start:start + 100000], start + 5000)\n"
            "    return 'done'\n"
        )
        for _ in range(2)
    ]
    for writer in writers:
        writer.begin("write_all()")
    for place in ("gtt", "vram") * 15:
        assert device.command("ctl/validate", f"a,b {place}", 5) == "ok"
    for writer in writers:
        assert writer.result(20) == "done"
    assert device.stats()["faults"]["max_ms"] < 5000
    assert device.shell.do("sorted(set(open(path('bo/b'), 'rb').read()))") == [0x41, 0x42]

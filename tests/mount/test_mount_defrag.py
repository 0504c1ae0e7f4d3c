"""Defrag seen through a mount: a failed one is not noticed, a successful one changes no byte."""

import pytest

from tests.mount.mount_harness import MIB, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M", "--fault-timeout", "20", "--swap", "0")
PAGES = 4 * MIB // 4096
TOUCH = "len({m[i] for i in range(0, 4 << 20, 4096)}) > 100"


def fragment(device: Device) -> None:
    """No block of the beneficial order is free any more: BOs of one page, every second unlinked, in folders."""
    device.shell.do(
        "def fill(top, count):\n"
        "    for n in range(count):\n"
        "        with open(top + b'/%d' % n, 'wb', 0) as file: file.write(b'f' * (64 << 10))\n"
    )
    device.shell.do("os.mkdir(path('bo/hog')); fill(path(b'bo/hog'), 1000)", 60)
    device.shell.do("[os.unlink(path(b'bo/hog') + b'/%d' % n) for n in range(0, 1000, 2)]", 60)


def unfragment(device: Device) -> None:
    device.shell.do("[os.unlink(path(b'bo/hog') + b'/%d' % n) for n in range(1, 1000, 2)]", 60)


def scattered(device: Device) -> Client:
    """The BO `a` of 4 MiB with scattered pages, free blocks again, and a client that has every page of it mapped."""
    assert device.command("ctl/config", "pool_limit=0") == "ok"
    assert device.command("ctl/config", "defrag_interval=1000") == "ok"
    fragment(device)
    client = device.client("import random; fd = opened('bo/a', os.O_RDWR | os.O_CREAT)")
    # Given its size first: a file that grows is populated piece by piece, and has no whole piece to try for.
    client.do("os.ftruncate(fd, 4 << 20); data = random.Random(3).randbytes(4 << 20); os.pwrite(fd, data, 0)")
    client.do(f"m = mapped(fd, {4 * MIB})")
    assert client.do(TOUCH)
    assert device.status("a")["beneficial_order_failed"] is True
    unfragment(device)
    return client


def seen(device: Device) -> tuple[int, int]:
    """READs and faults that the daemon has met."""
    return device.stats()["requests"]["read"], device.status("a")["faults"]


@pytest.mark.parametrize("where", ["tt_create", "page_alloc", "fence_slot", "unmap", "order"])
def test_a_failure_before_the_unmap_causes_no_read(device: Device, where: str) -> None:
    client = scattered(device)
    if where == "order":
        fragment_again(device)
    else:
        for key, value in (("interval", 3 if where == "fence_slot" else 1), ("times", 1), ("probability", 100)):
            assert device.command(f"debug/fail_{where}/{key}", str(value)) == "ok"
    before = seen(device)
    invals = device.stats()["requests"]["invals"]
    assert device.command("objects/a/defrag", "\n") in ("ENOMEM", "EIO")
    assert client.do(TOUCH)
    assert client.do("m[:] == data")
    assert seen(device) == before
    assert device.stats()["requests"]["invals"] == invals
    assert device.command(f"debug/fail_{where}/interval", "1") == "ok" if where != "order" else True
    status = device.status("a")
    assert status["bytes_moved"] == 0
    assert status["page_orders"].get("9", 0) == 0


def fragment_again(device: Device) -> None:
    device.shell.do("fill(path(b'bo/hog'), 940)", 60)
    device.shell.do("[os.unlink(path(b'bo/hog') + b'/%d' % n) for n in range(0, 940, 2)]", 60)


def test_a_failure_after_the_unmap_refaults_the_right_bytes(device: Device) -> None:
    client = scattered(device)
    for key, value in (("times", 1), ("probability", 100)):
        assert device.command(f"debug/fail_move/{key}", str(value)) == "ok"
    before = seen(device)
    assert device.command("objects/a/defrag", "\n") == "EIO"
    assert client.do("m[:] == data")
    assert seen(device)[0] > before[0], "the unmap was real"
    assert device.status("a")["mem_type"] == "system"


def test_success_under_a_writer_keeps_every_byte(device: Device) -> None:
    client = scattered(device)
    client.do("model = bytearray(data); r = random.Random(9)")
    client.begin(
        "def work():\n"
        "    end = time.monotonic() + 3\n"
        "    n = 0\n"
        "    while time.monotonic() < end:\n"
        "        at = r.randrange(4 << 20); size = min(r.choice((1, 100, 5000)), (4 << 20) - at)\n"
        "        new = r.randbytes(size)\n"
        "        if r.random() < 0.5: m[at: at + size] = new\n"
        "        else: os.pwrite(fd, new, at)\n"
        "        model[at: at + size] = new; n += 1\n"
        "        at = r.randrange(4 << 20)\n"
        "        assert m[at: at + 4096] == model[at: at + 4096], at\n"
        "    return n\n"
    )
    client.result()
    client.begin("work()")
    moved = 0
    for _ in range(20):
        code, lines = device.transact("objects/a/defrag", "\n")
        assert code == "ok", lines
        moved += int(lines[0]["moved"])
    assert moved == 20
    assert client.result(20) > 20
    assert client.do("m[:] == bytes(model)")
    orders = device.status("a")["page_orders"]
    assert set(orders) <= {"9", "10"}
    assert device.status("a")["beneficial_order_failed"] is False
    assert device.stats()["defrag"]["listed"] == 0


def test_the_old_pages_live_until_the_fence(device: Device) -> None:
    client = scattered(device)
    assert device.command("debug/pause_engine", "1") == "ok"
    in_use = device.stats()["pool"]["in_use_pages"]
    code, lines = device.transact("objects/a/defrag", "\n")
    assert code == "ok"
    assert device.stats()["pool"]["in_use_pages"] == in_use + PAGES
    assert device.command("debug/pause_engine", "0") == "ok"
    assert device.command("ctl/wait", f"{lines[0]['fence']} 5") == "ok"
    assert device.stats()["pool"]["in_use_pages"] == in_use
    assert client.do("m[:] == data")


def test_ctl_defrag_words_and_result(device: Device) -> None:
    client = scattered(device)
    for words, expected in (
        ("nope", "ENOENT"),
        ("limit=x all", "EINVAL"),
        ("limit=1 limit=2 all", "EINVAL"),
        ("a no_wait_gpu", "ENOENT"),
    ):
        assert device.command("ctl/defrag", words) == expected, words
    assert device.command("objects/a/defrag", "zork") == "EINVAL"
    code, lines = device.transact("ctl/defrag", "all limit=0")
    assert (code, lines[0]["moved"]) == ("ok", 0)
    code, lines = device.transact("ctl/defrag", "all")
    assert (code, lines[0]["moved"], lines[0]["failed"], lines[0]["bytes_moved"]) == ("ok", 1, 0, 4 * MIB)
    assert min(lines[0]["gained"]) >= 0
    assert len(lines[0]["obtainable"]) == 11
    code, lines = device.transact("ctl/defrag", "a")
    assert (code, lines[0]["moved"]) == ("ok", 1)
    code, lines = device.transact("ctl/defrag", "\n")
    assert (code, lines[0]["moved"]) == ("ok", 0)
    assert client.do("m[:] == data")
    same = "slurp('regions/system/fragmentation') == slurp('pool/fragmentation')"
    assert device.shell.do(same) is True
    assert device.shell.do("slurp('regions/system/fragmentation').count('\\n')") == 12
    assert set(device.stats()["defrag"]) == {"runs", "moved", "failed", "listed"}

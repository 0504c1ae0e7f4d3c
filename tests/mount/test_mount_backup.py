"""Backup and restore through a mount: exact under a storm, told to the shell, seen in the host's memory."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.exercising import exercise
from tests.mount.mount_harness import MIB, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M", "--swap", "64M", "--fault-timeout", "20")
KINDS = ("shmem", "zstd", "file")
SMALL = ("--vram", "8M", "--gtt", "32M", "--memory", "64M", "--swap", "256M")
STORM = "validate,evict,unmap,backup,restore,swapout,shrink"


@pytest.fixture
def store_file(tmp_path: Path) -> Iterator[Path]:
    """Where a store on the disk may be; nothing is left there."""
    path = tmp_path / "store"
    yield path
    assert not path.exists(), "the daemon has left its store behind"


def spec(kind: str, path: Path) -> str:
    return f"{kind}:{path}" if kind.endswith("file") else kind


def filled(device: Device, name: str, size: int, how: str = "r.randbytes(1 << 20)") -> None:
    """A BO of random bytes that the client `device.shell` can tell again: `same(name)`."""
    device.shell.do(
        "import random\n"
        "def pieces(name, size):\n"
        "    r = random.Random(name)\n"
        "    for at in range(0, size, 1 << 20):\n"
        f"        yield at, ({how})[:size - at]\n"
        "def same(name, size):\n"
        "    fd = opened('bo/' + name, os.O_RDONLY)\n"
        "    try: return [at for at, piece in pieces(name, size) if os.pread(fd, 1 << 20, at) != piece]\n"
        "    finally: os.close(fd)\n"
    )
    device.shell.do(f"make('bo/{name}', {size})")
    device.shell.do(f"fd = opened('bo/{name}')")
    device.shell.do(f"[os.pwrite(fd, piece, at) for at, piece in pieces('{name}', {size})]", 60)
    device.shell.do("os.close(fd)")
    assert device.command(f"objects/{name}/unmap", "\n") == "ok"


def unlink(device: Device, *names: str) -> None:
    for name in names:
        device.shell.do(f"os.unlink(path('bo/{name}'))")


def until_gone(device: Device) -> None:
    device.until(
        lambda: device.stats()["pool"]["in_use_pages"] == 0 and device.stats()["swap"]["pages"] == 0,
        10,
        "pages are left in the pool or in the store",
    )


# -- exactness ---------------------------------------------------------------------------------------------------------


def backed_up_and_back(stats: dict[str, Any]) -> bool:
    backup = stats["backup"]
    return bool(backup["pages_out"] > 1024 and backup["pages_in"] > 256)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.stress)])
@pytest.mark.parametrize(("kind", "kill"), [("shmem", ()), ("zstd", ("--kill",)), ("file", ("--kill",))])
def test_bos_of_four_times_the_page_limit_under_a_storm(
    mounted: Callable[..., Device], store_file: Path, kind: str, kill: tuple[str, ...], seconds: int
) -> None:
    """Reads, writes, mappings and truncates at random, verified byte for byte; clients are killed in the middle."""
    device = mounted(*SMALL, "--pages-limit", "2M", "--swap-store", spec(kind, store_file))
    options = ("--ctl-words", STORM, "--max-size", "8M", "--max-op-seconds", "15", *kill)
    exercise(device, 3, *options, seconds=seconds, met=backed_up_and_back)
    assert device.control("selfcheck") == []
    unlink(device, *(f"e{n}" for n in range(3)))
    device.end_clients()
    until_gone(device)
    assert device.stop() == 0


WORK = """
def work(seed, pages, rounds):
    r = random.Random(seed)
    model = {}
    for _ in range(rounds):
        page = r.randrange(pages)
        at = page * 4096
        if page in model: assert m[at: at + 64] == model[page], page
        else: assert m[at: at + 64] == bytes(64), page
        model[page] = r.randbytes(64)
        m[at: at + 64] = model[page]
    return all(m[page * 4096: page * 4096 + 64] == data for page, data in model.items())
"""


def test_two_mapping_processes_over_the_page_limit(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, "--pages-limit", "4M", "--prefault", "16")
    clients = []
    for name in ("a", "b"):
        device.make(name, 12 * MIB)
        client = device.client(f"import random; fd = opened('bo/{name}'); m = mapped(fd, {12 * MIB})")
        client.do(WORK)
        clients.append(client.begin(f"work({name!r}, 3072, 300)"))
    assert [client.result(60) for client in clients] == [True, True]
    stats = device.stats()
    assert stats["backup"]["pages_out"] > 500
    # Soft: by what the requests of the moment name.
    assert stats["pool"]["in_use_pages"] <= 1024 + 2 * 64


def test_the_page_limit_counts_for_nobody_who_is_killed(mounted: Callable[..., Device]) -> None:
    """Clients that die in the middle of their faults leave nothing reserved."""
    device = mounted(*SMALL, "--pages-limit", "2M")
    device.make("a", 8 * MIB)
    for seed in range(4):
        client = device.client(f"import random; fd = opened('bo/a'); m = mapped(fd, {8 * MIB})")
        client.do(f"r = random.Random({seed})")
        client.begin(f"[m.__setitem__(r.randrange({8 * MIB}), {seed}) for _ in range(9999999)]")
        before = device.stats()["backup"]["pages_out"]

        def went_out(more_than: int = before + 50) -> bool:
            return bool(device.stats()["backup"]["pages_out"] > more_than)

        device.until(went_out, 20, "nothing went out")
        client.end()
    assert device.command("objects/a/restore", "\n") == "ok"
    assert device.command("objects/a/backup", "\n") == "ok"
    assert device.status("a")["populated_pages"] == 0
    unlink(device, "a")
    until_gone(device)


def _unmap_a_part(device: Device, seconds: float = 5.0) -> Client:
    """A READ of page 0 waits while pages far behind it are about to be unmapped; mtime has moved meanwhile."""
    device.make("a", 4 * MIB, 5)
    assert device.command("objects/a/unmap", "\n") == "ok"
    reader = device.client(f"fd = opened('bo/a'); m = mapped(fd, {4 * MIB})")
    writer = device.client("fd = opened('bo/a'); os.pwrite(fd, b'w', 3 << 20)")
    device.hold("validate", bo="a")
    validate = device.begin_command("objects/a/validate", "system")
    device.until_held("validate")
    reader.begin("m[0]")
    device.until_parked()
    writer.do("os.close(fd)")
    device.control("unmap_part", name="a", first=512, count=512, timeout=seconds)
    device.release("validate")
    assert validate.result() == 0
    return reader


def test_an_unmap_of_a_part_waits_for_no_request_outside(mounted: Callable[..., Device]) -> None:
    """As the one that makes room for a fault of the same BO must not: it would wait for that very fault."""
    device = mounted(*MOUNT_OPTIONS)
    assert _unmap_a_part(device).result() == 5


def test_without_that_rule_it_does(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS, patches=("flush_in_part",))
    with pytest.raises(AssertionError, match=r"no answer within"):
        _unmap_a_part(device, 0.5)


# -- commands ----------------------------------------------------------------------------------------------------------


def snapshot(device: Device, name: str) -> str:
    text: str = device.shell.do(f"slurp('objects/{name}/snapshot')")
    return text.rstrip("\n")


def test_commands_and_their_results(device: Device) -> None:
    filled(device, "a", MIB)
    code, lines = device.transact("objects/a/backup", "\n")
    assert (code, lines[0]["pages_out"], lines[0]["populated_pages"]) == ("ok", 256, 0)
    assert snapshot(device, "a") == "b" * 256
    status = device.status("a")
    assert (status["backed_up_pages"], status["populated_pages"]) == (256, 0)
    stats = device.stats()
    assert (stats["swap"]["pages"], stats["swap"]["used"], stats["pool"]["in_use_pages"]) == (256, MIB, 0)
    code, lines = device.transact("objects/a/backup", "\n")
    assert (code, lines[0]["pages_out"]) == ("ok", 0)
    code, lines = device.transact("objects/a/restore", "\n")
    assert (code, lines[0]["pages_in"], lines[0]["populated_pages"]) == ("ok", 256, 256)
    assert device.shell.do(f"same('a', {MIB})") == []
    for words, code in (("purge writeback", "EINVAL"), ("all", "EINVAL")):
        assert device.command("objects/a/backup", words) == code
    for words, code in (("", "EINVAL"), ("1x", "EINVAL"), ("1M 2M", "EINVAL"), ("purge", "EINVAL")):
        assert device.command("ctl/shrink", words or "\n") == code
    code, lines = device.transact("ctl/backup", "64K")
    assert code == "ok"
    assert lines[0]["pages_out"] >= 16
    code, lines = device.transact("ctl/shrink", "all writeback")
    assert (code, snapshot(device, "a")) == ("ok", "b" * 256)
    assert device.command("objects/a/pin", "\n") == "ok"
    assert device.command("objects/a/backup", "purge") == "EBUSY"
    assert device.command("objects/a/unpin", "\n") == "ok"
    assert "pinned" in device.shell.do("slurp('error_log')")
    assert device.shell.do(f"same('a', {MIB})") == []


def test_a_backup_that_fails_half_way(device: Device) -> None:
    filled(device, "a", MIB)
    for key, value in (("space", 100), ("times", 1), ("probability", 100)):
        assert device.command(f"debug/fail_store_write/{key}", str(value)) == "ok"
    code, lines = device.transact("objects/a/backup", "\n")
    assert (code, lines[0]["pages_out"], lines[0]["partial"]) == ("ok", 100, True)
    assert lines[0]["why"]
    assert snapshot(device, "a") == "b" * 100 + "s" * 156
    code, lines = device.transact("objects/a/backup", "\n")
    assert (code, lines[0]["pages_out"], "partial" in lines[0]) == ("ok", 156, False)
    assert snapshot(device, "a") == "b" * 256
    for key, value in (("space", 30), ("times", 1), ("probability", 100)):
        assert device.command(f"debug/fail_store_read/{key}", str(value)) == "ok"
    assert device.command("objects/a/restore", "\n") == "EIO"
    assert snapshot(device, "a") == "s" * 30 + "b" * 226
    assert device.command("objects/a/restore", "\n") == "ok"
    for name in ("write", "read"):
        assert device.command(f"debug/fail_store_{name}/probability", "0") == "ok"
    assert device.shell.do(f"same('a', {MIB})") == []


def test_a_purge_is_seen_by_who_has_it_mapped(device: Device) -> None:
    filled(device, "a", MIB)
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {MIB})")
    assert client.do("sum(m[i] != 0 for i in range(0, 1 << 20, 4096)) > 200")
    client.do("m[:100] = b'd' * 100")
    code, lines = device.transact("objects/a/backup", "purge")
    assert (code, lines[0]["purged_pages"]) == ("ok", 256)
    assert device.status("a")["purged"] is True
    assert snapshot(device, "a") == "." * 256
    assert client.do("m[:] == bytes(1 << 20)")
    client.do("m[5] = 7")
    assert device.command("objects/a/unmap", "\n") == "ok"
    assert client.do("os.pread(fd, 10, 0)") == bytes(5) + b"\x07" + bytes(4)
    assert device.command("objects/a/madvise", "willneed") == "ok"
    assert device.status("a")["purged"] is False


def test_dontneed_is_dropped_first(device: Device) -> None:
    filled(device, "keep", MIB)
    filled(device, "drop", MIB)
    assert device.command("objects/drop/madvise", "dontneed") == "ok"
    code, lines = device.transact("ctl/shrink", "1M")
    assert (code, lines[0]["purged_pages"], lines[0]["pages_out"]) == ("ok", 256, 0)
    assert snapshot(device, "drop") == "." * 256
    assert device.status("drop")["purged"] is True
    assert device.shell.do(f"same('keep', {MIB})") == []
    assert device.shell.do("os.pread(opened('bo/drop'), 1 << 20, 0) == bytes(1 << 20)")


def test_faults_of_another_bo_go_on_during_a_backup(mounted: Callable[..., Device], store_file: Path) -> None:
    device = mounted(
        *("--memory", "128M", "--swap", "128M", "--swap-store", f"file:{store_file}"), patches=("slow_store=0.2",)
    )
    filled(device, "a", 32 * MIB)
    device.make("b", 4 * MIB, 7)
    client = device.client(f"fd = opened('bo/b'); m = mapped(fd, {4 * MIB})")
    assert device.command("objects/b/unmap", "\n") == "ok"
    backup = device.begin_command("objects/a/backup", "\n")
    device.until(lambda: device.status("a")["backed_up_pages"], 10, "the backup has not begun")
    assert client.do("sum(m[i] for i in range(0, 4 << 20, 65536))") == 7 * 64
    assert device.status("a")["populated_pages"] > 0, "the backup was over before: this shows nothing"
    assert backup.result(30) == 0
    assert device.shell.do(f"same('a', {32 * MIB})", 30) == []
    assert device.stop() == 0


# -- the host's memory -------------------------------------------------------------------------------------------------


def resident(device: Device) -> int:
    """Bytes of the host that the daemon holds: RSS, which has its shared memory in it."""
    return device.rss()


def shared(device: Device) -> int:
    with open(f"/proc/{device.daemon.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem:"))


HALF = "b''.join(r.randbytes(1024) + bytes(3072) for _ in range(256))"


@pytest.mark.parametrize(("kind", "how"), [("file", "r.randbytes(1 << 20)"), ("zstd", HALF), ("shmem", HALF)])
def test_what_the_host_gets_back(mounted: Callable[..., Device], store_file: Path, kind: str, how: str) -> None:
    size = 96 * MIB
    device = mounted("--memory", "160M", "--swap", "160M", "--swap-store", spec(kind, store_file))
    filled(device, "a", size, how)
    assert device.command("ctl/config", "pool_limit=0") == "ok"
    before = resident(device)
    assert before > size
    code, lines = device.transact("objects/a/backup", "\n", 30)
    assert (code, lines[0]["pages_out"]) == ("ok", size // 4096)
    swap = device.stats()["swap"]
    assert swap["pages"] == size // 4096
    held = {"file": 0, "zstd": swap["used"], "shmem": size}[kind]
    if kind == "zstd":
        assert swap["ratio"] > 3
    expected = before - size + held
    device.until(
        lambda: resident(device) <= expected + size // 10, 15, f"{before} bytes have not become {expected} or so"
    )
    assert resident(device) >= expected - size // 10
    assert shared(device) < MIB
    if kind == "file":
        on_disk = store_file.stat().st_blocks * 512
        assert on_disk >= size
    assert device.shell.do(f"same('a', {size})", 60) == []
    assert device.command("objects/a/backup", "\n") == "ok"
    unlink(device, "a")
    until_gone(device)
    device.until(lambda: resident(device) <= before - size + size // 10, 15, "what was unlinked is still held")
    if kind == "file":
        device.until(lambda: store_file.stat().st_blocks == 0, 15, "the store's file still has blocks")
    assert device.stop() == 0


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "zstd+file"])
def test_the_daemon_ends_with_pages_everywhere(mounted: Callable[..., Device], store_file: Path, kind: str) -> None:
    """Backed up, half restored, partly backed up, and a backup under way: status 0, and nothing is left of the file."""
    device = mounted("--memory", "64M", "--swap", "64M", "--swap-store", spec(kind, store_file))
    for name in ("whole", "half", "part"):
        filled(device, name, MIB)
    assert device.command("objects/whole/backup", "writeback") == "ok"
    assert device.command("objects/half/backup", "\n") == "ok"
    for what, name, code in (("write", "part/backup", "ok"), ("read", "half/restore", "EIO")):
        for key, value in (("space", 100), ("times", 1), ("probability", 100)):
            assert device.command(f"debug/fail_store_{what}/{key}", str(value)) == "ok"
        assert device.command(f"objects/{name}", "\n") == code
    letters = {name: snapshot(device, name).count("b") for name in ("whole", "half", "part")}
    assert letters == {"whole": 256, "half": 156, "part": 100}
    assert store_file.stat().st_size > 0
    device.end_clients()
    assert device.stop() == 0
    assert not store_file.exists()
    again = mounted("--memory", "64M", "--swap", "64M", "--swap-store", spec(kind, store_file))
    assert again.stats()["swap"]["used"] == 0
    assert again.stop() == 0


def flip(path: Path, offset: int) -> None:
    """Another byte in the file, whatever it is."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ 0x10]), offset)
    finally:
        os.close(fd)


def test_a_wrong_byte_on_the_disk_is_eio_and_never_content(mounted: Callable[..., Device], store_file: Path) -> None:
    device = mounted("--memory", "64M", "--swap", "64M", "--swap-store", f"file:{store_file}")
    filled(device, "a", MIB)
    assert device.command("objects/a/backup", "writeback") == "ok"
    # The lowest slots go out first, so page n is at byte n * 4096.
    flip(store_file, 100 * 4096 + 1234)
    device.allowed.append("wrong bytes")
    client: Client = device.client("fd = opened('bo/a')")
    assert client.errno("os.pread(fd, 4096, 100 * 4096)") == "EIO"
    assert client.do("len(os.pread(fd, 4096, 99 * 4096))") == 4096
    assert client.do("len(os.pread(fd, 4096, 101 * 4096))") == 4096
    log = device.shell.do("slurp('error_log')")
    assert "wrong bytes" in log
    assert "READ a" in log
    mapping = device.client(f"fd = opened('bo/a'); m = mapped(fd, {MIB})")
    mapping.begin("m[100 * 4096]")
    assert mapping.died() == -7, "SIGBUS"
    assert device.command("objects/a/restore", "\n") == "EIO"
    # All the other pages are right, and what is lost can be written anew after it was cut off.
    wrong = device.shell.do("[n for n in range(256) if n != 100 and os.pread(opened('bo/a'), 1, n * 4096) == b'']")
    assert wrong == []
    assert device.status("a")["backed_up_pages"] == 1
    assert device.shell.do(f"same('a', {100 * 4096 // MIB * MIB})") == []
    device.shell.do("os.truncate(path('bo/a'), 0)")
    device.end_clients()
    assert device.stop() == 0


def test_a_file_that_grows_in_vram_beyond_memory_goes_on_into_the_store(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "8M", "--gtt", "8M", "--memory", "6M", "--swap", "64M")
    device.make("a", 2 * MIB, fill=1, place="vram")
    client = device.client(f"fd = opened('bo/a'); [os.pwrite(fd, bytes([n]) * {MIB}, n * {MIB}) for n in range(2, 12)]")
    assert device.status("a")["mem_type"] == "vram"
    assert device.status("a")["backed_up_pages"] > 0
    assert client.do(f"[list(set(os.pread(fd, {MIB}, n * {MIB}))) for n in range(12)]") == [
        [max(1, n)] for n in range(12)
    ]
    assert device.control("selfcheck") == []

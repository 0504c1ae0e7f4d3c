"""svm/ as files and svm_objects/ as directories: names, sizes, owners, handles, grammar; no migration needed."""

import json
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

HEAP = "svm_objects/heap"


def space(device: Device, name: str = "heap", size: int = 64 * MIB) -> None:
    device.shell.do(f"make({'svm/' + name!r}, {size})")


def reads(device: Device) -> list[tuple[int, int]]:
    """(offset, bytes) of the READs since the last call."""
    return [(offset, size) for what, _, offset, size in device.control("svm_log") if what == "READ"]


# -- names and sizes ---------------------------------------------------------------------------------------------------


def test_a_space_is_made_by_creat_and_ftruncate_and_by_a_pwrite_beyond_the_end(device: Device) -> None:
    space(device)
    client = device.shell
    assert client.do("os.stat(path('svm/heap')).st_size") == 64 * MIB
    assert client.do("os.stat(path('svm/heap')).st_blocks") == 0
    client.do("fd = opened('svm/grown', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'end', (8 << 20) + 5)")
    assert client.do("os.stat(path('svm/grown')).st_size") == 8 * MIB + 8
    assert client.do("os.pread(fd, 10, (8 << 20) + 2)") == bytes(3) + b"end"
    assert client.do("os.pread(fd, 4096, 0)") == bytes(4096)
    assert client.do("sorted(os.listdir(path('svm')))") == ["grown", "heap"]
    assert client.do("sorted(os.listdir(path('svm_objects')))") == ["grown", "heap"]
    assert device.stats()["svm"]["spaces"] == 2


def test_a_terabyte_costs_nothing(device: Device) -> None:
    space(device, size=1 << 40)
    client = device.shell
    client.do("fd = opened('svm/heap')")
    before = device.rss()
    assert client.do("os.pwrite(fd, b'top', (1 << 40) - 3)") == 3
    assert client.do("os.pread(fd, 8, (1 << 40) - 4)") == b"\0top"
    assert client.do("os.stat(path('svm/heap')).st_blocks") == 8
    assert client.errno("os.ftruncate(fd, (1 << 40) + 4096)") == "EFBIG"
    assert client.errno("os.pwrite(fd, b'x', 1 << 40)") == "EFBIG"
    assert client.do("os.stat(path('svm/heap')).st_size") == 1 << 40
    client.do(f"snap = opened('{HEAP}/snapshot', os.O_RDONLY)")
    assert client.do("os.fstat(snap).st_size") == (1 << 28) + 1
    assert client.do("os.pread(snap, 4096, 0)") == b"." * 4096
    assert client.do("os.pread(snap, 4096, (1 << 28) - 2)") == b".s\n"
    assert client.do("os.pread(snap, 4096, (1 << 28) + 1)") == b""
    assert device.rss() - before < 16 * MIB


def test_a_snapshot_is_one_letter_a_page_and_a_newline(device: Device) -> None:
    client = device.shell
    for size in (0, 1, 4096, 4097, MIB + 5):
        client.do(f"make('svm/heap', {size})")
        assert client.do(f"slurp('{HEAP}/snapshot')") == "." * -(-size // 4096) + "\n"
        assert client.do(f"[os.pread(opened('{HEAP}/snapshot', os.O_RDONLY), 1, {-(-size // 4096)})]") == [b"\n"]


def test_folders_and_moves_out_of_svm_are_refused(device: Device) -> None:
    space(device)
    device.make("a", MIB)
    client = device.shell
    assert client.errno("os.mkdir(path('svm/folder'))") == "EPERM"
    assert client.errno("os.rename(path('svm/heap'), path('bo/heap'))") == "EXDEV"
    assert client.errno("os.rename(path('bo/a'), path('svm/a'))") == "EXDEV"
    assert client.do("renameat2('svm/heap', 'bo/a', 2)") == 18
    assert client.errno("os.rmdir(path('svm/heap'))") == "ENOTDIR"
    assert client.errno("os.unlink(path('svm/nothing'))") == "ENOENT"
    assert client.errno("os.symlink('x', path('svm/link'))") != "ok"
    assert client.errno(f"opened('svm/{'n' * 256}', os.O_CREAT | os.O_RDWR)") == "ENAMETOOLONG"
    assert client.errno("opened('svm/heap', os.O_CREAT | os.O_EXCL | os.O_RDWR)") == "EEXIST"
    assert client.do("[os.listdir(path('svm')), os.listdir(path('bo'))]") == [["heap"], ["a"]]


def test_rename_within_svm(device: Device) -> None:
    client = device.shell
    for name in ("one", "two"):
        client.do(f"fd = opened('svm/{name}', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'{name}', 0)")
    inode = client.do("os.stat(path('svm/one')).st_ino")
    assert client.do("renameat2('svm/one', 'svm/two', 1)") == 17
    assert client.do("renameat2('svm/one', 'svm/two', 2)") == 0
    assert client.do("open(path('svm/two'), 'rb').read()") == b"one"
    client.do("os.rename(path('svm/two'), path('svm/three')); os.rename(path('svm/three'), path('svm/one'))")
    assert client.do("os.listdir(path('svm'))") == ["one"]
    assert client.do("os.stat(path('svm/one')).st_ino") == inode
    assert "name:\tone\n" in client.do("slurp('svm_objects/one/status')")
    assert client.errno("slurp('svm_objects/two/status')") == "ENOENT"


def test_an_unlinked_space_lives_while_it_is_mapped_but_its_device_side_is_gone(device: Device) -> None:
    space(device)
    client = device.client("fd = opened('svm/heap'); m = mapped(fd, 64 << 20); m[5 << 20] = 7; gpu = opened("
                           f"'{HEAP}/gpu'); gpu_read = opened('{HEAP}/gpu_read')")
    client.do("os.unlink(path('svm/heap')); os.close(fd)")
    assert client.errno("os.write(gpu, b'fill 0 4096 1')") == "EFAULT"
    assert client.errno(f"slurp('{HEAP}/ranges')") == "ENOENT"
    client.do("m[6 << 20] = 8; m.flush()")
    assert client.do("[m[5 << 20], m[6 << 20], m[7 << 20]]") == [7, 8, 0]
    assert device.control("spaces") == 1
    client.do("m.close()")
    device.until(lambda: device.control("spaces") == 0)
    assert client.errno("os.write(gpu_read, b'read 0 16')") == "EFAULT"
    assert device.stats()["svm"]["spaces"] == 0


def test_truncate_both_ways_and_o_trunc(device: Device) -> None:
    space(device, size=8 * MIB)
    client = device.client("fd = opened('svm/heap'); m = mapped(fd, 8 << 20); m[100] = 1; m[5 << 20] = 2; m.flush()")
    client.do("os.ftruncate(fd, 4 << 20); os.ftruncate(fd, 8 << 20)")
    assert client.do("[m[100], m[5 << 20]]") == [1, 0]
    client.do("m[4097] = 9; os.close(opened('svm/heap', os.O_RDWR | os.O_TRUNC))")
    assert client.do("os.fstat(fd).st_size") == 0
    client.do("os.ftruncate(fd, 8 << 20)")
    assert client.do("[m[100], m[4097], m[5 << 20]]") == [0, 0, 0]


def test_owner_mode_and_times(device: Device) -> None:
    client = device.shell
    client.do("os.close(os.open(path('svm/heap'), os.O_CREAT | os.O_RDWR, 0o640)); os.truncate(path('svm/heap'), 4096)")
    assert client.do("os.stat(path('svm/heap')).st_mode & 0o777") == 0o640 & ~client.do("os.umask(0o022)")
    client.do("os.utime(path('svm/heap'), ns=(10**18, 2 * 10**18))")
    assert client.do("os.stat(path('svm/heap')).st_mtime_ns") == 2 * 10**18
    client.do("fd = opened('svm/heap'); os.pwrite(fd, b'x', 0)")
    assert client.do("os.fstat(fd).st_mtime_ns") == 2 * 10**18, "not per WRITE"
    client.do("os.close(fd)")
    assert client.do("os.stat(path('svm/heap')).st_mtime_ns") != 2 * 10**18


def test_mtime_of_a_device_write_shows_when_nobody_has_it_open(device: Device) -> None:
    space(device)
    client = device.shell
    client.do("os.utime(path('svm/heap'), ns=(10**18, 2 * 10**18))")
    assert device.command(f"{HEAP}/gpu", "fill 0 2M 1") == "ok"
    assert client.do("os.stat(path('svm/heap')).st_mtime_ns") != 2 * 10**18
    client.do("os.utime(path('svm/heap'), ns=(10**18, 2 * 10**18)); fd = opened('svm/heap')")
    assert device.command(f"{HEAP}/gpu", "fill 0 2M 2") == "ok"
    assert client.do("os.fstat(fd).st_mtime_ns") == 2 * 10**18
    client.do("os.close(fd)")
    assert client.do("os.stat(path('svm/heap')).st_mtime_ns") != 2 * 10**18


def test_statfs_and_posix_fallocate(device: Device) -> None:
    space(device)
    client = device.shell
    assert client.do("(of := os.statvfs(path('svm'))).f_files - of.f_ffree") == 1
    client.do("fd = opened('svm/heap'); os.posix_fallocate(fd, 0, 4096 * 3)")
    assert client.do("os.fstat(fd).st_size") == 64 * MIB


# -- READs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advice", ["NORMAL", "RANDOM", "SEQUENTIAL"])
def test_a_touch_is_one_read_of_the_page_touched(device: Device, advice: str) -> None:
    space(device)
    client = device.client(f"fd = opened('svm/heap'); m = mapped(fd, 64 << 20, advice=mmap.MADV_{advice})")
    device.control("svm_log")
    client.do("m[4 << 20]")
    assert reads(device) == [(4 * MIB, 4096)]
    client.do("[m[(4 << 20) + 4096 * n] for n in range(1, 512)] and None")
    seen = reads(device)
    assert sorted(seen) == [(4 * MIB + 4096 * n, 4096) for n in range(1, 512)], "inside [4M, 6M) only"


@pytest.mark.parametrize("size", [1, 4096, 5000, 65536, MIB])
def test_a_pread_reads_what_it_names_and_no_page_more(device: Device, size: int) -> None:
    space(device)
    client = device.client("fd = opened('svm/heap')")
    device.control("svm_log")
    assert client.do(f"len(os.pread(fd, {size}, {4 * MIB + 100}))") == size
    seen = reads(device)
    assert min(offset for offset, _ in seen) == 4 * MIB
    assert max(offset + count for offset, count in seen) == (4 * MIB + 100 + size + 4095) & ~4095
    assert sum(count for _, count in seen) == -(-(100 + size) // 4096) * 4096


def test_a_direct_pread_is_one_large_read(device: Device) -> None:
    space(device)
    client = device.client("fd = opened('svm/heap', os.O_RDWR | os.O_DIRECT)")
    device.control("svm_log")
    assert client.do(f"direct(fd, {4 * MIB}, {MIB}) == bytes(1 << 20)")
    assert len(reads(device)) <= 2


def test_the_readahead_of_bo_files_is_their_own_again(device: Device) -> None:
    space(device)
    device.make("a", 4 * MIB, 1)
    assert device.command("objects/a/unmap", "\n") == "ok"
    client = device.client("os.close(opened('svm/heap')); fd = opened('bo/a'); m = mapped(fd, 4 << 20, "
                           "advice=mmap.MADV_NORMAL)")
    before = device.stats()["requests"]
    client.do("m[2 << 20]")
    after = device.stats()["requests"]
    assert after["read_bytes"] - before["read_bytes"] > 64 << 10


# -- commands ----------------------------------------------------------------------------------------------------------

REJECTS: list[tuple[str, str, str]] = [
    ("gpu", "", "EINVAL"),
    ("gpu", "zork 0 4096", "EINVAL"),
    ("gpu", "fill 0 4096", "EINVAL"),
    ("gpu", "fill 0 4096 256", "EINVAL"),
    ("gpu", "fill 0 4096 -1", "EINVAL"),
    ("gpu", "fill 0 0 1", "EINVAL"),
    ("gpu", "fill x 4096 1", "EINVAL"),
    ("gpu", "fill 0 99999999999999999999 1", "EINVAL"),
    ("gpu", "fill 0 65M 1", "EFAULT"),
    ("gpu", "fill 64M 1 1", "EFAULT"),
    ("gpu", "fill 0x3fffffffffffffff 4096 1", "EFAULT"),
    ("gpu", "fill 0 4096 1 2", "EINVAL"),
    ("gpu", "write 0", "EINVAL"),
    ("gpu", "write 0 0", "EINVAL"),
    ("gpu", "write 0 0g", "EINVAL"),
    ("gpu", "write 0x3ffffff 0011", "EFAULT"),
    ("gpu_read", "read 0 1M nowait", "EINVAL"),
    ("gpu_read", "read 0 1048577", "E2BIG"),
    ("gpu_read", "read 63M 2M", "E2BIG"),
    ("gpu_read", "read 64M 1", "EFAULT"),
    ("gpu", "atomic_add 0", "EINVAL"),
    ("gpu", "atomic_add 0 0x10000000000000000", "EINVAL"),
    ("gpu", "atomic_add 0 1.5", "EINVAL"),
    ("gpu", "atomic_add 64M 1", "EFAULT"),
    ("gpu_read", "checksum 0", "EINVAL"),
    ("gpu_read", "checksum 0 65M", "EFAULT"),
    ("prefetch", "0 2M", "EINVAL"),
    ("prefetch", "0 2M gtt", "EINVAL"),
    ("prefetch", "0 2M vram system", "EINVAL"),
    ("prefetch", "64M 2M vram", "EFAULT"),
    ("madvise", "0 2M", "EINVAL"),
    ("madvise", "0 2M preferred=gtt", "EINVAL"),
    ("madvise", "0 2M preferred=vram preferred=vram", "EINVAL"),
    ("madvise", "0 2M colour=red", "EINVAL"),
    ("madvise", "0 2M atomic", "EINVAL"),
    ("madvise", "64M 2M preferred=vram", "EFAULT"),
    ("map", "0 2M rw", "EINVAL"),
    ("map", "0", "EINVAL"),
    ("map", "64M 2M", "EFAULT"),
    ("unmap", "0", "EINVAL"),
    ("unmap", "0 0", "EINVAL"),
    ("unmap", "64M 2M", "EFAULT"),
]

UNALIGNED: list[tuple[str, str]] = [
    ("madvise", "1 4096 preferred=vram"),
    ("madvise", "0 4095 preferred=vram"),
    ("map", "1 4096"),
    ("unmap", "0 100"),
    ("gpu", "atomic_add 4 1"),
]


@pytest.mark.parametrize(("name", "text", "code"), [*REJECTS, *((name, text, "EINVAL") for name, text in UNALIGNED)])
def test_a_bad_command_is_refused_and_changes_nothing(device: Device, name: str, text: str, code: str) -> None:
    space(device)
    device.shell.do("os.pwrite(opened('svm/heap'), b'x' * 5000, 100)")
    before = [device.shell.do(f"slurp('{HEAP}/{file}')") for file in ("snapshot", "ranges", "notifiers")]
    assert device.command(f"{HEAP}/{name}", text + "\n") == code
    assert device.shell.do("slurp('error_log')").splitlines()[-1].split("\t")[1] == code
    assert [device.shell.do(f"slurp('{HEAP}/{file}')") for file in ("snapshot", "ranges", "notifiers")] == before
    assert device.shell.do("os.pread(opened('svm/heap'), 5002, 99)") == b"\0" + b"x" * 5000 + b"\0"


def test_results_help_and_status(device: Device) -> None:
    space(device)
    code, lines = device.transact(f"{HEAP}/gpu", "fill 4M 2M 7\natomic_add 8M -1\n")
    assert code == "ok", lines
    assert [line["line"] for line in lines] == [1, 2]
    assert lines[1]["value"] == 0
    code, lines = device.transact(f"{HEAP}/gpu_read", "read 0x4ffffe 4\nread 8M 8\n")
    assert code == "ok", lines
    assert [line["line"] for line in lines] == [1, 2]
    assert lines[0]["data"] == "07070707"
    assert lines[1]["data"] == "ff" * 8
    assert device.transact(f"{HEAP}/gpu", "atomic_add 8M 0x10")[1][0]["value"] == 2**64 - 1
    help_text = device.shell.do(f"slurp('{HEAP}/gpu')")
    assert help_text.startswith("gpu fill ADDR LEN BYTE")
    assert f"> {HEAP}/gpu" in help_text
    readme = device.shell.do("slurp('README')")
    for name in ("gpu", "gpu_read", "prefetch", "madvise", "map", "unmap"):
        assert f"> svm_objects/heap/{name}" in readme
    status = json.loads(device.shell.do(f"slurp('{HEAP}/status.json')"))
    assert (status["name"], status["size"]) == ("heap", 64 * MIB)
    text = device.shell.do(f"slurp('{HEAP}/status')")
    assert dict(line.split(":\t", 1) for line in text.splitlines()) == {k: str(v) for k, v in status.items()}
    assert set(device.stats()["svm"]) >= {
        "spaces", "ranges", "migrations_in", "migrations_out", "gpu_faults", "cpu_faults", "invalidations",
    }  # fmt: skip


def test_every_example_of_the_help_is_accepted(device: Device) -> None:
    space(device)
    device.shell.do("os.pwrite(opened('svm/heap'), b'x' * (16 << 20), 0)")
    for name in ("gpu", "gpu_read", "prefetch", "madvise", "map", "unmap"):
        lines = device.shell.do(f"slurp('{HEAP}/{name}')").splitlines()
        examples = [line.split("'")[1] for line in lines if line.startswith("  echo ")]
        assert examples
        for example in examples:
            assert device.command(f"{HEAP}/{name}", example + "\n") == "ok", (name, example)


@pytest.mark.parametrize(
    ("name", "text", "other"),
    [("gpu", "read 0 4", "gpu_read"), ("gpu", "checksum 0 4", "gpu_read"), ("gpu_read", "fill 0 4 1", "gpu"),
     ("gpu_read", "write 0 00", "gpu"), ("gpu_read", "atomic_add 0 0", "gpu")],
)  # fmt: skip
def test_each_file_of_the_device_names_the_other(device: Device, name: str, text: str, other: str) -> None:
    space(device)
    code, lines = device.transact(f"{HEAP}/{name}", text)
    assert code == "EACCES"
    assert f"into {other}, which needs" in lines[0]["error"]


def test_another_user_with_read_permission_only(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "16M", "--memory", "64M", "--allow-other")
    space(device)
    other = device.client("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
    assert other.errno("opened('svm/heap', os.O_RDWR)") == "EACCES"
    assert other.do("os.pread(opened('svm/heap', os.O_RDONLY), 4, 0)") == bytes(4)
    assert other.do(f"transact('{HEAP}/gpu_read', 'read 0 4')[1][0]['data']") == "00000000"
    for name in ("gpu", "prefetch", "madvise", "map", "unmap", "ranges"):
        assert other.errno(f"opened('{HEAP}/{name}', os.O_WRONLY)") == "EACCES"
    device.shell.do("os.chmod(path('svm/heap'), 0o600)")
    for name in ("gpu", "gpu_read", "ranges", "status"):
        assert other.errno(f"opened('{HEAP}/{name}', os.O_RDONLY)") == "EACCES"
    other.do("os.close(opened('svm/mine', os.O_CREAT | os.O_RDWR)); os.truncate(path('svm/mine'), 1 << 20)")
    assert other.do("transact('svm_objects/mine/gpu', 'fill 0 4 1')[0]") == 0


def test_another_user_with_write_permission_only(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "16M", "--memory", "64M", "--allow-other")
    space(device)
    assert device.command(f"{HEAP}/gpu", "fill 0 8 83") == "ok"
    device.shell.do("os.chmod(path('svm/heap'), 0o622)")
    other = device.client("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
    assert other.errno(f"opened('{HEAP}/gpu_read', os.O_RDWR)") == "EACCES"
    code, lines = other.do(f"transact('{HEAP}/gpu', 'atomic_add 0 0')")
    assert code == 0
    assert "value" not in lines[0], "who may not read is not told what was there"
    assert other.do(f"transact('{HEAP}/gpu', 'fill 0 4 1')[0]") == 0
    assert device.transact(f"{HEAP}/gpu_read", "read 0 8")[1][0]["data"] == "01" * 4 + "53" * 4


def test_knobs(device: Device) -> None:
    assert "svm_notifier_size=536870912\n" in device.shell.do("slurp('ctl/config')")
    assert "atomic_svm_timeslice_ms=5\n" in device.shell.do("slurp('ctl/config')")
    for text in ("svm_notifier_size=3M", "svm_notifier_size=512K", "svm_notifier_size=2T",
                 "atomic_svm_timeslice_ms=-1", "atomic_svm_timeslice_ms=nan", "atomic_svm_timeslice_ms=x"):
        assert device.command("ctl/config", text) == "EINVAL", text
    assert device.command("ctl/config", "svm_notifier_size=64M atomic_svm_timeslice_ms=2.5") == "ok"
    assert "svm_notifier_size=67108864\natomic_svm_timeslice_ms=2.5\n" in device.shell.do("slurp('ctl/config')")
    assert device.command("ctl/config", "svm_notifier_size=512M atomic_svm_timeslice_ms=5") == "ok"


def test_the_policy_of_migration(device: Device) -> None:
    shown = "svm_migrate=once\nsvm_migrate_threshold=65536\nsvm_range_sizes=2M,64K,4K\n"
    assert shown in device.shell.do("slurp('ctl/config')")
    for text in ("svm_migrate=twice", "svm_migrate_threshold=4M", "svm_range_sizes=2M,64K", "svm_range_sizes="):
        # All of a line or none of it.
        assert device.command("ctl/config", f"svm_migrate=never {text}") == "EINVAL", text
        assert shown in device.shell.do("slurp('ctl/config')")
    space(device)

    def bounced() -> list[str]:
        """Where the range at 0 is after each of two faults of the device, with a touch by the CPU between."""
        where = []
        for _ in range(2):
            assert device.command(f"{HEAP}/gpu", "fill 0 4K 5") == "ok"
            where.append(device.shell.do(f"slurp('{HEAP}/ranges')").splitlines()[1].split("\t")[3])
            assert device.shell.do("os.pread(opened('svm/heap', os.O_RDWR), 1, 5)") == b"\5"
        return where

    assert bounced() == ["vram", "system"]
    assert device.command("ctl/config", "svm_migrate=always") == "ok"
    assert device.command(f"{HEAP}/madvise", "0 2M preferred=vram") == "ok"
    assert bounced() == ["vram", "vram"]
    assert device.command("ctl/config", "svm_migrate=never") == "ok"
    assert device.command(f"{HEAP}/madvise", "0 2M preferred=fault") == "ok"
    assert bounced() == ["system", "system"]
    assert device.command("ctl/config", "svm_range_sizes=512K,4K svm_migrate=once svm_migrate_threshold=1M") == "ok"
    assert device.command(f"{HEAP}/gpu", "fill 4M 4K 5") == "ok"
    assert "0x400000\t0x480000\t512K\tsystem\t" in device.shell.do(f"slurp('{HEAP}/ranges')")


def test_a_device_without_vram_does_atomics_in_system(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "0", "--memory", "64M", "--svm-migrate", "always", "--svm-range-sizes", "1M,4K")
    space(device)
    assert device.command(f"{HEAP}/gpu", "atomic_add 8 5") == "ok"
    code, lines = device.transact(f"{HEAP}/gpu", "atomic_add 8 0")
    assert (code, lines[0]["value"]) == ("ok", 5)
    assert device.shell.do("os.pread(opened('svm/heap', os.O_RDWR), 2, 8)") == b"\5\0"
    assert "0x0\t0x100000\t1M\tsystem\t" in device.shell.do(f"slurp('{HEAP}/ranges')")


def test_umount_with_spaces_alive(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "16M", "--memory", "64M", "--svm-notifier-size", "16M")
    space(device)
    client = device.client("fd = opened('svm/heap'); m = mapped(fd, 64 << 20); m[5] = 1; m[9 << 20] = 1; m.flush()")
    assert device.command(f"{HEAP}/gpu", "fill 4M 4M 3") == "ok"
    client.do("m[4 << 20] = 4")
    assert device.stop() == 0
    client.end()


def test_a_killed_client_leaves_nothing(device: Device) -> None:
    space(device)
    client = device.client("fd = opened('svm/heap'); m = mapped(fd, 64 << 20); m[5] = 1; os.unlink(path('svm/heap'))")
    device.clients.remove(client)
    client.end()
    device.until(lambda: device.control("spaces") == 0)
    assert device.stats()["svm"]["spaces"] == 0


@pytest.mark.parametrize("exception", ["ValueError", "OSError", "BaseExceptionGroup", "StopAsyncIteration"])
def test_an_exception_in_a_space_is_eio_and_the_daemon_lives(device: Device, exception: str) -> None:
    space(device)
    device.allowed.append("made to fail|StopAsyncIteration")
    client = device.client("fd = opened('svm/heap')")
    before = device.stats()["requests"]
    for handler, use in (("read", "os.pread(fd, 4, 0)"), ("write", "os.pwrite(fd, b'x', 5000)")):
        device.control("fail_space", handler=handler, exception=exception)
        assert client.errno(use) == "EIO"
    device.control("restore_handlers")
    assert client.do("os.pread(fd, 4, 0)") == bytes(4)
    after = device.stats()["requests"]
    assert after["handler_errors"] - before["handler_errors"] >= 2
    assert after["write_errors"] - before["write_errors"] == 1
    assert after["waiting"] == 0

"""BO files behave as files: sizes, truncation, names, attributes, mappings, many processes."""

import pytest

from tests.mount.mount_harness import MIB, PAGE, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = (
    "--vram", "32M", "--gtt", "64M", "--memory", "128M", "--allow-other", "--placement", "vram gtt system"
)  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1 << 30])
def test_a_size_made_by_truncate_reads_as_zeros(device: Device, size: int) -> None:
    """1 GiB is far more than there is memory."""
    assert device.command("ctl/config", "propagate_enospc=0") == "ok"
    device.make("a", size)
    device.shell.do("fd = opened('bo/a')")
    assert device.shell.do("os.fstat(fd).st_size") == size
    assert device.stats()["pool"]["in_use_pages"] == 0
    if size < MIB:
        assert device.shell.do("os.pread(fd, 9000, 0)") == bytes(size)
        assert device.shell.do(f"os.pread(fd, 9000, {size})") == b""


def test_truncate_both_ways_reads_zeros_where_bytes_were_cut_off(device: Device) -> None:
    for place in ("system", "gtt", "vram"):
        device.make("a", MIB, fill=7, place=place)
        client = device.client("fd = opened('bo/a'); m = mapped(fd, 1 << 20); first = m[1 << 19]")
        client.do("os.ftruncate(fd, 5000); os.ftruncate(fd, 1 << 20)")
        assert client.do("bytes(m[:]) == bytes([7]) * 5000 + bytes((1 << 20) - 5000)")
        assert client.do("os.pread(fd, 1 << 20, 0) == bytes([7]) * 5000 + bytes((1 << 20) - 5000)")
        device.remove_all()


def test_a_mapping_of_an_odd_size_reads_zeros_behind_the_end(device: Device) -> None:
    device.make("a", 8192, fill=7)
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 8192); os.ftruncate(fd, 5000)")
    assert client.do("bytes(m[4096:])") == b"\7" * 904 + bytes(3192)
    # What a client stores behind the end is not content: it must not show when the file grows.
    client.do("m[6000] = 9; m.flush(); os.ftruncate(fd, 8192)")
    assert device.command("objects/a/validate", "gtt system") == "ok"
    assert client.do("os.pread(fd, 4096, 4096)") == b"\7" * 904 + bytes(3192)
    client.do("os.ftruncate(fd, 4096)")
    client.begin("m[4096]")
    assert client.died() == -7, "SIGBUS behind the last page"


def test_two_processes_append_and_lose_nothing(device: Device) -> None:
    device.make("a", 0)
    writers = [device.client("fd = opened('bo/a', os.O_WRONLY | os.O_APPEND)") for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.begin(f"[os.write(fd, b'{number}' * 100) for _ in range(200)] and None")
    for writer in writers:
        writer.result(20)
    data = device.shell.do("open(path('bo/a'), 'rb').read()")
    assert len(data) == 40000
    assert {data[i : i + 100] for i in range(0, 40000, 100)} == {b"0" * 100, b"1" * 100}


def test_a_sparse_file_takes_memory_only_where_it_was_written(device: Device) -> None:
    device.shell.do("fd = opened('bo/a', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'end', (64 << 20) - 3)")
    assert device.command("objects/a/placement", "system") == "ok"
    assert device.shell.do("os.pread(fd, 8192, (64 << 20) - 8192)") == bytes(8189) + b"end"
    device.shell.do("os.ftruncate(fd, 100 << 20)")
    assert device.shell.do("os.pread(fd, 8192, (64 << 20) - 4096)") == bytes(4093) + b"end" + bytes(4096)


def test_unlinked_while_open_and_mapped_it_lives_on(device: Device) -> None:
    device.make("a", MIB, fill=7, place="vram")
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 1 << 20); os.unlink(path('bo/a'))")
    assert client.errno("os.stat(path('bo/a'))") == "ENOENT"
    assert client.errno("os.stat(path('objects/a'))") == "ENOENT"
    assert device.command("ctl/evict", "vram all") == "ok"
    assert client.do("m[70000], os.pread(fd, 1, 99)[0], os.fstat(fd).st_nlink") == [7, 7, 0]
    client.do("m[70000] = 8; os.close(fd)")
    assert client.do("m[70000]") == 8
    assert device.stats()["bos"]["count"] == 1
    client.do("m.close()")
    device.until(lambda: device.stats()["bos"]["count"] == 0, why="the last mapping is gone")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == 0)


def test_inode_numbers_are_never_reused(device: Device) -> None:
    seen = device.shell.do(
        "[(os.close(opened('bo/x%d' % (n % 3), os.O_CREAT | os.O_RDWR)), os.stat(path('bo/x%d' % (n % 3))).st_ino,"
        " os.unlink(path('bo/x%d' % (n % 3))))[1] for n in range(200)]"
    )
    assert len(set(seen)) == 200


def test_rename_replaces_refuses_and_exchanges(device: Device) -> None:
    device.make("a", 10, fill=1)
    device.make("b", 20, fill=2)
    shell = device.shell
    assert shell.do("renameat2('bo/a', 'bo/b', 1)") == 17
    assert shell.do("renameat2('bo/a', 'bo/b', 2)") == 0
    assert shell.do("os.stat(path('bo/a')).st_size, os.stat(path('bo/b')).st_size") == [20, 10]
    assert device.status("a")["size"] == 20
    shell.do("os.mkdir(path('bo/d')); os.rename(path('bo/a'), path('bo/d/a2'))")
    assert device.status("d/a2")["size"] == 20
    assert device.command("ctl/validate", "d/a2,b gtt") == "ok"
    assert device.command("objects/d/a2/validate", "vram") == "ok"
    shell.do("os.rename(path('bo/d'), path('bo/e'))")
    assert device.status("e/a2")["mem_type"] == "vram"
    assert shell.errno("os.rename(path('bo/e'), path('bo/e/x'))") == "EINVAL"
    assert shell.errno("os.rmdir(path('bo/e'))") == "ENOTEMPTY"
    shell.do("os.rename(path('bo/b'), path('bo/e/a2'))")
    assert shell.do("os.stat(path('bo/e/a2')).st_size, os.listdir(path('bo'))") == [10, ["e"]]
    assert shell.errno("os.rename(path('bo/e/a2'), path('bo/' + 'n' * 256))") == "ENAMETOOLONG"
    assert shell.errno("os.mkdir(path('objects/d'))") in ("EPERM", "ENOTDIR")
    assert shell.errno("opened('ctl/new', os.O_CREAT | os.O_RDWR)") == "EPERM"


NAMES = ["a b", "comma,comma", "line\nbreak", "tab\t'quote\"", "back\\slash", "ü" * 100, "n" * 255, "%s{}", "-rf"]


def test_any_name_is_a_bo(device: Device) -> None:
    for name in NAMES:
        device.make(name, PAGE, fill=3)
        escaped = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\{b:03o}" for b in name.encode())
        assert device.command("ctl/validate", f"{escaped} gtt\n") == "ok", name
        assert device.command(f"objects/{name}/evict", "\n") == "ok", name
        assert device.status(name)["mem_type"] == "system", name
    assert sorted(device.shell.do("os.listdir(path('objects'))")) == sorted(NAMES)


def test_bytes_that_are_no_text_are_a_name_too(device: Device) -> None:
    device.shell.do("os.close(os.open(path(b'bo/\\xff\\xfe'), os.O_CREAT | os.O_RDWR))")
    assert device.command("ctl/validate", r"\377\376 gtt") == "ok"
    assert device.shell.do("os.listdir(path(b'objects'))") == [b"\xff\xfe"]


def test_extended_attributes(device: Device) -> None:
    device.make("a", PAGE, fill=3)
    shell = device.shell
    assert shell.do("os.getxattr(path('bo/a'), 'user.ttm.size')") == b"4096"
    assert "user.ttm.mem_type" in shell.do("os.listxattr(path('bo/a'))")
    shell.do("os.setxattr(path('bo/a'), 'user.ttm.priority', b'3')")
    assert device.status("a")["priority"] == 3
    assert shell.errno("os.setxattr(path('bo/a'), 'user.ttm.priority', b'9')") == "EINVAL"
    assert shell.errno("os.setxattr(path('bo/a'), 'user.ttm.size', b'9')") == "EPERM"
    assert shell.errno("os.setxattr(path('bo/a'), 'user.other', b'9')") == "ENOTSUP"
    assert shell.errno("os.getxattr(path('bo/a'), 'user.other')") == "ENODATA"
    assert shell.errno("os.removexattr(path('bo/a'), 'user.ttm.priority')") == "EPERM"
    for place, name in (("bo/a", "user.other"), ("bo/a", "user.ttm.none"), ("bo", "user.ttm.size")):
        assert shell.errno(f"os.removexattr(path({place!r}), {name!r})") == "ENODATA"


def test_statfs_and_posix_fallocate(device: Device) -> None:
    before = device.shell.do("os.statvfs(path('bo')).f_bfree")
    assert before * PAGE > 100 * MIB
    device.make("a", 8 * MIB, fill=1, place="system")
    after = device.shell.do("os.statvfs(path('bo')).f_bfree")
    assert before - after >= 2048
    device.shell.do("os.posix_fallocate(opened('bo/a'), 0, 9 << 20)", 30)
    assert device.status("a")["size"] == 9 * MIB


def test_modes_and_owners_decide_for_another_user(device: Device) -> None:
    device.make("a", PAGE, fill=1)
    shell = device.shell
    shell.do("os.chmod(path('bo/a'), 0o600)")
    other = device.client("os.setgid(65534); os.setuid(65534)")
    assert other.errno("opened('bo/a', os.O_RDONLY)") == "EACCES"
    assert other.errno("os.chmod(path('bo/a'), 0o666)") == "EPERM"
    assert other.errno("command('objects/a/validate', 'vram')") == "EACCES"
    assert other.errno("command('ctl/evict', 'vram all')") == "EACCES"
    shell.do("os.chown(path('bo/a'), 65534, 65534)")
    assert other.do("os.pread(opened('bo/a'), 1, 0)") == b"\1"
    assert other.do("command('objects/a/validate', 'gtt')") == 0
    other.do("make('bo/mine', 5, 1)")
    assert other.do("os.stat(path('bo/mine')).st_uid") == 65534
    assert other.errno("os.chown(path('bo/mine'), 0, 0)") == "EPERM"
    other.do("os.chmod(path('bo/mine'), 0)")
    assert other.errno("opened('bo/mine', os.O_RDONLY)") == "EACCES"
    assert other.errno("os.unlink(path('bo/a'))") == "ok"


def test_private_mappings_keep_their_stores_to_themselves(device: Device) -> None:
    device.make("a", 4 * PAGE, fill=1, place="vram")
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 16384, mmap.MAP_PRIVATE); m[0] = 9")
    assert device.command("objects/a/validate", "system") == "ok"
    assert client.do("m[0], m[1], m[8192], os.pread(fd, 1, 0)[0]") == [9, 1, 1, 1]


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
def test_direct_io_and_mappings_see_each_other(device: Device, place: str) -> None:
    device.make("a", MIB, fill=1, place=place)
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 1 << 20); d = opened('bo/a', os.O_RDWR | os.O_DIRECT)")
    client.do("m[5000] = 9")
    assert client.do("direct(d, 4096, 4096)[904]") == 9
    client.do("page = mmap.mmap(-1, 4096); page[:] = b'D' * 4096; os.pwrite(d, page, 8192)")
    assert client.do("m[8192], os.pread(fd, 1, 8193)[0]") == [68, 68]


def test_all_bytes_of_a_large_pattern_through_every_region(device: Device) -> None:
    client = device.client("data = b''.join(n.to_bytes(8, 'little') for n in range((9 << 17) + 97)) + b'end'")
    client.do("fd = opened('bo/a', os.O_CREAT | os.O_RDWR); os.pwrite(fd, data, 0)")
    for place in ("vram", "gtt", "system", "vram:topdown", "system"):
        assert device.command("objects/a/validate", place) == "ok"
        assert client.do("open(path('bo/a'), 'rb').read() == data"), place


def _requests(device: Device) -> int:
    """Requests that the daemon's loop has read so far."""
    rows = dict(line.split("\t", 1) for line in device.shell.do("open(path('debug/loop')).read()").splitlines())
    return int(rows["polled"]) + int(rows["parked"])


def test_a_pwrite_is_one_request(device: Device) -> None:
    """Nobody asks for security.capability first: INIT agreed that set-ID bits are no concern of the kernel's."""
    device.make("w", MIB)
    client = device.client("fd = opened('bo/w')")
    client.do("[os.pwrite(fd, b'w' * 4096, n * 4096) for n in range(256)]")
    before = _requests(device)
    client.do("[os.pwrite(fd, b'v' * 4096, n * 4096) for n in range(200)]")
    assert _requests(device) - before < 300


def test_files_never_have_set_id_bits(device: Device) -> None:
    """Whoever writes to a file would have to clear them."""
    device.make("s", MIB)
    assert device.shell.do("os.chmod(path('bo/s'), 0o6755), os.stat(path('bo/s')).st_mode & 0o7777")[1] == 0o755
    device.shell.do("os.mkdir(path('bo/dir')); os.chmod(path('bo/dir'), 0o2755)")
    assert device.shell.do("os.stat(path('bo/dir')).st_mode & 0o7777") == 0o2755
    device.shell.do("os.rmdir(path('bo/dir'))")

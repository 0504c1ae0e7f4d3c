"""What stores do to their medium: memory and blocks that return, files that are ours and those that are not."""

import ctypes
import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.memory.host_memory import cached_bytes
from tests.memory.test_stores import KINDS, MiB, noise_arena, numbers
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.stores import FileStore, ShmemStore, ZstdFileStore, ZstdStore, make_store, medium
from ttmfs.units import PAGE_SIZE


def resident() -> int:
    """Anonymous and shmem memory of this process, bytes; what the C library keeps of freed memory is not meant."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["all", "tail", "random"])
def test_memory_returns(kind: str, way: str, tmp_path: Path) -> None:
    pages = 8192
    source, target = noise_arena(pages), Arena("target", pages)
    target.mem[:] = 1
    path = tmp_path / "store"
    store = make_store(f"{kind}:{path}" if kind.endswith("file") else kind, 64 * MiB)
    assert store is not None
    store.drop(store.store(source, numbers(1024)))  # compressors and the like are there from now on
    empty = resident()
    handles = store.store(source, numbers(pages))
    if kind.endswith("file"):
        store.writeback()
        assert blocks(path) >= pages * PAGE_SIZE
        assert resident() - empty < 6 * MiB, "a file store gives the memory back"
    else:
        assert resident() - empty >= pages * PAGE_SIZE
    order = np.random.default_rng(1).permutation(pages) if way == "random" else np.arange(pages)[::-1]
    left = 0 if way == "all" else pages // 10
    for part in np.array_split(order[: pages - left], 5):
        store.drop(handles[part])
        store.check()
    rest = np.sort(order[pages - left :]).astype(np.uint32)
    allowed = 2 * left * PAGE_SIZE + 7 * MiB  # a quarter and 2 MiB for slots, twice and two segments for compressed
    assert resident() - empty < allowed
    if kind.endswith("file"):
        assert blocks(path) < (allowed if left else 1)
    store.load(handles[rest], target, rest)
    assert (target.mem[rest] == source.mem[rest]).all()
    store.drop(handles[rest])
    assert resident() - empty < 6 * MiB
    if kind.endswith("file"):
        assert blocks(path) == 0
    store.close()
    assert not path.exists()


def test_zeros_are_almost_free() -> None:
    store, arena = ZstdStore(64 * MiB), Arena("zeros", 4096)
    handles = store.store(arena, numbers(4096))
    assert store.used == 4096 * 64
    assert store.statistics().ratio == 64
    arena.mem[:] = 1
    store.load(handles, arena, numbers(4096))
    assert not arena.mem.any()
    store.close()


def test_ratio_and_plain_pages() -> None:
    store, arena = ZstdStore(64 * MiB), noise_arena(1024)
    store.drop(store.store(arena, numbers(1024)))
    before = resident()
    store.store(arena, numbers(1024))
    assert store.statistics().ratio == 1.0, "noise is kept plain, not enlarged"
    arena.mem &= 1
    handles = store.store(arena, numbers(1024))
    assert 1.4 < store.statistics().ratio < 2
    assert resident() - before < store.used + 5 * MiB
    store.load(handles, arena, numbers(1024))
    store.close()


def test_a_compressed_store_holds_more_than_its_size() -> None:
    store, arena = ZstdStore(MiB), Arena("a", 2048)
    arena.mem[:] = np.arange(2048, dtype=np.uint64).view(np.uint8)[::8, None]
    handles = store.store(arena, numbers(2048))
    assert handles.size == 2048
    assert store.used < MiB
    store.close()


def test_cold_pages_are_written_behind_the_oldest_first(tmp_path: Path) -> None:
    store = ZstdFileStore(str(tmp_path / "store"), 64 * MiB, memory_size=4 * MiB)
    source, target = noise_arena(8192), Arena("target", 8192)
    handles = [store.store(source, part) for part in np.array_split(numbers(8192), 16)]
    assert store.memory_used <= 6 * MiB
    assert store.on_disk >= 26 * MiB
    assert store.place_of(1)[0].block >= 0
    assert store.place_of(8192)[0].block < 0
    whole = np.concatenate(handles)
    store.load(whole, target, numbers(8192))
    assert (target.mem == source.mem).all()
    # Holes in the file are closed, and their blocks return.
    keep = np.random.default_rng(3).permutation(8192)[:800]
    store.drop(np.delete(whole, keep))
    store.check()
    assert blocks(tmp_path / "store") < 12 * MiB
    target.mem[:] = 0
    store.load(whole[keep], target, keep)
    assert (target.mem[keep] == source.mem[keep]).all()
    store.close()


def test_writeback_puts_all_into_the_file(tmp_path: Path) -> None:
    store = ZstdFileStore(str(tmp_path / "store"), 64 * MiB)
    source = noise_arena(100)
    store.store(source, numbers(100), writeback=True)
    assert store.on_disk == store.used == 100 * PAGE_SIZE
    assert store.memory_used == 0
    store.check()
    store.close()


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "content", "hard link"])
def test_refuses_what_is_something_else(what: str, tmp_path: Path) -> None:
    path = tmp_path / "path"
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        (tmp_path / "there").touch()
        path.symlink_to(tmp_path / "there")
    elif what == "content":
        path.write_text("a letter")
    else:
        (tmp_path / "there").touch()
        os.link(tmp_path / "there", path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TtmError, match="path") as error:
        make_store(f"file:{path}", MiB)
    assert error.value.errno == errno.EINVAL
    assert sorted(tmp_path.iterdir()) == before
    assert what != "content" or path.read_text() == "a letter"


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TtmError, match="cannot be made") as error:
        make_store(f"zstd+file:{tmp_path}/none/store", MiB)
    assert error.value.errno == errno.ENOENT


def test_an_empty_file_is_used_and_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.touch(0o600)
    store = FileStore(str(path), MiB)
    store.store(noise_arena(4), numbers(4))
    with pytest.raises(TtmError, match="another process") as busy:
        FileStore(str(path), MiB)
    assert busy.value.errno == errno.EBUSY
    store.close()
    assert path.stat().st_size == 0


def test_a_new_file_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "store"
    before = os.umask(0)
    try:
        store = FileStore(str(path), MiB)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o666, 0o602, 0o600])
def test_a_file_that_others_could_have_open_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, marked: bool
) -> None:
    path = tmp_path / "store"
    path.touch()
    if marked:
        path.write_text("left behind")
        os.setxattr(path, "user.ttmfs.swap_store", b"1")
    path.chmod(mode)
    someone = os.geteuid() + (mode == 0o600)  # a private one, but of somebody else
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    with path.open("rb") as theirs:
        store = FileStore(str(path), MiB)
        store.store(noise_arena(4), numbers(4))
        assert theirs.read() == (b"left behind" if marked else b"")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_ino != os.fstat(theirs.fileno()).st_ino
        with pytest.raises(TtmError, match="another process"):
            FileStore(str(path), MiB)
    store.close()
    assert path.exists() == (not marked and mode != 0o600), "an empty file of ours stays"


def test_a_file_that_others_could_have_open_and_that_stays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    path.touch()
    path.chmod(0o666)

    def unlink(_path: str) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(TtmError, match="cannot be replaced") as error:
        FileStore(str(path), MiB)
    assert error.value.errno == errno.EPERM
    assert path.stat().st_mode & 0o777 == 0o666


def test_what_a_dead_process_left_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    program = (
        "import os, sys, numpy as np\n"
        "from ttmfs.memory.arena import Arena\n"
        "from ttmfs.memory.stores import FileStore\n"
        "store = FileStore(sys.argv[1], 1 << 20)\n"
        "arena = Arena('a', 4)\n"
        "arena.mem[:] = 7\n"
        "store.store(arena, np.arange(4, dtype=np.uint32))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    assert path.stat().st_size == 4 * PAGE_SIZE
    store = FileStore(str(path), MiB)
    assert path.stat().st_size == 0
    store.close()
    assert not path.exists()


def test_removes_only_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = FileStore(str(path), MiB)
    path.unlink()
    path.write_text("somebody else's")
    store.close()
    assert path.read_text() == "somebody else's"


def test_a_cut_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store, source, target = FileStore(str(path), MiB), noise_arena(16), Arena("target", 16)
    handles = store.store(source, numbers(16))
    os.truncate(path, 5 * PAGE_SIZE)
    with pytest.raises(TtmError, match="cut it") as error:
        store.load(handles, target, numbers(16))
    assert error.value.errno == errno.EIO
    assert (target.mem[:5] == source.mem[:5]).all()
    store.close()


@pytest.mark.parametrize("kind", ["file", "zstd+file"])
def test_a_full_disk_keeps_what_fitted(kind: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(disk)], check=False, timeout=30)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    store = None
    try:
        pages = 6144
        path = disk / "store"
        store = make_store(f"file:{path}", 64 * MiB) if kind == "file" else ZstdFileStore(str(path), 64 * MiB, 4 * MiB)
        assert store is not None
        source, target = noise_arena(pages), Arena("target", pages)
        parts = np.array_split(numbers(pages), 24)
        handles = []
        with pytest.raises(TtmError, match="disk") as full:  # noqa: PT012
            for part in parts:
                handles.append(store.store(source, part))
        assert full.value.errno == errno.ENOSPC
        store.check()
        stored = np.concatenate(handles)
        assert 8 * MiB - PAGE_SIZE * 16 <= stored.size * PAGE_SIZE <= 16 * MiB
        store.load(stored, target, numbers(pages)[: stored.size])
        assert (target.mem[: stored.size] == source.mem[: stored.size]).all()
        store.drop(stored[: stored.size // 2])
        again = store.store(source, numbers(256))
        assert again.size == 256
        store.load(again, target, numbers(256))
        assert (target.mem[:256] == source.mem[:256]).all()
        store.check()
    finally:
        if store is not None:
            store.close()
        subprocess.run(["umount", "-l", str(disk)], check=False, timeout=30)


def test_a_disk_without_holes_returns_its_blocks_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store, source = FileStore(str(path), 16 * MiB), noise_arena(2048)
    store.medium.can_punch = False
    handles = store.store(source, numbers(2048), writeback=True)
    store.drop(handles[:1024])
    assert blocks(path) >= 8 * MiB
    assert store.store(source, numbers(1024)).tolist() == handles[:1024].tolist(), "its slots are used again"
    store.drop(handles)
    assert blocks(path) == 0
    store.close()


def test_the_page_cache_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "store"
    what = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True)
    if what.stdout.strip() == "tmpfs":
        pytest.skip("a tmpfs is the page cache")
    store = FileStore(str(path), 32 * MiB, cache_bytes=4 * MiB)
    source = noise_arena(4096)
    for part in np.array_split(numbers(4096), 8):
        store.store(source, part)
    assert cached_bytes(path) <= 8 * MiB
    store.close()


def test_a_child_does_not_get_the_store() -> None:
    store, source = ShmemStore(MiB), noise_arena(4)
    handles = store.store(source, numbers(4))
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.load(handles, source, numbers(4))
    store.close()


def test_the_compressed_file_too_returns_its_blocks_without_holes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store, source = ZstdFileStore(str(path), 16 * MiB), noise_arena(2048)
    store.medium.can_punch = False
    handles = store.store(source, numbers(2048), writeback=True)
    assert blocks(path) >= 8 * MiB
    store.drop(handles)
    assert blocks(path) == 0
    store.close()


def test_pages_that_are_being_read_stay_where_they_are() -> None:
    store, source, target = ZstdStore(64 * MiB), noise_arena(4096), Arena("target", 4096)
    handles = store.store(source, numbers(4096))
    keep = np.sort(np.random.default_rng(1).permutation(4096)[:500]).astype(np.uint32)
    load = store.begin_load(handles[keep])
    before = store.statistics().waste
    store.drop(np.delete(handles, keep))
    assert store.statistics().waste < before + 8 * MiB, "compacted meanwhile"
    store.store(source, numbers(2048))
    store.read(load, target, keep)
    assert store.end_load(load) == 500
    assert (target.mem[keep] == source.mem[keep]).all()
    store.check()
    store.close()


def test_blocks_that_were_taken_for_a_store_that_failed_return(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store, source = FileStore(str(path), 16 * MiB), noise_arena(2048)
    first = store.store(source, numbers(512))
    store.fail_write = lambda number: errno.ENOSPC if number == 812 else 0
    handles = store.store(source, numbers(2048)[512:])
    assert len(handles) == 300
    store.writeback()
    assert blocks(path) <= (812 + 512 + 512) * 4096, "what is stored, and a quarter and 2 MiB besides"
    store.drop(handles)
    store.drop(first)
    assert blocks(path) == 0
    store.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_disk_that_allocates_nothing_ahead_stores_all_the_same(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Refusing:
        def fallocate(self, _fd: int, _mode: int, offset: int, size: int) -> int:
            asked.append((offset, size))
            ctypes.set_errno(code)
            return -1

    store, source, target = FileStore(str(tmp_path / "store"), 16 * MiB), noise_arena(1024), Arena("target", 1024)
    with monkeypatch.context() as patch:
        patch.setattr(medium, "_libc", Refusing())
        handles = np.concatenate([store.store(source, part) for part in np.array_split(numbers(1024), 2)])
    assert len(asked) == (2 if code == errno.ENOSPC else 1), "a full disk may have room again, others never learn it"
    store.load(handles, target, numbers(1024))
    assert (target.mem == source.mem).all()
    store.drop(handles)
    store.close()

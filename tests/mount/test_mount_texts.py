"""Text files as programs of every day read, copy and edit them: sizes, numbers, answers; whole trees read, copied."""

import errno
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mount_harness import PAGE, Device

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "16M", "--memory", "64M", "--swap", "16M", "--fault-timeout", "20")

QUICK = ("README", "objects/a/status", "objects/a/status.json", "objects/a/snapshot", "objects/a/placement",
         "objects/a/validate", "ctl/config", "ctl/trace", "ctl/evict", "regions/vram/used", "pool/pages",
         "debug/fail_move/times", "debug/pause_engine", "debug/vram0_mm", "debug/ttm/page_pool_shrink")  # fmt: skip
DEAR = ("metrics", "ctl/selfcheck", "regions/vram/lru", "regions/system/map", "trace", "debug/gem_info")


@pytest.fixture
def one(device: Device) -> Device:
    device.make("a", 40 * PAGE, 7, "gtt")
    return device


def read(device: Device, name: str) -> bytes:
    return Path(device.mountpoint, name).read_bytes()


def run(*command: object, status: int = 0, **more: Any) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60, check=False, **more)
    assert (done.returncode, done.stderr) == (status, b"")
    return bytes(done.stdout)


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


# -- sizes -------------------------------------------------------------------------------------------------------------

OPENED = """
def sizes(name):
    '''st_size and st_blocks of a text: by name, once it is open, of what is read, and by name again.'''
    closed = os.stat(path(name))
    fd = opened(name, os.O_RDONLY)
    inside, again = os.fstat(fd), os.stat(path(name))
    text = b''
    while piece := os.read(fd, 1 << 20): text += piece
    os.close(fd)
    return [closed.st_size, inside.st_size, inside.st_blocks, len(text), again.st_size, os.stat(path(name)).st_size]
"""


@pytest.mark.parametrize("name", QUICK)
def test_a_text_is_as_long_as_stat_says(one: Device, name: str) -> None:
    client = one.client(OPENED)
    closed, inside, blocks, length, again, after = client.do(f"sizes({name!r})")
    assert length > 0
    assert [closed, inside, again, after] == [length] * 4
    assert blocks == (length + 511) // 512


@pytest.mark.parametrize("name", DEAR)
def test_a_dear_text_is_as_long_as_it_was_when_it_was_last_opened(mounted: Any, name: str) -> None:
    client = mounted().client(OPENED)
    first = client.do(f"sizes({name!r})")
    assert first[0] == 4096, "never made"
    _closed, inside, blocks, length, _again, after = first
    assert (inside, blocks, after) == (length, (length + 511) // 512, length)
    second = client.do(f"sizes({name!r})")
    assert second[0] == length


SENT = """
import fcntl
def pieces(name, how):
    '''All of a text as the kernel hands it on, piece by piece, where nobody has asked how long it is.'''
    fd, (r, w), parts = os.open(path(name), os.O_RDONLY), os.pipe(), []
    try:
        fcntl.fcntl(w, 1031, 1 << 20)  # F_SETPIPE_SZ
        while count := os.sendfile(w, fd, None, 1 << 19) if how == 'sendfile' else os.splice(fd, w, 1 << 19):
            part = b''
            while len(part) < count: part += os.read(r, count - len(part))
            parts.append(part)
        return b''.join(parts)
    finally:
        for each in fd, r, w: os.close(each)

def copied(name):
    '''The same into a BO, by copy_file_range.'''
    fd, bo = os.open(path(name), os.O_RDONLY), opened('bo/copy', os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    try:
        while os.copy_file_range(fd, bo, 1 << 19): pass
        return os.pread(bo, 1 << 24, 0)
    finally:
        os.close(fd); os.close(bo)
"""
HANDED_ON = ("pieces({name!r}, 'sendfile')", "pieces({name!r}, 'splice')", "copied({name!r})")


@pytest.mark.parametrize("how", HANDED_ON, ids=["sendfile", "splice", "copy_file_range"])
def test_a_dear_text_is_handed_on_whole_when_it_was_never_made_before(mounted: Any, how: str) -> None:
    """The kernel was told 4096: `lru` is shorter."""
    device: Device = mounted()
    assert device.command("ctl/trace", "all") == "ok"
    for number in range(200):
        device.make(f"a{number}", PAGE, 1)
    assert device.command("ctl/trace", "off") == "ok"
    client = device.client(SENT)
    for name in ("trace", "metrics", "regions/system/lru"):
        text = client.do(how.format(name=name))
        assert (len(text) > 4096) is (name != "regions/system/lru"), name
        assert (text[-1:], b"\0" in text) == (b"\n", False)
        assert name != "trace" or text == read(device, name)


@pytest.mark.parametrize("how", HANDED_ON, ids=["sendfile", "splice", "copy_file_range"])
def test_a_text_that_grows_is_handed_on_whole(one: Device, how: str) -> None:
    """Between the GETATTR and the OPEN of one open(2) too."""
    one.make("going", 0)
    writer = one.client("a, other = path('bo/a'), path('bo/' + 'n' * 200)").begin(
        "while os.path.exists(path('bo/going')): os.link(a, other); os.unlink(other)"
    )
    client = one.client(SENT)
    seen = {len(json.loads(client.do(how.format(name="objects/a/status.json")))["names"]) for _ in range(100)}
    one.shell.do("os.unlink(path('bo/going'))")
    writer.result()
    assert seen == {1, 2}


def test_a_dear_text_is_not_made_for_a_look_at_its_size(mounted: Any) -> None:
    device: Device = mounted()
    for name in DEAR:
        assert device.shell.do(f"os.stat(path({name!r})).st_size") == 4096, name
    names = device.shell.do("[entry.name for entry in os.scandir(path('.')) if entry.stat().st_size == 4096]")
    assert {"metrics", "trace"} <= set(names)


def test_two_who_read_one_file_have_each_their_own_text(one: Device) -> None:
    """Sizes and page caches are the kernel's by inode."""
    client = one.client("first = open(path('objects/a/status'), 'rb'); size = os.fstat(first.fileno()).st_size")
    for number in range(3):
        one.make("b" * 50 + str(number), PAGE)
        assert one.command("objects/a/placement", "vram " * (number + 1)) == "ok"
    assert client.do("os.stat(path('objects/a/status')).st_size > size") is True
    assert client.do("os.fstat(first.fileno()).st_size == size == len(first.read())") is True


@pytest.mark.parametrize("name", ["objects/a/validate", "objects/a/placement", "ctl/config"])
def test_what_is_opened_for_writing_has_a_size_only_before_it_is_written(one: Device, name: str) -> None:
    client = one.client(f"fd = opened({name!r}); before = os.fstat(fd).st_size; text = os.read(fd, 9999)")
    assert client.do("before == len(text) > 0") is True
    client.do(f"os.write(fd, {b'prefault=256' if name == 'ctl/config' else b'gtt'!r}) and None")
    assert client.do("os.fstat(fd).st_size") == 0, "its answer begins wherever it is read"
    assert json.loads(client.do("os.read(fd, 9999)"))["ok"] is True


def test_reading_from_the_start_once_more_takes_a_new_text(one: Device) -> None:
    client = one.client("fd = opened('objects/a/status.json', os.O_RDONLY)")
    assert one.command("objects/a/validate", "vram") == "ok"
    assert json.loads(client.do("os.read(fd, 99999)"))["mem_type"] == "gtt", "of when it was opened"
    assert json.loads(client.do("os.pread(fd, 99999, 0)"))["mem_type"] == "vram"


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*QUICK, *DEAR, "objects/a", "objects", "ctl"])
def test_a_file_has_one_number(one: Device, name: str) -> None:
    client = one.client()
    folder, _, leaf = name.rpartition("/")
    numbers = client.do(
        f"[os.stat(path({name!r})).st_ino, os.fstat(os.open(path({name!r}), os.O_RDONLY)).st_ino,"
        f" [entry.inode() for entry in os.scandir(path({folder or '.'!r})) if entry.name == {leaf!r}][0],"
        f" os.stat(path({name!r})).st_ino]"
    )
    assert numbers == [numbers[0]] * 4
    client.do("open('/proc/sys/vm/drop_caches', 'w').write('2')" if os.geteuid() == 0 else "None")
    assert client.do(f"os.stat(path({name!r})).st_ino") == numbers[0]


def test_no_two_files_have_one_number(one: Device) -> None:
    one.client().do(
        "seen = {}\n"
        "for top, folders, files in os.walk(path('.')):\n"
        "    for name in folders + files:\n"
        "        full = os.path.join(top, name); number = os.stat(full).st_ino\n"
        "        assert number not in seen, (full, seen[number]); seen[number] = full\n"
        "assert len(seen) > 150\n"
    )


@pytest.mark.parametrize("name", ["objects/a/wait", "ctl/wait"])
def test_writers_of_one_command_file_do_not_wait_for_each_other(one: Device, name: str) -> None:
    """The kernel runs all writers of one inode one after another."""
    assert one.command("debug/pause_engine", "1") == "ok"
    code, lines = one.transact("objects/a/validate", "vram")
    assert code == "ok"
    words = "kernel 50" if name.startswith("objects") else f"{lines[0]['fence']} 50"
    for look in ("ls -l", "none"):
        if look == "ls -l":
            run("ls", "-li", Path(one.mountpoint, name).parent)
        waiting = [one.begin_command(name, words) for _ in range(3)]
        one.until(lambda: one.control("commands") == 3, why="all of them run at once")
        for client in waiting:
            client.popen.kill()
        one.until(lambda: one.control("commands") == 0, why="they have ended")
    assert one.command("debug/pause_engine", "0") == "ok"


# -- programs ----------------------------------------------------------------------------------------------------------

SENDFILE = """
import sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)
while os.sendfile(target, source, None, 1 << 20): pass
"""
SPLICE = """
import sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)
r, w = os.pipe()
while count := os.splice(source, w, 1 << 14):
    while count: count -= os.splice(r, target, count)
"""
COPY_FILE_RANGE = """
import sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)
while os.copy_file_range(source, target, 1 << 20): pass
"""
COPIERS: dict[str, tuple[str, ...]] = {
    "cp": ("cp",),
    "cp -a": ("cp", "-a"),
    "cp --sparse": ("cp", "--sparse=always"),
    "shutil": ("python3", "-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])"),
    "shutil.copy2": ("python3", "-c", "import shutil, sys; shutil.copy2(*sys.argv[1:])"),
    "sendfile": ("python3", "-c", "import os" + SENDFILE),
    "splice": ("python3", "-c", "import os" + SPLICE),
    "cat": ("sh", "-c", 'cat "$0" > "$1"'),
    "dd": ("sh", "-c", 'dd if="$0" of="$1" bs=100 2>/dev/null'),
    "head": ("sh", "-c", 'head -c 1000000 "$0" > "$1"'),
    "tail": ("sh", "-c", 'tail -c 1000000 "$0" > "$1"'),
    "tail -n": ("sh", "-c", 'tail -n +1 "$0" > "$1"'),
    "less": ("sh", "-c", 'less "$0" | cat > "$1"'),
    "sed": ("sh", "-c", 'sed "" "$0" > "$1"'),
    "rsync": ("rsync",),
    "busybox cp": ("busybox", "cp"),
    "busybox cat": ("sh", "-c", 'busybox cat "$0" > "$1"'),
    "install": ("install",),
}


def needs_for(program: str) -> None:
    for wanted in ("less", "rsync", "busybox"):
        if program.startswith(wanted):
            needs(wanted)


COPIED = ("README", "objects/a/status", "objects/a/snapshot", "objects/a/validate", "ctl/config")


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("program", COPIERS)
def test_programs_copy_all_of_a_text(one: Device, tmp_path: Path, program: str, name: str) -> None:
    needs_for(program)
    run(*COPIERS[program], Path(one.mountpoint, name), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == read(one, name)


@pytest.mark.parametrize("program", COPIERS)
def test_programs_copy_all_of_stats(one: Device, tmp_path: Path, program: str) -> None:
    """Its numbers change as it is read."""
    needs_for(program)
    run(*COPIERS[program], Path(one.mountpoint, "stats"), tmp_path / "copy")
    assert json.loads((tmp_path / "copy").read_bytes())["version"]


@pytest.mark.parametrize("name", ["stats", "metrics", "objects/a/validate"])
def test_what_a_command_answers_is_copied_into_the_mount_too(one: Device, name: str) -> None:
    """From the mount to the mount the kernel copies by itself."""
    mount = Path(one.mountpoint)
    if "/" in name:
        run("bash", "-c", f'exec 3<>"$1/{name}"; echo gtt >&3; cat <&3 > "$1/bo/copy"', "-", mount)
        assert json.loads(read(one, "bo/copy"))["ok"] is True
    else:
        run("cp", mount / name, mount / "bo" / "copy")
        assert len(read(one, "bo/copy")) > 500


def test_wc_tail_and_seeks_count_from_the_end(one: Device) -> None:
    status = Path(one.mountpoint, "objects/a/status")
    text = status.read_bytes()
    assert int(run("wc", "-c", status).split()[0]) == len(text)
    assert int(run("wc", "-l", status).split()[0]) == text.count(b"\n")
    assert run("tail", "-c", "20", status) == text[-20:]
    assert run("tail", "-n", "2", status) == b"".join(text.splitlines(keepends=True)[-2:])
    assert one.shell.do("os.lseek(opened('objects/a/status', os.O_RDONLY), 0, os.SEEK_END)") == len(text)


SAVED = ("ctl/config", "ctl/trace", "objects/a/placement", "objects/a/priority", "objects/a/prefault",
         "objects/a/madvise", "debug/pause_engine", "debug/ban_memcpy", "debug/ban_exchange", "debug/fail_move/times",
         "debug/fail_move/probability", "debug/fail_move/interval", "debug/fail_move/space")  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("how", ["cp", "cat", "python"])
def test_a_setting_is_saved_and_put_back_as_it_is_read(one: Device, tmp_path: Path, name: str, how: str) -> None:
    file, saved = Path(one.mountpoint, name), tmp_path / "saved"
    run("cp", file, saved)
    if how == "cp":
        run("cp", saved, file)
    elif how == "cat":
        run("sh", "-c", 'cat "$0" > "$1"', saved, file)
    else:
        file.write_bytes(saved.read_bytes())
    assert file.read_bytes() == saved.read_bytes()


def _edit(program: str, file: Path, beside: Path) -> None:
    """Replace `prefault=N` by `prefault=77` and save, as a person does."""
    if program == "ed":
        run("ed", "-s", file, input=b"g/^prefault=/s/=.*/=77/\nw\nq\n")
    elif program == "vim":
        run("vim", "-u", "NONE", "-es", "-c", "%s/^prefault=.*/prefault=77/", "-c", "wq", file)
    else:
        run("sh", "-c", 'sed "s/^prefault=.*/prefault=77/" "$0" > "$1" && cat "$1" > "$0"', file, beside)


@pytest.mark.parametrize("program", ["ed", "vim", "sed"])
def test_editors_write_a_setting(one: Device, tmp_path: Path, program: str) -> None:
    needs(program)
    before = read(one, "ctl/config")
    try:
        _edit(program, Path(one.mountpoint, "ctl/config"), tmp_path / "edited")
        assert b"\nprefault=77\n" in read(one, "ctl/config")
    finally:
        Path(one.mountpoint, "ctl/config").write_bytes(before)


# -- whole trees -------------------------------------------------------------------------------------------------------


def everything(device: Device) -> dict[str, Any]:
    """What nobody who only reads may change."""
    state = device.control("state")
    for counted in ("faults", "trace"):
        del state["stats"][counted]
    for status in state["statuses"].values():
        for counted in ("faults", "fault_pages", "prefault_pages", "reservation_retries"):
            del status[counted]
    return dict(state)


@pytest.fixture
def full(one: Device) -> Device:
    """BOs in all places, an address space, a trace that nobody has read. (A read brings back what is in the store.)"""
    one.make("b", 10 * PAGE, 3, "vram")
    one.make("c", 10 * PAGE, 5)
    one.shell.do("os.mkdir(path('bo/folder')); os.close(opened('bo/folder/d', os.O_CREAT | os.O_RDWR))")
    one.shell.do("os.close(opened('svm/s', os.O_CREAT | os.O_RDWR))")
    assert one.command("ctl/trace", "bo_create") == "ok"
    one.make("e", PAGE, 1)
    assert one.command("ctl/trace", "off") == "ok"
    return one


WALKS: dict[str, tuple[str, ...]] = {
    "grep -r": ("sh", "-c", 'grep -r "no such text anywhere" "$0"; test $? = 1'),
    "ls -lRi": ("sh", "-c", 'ls -lRi "$0" > /dev/null'),
    "find -size": ("sh", "-c", 'find "$0" -type f -size +1k > /dev/null'),
    "du": ("sh", "-c", 'du -a "$0" > /dev/null'),
    "wc": ("sh", "-c", 'find "$0" -type f -exec wc -c {} + > /dev/null'),
    "tar": ("sh", "-c", 'tar -cC "$0" --warning=no-file-changed --warning=no-file-shrank . > /dev/null; test $? -le 1'),
    "md5sum": ("sh", "-c", 'find "$0" -type f -exec md5sum {} + > /dev/null'),
}


@pytest.mark.parametrize("walk", WALKS)
def test_who_reads_the_whole_mount_ends_and_changes_nothing(full: Device, walk: str) -> None:
    before = everything(full)
    run(*WALKS[walk], full.mountpoint)
    assert everything(full) == before
    assert b"bo_create" in read(full, "trace"), "nobody has consumed it"


def test_a_copy_of_the_whole_mount(full: Device, tmp_path: Path) -> None:
    before = everything(full)
    run("cp", "-r", full.mountpoint, tmp_path / "copy")
    assert everything(full) == before
    assert (tmp_path / "copy/bo/a").read_bytes() == bytes([7]) * 40 * PAGE
    assert (tmp_path / "copy/bo/c").read_bytes() == bytes([5]) * 10 * PAGE
    for name in ("README", "objects/a/status", "objects/a/validate", "ctl/config", "objects/folder/d/snapshot"):
        assert (tmp_path / "copy" / name).read_bytes() == read(full, name)
    json.loads((tmp_path / "copy/stats").read_bytes())


def test_an_archive_of_objects_is_whole(full: Device, tmp_path: Path) -> None:
    run("tar", "-cf", tmp_path / "a.tar", "-C", full.mountpoint, "objects")
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = [member.name for member in archive if member.isfile()]
        assert len(names) >= 90
        for name in names:
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == read(full, name), name


def test_rsync_of_objects(full: Device, tmp_path: Path) -> None:
    needs("rsync")
    run("rsync", "-a", f"{full.mountpoint}/objects", tmp_path)
    for name in ("objects/a/status", "objects/b/snapshot", "objects/folder/d/validate"):
        assert (tmp_path / name).read_bytes() == read(full, name)


# -- what waits to be read ---------------------------------------------------------------------------------------------


def test_texts_that_nobody_closes_are_bounded(mounted: Any) -> None:
    limit = 8 << 20
    device: Device = mounted("--vram", "16M", "--gtt", "16M", "--memory", "64M", patches=(f"texts_limit={limit}",))
    assert device.command("ctl/trace", "all") == "ok"
    device.make("a", PAGE)
    device.shell.do("fd = opened('objects/a/validate', os.O_WRONLY)\nfor _ in range(2000): os.write(fd, b'gtt')")
    assert device.command("ctl/trace", "off") == "ok"
    client = device.client("fds = [opened('trace', os.O_RDONLY)]; size = os.fstat(fds[0]).st_size")
    size = client.do("size")
    assert size > 100_000
    count = limit // size + 2
    rss = device.rss()
    client.do(f"for _ in range({4 * count}): fds.append(opened('trace', os.O_RDONLY))", 120)
    assert device.rss() - rss < 3 * limit
    assert client.errno("os.read(fds[0], 100)") == errno.errorcode[errno.ENOBUFS]
    assert client.do("len(os.read(fds[-1], 1 << 20)) > 0") is True

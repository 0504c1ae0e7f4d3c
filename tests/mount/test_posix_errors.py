"""The errors of the POSIX calls on files, folders and links, as a table; a failed call changes nothing.

The same table runs on the file system of the temporary folder: what it says is what Linux does, not what ttmfs does.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mount_harness import Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--memory", "64M", "--allow-other")

HELPERS = """
import stat
def p(name): return path('bo/t/' + name)
def fd(name, flags=os.O_RDONLY): return os.open(p(name), flags, 0o644)
def tree(top=b''):
    rows = []
    with os.scandir(path(b'bo/t' + top)) as listing:
        for entry in sorted(listing, key=lambda one: one.name):
            s = entry.stat(follow_symlinks=False)
            rows.append([entry.name, s.st_mode, s.st_uid, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns])
            if entry.is_dir(follow_symlinks=False): rows += tree(top + b'/' + entry.name)
    return rows
def rename2(old, new, flags):
    code = renameat2('bo/t/' + old, 'bo/t/' + new, flags)
    if code: raise OSError(code, '')
"""
SETUP = """
os.mkdir(path('bo/t'))
for name in ('d', 'e', 'full', 'full/sub', 'full/sub/deep', 'sticky', 'locked', 'mine'): os.mkdir(p(name))
for name in ('d/f', 'd/g', 'sticky/f', 'locked/f', 'ro', 'mine/f'): make('bo/t/' + name, 10, 1)
for name, to in (('l', 'd/f'), ('ld', 'd'), ('dangling', 'none'), ('loop', 'loop')): os.symlink(to, p(name))
os.chmod(p('sticky'), 0o1777); os.chmod(p('locked'), 0o700); os.chmod(p('ro'), 0o444); os.chmod(p('d'), 0o755)
os.chown(p('mine'), 65534, 65534); os.chown(p('mine/f'), 65534, 65534)
"""

LONG = "'n' * 256"
CREATE = "os.O_CREAT | os.O_RDWR"

ERRORS = (
    # open, creat
    ("ENOENT", "fd('none')"),
    ("ENOENT", f"fd('none/new', {CREATE})"),
    ("ENOENT", "fd('dangling')"),
    ("ENOENT", "os.open('', os.O_RDONLY)"),
    ("EEXIST", f"fd('d/f', {CREATE} | os.O_EXCL)"),
    ("EEXIST", f"fd('d', {CREATE} | os.O_EXCL)"),
    ("EEXIST", f"fd('dangling', {CREATE} | os.O_EXCL)"),
    ("EISDIR", "fd('d', os.O_RDWR)"),
    ("EISDIR", "fd('d', os.O_WRONLY | os.O_TRUNC)"),
    ("EISDIR", f"fd('d', {CREATE})"),
    ("EISDIR", f"fd('new/', {CREATE})"),
    ("ENOTDIR", "fd('d/f/x')"),
    ("ENOTDIR", "fd('d/f/')"),
    ("ENOTDIR", "fd('d/f', os.O_DIRECTORY)"),
    ("ENOTDIR", f"fd('d/f/new', {CREATE})"),
    ("ELOOP", "fd('loop')"),
    ("ELOOP", "fd('loop/x')"),
    ("ELOOP", "fd('l', os.O_NOFOLLOW)"),
    ("ENAMETOOLONG", f"fd({LONG})"),
    ("ENAMETOOLONG", f"fd({LONG}, {CREATE})"),
    ("ENAMETOOLONG", f"fd('d/' + {LONG} + '/x')"),
    ("ENAMETOOLONG", "fd('d/' * 2100 + 'f')"),
    # stat, chdir, opendir, statvfs
    *((code, f"os.{call}(p({name}){more})")
      for call, more in (("stat", ""), ("statvfs", ""), ("chdir", ""), ("listdir", ""))
      for code, name in (("ENOENT", "'none'"), ("ENOTDIR", "'d/f/x'"), ("ELOOP", "'loop'"), ("ENAMETOOLONG", LONG))),
    ("ENOTDIR", "os.chdir(p('d/f'))"),
    ("ENOTDIR", "os.listdir(p('d/f'))"),
    ("ENAMETOOLONG", f"os.lstat(p({LONG}))"),
    # mkdir
    *(("EEXIST", f"os.mkdir(p('{name}'))") for name in ("d", "d/f", "l", "dangling", "d/.", "d/..")),
    ("ENOENT", "os.mkdir(p('none/new'))"),
    ("ENOENT", "os.mkdir('')"),
    ("ENOTDIR", "os.mkdir(p('d/f/new'))"),
    ("ENAMETOOLONG", f"os.mkdir(p({LONG}))"),
    ("ELOOP", "os.mkdir(p('loop/new'))"),
    # mknod
    ("EEXIST", "os.mknod(p('d/f'))"),
    ("ENOENT", "os.mknod(p('none/new'))"),
    ("ENAMETOOLONG", f"os.mknod(p({LONG}))"),
    # rmdir
    ("ENOTEMPTY", "os.rmdir(p('full'))"),
    ("ENOTEMPTY", "os.rmdir(p('e/..'))"),
    ("EINVAL", "os.rmdir(p('e/.'))"),
    ("ENOTDIR", "os.rmdir(p('d/f'))"),
    ("ENOTDIR", "os.rmdir(p('ld'))"),
    ("ENOENT", "os.rmdir(p('none'))"),
    ("ENAMETOOLONG", f"os.rmdir(p({LONG}))"),
    # unlink
    ("EISDIR", "os.unlink(p('e'))"),
    ("ENOENT", "os.unlink(p('none'))"),
    ("ENOTDIR", "os.unlink(p('d/f/x'))"),
    ("ENOTDIR", "os.unlink(p('d/f/'))"),
    ("ENAMETOOLONG", f"os.unlink(p({LONG}))"),
    # rename
    ("ENOENT", "os.rename(p('none'), p('new'))"),
    ("ENOENT", "os.rename(p('d/f'), p('none/new'))"),
    ("ENOTDIR", "os.rename(p('e'), p('d/f'))"),
    ("ENOTDIR", "os.rename(p('e'), p('l'))"),
    ("EISDIR", "os.rename(p('d/f'), p('e'))"),
    ("EISDIR", "os.rename(p('l'), p('e'))"),
    ("ENOTEMPTY", "os.rename(p('e'), p('full'))"),
    ("ENOTEMPTY", "os.rename(p('full/sub/deep'), p('full'))"),
    ("EINVAL", "os.rename(p('full'), p('full/new'))"),
    ("EINVAL", "os.rename(p('full'), p('full/sub/deep/new'))"),
    ("EBUSY", "os.rename(p('e/.'), p('new'))"),
    ("EBUSY", "os.rename(p('e'), p('d/..'))"),
    ("ENOTDIR", "os.rename(p('d/f'), p('new/'))"),
    ("ENOTDIR", "os.rename(p('d/f/x'), p('new'))"),
    ("ENAMETOOLONG", f"os.rename(p('d/f'), p({LONG}))"),
    ("ENAMETOOLONG", f"os.rename(p({LONG}), p('new'))"),
    ("EEXIST", "rename2('d/f', 'd/g', 1)"),
    ("EEXIST", "rename2('e', 'd', 1)"),
    ("EEXIST", "rename2('d/f', 'l', 1)"),
    ("ENOENT", "rename2('d/f', 'none', 2)"),
    ("ENOENT", "rename2('none', 'd/f', 2)"),
    ("EINVAL", "rename2('full', 'full/sub', 2)"),
    ("EINVAL", "rename2('full/sub/deep', 'full', 2)"),
    ("EINVAL", "rename2('d/f', 'd/g', 3)"),
    ("EINVAL", "rename2('d/f', 'd/g', 8)"),
    # link, symlink, readlink
    *(("EEXIST", f"os.link(p('d/f'), p('{name}'))") for name in ("d/g", "e", "l", "dangling")),
    ("ENOENT", "os.link(p('none'), p('new'))"),
    ("ENOENT", "os.link(p('d/f'), p('none/new'))"),
    ("ENOTDIR", "os.link(p('d/f'), p('d/g/new'))"),
    ("EPERM", "os.link(p('e'), p('new'))"),
    ("ENAMETOOLONG", f"os.link(p('d/f'), p({LONG}))"),
    *(("EEXIST", f"os.symlink('x', p('{name}'))") for name in ("d/g", "e", "l", "dangling")),
    ("ENOENT", "os.symlink('x', p('none/new'))"),
    ("ENOENT", "os.symlink('', p('new'))"),
    ("ENOTDIR", "os.symlink('x', p('d/f/new'))"),
    ("ENAMETOOLONG", f"os.symlink('x', p({LONG}))"),
    ("ENAMETOOLONG", "os.symlink('x' * 4096, p('new'))"),
    ("EINVAL", "os.readlink(p('d/f'))"),
    ("EINVAL", "os.readlink(p('d'))"),
    ("ENOENT", "os.readlink(p('none'))"),
    # truncate, ftruncate, read, write, lseek
    ("EISDIR", "os.truncate(p('d'), 0)"),
    ("ENOENT", "os.truncate(p('none'), 0)"),
    ("EINVAL", "os.truncate(p('d/f'), -1)"),
    ("ENOTDIR", "os.truncate(p('d/f/x'), 0)"),
    ("EINVAL", "os.ftruncate(fd('d/f'), 0)"),
    ("EINVAL", "os.ftruncate(fd('d/f', os.O_RDWR), -1)"),
    ("EINVAL", "os.ftruncate(fd('d'), 0)"),
    ("EBADF", "os.write(fd('d/f'), b'x')"),
    ("EBADF", "os.read(fd('d/f', os.O_WRONLY), 1)"),
    ("EISDIR", "os.read(fd('d'), 1)"),
    ("EINVAL", "os.pread(fd('d/f'), 1, -1)"),
    ("EINVAL", "os.pwrite(fd('d/f', os.O_RDWR), b'x', -1)"),
    ("EINVAL", "os.lseek(fd('d/f'), -1, os.SEEK_SET)"),
    ("ENXIO", "os.lseek(fd('d/f'), 11, os.SEEK_DATA)"),
    ("ENXIO", "os.lseek(fd('d/f'), 11, os.SEEK_HOLE)"),
    ("EACCES", "mmap.mmap(fd('d/f'), 10, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)"),
    ("ENODEV", "mmap.mmap(fd('d'), 10, mmap.MAP_SHARED, mmap.PROT_READ)"),
    # chmod, chown, utimensat
    *((code, f"os.{call}(p({name}), {more})")
      for call, more in (("chmod", "0o600"), ("chown", "0, 0"), ("utime", "(1, 1)"))
      for code, name in (("ENOENT", "'none'"), ("ENOENT", "'dangling'"), ("ENOTDIR", "'d/f/x'"), ("ELOOP", "'loop'"),
                         ("ENAMETOOLONG", LONG))),
)  # fmt: skip

NOT_ALLOWED = (
    ("EACCES", "fd('locked/f')"),
    ("EACCES", "fd('locked/new', os.O_CREAT | os.O_RDWR)"),
    ("EACCES", "os.stat(p('locked/f'))"),
    ("EACCES", "os.listdir(p('locked'))"),
    ("EACCES", "os.chdir(p('locked'))"),
    ("EACCES", "fd('ro', os.O_WRONLY)"),
    ("EACCES", "fd('ro', os.O_WRONLY | os.O_TRUNC)"),
    ("EACCES", "os.truncate(p('ro'), 0)"),
    ("EACCES", "fd('d/new', os.O_CREAT | os.O_RDWR)"),
    ("EACCES", "os.mkdir(p('d/new'))"),
    ("EACCES", "os.mknod(p('d/new'))"),
    ("EACCES", "os.symlink('x', p('d/new'))"),
    ("EACCES", "os.link(p('mine/f'), p('d/new'))"),
    ("EACCES", "os.unlink(p('d/f'))"),
    ("EACCES", "os.rmdir(p('e'))"),
    ("EACCES", "os.rename(p('d/f'), p('mine/new'))"),
    ("EACCES", "os.rename(p('mine/f'), p('d/new'))"),
    ("EACCES", "os.rename(p('mine/f'), p('d/f'))"),
    ("EACCES", "rename2('mine/f', 'd/f', 2)"),
    ("EACCES", "os.utime(p('ro'))"),
    ("EPERM", "os.unlink(p('sticky/f'))"),
    ("EPERM", "os.rename(p('sticky/f'), p('sticky/new'))"),
    ("EPERM", "os.rename(p('sticky/f'), p('mine/new'))"),
    ("EPERM", "os.rename(p('mine/f'), p('sticky/f'))"),
    ("EPERM", "os.chmod(p('d/f'), 0o666)"),
    ("EPERM", "os.chmod(p('d'), 0o777)"),
    ("EPERM", "os.chown(p('d/f'), 65534, -1)"),
    ("EPERM", "os.chown(p('mine/f'), 0, -1)"),
    ("EPERM", "os.chown(p('mine/f'), -1, 1)"),
    ("EPERM", "os.lchown(p('l'), 65534, -1)"),
    ("EPERM", "os.utime(p('d/f'), (1, 1))"),
)
"""What user and group 65534 may not."""


@pytest.fixture(params=["bo", "control"])
def root(request: pytest.FixtureRequest, device: Device, tmp_path: Path) -> Iterator[Client]:
    """A client with the tree of SETUP; `control`: the same on the file system of the temporary folder."""
    if request.param == "bo":
        client = device.client(HELPERS)
    elif os.geteuid():
        pytest.skip("a user cannot give files away")
    else:
        (tmp_path / "bo").mkdir()
        tmp_path.chmod(0o755)
        client = Client(str(tmp_path))
        client.do(HELPERS)
    try:
        client.do("os.umask(0o022)")
        client.do(SETUP)
        yield client
    finally:
        client.end()


def table(client: Client, watcher: Client, rows: tuple[tuple[str, str], ...]) -> list[str]:
    """Rows that came out otherwise, or changed something."""
    before = watcher.do("tree()")
    wrong = []
    for code, call in rows:
        got = client.errno(call)
        if got != code:
            wrong.append(f"{call}: {got}, not {code}")
    if watcher.do("tree()") != before:
        wrong.append("something has changed")
    return wrong


def test_errors(root: Client) -> None:
    assert table(root, root, ERRORS) == []


def test_what_another_user_may_not(root: Client) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    other = Client(root.do("MNT"))
    try:
        other.do(HELPERS)
        # The folders above that of the control are root's alone: from here on paths are relative to it.
        other.do("os.chdir(MNT); sys.modules['__main__'].MNT = '.'")
        other.do("os.setgroups([]); os.setgid(65534); os.setuid(65534)")
        assert table(other, root, NOT_ALLOWED) == []
        # And what it may.
        other.do("make('bo/t/mine/new', 5, 1); os.rename(p('mine/new'), p('sticky/new')); os.unlink(p('sticky/new'))")
        other.do("os.chmod(p('mine/f'), 0o600); os.utime(p('mine/f'), (1, 1)); os.link(p('mine/f'), p('mine/too'))")
        assert other.do("os.stat(p('mine/too')).st_uid") == 65534
    finally:
        other.end()


def test_what_only_ttmfs_refuses(device: Device) -> None:
    """The departures that docs/semantics.md names."""
    client = device.client(HELPERS)
    client.do(SETUP)
    for code, call in (
        ("EPERM", "os.mkfifo(p('new'))"),
        ("EPERM", "os.mknod(p('new'), 0o644 | stat.S_IFSOCK)"),
        ("EPERM", "os.mknod(p('new'), 0o644 | stat.S_IFCHR, os.makedev(1, 3))"),
        ("EINVAL", "rename2('d/f', 'd/g', 4)"),
        ("EFBIG", "os.truncate(p('d/f'), 1 << 62)"),
        ("EFBIG", "os.pwrite(fd('d/f', os.O_RDWR), b'x', 1 << 61)"),
        ("EOPNOTSUPP", "fd('d', os.O_TMPFILE | os.O_RDWR)"),
        ("EOPNOTSUPP", "os.setxattr(p('d/f'), 'user.other', b'x')"),
    ):
        assert client.errno(call) in (code, {"EOPNOTSUPP": "ENOTSUP"}.get(code)), call
    assert client.do("os.chmod(p('d/f'), 0o6755) or os.stat(p('d/f')).st_mode & 0o7777") == 0o755

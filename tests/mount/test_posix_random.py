"""Any order of calls on names, files and descriptors comes out as on the file system of the temporary folder."""

from pathlib import Path

import pytest

from tests.mount.mount_harness import HERE, Device

pytestmark = pytest.mark.mount

HELPERS = (HERE / "names_client.py").read_text() + '''
import random, stat

class Side:
    """One of the two file systems: a folder, and the descriptors that are open in it."""

    def __init__(self, top):
        self.top, self.fds, self.folders = top, {}, {}
        os.mkdir(top)
        self.counts_folders = os.stat(top).st_nlink == 2

    def at(self, name):
        return os.path.join(self.top, name) if name else self.top

    def tree(self, top=''):
        """All there is: what two file systems must agree on."""
        rows = []
        for name in sorted(os.listdir(self.at(top))):
            here = os.path.join(top, name)
            s = os.lstat(self.at(here))
            kind = stat.S_IFMT(s.st_mode)
            row = [here, s.st_mode, self.nlink(s), 0 if kind == stat.S_IFDIR else s.st_size]
            if kind == stat.S_IFREG:
                with open(self.at(here), 'rb') as file: row.append(digest(file.read()))
            if kind == stat.S_IFLNK: row.append(os.readlink(self.at(here)))
            rows.append(row)
            if kind == stat.S_IFDIR: rows += self.tree(here)
        return rows

    def held(self):
        """What the open descriptors say."""
        rows = []
        for number, fd in sorted(self.fds.items()):
            s = os.fstat(fd)
            rows.append([number, s.st_nlink, s.st_size, digest(os.pread(fd, 1 << 20, 0))])
        for number, fd in sorted(self.folders.items()):
            s = os.fstat(fd)
            try: names = sorted(os.listdir(fd))
            except OSError as error: names = error.errno
            rows.append([number, self.nlink(s), s.st_mode, names])
        return rows

    def nlink(self, s):
        """Not all file systems count the folders in a folder."""
        return s.st_nlink if self.counts_folders or not stat.S_ISDIR(s.st_mode) else 0

    def rename2(self, old, new, flags):
        done = _libc.renameat2(-100, os.fsencode(self.at(old)), -100, os.fsencode(self.at(new)), flags)
        if done: raise OSError(ctypes.get_errno(), '')

    def call(self, what, a, b, number, size):
        """One call; (errno, what it said)."""
        try:
            return 0, getattr(self, 'do_' + what)(a, b, number, size)
        except OSError as error:
            return error.errno, None

    def do_create(self, a, b, number, size):
        os.close(os.open(self.at(a), os.O_CREAT | os.O_RDWR, 0o644))
    def do_create_new(self, a, b, number, size):
        os.close(os.open(self.at(a), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    def do_put(self, a, b, number, size):
        with open(self.at(a), 'wb') as file: file.write(bytes([number]) * size)
    def do_append(self, a, b, number, size):
        with open(self.at(a), 'ab') as file: return file.write(bytes([number]) * 100)
    def do_truncate(self, a, b, number, size): os.truncate(self.at(a), size)
    def do_mkdir(self, a, b, number, size): os.mkdir(self.at(a))
    def do_rmdir(self, a, b, number, size): os.rmdir(self.at(a))
    def do_unlink(self, a, b, number, size): os.unlink(self.at(a))
    def do_rename(self, a, b, number, size): os.rename(self.at(a), self.at(b))
    def do_noreplace(self, a, b, number, size): self.rename2(a, b, 1)
    def do_exchange(self, a, b, number, size): self.rename2(a, b, 2)
    def do_link(self, a, b, number, size): os.link(self.at(a), self.at(b), follow_symlinks=False)
    def do_symlink(self, a, b, number, size): os.symlink(os.path.basename(b) or 'x', self.at(a))
    def do_chmod(self, a, b, number, size): os.chmod(self.at(a), 0o600 + number % 64)
    def do_stat(self, a, b, number, size): return self.nlink(os.stat(self.at(a)))
    def do_list(self, a, b, number, size): return sorted(os.listdir(self.at(a)))
    def do_read(self, a, b, number, size):
        with open(self.at(a), 'rb') as file: return digest(file.read())
    def do_hold(self, a, b, number, size):
        fd = os.open(self.at(a), os.O_RDWR)
        self.fds[number] = fd if number not in self.fds else (os.close(self.fds[number]), fd)[1]
    def do_hold_folder(self, a, b, number, size):
        fd = os.open(self.at(a), os.O_DIRECTORY)
        self.folders[number] = fd if number not in self.folders else (os.close(self.folders[number]), fd)[1]
    def do_close(self, a, b, number, size):
        for held in (self.fds, self.folders):
            if number in held: os.close(held.pop(number))
    def do_held_write(self, a, b, number, size):
        if number in self.fds: return os.pwrite(self.fds[number], bytes([number]) * 50, size)
    def do_held_truncate(self, a, b, number, size):
        if number in self.fds: os.ftruncate(self.fds[number], size)
    def do_held_create(self, a, b, number, size):
        if number in self.folders: os.close(os.open('h', os.O_CREAT | os.O_RDWR, dir_fd=self.folders[number]))
    def do_held_rename(self, a, b, number, size):
        if number in self.folders: os.rename('h', 'i', src_dir_fd=self.folders[number], dst_dir_fd=self.folders[number])
    def do_held_unlink(self, a, b, number, size):
        if number in self.folders: os.unlink('i', dir_fd=self.folders[number])

CALLS = [name[3:] for name in dir(Side) if name.startswith('do_')]

def some_path(rng):
    return '/'.join(rng.choice('abcd') for _ in range(rng.choice((1, 1, 2, 2, 3))))

def compare(seed, count, other):
    """The first difference, or None."""
    rng = random.Random(seed)
    ours, theirs = Side(path('bo/t')), Side(other)
    ours.counts_folders = theirs.counts_folders
    came = {}
    for step in range(count):
        call = rng.choice(CALLS), some_path(rng), some_path(rng), rng.randrange(4), rng.randrange(9000)
        got, wanted = ours.call(*call), theirs.call(*call)
        came[wanted[0]] = came.get(wanted[0], 0) + 1
        if got != wanted: return f'{step}: {call}: {got}, not {wanted}'
        if step % 5 == 0 or step == count - 1:
            for look in ('tree', 'held'):
                here, there = getattr(ours, look)(), getattr(theirs, look)()
                if here != there:
                    rows = [(x, y) for x, y in zip(here, there) if x != y]
                    return f'{step}: after {call}: {rows or (here, there)}'
    assert len(came) > 4 and came[0] > count // 10, came
'''


LONG = [pytest.param(seed, 20_000, marks=pytest.mark.stress) for seed in (3, 4, 5)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("seed", "count"), [(1, 600), (2, 600), *LONG])
def test_calls_come_out_as_elsewhere(device: Device, tmp_path: Path, seed: int, count: int) -> None:
    client = device.client()
    client.do(HELPERS)
    assert client.do(f"compare({seed}, {count}, {str(tmp_path / 'other')!r})", 3000) is None
    device.end_clients()
    device.remove_all()
    device.until(lambda: device.stats()["bos"]["count"] == 0, why="no BO is left")
    assert device.stats()["pool"]["in_use_pages"] == 0

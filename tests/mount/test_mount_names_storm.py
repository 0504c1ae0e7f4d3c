"""Several processes change the same names at once: errors are those of names, and afterwards all agrees."""

import pytest

from tests.mount.mount_harness import HERE, Device

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "16M", "--memory", "128M")

HELPERS = (HERE / "names_client.py").read_text() + '''
import random, stat
OF_NAMES = ('ENOENT', 'EEXIST', 'ENOTDIR', 'EISDIR', 'ENOTEMPTY', 'EINVAL', 'EPERM', 'ELOOP')

def one(rng):
    return '/'.join(rng.choice('abcdef') for _ in range(rng.choice((1, 1, 2, 3))))

def say(name, words):
    """Into a command file; a name that is none is ENOENT."""
    code = command(name, words)
    if code: raise OSError(code, name)

def calls(rng):
    a, b = one(rng), one(rng)
    here, there = path('bo/' + a), path('bo/' + b)
    fill = bytes([rng.randrange(256)])
    def put():
        with open(here, 'wb') as file: file.write(fill * 9000)
    def walk():
        for top, folders, files in os.walk(path(rng.choice(('bo', 'objects')))): pass
    return [put, put, walk, lambda: got('bo/' + a),
        lambda: os.close(os.open(here, os.O_CREAT | os.O_EXCL | os.O_RDWR)),
        lambda: os.mkdir(here), lambda: os.mkdir(here), lambda: os.rmdir(here), lambda: os.unlink(here),
        lambda: os.unlink(here), lambda: os.rename(here, there), lambda: os.rename(here, there),
        lambda: os.link(here, there, follow_symlinks=False), lambda: os.symlink(b[0], here),
        lambda: renameat2('bo/' + a, 'bo/' + b, rng.choice((1, 2))), lambda: os.listdir(here),
        lambda: os.listdir(path('objects/' + a)), lambda: got('objects/' + a + '/status'),
        lambda: say('objects/' + a + '/validate', rng.choice(('vram', 'gtt', 'system'))),
        lambda: say('ctl/validate', a + ' system'), lambda: os.truncate(here, rng.randrange(9000)),
        lambda: os.stat(here), lambda: os.utime(here, (1, 1), follow_symlinks=False)]

def storm(seed, count):
    rng, came = random.Random(seed), {}
    for _ in range(count):
        try:
            rng.choice(calls(rng))()
            code = 0
        except OSError as error:
            code = error.errno
            assert errno.errorcode[code] in OF_NAMES, (errno.errorcode[code], error)
        came[code] = came.get(code, 0) + 1
    assert came[0] > count // 10, came

def agrees():
    """Link counts are the names that there are; objects/ shows the same."""
    found, wrong = {}, []
    for top, folders, files in os.walk(path('bo')):
        mirror = top.replace(path('bo'), path('objects'), 1)
        links = {name for name in folders + files if os.path.islink(os.path.join(top, name))}
        if sorted(os.listdir(mirror)) != sorted(set(folders + files) - links): wrong.append((top, 'mirror'))
        subfolders = [name for name in folders if name not in links]
        if os.stat(top).st_nlink != 2 + len(subfolders): wrong.append((top, os.stat(top).st_nlink))
        for name in files + sorted(links & set(folders)):
            s = os.lstat(os.path.join(top, name))
            found.setdefault(s.st_ino, [s.st_nlink, 0])[1] += 1
            if stat.S_ISREG(s.st_mode): got(os.path.join(mirror, name, 'status'))
    return wrong + [row for row in found.values() if row[0] != row[1]]
'''


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.stress)])
def test_names_in_a_storm(device: Device, count: int) -> None:
    clients = [device.client(HELPERS) for _ in range(4)]
    for seed, client in enumerate(clients):
        client.begin(f"storm({seed + count}, {count})")
    for client in clients:
        client.result(3000)
    assert clients[0].do("agrees()", 60) == []
    device.end_clients()
    device.remove_all()
    device.until(lambda: device.stats()["bos"]["count"] == 0, why="no BO is left")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == 0, why="no page is left")
    device.until(lambda: device.control("nodes") < 20, why="the kernel has forgotten all that was in there")

"""Which time stamps each call moves, as a table: those that POSIX names, and no others.

`a`, `m` and `c` are the times of last access, modification and status change. Every object of a row has old times
before the call. Where ttmfs departs from POSIX, as docs/semantics.md says, the row has two columns.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mount_harness import Client, Device

pytestmark = pytest.mark.mount

HELPERS = """
OLD = 10 ** 18
def p(name): return path('bo/t/' + name)
def fd(name, flags=os.O_RDWR): return os.open(p(name), flags, 0o644)
def stamps(name):
    s = os.lstat(p(name))
    return s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns
def age(names):
    for name in names: os.utime(p(name), ns=(OLD, OLD), follow_symlinks=False)
def tick():
    coarse = time.clock_gettime_ns(5)
    while time.clock_gettime_ns(5) == coarse: pass
def watch(names, code):
    age(names)
    before = {name: stamps(name) for name in names}
    tick()
    held = eval(compile(code, '<row>', 'eval'), globals())
    moved = {}
    for name in names:
        now = stamps(renamed.get(name, name))
        moved[name] = ''.join(letter for letter, old, new in zip('amc', before[name], now) if old != new)
    return moved
def clear(top=None):
    with os.scandir(top or path('bo/t')) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False): clear(entry.path); os.rmdir(entry.path)
            else: os.unlink(entry.path)
def row(names, code, moves):
    global renamed
    renamed = moves
    clear()
    for name in ('d', 'd/sub', 'e'): os.mkdir(p(name))
    for name in ('d/f', 'd/g'): make('bo/t/' + name, 5000, 1)
    make('bo/t/d/zero', 0)
    os.link(p('d/g'), p('e/too')); os.symlink('f', p('d/l'))
    return watch(names, code)
def closing(descriptor, call=lambda descriptor: None):
    call(descriptor); os.close(descriptor)
"""

ROWS: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    # (call, what moves, where things have gone by then)
    # open, creat
    ("fd('d/new', os.O_CREAT)", {"d": "mc", "e": "", "d/f": ""}, {}),
    ("fd('d/f')", {"d": "", "d/f": ""}, {}),
    ("fd('d/f', os.O_CREAT | os.O_RDWR)", {"d": "", "d/f": ""}, {}),
    ("closing(fd('d/f', os.O_TRUNC | os.O_RDWR))", {"d": "", "d/f": "mc"}, {}),
    ("closing(fd('d/zero', os.O_TRUNC | os.O_RDWR))", {"d": "", "d/zero": "mc"}, {}),
    ("os.mknod(p('d/new'))", {"d": "mc"}, {}),
    # write, truncate: a write shows when the file is closed
    ("closing(fd('d/f'), lambda n: os.write(n, b'x'))", {"d": "", "d/f": "mc"}, {}),
    ("closing(fd('d/f'), lambda n: os.pwrite(n, b'x', 9000))", {"d/f": "mc"}, {}),
    ("closing(fd('d/f'), lambda n: os.write(n, b''))", {"d/f": ""}, {}),
    ("closing(fd('d/f', os.O_WRONLY | os.O_APPEND), lambda n: os.write(n, b'x'))", {"d/f": "mc"}, {}),
    ("os.truncate(p('d/f'), 3)", {"d": "", "d/f": "mc"}, {}),
    ("os.truncate(p('d/f'), 9000)", {"d/f": "mc"}, {}),
    ("closing(fd('d/f'), lambda n: os.ftruncate(n, 5000))", {"d/f": "mc"}, {}),
    ("closing(fd('d/zero'), lambda n: os.ftruncate(n, 0))", {"d/zero": "mc"}, {}),
    ("closing(fd('d/f'), lambda n: mapped(n, 4096).__setitem__(0, 7))", {"d/f": "mc"}, {}),
    # link, symlink, unlink
    ("os.link(p('d/f'), p('e/new'))", {"d": "", "e": "mc", "d/f": "c"}, {}),
    ("os.symlink('x', p('e/new'))", {"d": "", "e": "mc"}, {}),
    ("os.unlink(p('d/f'))", {"d": "mc", "e": ""}, {}),
    ("os.unlink(p('d/g'))", {"d": "mc", "e": "", "e/too": "c"}, {}),
    ("os.unlink(p('d/l'))", {"d": "mc", "d/f": ""}, {}),
    # mkdir, rmdir
    ("os.mkdir(p('d/new'))", {"d": "mc", "d/sub": ""}, {}),
    ("os.rmdir(p('d/sub'))", {"d": "mc", "e": ""}, {}),
    # rename: Linux moves the ctime of what is renamed, which POSIX allows
    ("os.rename(p('d/f'), p('d/new'))", {"d": "mc", "d/f": "c", "e": ""}, {"d/f": "d/new"}),
    ("os.rename(p('d/f'), p('e/new'))", {"d": "mc", "e": "mc", "d/f": "c"}, {"d/f": "e/new"}),
    ("os.rename(p('d/f'), p('d/g'))", {"d": "mc", "d/f": "c", "e": "", "e/too": "c"}, {"d/f": "d/g"}),
    ("os.rename(p('d/g'), p('e/too'))", {"d": "", "e": "", "d/g": ""}, {}),
    ("os.rename(p('d/sub'), p('e/new'))", {"d": "mc", "e": "mc", "d/sub": "c"}, {"d/sub": "e/new"}),
    ("os.rename(p('d/l'), p('e/new'))", {"d": "mc", "e": "mc", "d/l": "c"}, {"d/l": "e/new"}),
    ("renameat2('bo/t/d/f', 'bo/t/e', 2)", {"d": "mc", "d/f": "c", "e": "c"}, {"d/f": "e", "e": "d/f"}),
    # chmod, chown, utimensat
    ("os.chmod(p('d/f'), 0o600)", {"d": "", "d/f": "c"}, {}),
    ("os.chmod(p('d'), 0o700)", {"d": "c", "d/f": ""}, {}),
    ("os.chown(p('d/f'), os.getuid(), os.getgid())", {"d": "", "d/f": "c"}, {}),
    ("os.lchown(p('d/l'), os.getuid(), os.getgid())", {"d/l": "c", "d/f": ""}, {}),
    ("os.utime(p('d/f'))", {"d": "", "d/f": "amc"}, {}),
    ("os.utime(p('d/f'), ns=(OLD, 5))", {"d/f": "mc"}, {}),
    ("os.utime(p('d/f'), ns=(5, OLD))", {"d/f": "ac"}, {}),
    ("os.utime(p('d/l'), ns=(5, 5), follow_symlinks=False)", {"d/l": "amc", "d/f": ""}, {}),
    ("os.utime(p('d'), ns=(5, 5))", {"d": "amc", "d/f": ""}, {}),
    # what only looks, or fails
    ("os.stat(p('d/f')), os.access(p('d/f'), os.R_OK)", {"d": "", "d/f": ""}, {}),
    ("closing(fd('d/f'), os.fsync)", {"d": "", "d/f": ""}, {}),
)

LOOKS = (
    ("closing(fd('d/f', os.O_RDONLY), lambda n: os.read(n, 1))", "d/f"),
    ("mapped(fd('d/f'), 4096)[0]", "d/f"),
    ("os.listdir(p('d'))", "d"),
    ("os.readlink(p('d/l'))", "d/l"),
)
"""What POSIX lets move `a`, and Linux does where the mount says so: here nothing does but setting it."""


@pytest.fixture(params=["bo", "control"])
def root(request: pytest.FixtureRequest, device: Device, tmp_path: Path) -> Iterator[Client]:
    """A client with an empty folder bo/t; `control`: on the file system of the temporary folder."""
    if request.param == "bo":
        client = device.client()
    else:
        (tmp_path / "bo").mkdir()
        client = Client(str(tmp_path))
    try:
        client.do(HELPERS)
        client.do("os.mkdir(path('bo/t'))")
        yield client
    finally:
        client.end()


def test_which_times_move(root: Client, request: pytest.FixtureRequest) -> None:
    wrong = []
    for call, moves, gone in ROWS:
        moved = root.do(f"row({list(moves)!r}, {call!r}, {gone!r})")
        if request.node.callspec.params["root"] == "control":
            # A file system may move `a` where something was read, or not: as it is mounted.
            moved = {name: got if "a" in moves[name] else got.replace("a", "") for name, got in moved.items()}
        if moved != moves:
            wrong.append(f"{call}: {moved}, not {moves}")
    assert not wrong, "\n".join(wrong)


def test_looking_moves_no_time(device: Device) -> None:
    client = device.client(HELPERS)
    client.do("os.mkdir(path('bo/t'))")
    for call, name in LOOKS:
        assert client.do(f"row([{name!r}], {call!r}, {{}})") == {name: ""}, call


def test_what_is_new_has_one_time(root: Client) -> None:
    for kind, call in (("file", "closing(fd('n', os.O_CREAT))"), ("folder", "os.mkdir(p('n'))"),
                       ("link", "os.symlink('x', p('n'))")):  # fmt: skip
        a, m, c = root.do(f"clear() or [{call}] and stamps('n')")
        assert a == m == c, kind


def test_failed_calls_move_no_time(root: Client) -> None:
    calls = "[suppressed(call) for call in calls]"
    root.do(
        "def suppressed(call):\n"
        "    try: call()\n"
        "    except OSError: return 1\n"
        "    raise AssertionError(call)\n"
        "calls = [lambda: os.mkdir(p('d/f')), lambda: os.rmdir(p('d')), lambda: os.unlink(p('d/sub')),\n"
        "         lambda: os.rename(p('d/f'), p('d/sub')), lambda: os.link(p('d/f'), p('d/g')),\n"
        "         lambda: os.symlink('x', p('d/l')), lambda: os.rename(p('d'), p('d/sub/x')),\n"
        "         lambda: os.truncate(p('d/f'), -1), lambda: fd('d/f', os.O_CREAT | os.O_EXCL)]\n"
    )
    names = ["d", "d/f", "d/g", "d/sub", "d/l"]
    assert root.do(f"row({names!r}, {calls!r}, {{}})") == dict.fromkeys(names, "")

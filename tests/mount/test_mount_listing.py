"""Listings show what is there at that moment, whatever is made, renamed and removed while they are read."""

import errno
from pathlib import Path

import pytest

from tests.mount.mount_harness import HERE, Client, ClientError, Device

pytestmark = pytest.mark.mount

HELPERS = (HERE / "names_client.py").read_text()


@pytest.fixture
def client(device: Device) -> Client:
    """Has the helpers of names_client.py, and a folder bo/d with ten files."""
    made = device.client(HELPERS)
    made.do("os.mkdir(path('bo/d')); [make(f'bo/d/{n:03}', 1) for n in range(10)]; fd = opened('bo/d', os.O_RDONLY)")
    return made


def names(client: Client, text: str = "getdents_all(fd)") -> list[str]:
    rows: list[list[object]] = client.do(text)
    return [str(row[2]) for row in rows]


FIRST = [f"{n:03}" for n in range(10)]


def test_a_listing_begun_before_a_change_brings_nothing_back(client: Client) -> None:
    """READDIRPLUS plants what it names among the names that the kernel knows, for 300 s."""
    client.do("put('bo/d/cfg', b'OLD'); make('bo/d/draft', 0); put('bo/d/draft', b'precious'); make('bo/d/gone', 4)")
    client.do("listing = os.scandir(path('bo/d'))")
    client.do("put('bo/d/cfg', b'NEW CONTENT'); os.rename(path('bo/d/draft'), path('bo/d/final'))")
    client.do("os.unlink(path('bo/d/gone'))")
    listed = client.do("[entry.name for entry in listing]")
    assert "gone" not in listed
    assert "draft" not in listed
    assert client.do("got('bo/d/cfg')") == b"NEW CONTENT"
    assert client.errno("os.stat(path('bo/d/draft'))") == "ENOENT"
    assert client.errno("os.stat(path('bo/d/gone'))") == "ENOENT"
    client.do("make('bo/d/draft', 1)")
    assert client.do("got('bo/d/final')") == b"precious"


def test_rewinding_shows_the_folder_as_it_is(client: Client) -> None:
    assert sorted(client.do("os.listdir(fd)")) == FIRST
    client.do("make('bo/d/new', 0)")
    assert sorted(client.do("os.listdir(fd)")) == [*FIRST, "new"]
    client.do("os.unlink(path('bo/d/new'))")
    assert sorted(client.do("os.listdir(fd)")) == FIRST
    # What has been read to its end stays at its end.
    client.do("os.lseek(fd, 0, 0); getdents_all(fd)")
    assert names(client, "make('bo/d/late', 0) or getdents_all(fd)") == []


def test_dot_and_dot_dot_are_listed_and_counted_as_no_lookup(device: Device, client: Client) -> None:
    rows = client.do("getdents_all(fd)")
    inos = {row[2]: row[0] for row in rows}
    assert [row[2] for row in rows[:2]] == [".", ".."]
    assert inos["."] == client.do("os.stat(path('bo/d')).st_ino")
    assert inos[".."] == client.do("os.stat(path('bo')).st_ino")
    for folder in ("", "bo", "svm", "objects", "objects/d", "svm_objects", "ctl", "regions/vram", "debug", "clients"):
        client.do(f"other = opened({folder!r}, os.O_RDONLY)")
        found = client.do("getdents_all(other)")
        assert [row[2] for row in found[:2]] == [".", ".."], folder
        assert found[0][0] == client.do("os.fstat(other).st_ino"), folder
        if folder:
            assert found[1][0] == client.do(f"os.stat(path({folder!r} + '/..')).st_ino"), folder
        client.do("os.close(other)")
    client.do("os.close(fd); [os.unlink(path('bo/d/' + name)) for name in os.listdir(path('bo/d'))]")
    nodes = device.control("nodes")
    client.do("os.rmdir(path('bo/d'))")
    device.until(lambda: device.control("nodes") < nodes, why="the kernel forgets the folder, and so does the daemon")


def test_a_listing_goes_on_from_any_place_whatever_was_removed_and_made(client: Client) -> None:
    """telldir and seekdir: an offset stays where it is when names before and after it go."""
    rows = client.do("getdents_all(fd)")
    places = {row[2]: row[1] for row in rows}
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    client.do("[os.unlink(path(f'bo/d/{n:03}')) for n in (0, 1, 4, 5, 6)]; make('bo/d/new', 0)")
    for name, left in (("001", FIRST[2:4] + FIRST[7:]), ("004", FIRST[7:]), ("007", FIRST[8:]), ("009", [])):
        found = names(client, f"os.lseek(fd, {places[name]}, 0) and getdents_all(fd)")
        # The descriptor's listing began before `new`, which it may show or not.
        assert [one for one in found if one != "new"] == left, name
    assert names(client, "os.lseek(fd, 0, 0) or getdents_all(fd)")[2:] == [*FIRST[2:4], *FIRST[7:], "new"]


def test_a_name_that_is_replaced_again_and_again_is_listed_once(client: Client) -> None:
    client.do("seen = []; os.lseek(fd, 0, 0)")
    client.do(
        "while some := getdents(fd, 64):\n"
        "    seen += [row[2] for row in some]\n"
        "    put('bo/d/005', b'another'); put('bo/d/009', b'another'); put('bo/d/001', b'another')\n"
    )
    assert client.do("seen") == [".", "..", *FIRST]


def test_who_renames_what_is_listed_comes_to_an_end(client: Client) -> None:
    client.do(
        "seen = []\n"
        "while (some := getdents(fd, 64)) and len(seen) < 100:\n"
        "    for row in some:\n"
        "        seen.append(row[2])\n"
        "        if row[2][0] != '.': os.rename(path('bo/d/' + row[2]), path('bo/d/' + row[2] + 'x'))\n"
    )
    assert client.do("seen") == [".", "..", *FIRST]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [700, pytest.param(10_000, marks=pytest.mark.stress)])
def test_rm_r_of_many_names(device: Device, client: Client, count: int) -> None:
    """It reads a part of the folder, removes what it read, and reads on."""
    client.do(f"os.mkdir(path('bo/many')); [make(f'bo/many/{{n}}', 0) for n in range({count})]", 120)
    client.do(f"many = opened('bo/many', os.O_RDONLY); assert len(os.listdir(path('objects/many'))) == {count}", 60)
    client.do(
        "removed = 0\n"
        "while some := getdents(many, 4096):\n"
        "    for row in some:\n"
        "        if row[2] not in ('.', '..'): os.unlink(path('bo/many/' + row[2])); removed += 1\n",
        120,
    )
    assert client.do("removed") == count
    client.do("os.rmdir(path('bo/many'))")
    assert client.do("os.listdir(path('objects'))") == ["d"]


def test_objects_and_svm_are_listed_as_they_are_too(client: Client) -> None:
    client.do("[make(f'svm/{n}', 4096) for n in range(3)]")
    client.do("fds = [opened(name, os.O_RDONLY) for name in ('objects/d', 'svm', 'svm_objects')]")
    assert client.do("[sorted(os.listdir(fd)) for fd in fds]") == [FIRST, ["0", "1", "2"], ["0", "1", "2"]]
    client.do("listings = [os.scandir(path(name)) for name in ('objects/d', 'svm', 'svm_objects')]")
    client.do("os.unlink(path('bo/d/003')); os.unlink(path('svm/1')); os.symlink('000', path('bo/d/link'))")
    left = [[*FIRST[:3], *FIRST[4:]], ["0", "2"], ["0", "2"]]
    assert client.do("[sorted(entry.name for entry in listing) for listing in listings]") == left
    assert client.do("[sorted(os.listdir(fd)) for fd in fds]") == left
    assert client.errno("os.stat(path('svm/1'))") == "ENOENT"
    assert client.errno("os.stat(path('objects/d/003'))") == "ENOENT"


def test_a_name_that_a_command_made_is_seen(device: Device, client: Client, tmp_path: Path) -> None:
    """ctl/import: the kernel was not asked, and keeps what it knows of the folder."""
    (tmp_path / "file").write_bytes(b"imported")
    client.do("before = os.stat(path('bo/d')).st_mtime_ns")
    assert client.errno("opened('bo/d/i', os.O_RDWR)") == "ENOENT"
    assert device.command("ctl/import", f"d/i {tmp_path}/file mappable") == "ok"
    device.until(lambda: client.do("os.stat(path('bo/d')).st_mtime_ns != before"), why="the folder's mtime moves")
    assert client.do("os.listdir(fd)")[-1] == "i"
    assert client.do("os.read(opened('bo/d/i', os.O_RDWR | os.O_CREAT), 100)") == b"imported"
    assert client.errno("opened('bo/d/i', os.O_RDWR | os.O_CREAT | os.O_EXCL)") == "EEXIST"
    client.do("os.unlink(path('bo/d/i'))")


@pytest.mark.parametrize("flag", ["0", "os.O_EXCL"])
def test_a_command_makes_the_name_that_a_client_is_making(
    device: Device, client: Client, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "file").write_bytes(b"imported")
    device.hold("create", bo="i")
    client.begin(f"os.read(opened('bo/d/i', os.O_RDWR | os.O_CREAT | {flag}), 100)")
    device.until_held("create")
    assert device.command("ctl/import", f"d/i {tmp_path}/file mappable") == "ok"
    device.release("create")
    if flag == "0":
        assert client.result() == b"imported"
    else:
        with pytest.raises(ClientError) as refused:
            client.result()
        assert refused.value.errno == errno.EEXIST


SAVER = """
import time
def save_and_read(rounds, seconds):
    wrong = []
    n, end = 0, time.monotonic() + seconds
    while n < rounds or time.monotonic() < end:
        n += 1
        want = b"version %d" % n * (n % 50 + 1)
        put('bo/d/cfg', want)
        for name, wanted in (('bo/d/cfg', want), ('bo/d/000', bytes(1))):
            try:
                data = got(name)
            except OSError as error:
                data = repr(error).encode()
            if data != wanted: wrong.append((n, name, data[:40]))
        make('bo/d/passing', 3, 7); os.rename(path('bo/d/passing'), path('bo/d/moved')); os.unlink(path('bo/d/moved'))
        for gone in ('passing', 'moved'):
            if os.path.exists(path('bo/d/' + gone)): wrong.append((n, gone, b'is back'))
    return wrong
"""
LS = """
import subprocess
def ls_on(until):
    rounds = missed = 0
    while not os.path.exists(until):
        for command in (['ls', '-l', '--', path('bo/d')], ['find', path('bo/d'), '-ls']):
            shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
            names = {line.rsplit('/', 1)[-1].rsplit(' ', 1)[-1] for line in shown.splitlines()}
            missed += not {'cfg', *(f'{n:03}' for n in range(10))} <= names
        rounds += 1
    return rounds, missed
"""
LISTER = """
def list_on(until):
    rounds = missed = 0
    while not os.path.exists(until):
        for place in ('bo/d', 'objects/d'):
            with os.scandir(path(place)) as listing:
                seen = set()
                for entry in listing:
                    seen.add(entry.name)
                    try: entry.stat(follow_symlinks=False)
                    except FileNotFoundError: pass
            missed += not {'cfg', *(f'{n:03}' for n in range(10))} <= seen
        rounds += 1
    return rounds, missed
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("rounds", "seconds"), [(150, 0), pytest.param(2000, 60, marks=pytest.mark.stress)])
def test_atomic_saves_beside_listings(
    device: Device, client: Client, tmp_path: Path, rounds: int, seconds: int
) -> None:
    """No read is ever zeros, of another version, or ENOENT; no name that is gone comes back."""
    client.do("[make(f'bo/d/more-{n:04}', 0) for n in range(100)]; put('bo/d/cfg', b'first')")
    stop = tmp_path / "stop"
    listers = [device.client(HELPERS + LISTER).begin(f"list_on({str(stop)!r})")]
    listers.append(device.client(HELPERS + LS).begin(f"ls_on({str(stop)!r})"))
    client.do(SAVER)
    try:
        assert client.do(f"save_and_read({rounds}, {seconds})", 600) == []
    finally:
        stop.touch()
    for lister in listers:
        listed, missed = lister.result(30)
        assert listed
        assert not missed, "a name that existed throughout was not listed"

"""Names come and go in bo/ and svm/: in objects/ and svm_objects/ no client ever sees one that is gone, or what it was.

All of it once as it is, and once with a kernel that never hears of names that are gone (`deaf_to_names`).
"""

import errno
import os
from collections.abc import Iterator

import pytest

from tests.mount.mount_harness import HERE, STANDARD, Client, Device, Hang
from tests.mount.test_mount_rights import user

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]

HELPERS = (HERE / "names_client.py").read_text() + '''
def put_pages(name, pages):
    """A BO that is known by its size."""
    fd = os.open(path(name), os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(fd, pages * 4096)
    os.close(fd)

def pages(name):
    """What objects/NAME/status says its size is."""
    for line in got('objects/' + name + '/status').decode().splitlines():
        if line.startswith('size:'): return int(line.split()[1]) // 4096

def say(name, words):
    """Into a command file."""
    code = command(name, words)
    if code: raise OSError(code, name)
'''

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="clients of several users need root")
MODES = ((), ("deaf_to_names",))


@pytest.fixture(scope="module", params=MODES, ids=("told", "deaf"))
def kept(request: pytest.FixtureRequest) -> Iterator[Device]:
    options = (*STANDARD, "--allow-other") if os.geteuid() == 0 else STANDARD
    device = Device(*options, patches=request.param)
    try:
        yield device
        device.end_clients()
        assert device.stop() == 0
    finally:
        device.end()


@pytest.fixture
def names(kept: Device) -> Iterator[tuple[Device, Client, Client]]:
    """The device, who changes names, and somebody else who has been everywhere before."""
    mine, other = kept.client(HELPERS), kept.client(HELPERS)
    mine.do("os.mkdir(path('bo/d')); put_pages('bo/d/x', 3); put_pages('bo/a', 1); put_pages('bo/b', 2)")
    mine.do("put_pages('svm/s', 512)")
    for client in (mine, other):
        client.do("os.listdir(path('objects')), os.listdir(path('objects/d'))")
        assert client.do("[pages('d/x'), pages('a'), pages('b')]") == [3, 1, 2]
        assert client.do("got('svm_objects/s/status')")
    yield kept, mine, other
    kept.remove_all()
    assert kept.control("selfcheck") == []
    assert [line for line in kept.suspicious() if "made to be deaf" not in line] == []


GONE = ("os.stat(path('objects/{0}'))", "os.listdir(path('objects/{0}'))", "got('objects/{0}/status')",
        "say('objects/{0}/validate', 'system')", "os.stat(path('objects/{0}/evict'))",
        "os.chdir(path('objects/{0}'))")  # fmt: skip


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_name_that_is_gone_is_gone_for_everybody(names: tuple[Device, Client, Client], how: str) -> None:
    _device, mine, other = names
    for number, asked in enumerate(GONE, 5):
        mine.do("os.unlink(path('bo/a'))" if how == "unlink" else "os.rename(path('bo/a'), path('bo/z'))")
        assert other.errno(asked.format("a")) == "ENOENT"
        assert mine.errno(asked.format("a")) == "ENOENT"
        assert "a" not in other.do("os.listdir(path('objects'))")
        if how == "rename":
            other.do("say('objects/z/validate', 'system')")
        mine.do(f"put_pages('bo/a', {number})")
        assert other.do("pages('a')") == number


def test_an_address_space_that_is_gone_is_gone_for_everybody(names: tuple[Device, Client, Client]) -> None:
    _device, mine, other = names
    mine.do("os.rename(path('svm/s'), path('svm/t'))")
    assert other.errno("os.stat(path('svm_objects/s'))") == "ENOENT"
    assert other.do("got('svm_objects/t/status')").startswith(b"name:\tt")
    mine.do("os.unlink(path('svm/t')); put_pages('svm/t', 7)")
    assert b"size:\t28672" in other.do("got('svm_objects/t/status')")


@pytest.mark.parametrize("how", ["replace", "exchange", "unlinked and made"])
def test_a_name_of_another_bo_is_that_bos_for_everybody(names: tuple[Device, Client, Client], how: str) -> None:
    _device, mine, other = names
    before = other.do("os.stat(path('objects/a')).st_ino")
    if how == "replace":
        mine.do("os.rename(path('bo/b'), path('bo/a'))")
        assert other.errno("pages('b')") == "ENOENT"
    elif how == "exchange":
        assert mine.do("renameat2('bo/a', 'bo/b', 2)") == 0
        assert other.do("pages('b')") == 1
    else:
        mine.do("os.unlink(path('bo/a')); put_pages('bo/a', 2)")
    assert other.do("os.stat(path('objects/a')).st_ino") != before
    assert other.do("pages('a')") == 2
    other.do("say('objects/a/validate', 'vram')")
    assert other.do("[line for line in got('objects/a/status').splitlines() if line.startswith(b'mem_type')]") == [
        b"mem_type:\tvram"
    ]


def test_each_name_of_a_bo_is_one_of_its_own(names: tuple[Device, Client, Client]) -> None:
    _device, mine, other = names
    mine.do("os.link(path('bo/a'), path('bo/d/again'))")
    assert other.do("pages('d/again')") == 1
    mine.do("os.unlink(path('bo/a'))")
    assert other.errno("pages('a')") == "ENOENT"
    assert other.do("pages('d/again')") == 1
    mine.do("os.rename(path('bo/d/again'), path('bo/a'))")
    assert other.errno("os.stat(path('objects/d/again'))") == "ENOENT"
    assert other.do("pages('a')") == 1


def test_a_folder_takes_the_names_in_it_along(names: tuple[Device, Client, Client]) -> None:
    _device, mine, other = names
    mine.do("os.rename(path('bo/d'), path('bo/e'))")
    assert other.errno("pages('d/x')") == "ENOENT"
    assert other.do("pages('e/x')") == 3
    mine.do("os.mkdir(path('bo/d')); put_pages('bo/d/x', 9)")
    assert other.do("[pages('d/x'), pages('e/x')]") == [9, 3]
    assert mine.do("renameat2('bo/d', 'bo/e', 2)") == 0
    assert other.do("[pages('d/x'), pages('e/x')]") == [3, 9]
    mine.do("os.unlink(path('bo/d/x')); os.rmdir(path('bo/d'))")
    assert other.errno("pages('d/x')") == "ENOENT"


def test_who_stands_in_a_folder_whose_bo_is_called_otherwise_stays_there(names: tuple[Device, Client, Client]) -> None:
    _device, mine, other = names
    other.do("os.chdir(path('objects/a'))")
    mine.do("os.rename(path('bo/a'), path('bo/z'))")
    assert b"name:\tz" in other.do("open('status', 'rb').read()")
    assert other.do("pages('z')") == 1
    other.do("os.chdir('/')")


def test_who_stands_in_a_folder_whose_bo_was_replaced_finds_nothing_there(names: tuple[Device, Client, Client]) -> None:
    device, mine, other = names
    other.do("os.chdir(path('objects/a'))")
    mine.do("put_pages('bo/new', 2); os.rename(path('bo/new'), path('bo/a'))")
    device.until(lambda: other.errno("open('status', 'rb').read()") == "ENOENT", why="the kernel has forgotten the BO")
    assert other.errno("open('validate', 'w')") == "ENOENT"
    assert other.do("pages('a')") == 2
    other.do("os.chdir('/')")


@as_root
def test_who_may_do_what_is_seen_at_once(names: tuple[Device, Client, Client]) -> None:
    device, mine, _other = names
    guest = user(device, 20001)
    guest.do(HELPERS)
    assert guest.do("pages('a')") == 1
    assert guest.errno("say('objects/a/validate', 'vram')") == "EACCES"
    mine.do("os.chmod(path('bo/a'), 0o600)")
    assert guest.errno("pages('a')") == "EACCES"
    mine.do("os.chown(path('bo/a'), 20001, 20009)")
    assert guest.do("pages('a')") == 1
    guest.do("say('objects/a/validate', 'vram')")
    mine.do("os.link(path('bo/a'), path('bo/again')); os.stat(path('objects/again'))")
    for uid in (20001, 20002):
        mine.do(f"os.chown(path('bo/again'), {uid}, -1)")
        for name in ("a", "again"):
            assert mine.do(f"os.stat(path('objects/{name}')).st_uid, os.stat(path('objects/{name}')).st_gid") == [
                uid, 20009,
            ]  # fmt: skip
    assert guest.errno("say('objects/a/validate', 'system')") == "EACCES"


@as_root
def test_what_is_hidden_stays_hidden_when_somebody_else_has_looked(names: tuple[Device, Client, Client]) -> None:
    device, mine, other = names
    guest = user(device, 20001)
    guest.do(HELPERS)
    assert guest.do("pages('d/x')") == 3
    mine.do("os.chmod(path('bo/d'), 0o700)")
    for _ in range(2):
        # Whoever may has the kernel look it up, and know it.
        assert other.do("[pages('d/x'), 'x' in os.listdir(path('objects/d'))]") == [3, True]
        for asked in GONE:
            assert [guest.errno(asked.format(name)) for name in ("d/x", "d/none")] == ["EACCES"] * 2
    mine.do("os.chmod(path('bo'), 0o700)")
    try:
        assert other.do("pages('a')") == 1
        assert guest.errno("os.stat(path('objects/a'))") == "EACCES"
        assert guest.errno("pages('a')") == "EACCES"
    finally:
        mine.do("os.chmod(path('bo'), 0o1777)")
    assert guest.do("pages('a')") == 1


STORM = '''
import time, threading

def churn(name, seconds):
    """Gives a name to one BO after the other, takes it away, and looks each time whether all else follows at once."""
    number, until = 10, time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        put_pages(f'bo/{name}.new', number)
        os.rename(path(f'bo/{name}.new'), path(f'bo/{name}'))
        assert pages(name) == number, (pages(name), number)
        say(f'objects/{name}/validate', 'system')
        for gone in (f'{name}.new', f'{name}.old'):
            assert not os.path.exists(path(f'objects/{gone}')), gone
        if number % 3 == 0:
            os.rename(path(f'bo/{name}'), path(f'bo/{name}.old'))
            assert not os.path.exists(path(f'objects/{name}'))
            assert pages(f'{name}.old') == number
            assert renameat2(f'bo/{name}.old', f'bo/{name}', 1) == 0
            assert pages(name) == number
        if number % 5 == 0:
            os.unlink(path(f'bo/{name}'))
            assert not os.path.exists(path(f'objects/{name}'))
            try: pages(name)
            except FileNotFoundError: pass
            else: assert False, 'it is gone'
    return number

def look(names, seconds):
    """Commands and questions meanwhile. What was found once is never something older later."""
    last, until, errors, rounds = dict.fromkeys(names, 0), time.monotonic() + seconds, {}, 0
    while time.monotonic() < until:
        for name in names:
            rounds += 1
            try:
                found = pages(name)
                say(f'objects/{name}/validate', 'system')
                os.stat(path(f'objects/{name}'))
                if rounds % 7 == 0: [os.stat(path('objects/' + one)) for one in os.listdir(path('objects'))]
            except OSError as error:
                errors[error.errno] = errors.get(error.errno, 0) + 1
                continue
            assert found >= last[name], (found, last[name])
            last[name] = found
    return [rounds, sorted(errors.items())]

def misplace(_number, seconds):
    """Holds the lock of objects/ while it waits for that of bo/, or the other way round."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for names in ((path('bo/one'), path('objects/two')), (path('objects/one'), path('bo/two'))):
            try: os.rename(*names)
            except OSError: pass
'''


@pytest.mark.parametrize("seconds", [1.5, pytest.param(60.0, marks=pytest.mark.stress)])
def test_names_come_and_go_beside_commands(kept: Device, seconds: float) -> None:
    begun = [
        kept.client(HELPERS + STORM).begin(f"{what}, {seconds})")
        for what in ("churn('one'", "churn('two'", "look(['one', 'two']", "look(['two', 'one']", "misplace(0")
    ]
    try:
        *changed, looked, too, _ = [client.result(seconds + 20) for client in begun]
    except Hang:
        kept.abort()
        raise
    print(changed, looked, too)
    assert min(changed) > 10
    for rounds, errors in (looked, too):
        assert rounds
        counts = {errno.errorcode[number]: count for number, count in errors}
        assert counts.keys() <= {"ENOENT"}
    kept.remove_all()
    assert kept.control("selfcheck") == []

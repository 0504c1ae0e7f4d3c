"""Who may do what, as the kernel sees it: a table over every file of the tree, for owner, group, others, root, the one
who mounted; private folders; what a name that is private can be found in; jobs over other people's BOs."""

import errno
import json
import os
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import STANDARD, Client, Device

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="clients of several users need root"),
]

MOUNT_OPTIONS = (*STANDARD, "--allow-other")
A, B, GROUP = 20001, 20002, 20009


def user(device: Device, uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> Client:
    gid = uid if gid is None else gid
    return device.client(f"os.umask(0); os.setgroups({list(groups)}); os.setgid({gid}); os.setuid({uid})")


def make_file(client: Client, name: str, mode: int, text: bytes = b"content") -> None:
    client.do(f"fd = os.open(path({name!r}), os.O_CREAT | os.O_RDWR, {mode}); os.write(fd, {text!r}); os.close(fd)")


def access(client: Client, name: str) -> str:
    """"r", "w", "rw" or "-": what the kernel lets a process open a file for."""
    client.do(
        "def may_open(name):\n"
        "    found = ''\n"
        "    for letter, flags in (('r', os.O_RDONLY), ('w', os.O_WRONLY)):\n"
        "        try: os.close(os.open(path(name), flags | os.O_NONBLOCK)); found += letter\n"
        "        except OSError as error:\n"
        "            if error.errno not in (errno.EACCES, errno.EPERM): raise\n"
        "    return found or '-'"
    )
    return str(client.do(f"may_open({name!r})"))


COMMANDS = ["validate", "evict", "unmap", "swapout", "defrag", "backup", "restore"]
ATTRIBUTES = ["group", "vm", "peek", "placement", "priority", "prefault", "madvise", "caching"]
TEXTS = ["snapshot", "status", "status.json"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o604, 0o622, 0o602, 0o444, 0o000, 0o666, 0o646])
def test_files_of_a_bo_have_the_bits_of_the_bo(device: Device, mode: int) -> None:
    owner = user(device, A, GROUP)
    make_file(owner, "bo/x", 0o600)
    owner.do(f"os.chmod(path('bo/x'), {mode})")
    callers = {
        "owner": (owner, mode >> 6),
        "group": (user(device, B, GROUP), mode >> 3),
        "other": (user(device, B), mode),
        "supplementary group": (user(device, B, B, (GROUP,)), mode >> 3),
    }
    for who, (client, bits) in callers.items():
        reads, writes = bool(bits & 4), bool(bits & 2)
        for name in COMMANDS:
            assert access(client, f"objects/x/{name}") == ("rw" if writes else "-"), (who, name)
        assert access(client, "objects/x/wait") == ("rw" if reads else "-")
        for name in ("pin", "unpin"):
            assert access(client, f"objects/x/{name}") == "-"
        for name in ATTRIBUTES:
            assert access(client, f"objects/x/{name}") == ("r" * reads + "w" * writes or "-"), (who, name)
        for name in TEXTS:
            assert access(client, f"objects/x/{name}") == ("r" if reads else "-"), (who, name)
        assert client.errno("os.getxattr(path('bo/x'), 'user.ttm.size')") == ("ok" if reads else "EACCES")
        assert client.errno("os.setxattr(path('bo/x'), 'user.ttm.priority', b'2')") == ("ok" if writes else "EACCES")
        assert sorted(client.do("os.listdir(path('objects/x'))")) == sorted(
            [*COMMANDS, *ATTRIBUTES, *TEXTS, "wait", "pin", "unpin"]
        ), "a file that this table does not know"
    root = device.shell
    for name in (*COMMANDS, *ATTRIBUTES, "wait", "pin", "unpin"):
        assert access(root, f"objects/x/{name}") == "rw"
    for name in TEXTS:
        assert access(root, f"objects/x/{name}") == "r"


SPACE_COMMANDS = ["gpu", "backup", "restore", "prefetch", "madvise", "map", "unmap"]
SPACE_TEXTS = ["notifiers", "ranges", "snapshot", "stats", "status", "status.json"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o622, 0o602, 0o444])
def test_files_of_an_address_space_have_the_bits_of_the_space(device: Device, mode: int) -> None:
    owner = user(device, A, GROUP)
    make_file(owner, "svm/s", 0o600)
    owner.do(f"os.chmod(path('svm/s'), {mode})")
    for shift, client in {6: owner, 3: user(device, B, GROUP), 0: user(device, B)}.items():
        reads, writes = bool(mode >> shift & 4), bool(mode >> shift & 2)
        for name in SPACE_COMMANDS:
            assert access(client, f"svm_objects/s/{name}") == ("rw" if writes else "-"), (shift, name)
        assert access(client, "svm_objects/s/gpu_read") == ("rw" if reads else "-")
        for name in SPACE_TEXTS:
            assert access(client, f"svm_objects/s/{name}") == ("r" if reads else "-"), (shift, name)
        assert sorted(client.do("os.listdir(path('svm_objects/s'))")) == sorted(
            [*SPACE_COMMANDS, *SPACE_TEXTS, "gpu_read"]
        ), "a file that this table does not know"


def test_a_mode_that_changes_counts_at_once(device: Device) -> None:
    owner, other = user(device, A), user(device, B)
    make_file(owner, "bo/x", 0o666)
    other.do("d = os.open(path('objects/x'), os.O_RDONLY | os.O_DIRECTORY)")
    opening = "os.close(os.open('validate', os.O_RDWR, dir_fd=d))"
    assert other.errno(opening) == "ok"
    owner.do("os.chmod(path('bo/x'), 0o600)")
    assert other.errno(opening) == "EACCES"
    owner.do("os.chmod(path('bo/x'), 0o666)")
    assert other.errno(opening) == "ok"
    device.shell.do(f"os.chown(path('bo/x'), {B}, {B})")
    owner.do("os.stat(path('objects/x/validate'))")
    assert owner.do("os.stat(path('objects/x/validate')).st_uid") == B


OWNERS = {
    "error_log": "r",
    "trace": "r",
    "trace.json": "r",
    "trace_pipe": "r",
    "fences/pending": "r",
    "regions/system/lru": "r",
    "regions/system/map": "r",
    "regions/vram/fences": "r",
    "regions/vram/lru": "r",
    "regions/vram/map": "r",
    "ctl/selfcheck": "r",
}
"""What shows names of BOs, or how the device is: for who mounted, and root."""

EVERYBODYS = ["README", "stats", "metrics", "mem_info_vram_used", "fences/timelines", "pool/pages", "swap/used"]
EVERYBODYS += [f"regions/vram/{name}" for name in ("size", "used", "visible_size", "visible_used", "debug")]


def test_what_shows_names_is_the_owners_and_roots(device: Device) -> None:
    other = user(device, A)
    for name, bits in OWNERS.items():
        assert access(other, name) == "-", name
        assert access(device.shell, name) == bits, name
    for name in device.shell.do("os.listdir(path('ctl'))"):
        expected = "rw" if name in ("submit", "copy") else "-"
        assert access(other, f"ctl/{name}") == expected, name
        assert access(device.shell, f"ctl/{name}") == ("r" if name == "selfcheck" else "rw")
    assert other.errno("os.listdir(path('debug'))") == "EACCES"
    for name in ("loop", "fail_move/probability", "pause_engine", "gem_info", "ttm/page_pool", "vram0_mm"):
        assert access(other, f"debug/{name}") == "-"
    for name in EVERYBODYS:
        assert access(other, name) == "r", name


def walk(client: Client, top: str) -> list[str]:
    """Every file below `top` that a client can find."""
    return list(
        client.do(f"[os.path.relpath(os.path.join(d, n), MNT) for d, _, ns in os.walk(path({top!r})) for n in ns]", 60)
    )


def test_a_private_name_is_in_nothing_that_others_can_read(device: Device) -> None:
    owner, other = user(device, A), user(device, B)
    assert device.command("ctl/trace", "all") == "ok"
    owner.do("os.mkdir(path('bo/priv'), 0o700)")
    make_file(owner, "bo/priv/hiddenname", 0o644, b"x" * 10000)
    make_file(owner, "svm/visible", 0o600)
    owner.do("os.pread(opened('bo/priv/hiddenname'), 100, 0)")
    assert owner.do("command('objects/priv/hiddenname/validate', 'vram')") == 0
    assert owner.do("command('objects/priv/hiddenname/validate', 'nowhere')") != 0
    owner.do("command('ctl/submit', 'busy seconds=1 bo=priv/hiddenname')")
    assert other.errno("os.listdir(path('objects/priv'))") == "EACCES"
    assert other.errno("os.stat(path('objects/priv/hiddenname/status'))") == "EACCES"
    assert other.errno("os.listdir(path('bo/priv'))") == "EACCES"
    assert other.do("os.stat(path('objects/priv')).st_mode & 0o777") == 0o700
    found = walk(other, "")
    assert len(found) > 60
    assert not [name for name in found if "hiddenname" in name]
    readable = [name for name in found if "r" in access(other, name)]
    assert "stats" in readable
    for name in readable:
        if not name.startswith(("bo/", "svm/")):
            assert not other.do(f"'hiddenname' in slurp({name!r})"), name
    everything = [name for name in walk(device.shell, "") if not name.startswith(("bo/", "svm/", "trace_pipe"))]
    shown = {name for name in everything if device.shell.do(f"'hiddenname' in slurp({name!r})")}
    assert {"trace", "error_log", "regions/vram/map", "regions/vram/lru"} <= shown, "else it proves nothing"
    assert device.command("ctl/trace", "off") == "ok"


def test_a_client_is_shown_to_its_own_user(device: Device) -> None:
    owner, other = user(device, A), user(device, B)
    make_file(owner, "bo/x", 0o600)
    pid = owner.pid
    assert access(owner, f"clients/{pid}") == "r"
    assert access(other, f"clients/{pid}") == "-"
    assert access(device.shell, f"clients/{pid}") == "r"
    assert access(other, "clients/kernel") == "-"


JOBS = [
    ("checksum src=mine wait", "ok"),
    ("fill dst=mine value=1", "ok"),
    ("checksum src=public wait", "ok"),
    ("fill dst=public value=1", "EACCES"),
    ("xor src=mine dst=public", "EACCES"),
    ("copy src=public dst=mine", "ok"),
    ("copy src=secret dst=mine", "EACCES"),
    ("checksum src=secret", "EACCES"),
    ("fill dst=drop value=3", "ok"),
    ("copy src=drop dst=mine", "EACCES"),
    ("saxpy a=1 x=secret y=mine", "EACCES"),
    ("saxpy a=1 x=mine y=public", "EACCES"),
    ("busy seconds=0 bo=mine,secret", "EACCES"),
    ("busy seconds=0 bo=mine,public", "EACCES"),
    ("busy seconds=0 bo=mine,drop", "ok"),
    ("checksum src=priv/open", "EACCES"),
    ("checksum src=priv/missing", "EACCES"),
    ("checksum src=through/open", "ok"),
    ("checksum src=group", "ok"),
    ("checksum src=missing", "ENOENT"),
    ("busy seconds=0 bo=mine queue=roots", "EACCES"),
    ("busy seconds=0 bo=mine queue=svm", "EACCES"),
    ("busy seconds=0 bo=mine queue=own", "ok"),
    ("busy seconds=0 bo=mine priority=high", "EACCES"),
    ("busy seconds=0 bo=mine priority=low", "ok"),
]


def test_a_job_needs_the_rights_on_each_bo_that_it_names(device: Device) -> None:
    owner, other = user(device, A, A), user(device, B, GROUP)
    page = b"p" * 4096
    for name, mode in (("public", 0o644), ("secret", 0o600), ("drop", 0o622), ("group", 0o640)):
        make_file(owner, f"bo/{name}", mode, page)
    device.shell.do(f"os.chown(path('bo/group'), {A}, {GROUP})")
    owner.do("os.mkdir(path('bo/priv'), 0o700); os.mkdir(path('bo/through'), 0o711)")
    make_file(owner, "bo/priv/open", 0o666, page)
    make_file(owner, "bo/through/open", 0o666, page)
    make_file(other, "bo/mine", 0o600, page)
    assert device.transact("ctl/submit", "busy seconds=0 bo=public queue=roots priority=high")[0] == "ok"
    for job, expected in JOBS:
        code, lines = other.do(f"transact('ctl/submit', {job!r})")
        assert errno.errorcode.get(code, "ok") == expected, (job, lines)
    assert other.do("transact('ctl/copy', 'secret mine')")[0] == errno.EACCES
    assert other.do("transact('ctl/copy', 'mine public')")[0] == errno.EACCES
    assert other.do("transact('ctl/copy', 'public mine')")[0] == 0
    assert device.transact("ctl/submit", "checksum src=secret wait")[0] == "ok", "root may"
    stranger = user(device, B, B, (GROUP,))
    assert stranger.do("transact('ctl/submit', 'checksum src=group')")[0] == errno.EACCES, "other groups are not known"


def test_pins_are_for_who_mounted_unless_users_may(mounted: Callable[..., Device]) -> None:
    device = mounted(*STANDARD, "--allow-other", "--user-pins")
    owner, other = user(device, A), user(device, B)
    make_file(owner, "bo/x", 0o644)
    for name in ("pin", "unpin"):
        assert access(owner, f"objects/x/{name}") == "rw"
        assert access(other, f"objects/x/{name}") == "-"
    assert owner.do("command('objects/x/pin', '\\n')") == 0
    assert json.loads(owner.do("slurp('objects/x/status.json')"))["pin_count"] == 1
    assert owner.do("command('objects/x/unpin', '\\n')") == 0

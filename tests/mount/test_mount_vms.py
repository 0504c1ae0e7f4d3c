"""vm/ on a mount: binding, exec and what it brings back, what unlink and rmdir do beneath it, who may do what."""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="clients of several users need root"),
]

MOUNT_OPTIONS = ("--vram", "4M", "--gtt", "16M", "--memory", "32M", "--swap", "32M", "--allow-other")
BASE = 1 << 30
ANNA, BERT = 20001, 20002


def text(device: Device, name: str) -> str:
    return str(device.shell.do(f"open(path({name!r})).read()"))


def rows(device: Device, name: str) -> list[list[str]]:
    return [line.split("\t") for line in text(device, name).splitlines()[1:]]


def gives(device: Device, name: str, words: str) -> dict[str, Any]:
    code, results = device.transact(name, words)
    assert code == "ok", results
    return results[-1]


def user(device: Device, uid: int) -> Client:
    return device.client(f"os.umask(0o22); os.setgroups([]); os.setgid({uid}); os.setuid({uid})")


def errno_of(client: Client, name: str, words: str) -> str:
    return client.errno(
        f"fd = os.open(path({name!r}), os.O_WRONLY)\ntry: os.write(fd, {words.encode()!r})\nfinally: os.close(fd)"
    )


@pytest.fixture(autouse=True)
def no_vms(device: Device) -> Iterator[None]:
    """The device is one for all tests, and each begins with no VM."""
    yield
    device.remove_all()
    device.shell.do("[os.rmdir(path(f'vm/{name}')) for name in os.listdir(path('vm'))]; os.chmod(path('vm'), 0o755)")


@pytest.fixture
def game(device: Device) -> Device:
    """A VM `game` with local BOs a, b, c of 1 MiB at BASE, each full of its number."""
    shell = device.shell
    shell.do("os.mkdir(path('vm/game'))")
    for number, name in enumerate("abc", 1):
        shell.do(f"open(path('bo/{name}'), 'xb').close()")
        for attribute, value in (("placement", "vram"), ("vm", "game")):
            assert device.command(f"objects/{name}/{attribute}", value) == "ok"
        shell.do(f"open(path('bo/{name}'), 'r+b').write(bytes([{number}]) * {MIB})")
        assert device.command("vm/game/bind", f"{BASE + (number - 1) * MIB} {name} 0 1M") == "ok"
    return device


def test_what_is_bound_is_what_the_device_works_on(game: Device) -> None:
    assert text(game, "objects/a/vm") == "game\n"
    assert game.status("a")["vm"] == "game"
    assert rows(game, "vm/game/maps")[1] == [
        f"{BASE + MIB:#x}",
        f"{BASE + 2 * MIB:#x}",
        "b",
        "0x0",
        "rw",
        "vram",
    ]
    done = gives(game, "vm/game/exec", f"queue=render fill {BASE + MIB - 4} 8 9")
    assert done["point"] == "render:1"
    assert game.shell.do("open(path('bo/a'), 'rb').read()[-5:] + open(path('bo/b'), 'rb').read()[:5]") == (
        b"\1" + b"\11" * 8 + b"\2"
    )
    game.shell.do("fd = os.open(path('bo/c'), os.O_RDWR); m = mmap.mmap(fd, 4096); m[0:4] = b'cpu!'")
    assert gives(game, "vm/game/exec", f"read {BASE + 2 * MIB} 4")["data"] == b"cpu!".hex(), "stored by mmap"
    assert gives(game, "vm/game/exec", f"write {BASE + 2 * MIB} {b'gpu!'.hex()}")["ok"]
    assert game.shell.do("m[0:4]") == b"gpu!"
    assert gives(game, "vm/game/exec", f"checksum {BASE + MIB + 8} 64")["value"] == zlib.crc32(b"\2" * 64)
    assert game.command("vm/game/exec", "read 0 1") == "EFAULT"
    assert "nothing is bound at 0x0 in game" in text(game, "error_log")
    assert game.command("vm/game/bind", f"{BASE} a 0 4K ro") == "ok"
    assert game.command("vm/game/exec", f"fill {BASE} 1 1") == "EPERM"
    assert text(game, "ctl/selfcheck") == "ok\n"


def test_what_was_evicted_while_bound_comes_back_at_exec(game: Device) -> None:
    assert gives(game, "vm/game/exec", f"checksum {BASE} 3M")["rebound"] == 0
    before = game.stats()["vms"]["rebound"]
    assert game.command("ctl/evict", "vram") == "ok"
    assert [row[5] for row in rows(game, "vm/game/bos")] == ["evicted"] * 3
    assert [row[5] for row in rows(game, "vm/game/maps")] == ["gtt"] * 3
    done = gives(game, "vm/game/exec", f"checksum {BASE} 3M")
    assert done["rebound"] == 3
    assert done["bytes_moved"] == 3 * MIB
    assert done["value"] == zlib.crc32(b"\1" * MIB + b"\2" * MIB + b"\3" * MIB)
    assert [row[5:] for row in rows(game, "vm/game/bos")] == [["usable", "1"]] * 3
    assert game.stats()["vms"]["rebound"] == before + 3
    lru = [line.split()[1] for line in text(game, "regions/vram/lru").splitlines() if line.split()[-1] == str(MIB)]
    assert lru == ["a", "b", "c"], "they move as one, in their order"


def test_local_bos_go_for_each_other_only_where_that_is_allowed(game: Device) -> None:
    for name in "de":
        game.shell.do(f"open(path('bo/{name}'), 'xb').close()")
        assert game.command(f"objects/{name}/placement", "vram") == "ok"
        assert game.command(f"objects/{name}/vm", "game") == "ok"
        game.shell.do(f"os.truncate(path('bo/{name}'), {MIB})")
        assert game.command("vm/game/bind", f"{BASE + (ord(name) - 97) * MIB} {name} 0 1M") == "ok"
    assert game.command("vm/game/exec", f"checksum {BASE} 4M") == "ok"
    assert game.command("vm/game/exec", f"fill {BASE + 4 * MIB} 1M 5") == "ENOMEM"
    assert text(game, "vm/game/allow_res_evict") == "0\n"
    assert game.command("vm/game/allow_res_evict", "1") == "ok"
    done = gives(game, "vm/game/exec", f"fill {BASE + 4 * MIB} 1M 5")
    assert done["evictions"] == 1
    assert [row[2] for row in rows(game, "vm/game/bos")].count("vram") == 4
    assert game.shell.do("[open(path(f'bo/{n}'), 'rb').read(1) for n in 'abce']") == [b"\1", b"\2", b"\3", b"\5"]


def test_unbinding_and_unlinking_beneath_a_job_wait_for_nothing(game: Device) -> None:
    assert game.command("ctl/submit", "busy seconds=2 bo=a") == "ok"
    fence = gives(game, "vm/game/exec", f"fill {BASE} 1M 7 nowait")["fence"]
    assert game.command("vm/game/unbind", f"{BASE} 64K") == "ok"
    game.shell.do("[os.unlink(path(f'bo/{n}')) for n in 'abc']")
    assert text(game, "vm/game/maps").count("\n") == 1
    assert game.command("ctl/wait", f"{fence} 0") == "ETIME", "none of that has waited for the job"
    game.shell.do("os.rmdir(path('vm/game'))")
    assert game.command("ctl/wait", f"{fence} 20", timeout=30) == "ok"
    game.until(lambda: not game.stats()["regions"]["vram"]["used"], 10)
    assert text(game, "ctl/selfcheck") == "ok\n"


def test_folders_and_files_of_a_vm(game: Device) -> None:
    shell = game.shell
    assert sorted(shell.do("os.listdir(path('vm/game'))")) == sorted(
        ["bind", "userptr", "unbind", "exec", "allow_res_evict", "maps", "bos", "stats"]
    )
    assert shell.errno("os.mkdir(path('vm/game'))") == "EEXIST"
    assert shell.errno("os.mkdir(path('vm/game/x'))") == "EPERM"
    assert shell.errno("open(path('vm/x'), 'w')") == "EPERM"
    assert shell.errno("os.rmdir(path('vm/game'))") == "EBUSY", "BOs are local to it"
    assert shell.errno("os.rename(path('vm/game'), path('vm/x'))") == "EPERM"
    shell.do("os.mkdir(path('vm/my vm')); open(path('bo/x'), 'xb').close()")
    assert game.command("objects/x/vm", r"my\040vm") == "ok"
    assert text(game, "objects/x/vm") == "my\\040vm\n"
    assert "\nvm:\tmy\\040vm\n" in text(game, "objects/x/status")
    assert game.command("objects/x/vm", "game") == "EBUSY"
    assert game.command("objects/x/vm", "nowhere") == "ENOENT"
    assert game.command("vm/game/bind", "0 x 0 4K") == "EINVAL", "it is local to another VM"
    shell.do(f"os.truncate(path('bo/x'), {PAGE})")
    shell.do("open(path('bo/a b'), 'xb').truncate(4096)")
    assert game.command("vm/my vm/bind", "0 x 0 4K") == "ok"
    assert game.command("vm/my vm/bind", r"4K a\040b 0 4K") == "ok"
    assert [row[2] for row in rows(game, "vm/my vm/maps")] == ["x", r"a\040b"]
    shell.do("d = os.open(path('vm/my vm'), os.O_RDONLY); os.unlink(path('bo/x')); os.rmdir(path('vm/my vm'))")
    assert shell.errno("os.open('exec', os.O_RDWR, dir_fd=d)") == "ENOENT"
    assert shell.errno("os.stat(path('vm/my vm'))") == "ENOENT"


def test_a_vm_is_used_by_who_may_write_its_folder(device: Device) -> None:
    anna, bert = user(device, ANNA), user(device, BERT)
    assert anna.errno("os.mkdir(path('vm/a'))") == "EACCES"
    device.shell.do("os.chmod(path('vm'), 0o1777)")
    anna.do("os.mkdir(path('vm/a')); os.mkdir(path('vm/secret'), 0o700)")
    assert bert.errno("os.rmdir(path('vm/a'))") == "EPERM", "the sticky bit"
    for name, mode in (("mine", 0o600), ("shown", 0o644)):
        anna.do(
            f"fd = os.open(path('bo/{name}'), os.O_CREAT | os.O_RDWR, {mode}); os.write(fd, b'x' * 4096); os.close(fd)"
        )
    bert.do("fd = os.open(path('bo/his'), os.O_CREAT | os.O_RDWR, 0o644); os.write(fd, b'y' * 4096); os.close(fd)")
    bert.do("os.mkdir(path('vm/b'))")
    assert errno_of(anna, "vm/a/bind", "0 mine 0 4K") == "ok"
    for command in ("bind", "unbind", "exec", "allow_res_evict"):
        assert errno_of(bert, f"vm/a/{command}", "0 4K") == "EACCES"
    assert bert.do("len(open(path('vm/a/maps')).readlines())") == 2
    assert bert.errno("os.listdir(path('vm/secret'))") == "EACCES"
    assert errno_of(bert, "vm/b/bind", "0 mine 0 4K") == "EACCES"
    assert errno_of(bert, "vm/b/bind", "0 shown 0 4K") == "EACCES", "it could be written through the VM"
    assert errno_of(bert, "vm/b/bind", "0 shown 0 4K ro") == "ok"
    bert.do("open(path('bo/new'), 'xb').close()")
    assert errno_of(bert, "objects/new/vm", "a") == "EACCES"
    assert errno_of(bert, "objects/new/vm", "b") == "ok"
    anna.do("os.chmod(path('vm/a'), 0o777)")
    assert errno_of(bert, "vm/a/exec", "fill 0 1 1") == "ok", "she has let him"
    assert anna.do("open(path('bo/mine'), 'rb').read(2)") == b"\1x"


def test_nobody_takes_all_the_vms(device: Device) -> None:
    device.shell.do("os.chmod(path('vm'), 0o1777)")
    anna, bert = user(device, ANNA), user(device, BERT)
    anna.do("[os.mkdir(path(f'vm/a{n}')) for n in range(32)]")
    assert anna.errno("os.mkdir(path('vm/a32'))") == "EDQUOT"
    bert.do("os.mkdir(path('vm/b'))")
    device.shell.do("os.chown(path('vm/a0'), 0, 0); [os.mkdir(path(f'vm/root{n}')) for n in range(33)]")
    assert anna.errno("os.mkdir(path('vm/a32'))") == "EDQUOT", "she has made it, whoever has it now"
    anna.do("os.rmdir(path('vm/a1')); os.mkdir(path('vm/a32'))")


def test_nor_do_all_users_together(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    device.shell.do("os.chmod(path('vm'), 0o1777); os.chmod(path('groups'), 0o777)")
    filling = (
        "def fill(folder):\n"
        "    try:\n"
        "        for number in range(2000): os.mkdir(path(f'{folder}/u{os.getuid()}-{number}'))\n"
        "    except OSError as error: return errno.errorcode[error.errno]"
    )
    refused: dict[str, list[str]] = {"vm": [], "groups": []}
    for number in range(8):
        client = user(device, ANNA + number)
        client.do(filling)
        for folder, codes in refused.items():
            codes.append(client.do(f"fill({folder!r})", 60))
        client.end()
    assert refused == {"vm": ["EDQUOT"] * 7 + ["ENOSPC"], "groups": ["EDQUOT"] * 7 + ["EAGAIN"]}
    for folder, most in (("vm", 256), ("groups", 1024)):
        device.shell.do(filling)
        assert device.shell.do(f"fill({folder!r})", 60) in ("ENOSPC", "EAGAIN")
        assert device.shell.do(f"len([n for n in os.listdir(path({folder!r})) if n.startswith('u')])") == most


@pytest.fixture
def frame() -> Iterator[Path]:
    """64 KiB of Anna's, in a folder that all may search."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        path = Path(folder, "fra me")
        path.write_bytes(b"frame" * 13108)
        os.chown(path, ANNA, ANNA)
        path.chmod(0o644)
        yield path


def test_memory_of_another_file_is_bound_as_who_binds_it(device: Device, frame: Path) -> None:
    anna, bert, shell = user(device, ANNA), user(device, BERT), device.shell
    shell.do("os.chmod(path('vm'), 0o1777)")
    anna.do("os.mkdir(path('vm/a'))")
    bert.do("os.mkdir(path('vm/b'))")
    words = f"4K '{frame}' 0 64K"
    assert errno_of(anna, "vm/a/userptr", words) == "ok"
    assert errno_of(bert, "vm/b/userptr", words) == "ok"
    name = str(frame).replace(" ", r"\040")
    assert rows(device, "vm/a/maps") == [["0x1000", "0x11000", name, "0x0", "rw", "userptr"]]
    assert rows(device, "vm/b/maps") == [["0x1000", "0x11000", name, "0x0", "ro", "userptr"]]
    assert gives(device, "vm/a/exec", "fill 4K 5 120")["rebound"] == 0
    assert frame.read_bytes()[:7] == b"xxxxxfr"
    assert errno_of(bert, "vm/b/exec", "fill 4K 1 1") == "EPERM"
    assert gives(device, "vm/b/exec", "read 4K 6")["data"] == b"xxxxxf".hex()
    frame.chmod(0o600)
    bert.do("os.rmdir(path('vm/b')); os.mkdir(path('vm/b'))")
    assert errno_of(bert, "vm/b/userptr", words) == "EACCES"
    assert errno_of(bert, "vm/b/userptr", "4K /etc/shadow 0 4K") == "EACCES"
    assert errno_of(bert, "vm/b/userptr", "4K /proc/self/environ 0 4K") == "ENOTDIR", "self is a link"
    assert errno_of(bert, "vm/a/userptr", words) == "EACCES", "it is her VM"
    for line, code in (
        (f"4K '{frame}' 1 64K", "EINVAL"),
        (f"4K '{frame}' 0 128K", "EINVAL"),
        (f"4K '{frame}' 0 64K rw", "EINVAL"),
        ("4K frame 0 64K", "EINVAL"),
        (f"4K '{device.mountpoint}/README' 0 4K", "ENODEV"),
        ("4K /dev/zero 0 4K", "EINVAL"),
    ):
        assert device.command("vm/a/userptr", line) == code, line
    assert device.stats()["vms"]["userptrs"] == 1
    assert text(device, "ctl/selfcheck") == "ok\n"


def test_who_has_other_folders_than_the_daemon_names_no_file_of_its(device: Device, frame: Path) -> None:
    device.shell.do("os.mkdir(path('vm/a')); os.mkdir(path('vm/b'))")
    for name, leave in (("a", f"os.chroot({str(frame.parent)!r})"), ("b", "os.unshare(os.CLONE_NEWNS)")):
        if name == "b" and not hasattr(os, "unshare"):
            continue  # before Python 3.12
        jailed = device.client(f"fd = os.open(path('vm/{name}/userptr'), os.O_WRONLY); {leave}")
        assert jailed.errno(f"""os.write(fd, b"4K '{frame}' 0 4K")""") == "EPERM"
    assert device.stats()["vms"]["userptrs"] == 0


def test_a_bound_file_that_is_cut_is_eio_and_the_daemon_lives(device: Device, frame: Path) -> None:
    device.shell.do("os.mkdir(path('vm/a'))")
    assert device.command("vm/a/userptr", f"0 '{frame}' 0 64K") == "ok"
    assert gives(device, "vm/a/exec", "checksum 0 64K")["value"] == zlib.crc32((b"frame" * 13108)[:65536])
    os.truncate(frame, 5000)
    assert [device.command("vm/a/exec", words) for words in ("checksum 0 64K", "fill 32K 4K 1")] == ["EIO", "EIO"]
    assert "was truncated" in text(device, "error_log")
    assert [row[4:] for row in rows(device, "vm/a/bos")] == [["1", "evicted", "0"]]
    os.truncate(frame, 65536)
    done = gives(device, "vm/a/exec", "read 4996 6")
    assert (done["rebound"], done["data"]) == (1, ((b"frame" * 1000)[4996:5000] + b"\0\0").hex())
    device.make("busy", 4096)
    assert device.command("ctl/submit", "busy seconds=1 bo=busy") == "ok"
    fence = gives(device, "vm/a/exec", "fill 0 64K 7 nowait")["fence"]
    os.truncate(frame, 0)
    device.shell.do("os.rmdir(path('vm/a'))")
    assert device.command("ctl/wait", f"{fence} 10") == "EIO"
    device.until(lambda: not device.stats()["vms"]["userptrs"], 10)
    assert text(device, "ctl/selfcheck") == "ok\n"

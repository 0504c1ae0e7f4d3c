"""--user-limit on a mount: what programs of a limited user see, and that nobody else does."""

import errno
import os

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="clients of several users need root"),
]

MOUNT_OPTIONS = (
    "--vram", "8M", "--gtt", "16M", "--memory", "32M", "--swap", "32M", "--allow-other",
    "--user-limit", "memory=4M,vram=25%,bos=6",
)  # fmt: skip
A, B = 20001, 20002


def user(device: Device, uid: int) -> Client:
    return device.client(f"os.umask(0); os.setgroups([]); os.setgid({uid}); os.setuid({uid})")


def fill(client: Client, name: str, size: int) -> str:
    client.do(f"fd = os.open(path({name!r}), os.O_CREAT | os.O_RDWR, 0o644)")
    try:
        return client.errno(f"assert os.pwrite(fd, b'x' * {size}, 0) == {size}")
    finally:
        client.do("os.close(fd)")


def give(client: Client, name: str, text: str) -> str:
    code = client.do(f"command({name!r}, {text!r})")
    return errno.errorcode[code] if code else "ok"


def charged(device: Device, uid: int) -> dict[str, str]:
    """What clients/ says of the user of the first client that is of this user."""
    for name in os.fsdecode(b"\n".join(map(os.fsencode, device.shell.do("os.listdir(path('clients'))")))).split():
        text = device.shell.do(f"open(path('clients/{name}')).read()")
        lines = dict(line.split(":\t") for line in text.splitlines())
        if lines.get("ttmfs-uid") == str(uid):
            return {key.removeprefix("ttmfs-"): value for key, value in lines.items() if key.startswith("ttmfs-")}
    return {}


def selfcheck(device: Device) -> str:
    return str(device.shell.do("open(path('ctl/selfcheck')).read()"))


def test_a_write_beyond_is_edquot_and_says_what_to_do(device: Device) -> None:
    anna, bert = user(device, A), user(device, B)
    assert fill(anna, "bo/a", 4 * MIB) == "ok"
    assert fill(anna, "bo/b", PAGE) == "EDQUOT"
    assert anna.do("os.stat(path('bo/b')).st_size") == 0
    line = str(device.shell.do("open(path('error_log')).read()")).splitlines()[-1]
    assert "user 20001 has 4M of the 4M of memory" in line
    assert fill(bert, "bo/c", 4 * MIB) == "ok"
    assert fill(device.shell, "bo/owner", 12 * MIB) == "ok"
    said = charged(device, A)
    assert said["charged-memory"] == "4 MiB", "also while its memory is being brought together"
    assert said["limit-memory"] == "4 MiB"
    assert (said["charged-bos"], said["limit-bos"]) == ("2", "6")
    assert device.stats()["users"]["refused"] >= 1
    anna.do("os.unlink(path('bo/a'))")
    assert fill(anna, "bo/b", PAGE) == "ok"
    assert selfcheck(device) == "ok\n"


def test_a_store_beyond_is_sigbus_and_loses_nothing(device: Device) -> None:
    anna = user(device, A)
    assert fill(anna, "bo/a", 4 * MIB - PAGE) == "ok"
    anna.do("fd = os.open(path('bo/m'), os.O_CREAT | os.O_RDWR, 0o644); os.ftruncate(fd, 1 << 20)")
    anna.do("m = mmap.mmap(fd, 1 << 20); m[0:4] = b'kept'")
    # All that is cached of the other goes back, and is paid for already.
    device.command("objects/a/unmap", "\n")
    anna.begin("m[1 << 19] = 1")
    assert anna.died() == -7
    other = user(device, A)
    assert other.do("open(path('bo/m'), 'rb').read(4)") == b"kept"
    log = str(device.shell.do("open(path('error_log')).read()")).splitlines()[-1]
    assert "fault of 'm' page" in log
    assert "of memory that it may have" in log
    assert selfcheck(device) == "ok\n"


@pytest.mark.parametrize("folder", ["bo", "svm"])
def test_a_write_that_fails_takes_no_stores_away_and_shows_in_no_mapping(device: Device, folder: str) -> None:
    """H33: its bytes were in the page cache before it failed, over a page with stores and one without."""
    anna = user(device, A)
    device.shell.do("os.chmod(path('svm'), 0o777)")
    assert fill(anna, "bo/a", 4 * MIB - 4 * PAGE) == "ok"
    device.command("objects/a/unmap", "\n")
    anna.do(f"fd = os.open(path('{folder}/m'), os.O_CREAT | os.O_RDWR, 0o644); os.ftruncate(fd, {MIB})")
    anna.do(f"os.pwrite(fd, b'o' * {2 * PAGE}, 0); os.fsync(fd)")
    anna.do(f"m = mmap.mmap(fd, {MIB}); m[0:50] = b's' * 50; m[{PAGE}]")
    assert anna.errno(f"os.pwrite(fd, b'F' * {MIB - 100}, 100)") == "EDQUOT"
    assert anna.do(f"m[{PAGE} : {PAGE + 4}]") == b"oooo"
    assert anna.do("os.pread(fd, 50, 0)") == anna.do("m[0:50]") == b"s" * 50
    assert anna.do(f"os.pread(fd, 4, {PAGE})") == b"oooo"
    anna.do("m.flush(); os.close(fd)")
    assert selfcheck(device) == "ok\n"


def test_commands_are_refused_where_no_place_is_left(device: Device) -> None:
    anna = user(device, A)
    assert fill(anna, "bo/a", 2 * MIB) == "ok"
    assert fill(anna, "bo/b", MIB) == "ok"
    assert give(anna, "objects/a/validate", "vram") == "ok"
    assert device.command("objects/a/pin", "\n") == "ok"
    assert give(anna, "objects/b/validate", "vram") == "EDQUOT"
    assert give(anna, "objects/b/validate", "vram gtt") == "ok"
    assert device.status("b")["mem_type"] == "gtt"
    assert device.command("objects/a/unpin", "\n") == "ok"
    assert give(anna, "objects/b/validate", "vram") == "ok"
    assert (device.status("a")["mem_type"], device.status("b")["mem_type"]) == ("gtt", "vram")
    assert selfcheck(device) == "ok\n"


def test_a_region_is_as_large_as_the_limit_and_others_stay_in_it(device: Device) -> None:
    anna, bert = user(device, A), user(device, B)
    assert fill(bert, "bo/theirs", 2 * MIB) == "ok"
    assert give(bert, "objects/theirs/validate", "vram") == "ok"
    for number in range(4):
        assert fill(anna, f"bo/m{number}", MIB) == "ok"
        assert give(anna, f"objects/m{number}/validate", "vram") == "ok"
    where = [device.status(name)["mem_type"] for name in ("theirs", "m0", "m1", "m2", "m3")]
    assert where == ["vram", "gtt", "gtt", "vram", "vram"]
    assert selfcheck(device) == "ok\n"


def test_files_are_counted_and_a_new_owner_pays(device: Device) -> None:
    anna, bert = user(device, A), user(device, B)
    for number in range(5):
        assert fill(anna, f"bo/f{number}", MIB // 2) == "ok"
    assert anna.errno("os.close(os.open(path('svm/s'), os.O_CREAT | os.O_RDWR, 0o644))") == "ok"
    assert anna.errno("os.close(os.open(path('bo/more'), os.O_CREAT | os.O_RDWR, 0o644))") == "EDQUOT"
    assert anna.errno("os.close(os.open(path('svm/more'), os.O_CREAT | os.O_RDWR, 0o644))") == "EDQUOT"
    assert "6 BOs and address spaces" in str(device.shell.do("open(path('error_log')).read()")).splitlines()[-1]
    device.shell.do(f"os.chown(path('bo/f0'), {B}, {B}); os.chown(path('svm/s'), {B}, {B})")
    assert anna.errno("os.close(os.open(path('bo/more'), os.O_CREAT | os.O_RDWR, 0o644))") == "ok"
    assert charged(device, A)["charged-memory"] == "2 MiB"
    assert fill(bert, "bo/g", 7 * MIB // 2) == "ok"
    assert fill(bert, "bo/h", PAGE) == "EDQUOT"
    anna.do("os.rename(path('bo/f1'), path('bo/f2')); os.link(path('bo/f2'), path('bo/f5'))")
    assert charged(device, A)["charged-bos"] == "4"
    assert selfcheck(device) == "ok\n"


def test_limits_are_changed_while_it_runs(device: Device) -> None:
    anna = user(device, A)
    assert "user_limit=memory=4M,vram=2M,bos=6\n" in device.shell.do("open(path('ctl/config')).read()")
    assert device.command("ctl/config", "user_limit=memory=99M,disk=1") == "EINVAL"
    assert device.command("ctl/config", "user_limit=memory=8M") == "ok"
    assert fill(anna, "bo/a", 8 * MIB) == "ok"
    assert fill(anna, "bo/b", PAGE) == "EDQUOT"
    assert device.command("ctl/config", "user_limit=") == "ok"
    assert fill(anna, "bo/b", PAGE) == "ok"
    assert device.command("ctl/config", "user_limit=memory=4M,vram=2M,bos=6") == "ok"

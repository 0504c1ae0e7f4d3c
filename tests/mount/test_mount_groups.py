"""groups/ on a mount: the kernel's files, who is charged, what protects, and who may do what."""

import os
from collections.abc import Callable

import pytest

from tests.driver.test_members import told
from tests.mount.mount_harness import MIB, Client, Device
from ttmfs.fs.tree.groups import MAX_GROUPS_OF_A_USER

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="clients of several users need root"),
]

MOUNT_OPTIONS = ("--vram", "4M", "--gtt", "16M", "--memory", "32M", "--swap", "32M", "--allow-other")
ANNA = 20001


def text(device: Device, name: str) -> str:
    return str(device.shell.do(f"open(path({name!r})).read()"))


def put(client: Client, name: str, what: str) -> str:
    write = f"to = os.open(path({name!r}), os.O_WRONLY)\ntry: os.write(to, {what.encode()!r})\nfinally: os.close(to)"
    return client.errno(write)


def fill(client: Client, name: str, size: int = MIB) -> str:
    client.do(f"fd = os.open(path('bo/{name}'), os.O_CREAT | os.O_RDWR, 0o644)")
    try:
        made = client.errno(f"assert os.pwrite(fd, b'x' * {size}, 0) == {size}")
        return made if made != "ok" else put(client, f"objects/{name}/validate", "vram gtt")
    finally:
        client.do("os.close(fd)")


def vram(device: Device, file: str) -> str:
    lines = dict(line.split(" ", 1) for line in text(device, f"groups/{file}").splitlines())
    return lines["drm/ttmfs/vram"]


def test_the_files_are_the_kernels(device: Device) -> None:
    shell = device.shell
    assert text(device, "groups/dmem.capacity") == f"drm/ttmfs/gtt {16 * MIB}\ndrm/ttmfs/vram {4 * MIB}\n"
    shell.do("os.makedirs(path('groups/a/b'))")
    assert text(device, "groups/a/b/dmem.max") == "drm/ttmfs/gtt max\ndrm/ttmfs/vram max\n"
    assert text(device, "groups/a/b/dmem.low") == "drm/ttmfs/gtt 0\ndrm/ttmfs/vram 0\n"
    assert put(shell, "groups/a/dmem.max", "drm/ttmfs/vram 2M\ngtt 1048576\n") == "ok"
    assert text(device, "groups/a/dmem.max") == f"drm/ttmfs/gtt {MIB}\ndrm/ttmfs/vram {2 * MIB}\n"
    for wrong in ("vrm 1M", "vram", "vram x", "system 1M"):
        assert put(shell, "groups/a/dmem.max", wrong) == "EINVAL"
    assert put(shell, "groups/a/dmem.max", "vram max") == "ok"
    assert vram(device, "a/dmem.max") == "max"
    assert "dmem.max" not in shell.do("os.listdir(path('groups'))")
    assert shell.errno("os.rename(path('groups/a'), path('groups/c'))") == "EPERM"
    assert shell.errno("os.mkdir(path('groups/a'))") == "EEXIST"
    assert shell.errno("os.rmdir(path('groups/a'))") == "EBUSY"
    shell.do("os.rmdir(path('groups/a/b'))")
    shell.do("os.rmdir(path('groups/a'))")
    assert shell.do("os.path.exists(path('groups/a'))") is False
    assert text(device, "ctl/selfcheck") == "ok\n"


ORPHAN = """
if not os.fork():
    os.setsid()
    above = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == above:
        pass
    os.close(os.open(path('bo/orphan'), os.O_CREAT | os.O_RDWR))
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not told(), reason="the kernel tells of forks only root with CAP_NET_ADMIN")
def test_a_daemon_is_of_the_group_of_who_started_it(device: Device) -> None:
    game = device.client()
    device.shell.do("os.mkdir(path('groups/daemons'))")
    assert put(game, "groups/daemons/cgroup.procs", "0") == "ok"
    game.do(ORPHAN)
    device.until(lambda: device.shell.do("os.path.exists(path('bo/orphan'))"))
    assert text(device, "objects/orphan/group") == "/daemons\n"
    device.until(lambda: text(device, "groups/daemons/cgroup.procs") == f"{game.do('os.getpid()')}\n")
    device.shell.do("os.unlink(path('bo/orphan'))")
    assert put(game, "groups/cgroup.procs", "0") == "ok"
    assert text(device, "groups/daemons/cgroup.procs") == ""
    device.shell.do("os.rmdir(path('groups/daemons'))")


def test_the_game_keeps_its_vram_in_a_storm(device: Device) -> None:
    game, storm = device.client(), device.client()
    for name in ("game", "storm"):
        device.shell.do(f"os.mkdir(path('groups/{name}'))")
    assert put(game, "groups/game/cgroup.procs", "0") == "ok"
    assert put(storm, "groups/storm/cgroup.procs", "0") == "ok"
    assert put(device.shell, "groups/game/dmem.low", "vram 3M") == "ok"
    for number in range(3):
        assert fill(game, f"g{number}") == "ok"
    for number in range(8):
        assert fill(storm, f"s{number}") == "ok"
    assert text(device, "objects/g0/group") == "/game\n"
    assert vram(device, "game/dmem.current") == str(3 * MIB)
    assert vram(device, "game/dmem.effective") == f"min=0 low={3 * MIB}"
    assert vram(device, "storm/dmem.peak") == str(MIB)
    assert str(game.do("os.getpid()")) in text(device, "groups/game/cgroup.procs").split()
    assert device.shell.errno("os.rmdir(path('groups/game'))") == "EBUSY"
    assert put(device.shell, "groups/game/dmem.max", "vram 1M") == "ok"
    assert vram(device, "game/dmem.current") == str(MIB)
    assert put(device.shell, "objects/g0/group", "/nowhere") == "ENOENT"
    assert put(device.shell, "objects/s5/group", "/game") == "ok"
    assert text(device, "objects/s5/group") == "/game\n"
    assert text(device, "ctl/selfcheck") == "ok\n"


def test_a_delegated_group_is_its_owners_and_its_limits_are_not(device: Device) -> None:
    device.shell.do(f"os.mkdir(path('groups/anna')); os.chown(path('groups/anna'), {ANNA}, {ANNA})")
    anna = device.client(f"os.setgroups([]); os.setgid({ANNA}); os.setuid({ANNA})")
    assert anna.errno("os.mkdir(path('groups/mine'))") == "EACCES"
    assert put(anna, "groups/anna/dmem.max", "vram max") == "EACCES"
    # The nearest group above both is the root group: only root moves her in.
    assert put(anna, "groups/anna/cgroup.procs", "0") == "EACCES"
    assert put(device.shell, "groups/anna/cgroup.procs", str(anna.do("os.getpid()"))) == "ok"
    assert anna.errno("os.mkdir(path('groups/anna/sub'))") == "ok"
    assert put(anna, "groups/anna/sub/dmem.max", "vram 1M") == "ok"
    assert put(anna, "groups/anna/sub/cgroup.procs", "0") == "ok"
    assert put(anna, "groups/anna/sub/cgroup.procs", str(device.shell.do("os.getpid()"))) == "EACCES"
    assert anna.errno("os.rmdir(path('groups/anna/sub'))") == "ok"
    # Nor so many that others wait where they are listed.
    assert anna.errno(f"[os.mkdir(path('groups/anna/%d' % n)) for n in range({MAX_GROUPS_OF_A_USER + 1})]") == "EDQUOT"
    assert anna.do("len(os.listdir(path('groups/anna')))") >= MAX_GROUPS_OF_A_USER
    assert anna.errno("os.rmdir(path('groups/anna/0')); os.mkdir(path('groups/anna/0'))") == "ok"
    assert device.shell.errno("os.mkdir(path('groups/more'))") == "ok"
    assert sum(path.startswith("/anna/") for path in device.stats()["groups"]) == MAX_GROUPS_OF_A_USER


def test_a_group_is_seen_in_stats_metrics_status_and_clients(device: Device) -> None:
    shell = device.shell
    shell.do("os.makedirs(path('groups/app.slice/game'))")
    assert put(shell, "groups/app.slice/dmem.low", "vram 3M") == "ok"
    assert put(shell, "groups/app.slice/game/dmem.low", "vram max") == "ok"
    assert put(shell, "groups/app.slice/game/cgroup.procs", "0") == "ok"
    assert fill(shell, "texture") == "ok"
    mine = device.stats()["groups"]["/app.slice/game"]["vram"]
    assert (mine["current"], mine["max"], mine["low"], mine["effective_low"]) == (MIB, 4 * MIB, 4 * MIB, MIB)
    assert device.stats()["groups"]["/"]["vram"]["current"] == MIB
    assert 'ttmfs_groups_current_bytes{group="/app.slice/game",region="vram"} 1.048576e+06' in text(device, "metrics")
    assert "group:\t/app.slice/game" in text(device, "objects/texture/status").splitlines()
    pid = shell.do("os.getpid()")
    assert "ttmfs-group:\t/app.slice/game" in text(device, f"clients/{pid}").splitlines()


@pytest.mark.parametrize("kind", ["newer", "released"])
def test_whose_rules_protect_is_an_option(mounted: Callable[..., Device], kind: str) -> None:
    device = mounted("--dmem-protection", kind)
    assert f"dmem_protection={kind}" in text(device, "ctl/config").splitlines()


def test_why_a_group_cannot_go_is_in_error_log(device: Device) -> None:
    shell = device.shell
    shell.do("os.mkdir(path('groups/busy'))")
    assert put(shell, "groups/busy/cgroup.procs", "0") == "ok"
    assert fill(shell, "kept") == "ok"
    assert shell.errno("os.rmdir(path('groups/busy'))") == "EBUSY"
    _time, name, what, why, _who = text(device, "error_log").splitlines()[-1].split("\t")
    assert (name, what) == ("EBUSY", "rmdir busy")
    assert why.startswith("group 'busy' has 1M of vram: unlink or evict its BOs")


def test_what_an_address_space_has_in_vram_is_its_makers(device: Device) -> None:
    shell = device.shell
    shell.do("os.mkdir(path('groups/compute'))")
    assert put(shell, "groups/compute/cgroup.procs", "0") == "ok"
    shell.do("open(path('svm/heap'), 'wb').write(b'x' * (2 << 20))")
    assert put(shell, "svm_objects/heap/prefetch", "0 2M vram") == "ok"
    assert "group:\t/compute" in text(device, "svm_objects/heap/status").splitlines()
    assert vram(device, "compute/dmem.current") == str(2 * MIB)
    assert text(device, "ctl/selfcheck") == "ok\n"

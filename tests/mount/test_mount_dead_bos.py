"""Commands on a BO that is unlinked: through descriptors held open, from inside its folder, by name, while they wait.

They end with ENOENT or with success, and after the last unlink every byte is back.
"""

import json
from typing import Any

import pytest

from tests.mount.mount_harness import MIB, Device
from ttmfs.fs.commands.objects_and_ctl import OBJECT_COMMANDS
from ttmfs.fs.tree.attributes import SETTABLE

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--vram", "32M", "--gtt", "32M", "--memory", "64M", "--swap", "32M", "--fault-timeout", "20")

WORDS = {"validate": "vram", "placement": "vram", "priority": "2", "prefault": "3", "madvise": "dontneed",
         "caching": "cached"}  # fmt: skip
EVERY = (*OBJECT_COMMANDS, *SETTABLE)
ORDERS = (EVERY, EVERY[::-1], ("restore", "validate", "pin"), ("pin", "validate", "evict"), ("madvise", "validate"))


def in_use(device: Device) -> dict[str, int]:
    """What is taken, by whom; all of it 0 when no BO is left."""
    device.control("trim_pool")
    stats = device.stats()
    used = {name: region["usage"] for name, region in stats["regions"].items()}
    return used | {
        "pages": stats["pool"]["in_use_pages"], "swap": stats["swap"]["pages"], "fences": stats["fences"]["pending"],
        **{key: stats["bos"][key] for key in ("count", "ghosts", "zombies")},
    }  # fmt: skip


def until_all_is_back(device: Device) -> None:
    device.until(lambda: not any(in_use(device).values()), why=f"every byte back: {in_use(device)}")
    assert device.control("selfcheck") == []


def gone(device: Device, name: str) -> None:
    """Unlink it, and wait until the daemon has let it go."""
    device.shell.do(f"os.unlink(path('bo/{name}'))")
    device.until(lambda: name not in device.control("statuses"), why="the BO is gone")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", ["", "vram"])
def test_what_is_written_into_a_held_file_of_a_bo_that_is_gone_is_enoent(
    device: Device, order: tuple[str, ...], place: str
) -> None:
    device.make("x", 4 * MIB, 7, place)
    client = device.client(f"fds = {{name: opened('objects/x/' + name) for name in {EVERY!r}}}")
    client.do(
        "def say(name, words):\n"
        "    try: os.write(fds[name], words.encode() + b'\\n')\n"
        "    except OSError as error: return error.errno, os.read(fds[name], 4096)\n"
        "    return 0, os.read(fds[name], 4096)\n"
    )
    gone(device, "x")
    for name in order:
        code, answer = client.do(f"say({name!r}, {WORDS.get(name, '')!r})")
        assert code == 2, name
        if name in OBJECT_COMMANDS:
            assert json.loads(answer)["errno"] == "ENOENT"
    until_all_is_back(device)


def test_a_shell_that_stands_in_the_folder_of_a_bo_that_is_gone_finds_nothing_there(device: Device) -> None:
    device.make("x", 4 * MIB, 7)
    client = device.client("os.chdir(path('objects/x'))")
    assert set(EVERY) < set(client.do("os.listdir('.')"))
    gone(device, "x")
    assert client.do("os.listdir('.')") == []
    for name in (*EVERY, "status", "status.json", "snapshot"):
        assert client.errno(f"os.open({name!r}, os.O_RDWR)") == "ENOENT"
        assert client.errno(f"os.open({name!r}, os.O_WRONLY | os.O_CREAT)") == "ENOENT", "as a shell opens it"
        assert client.errno(f"os.stat({name!r})") == "ENOENT"
    client.do("os.chdir('/')")
    until_all_is_back(device)


@pytest.mark.parametrize("command", ["validate", "defrag", "backup", "evict", "pin"])
def test_a_command_that_waits_for_a_bo_which_is_unlinked_ends_and_leaves_nothing(device: Device, command: str) -> None:
    device.make("x", 4 * MIB, 7)
    device.hold("validate", bo="x")
    first = device.begin_command("objects/x/validate", "vram")
    device.until_held("validate")
    waiting = [device.begin_command(f"objects/x/{command}", WORDS.get(command, "") + "\n") for _ in range(3)]
    by_name = device.begin_command("ctl/submit", "fill dst=x value=1")
    device.until(lambda: device.control("commands") == 5, why="all wait for the reservation")
    device.shell.do("os.unlink(path('bo/x'))")
    device.release("validate")
    assert first.result() in (0, 2)
    assert [client.result() for client in (*waiting, by_name)] == [2] * 4
    until_all_is_back(device)


def test_jobs_that_are_queued_when_their_bos_are_unlinked_run_and_leave_nothing(device: Device) -> None:
    for name in "ab":
        device.make(name, 4 * MIB, 7, "vram")
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("ctl/validate", "a,b gtt") == "ok"
    fences = []
    for words in ("fill dst=a value=3", "copy src=a dst=b", "busy seconds=0.01 bo=a,b"):
        code, lines = device.transact("ctl/submit", words)
        assert code == "ok"
        fences.append(lines[0]["fence"])
    waiting = device.begin_command("objects/a/wait", "bookkeep 20")
    device.until(lambda: device.control("commands") == 1, why="it waits for the jobs")
    device.shell.do("os.unlink(path('bo/a')); os.unlink(path('bo/b'))")
    assert device.command("debug/pause_engine", "0") == "ok"
    assert waiting.result() in (0, 2)
    assert device.command("ctl/wait", f"{fences[-1]} 20", 25) == "ok"
    until_all_is_back(device)


STORM = """
def storm(me, rounds):
    names = ['x%d' % number for number in range(4)]
    rng = __import__('random').Random(me)
    codes = set()
    for _ in range(rounds):
        name = rng.choice(names)
        act = rng.randrange(8)
        try:
            if act < 2:
                fd = os.open(path('bo/' + name), os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 1 << 20)
                os.pwrite(fd, b'x' * 4096, 0); os.close(fd)
            elif act < 4: os.unlink(path('bo/' + name))
            elif act < 7:
                leaf = rng.choice(COMMANDS); fd = os.open(path('objects/' + name + '/' + leaf), os.O_RDWR)
                try: os.write(fd, WORDS.get(leaf, '').encode() + b'\\n')
                finally: os.close(fd)
            else:
                fd = os.open(path('ctl/submit'), os.O_RDWR)
                try: os.write(fd, ('copy src=%s dst=%s' % tuple(rng.sample(names, 2))).encode())
                finally: os.close(fd)
        except OSError as error: codes.add(errno.errorcode[error.errno])
    return sorted(codes)
"""


def test_commands_beside_create_and_unlink_leave_nothing(device: Device) -> None:
    """Three shells at once, by plain paths."""
    clients = [device.client(f"COMMANDS, WORDS = {list(EVERY)!r}, {WORDS!r}") for _ in range(3)]
    for client in clients:
        client.do(STORM)
    for number, client in enumerate(clients):
        client.begin(f"storm({number}, 400)")
    # ENOMEM: everybody is pinned; EBUSY, EINVAL: as the states of the BO want it.
    known = {"ENOENT", "EBUSY", "EINVAL", "ENOMEM", "ESTALE"}
    codes: list[Any] = [client.result(60) for client in clients]
    assert all(set(some) <= known for some in codes), codes
    device.remove_all()
    until_all_is_back(device)

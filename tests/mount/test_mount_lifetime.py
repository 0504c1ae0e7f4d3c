"""A BO lives while it has a name, an open file, or is known to the kernel; then all of it goes, at once."""

import contextlib
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from tests.mount.mount_harness import HERE, MIB, Client, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "16M", "--memory", "32M")

HELPERS = (HERE / "names_client.py").read_text()
OLD, NEW = b"O" * 70_000, b"N" * 50_000


def nothing_left(device: Device) -> None:
    device.until(lambda: device.stats()["bos"]["count"] == 0, why="the BO is gone")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == 0, why="its memory is back")
    device.until(lambda: device.stats()["regions"]["vram"]["used"] == 0, why="and that of the region")


def reader(device: Device, name: str = "bo/a") -> Client:
    """Its next open of the file asks for no LOOKUP."""
    client = device.client(HELPERS)
    assert client.do(f"os.stat(path({name!r})).st_size")
    return client


@pytest.mark.parametrize("what", ["unlink", "rename", "exchange"])
@pytest.mark.parametrize("place", ["system", "vram"])
def test_an_open_on_its_way_has_its_bytes(device: Device, what: str, place: str) -> None:
    shell = device.client(HELPERS)
    shell.do(f"put('bo/a', {OLD!r}); put('bo/b', {NEW!r})")
    assert device.command("objects/a/validate", place) == "ok"
    client = reader(device)
    device.hold("open", bo="a")
    client.begin("got('bo/a')")
    device.until_held("open")
    shell.do(
        {
            "unlink": "os.unlink(path('bo/a'))",
            "rename": "os.rename(path('bo/b'), path('bo/a'))",
            "exchange": "renameat2('bo/a', 'bo/b', 2)",
        }[what]
    )
    device.release("open")
    assert client.result() == OLD
    if what != "unlink":
        assert client.do("got('bo/a')") == NEW
    shell.do("[os.unlink(path('bo/' + name)) for name in os.listdir(path('bo'))]")
    nothing_left(device)


def test_an_open_of_an_address_space_on_its_way_has_its_bytes(device: Device) -> None:
    """Its device side ends with the name, its memory with the last who knows it."""
    shell = device.client(HELPERS)
    shell.do("make('svm/a', 70_000, 5)")
    client = reader(device, "svm/a")
    device.hold("open", bo="a")
    client.begin("got('svm/a')")
    device.until_held("open")
    shell.do("os.unlink(path('svm/a'))")
    assert shell.errno("os.stat(path('svm_objects/a'))") == "ENOENT"
    device.release("open")
    assert client.result() == b"\5" * 70_000
    device.until(lambda: device.control("spaces") == 0, why="the space is gone")


def test_an_open_that_truncates_on_its_way_beside_a_rename(device: Device) -> None:
    """What it truncates is the file that it looked up, and not the one that has the name now."""
    shell = device.client(HELPERS)
    shell.do(f"put('bo/a', {OLD!r}); put('bo/b', {NEW!r})")
    client = reader(device)
    device.hold("open", bo="a")
    client.begin("os.write(opened('bo/a', os.O_RDWR | os.O_TRUNC), b'mine')")
    device.until_held("open")
    shell.do("os.rename(path('bo/b'), path('bo/a'))")
    device.release("open")
    assert client.result() == 4
    assert shell.do("got('bo/a')") == NEW


def test_what_is_known_by_a_path_descriptor_can_be_opened_after_unlink(device: Device) -> None:
    shell = device.client(HELPERS)
    shell.do(f"put('bo/a', {OLD!r}); known = opened('bo/a', os.O_PATH); os.unlink(path('bo/a'))")
    assert shell.do("os.fstat(known).st_nlink, os.fstat(known).st_size") == [0, len(OLD)]
    shell.do("fd = os.open(f'/proc/self/fd/{known}', os.O_RDWR)")
    assert shell.do("os.pread(fd, 1 << 20, 0)") == OLD
    shell.do(f"os.pwrite(fd, bytes([7]) * {4 * MIB}, 0); os.close(fd)")
    assert device.stats()["bos"]["count"] == 1
    assert shell.do("os.pread(os.open(f'/proc/self/fd/{known}', os.O_RDONLY), 3, 4096)") == b"\7\7\7"
    assert shell.errno("os.link(f'/proc/self/fd/{known}', path('bo/again'), src_dir_fd=known)") == "ENOENT"
    device.end_clients()
    nothing_left(device)


def test_the_daemons_own_names_keep_nothing(device: Device) -> None:
    """It opens what clients have dirty through an alias, to have it written back."""
    device.make("a", 4 * MIB, fill=1)
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {4 * MIB}); m[:] = b'd' * {4 * MIB}")
    assert device.command("objects/a/validate", "vram") == "ok"
    assert client.do(f"m[:].count(b'd') == {4 * MIB}")
    client.do("m.close(); os.close(fd); os.unlink(path('bo/a'))")
    nothing_left(device)


@pytest.mark.parametrize("how", ["unlink", "rename", "replace", "rmdir"])
def test_what_stands_in_objects_goes_with_the_name(device: Device, how: str) -> None:
    """The kernel would keep the names of its files, and with them the BO's."""
    shell = device.client(HELPERS)
    shell.do("os.mkdir(path('bo/d')); os.stat(path('objects/d')); os.listdir(path('bo'))")
    # The kernel knows the folders, and what the shell itself looks at.
    shell.do("[slurp('objects/' + name) for name in os.listdir(path('objects')) if name != 'd']")
    device.stats()
    nodes = device.control("nodes")
    shell.do("make('bo/d/a', 4096, 1); make('bo/d/b', 4096, 1); os.listdir(path('objects/d'))")

    def are_known() -> bool:
        shell.do("[slurp('objects/d/a/' + name) for name in os.listdir(path('objects/d/a')) if name != 'snapshot']")
        return bool(device.control("nodes") > nodes + 15)

    # Where memory is short the kernel has forgotten some by now.
    device.until(are_known, 30, "the kernel knows what stands in there")
    if how == "unlink":
        shell.do("os.unlink(path('bo/d/a')); os.unlink(path('bo/d/b'))")
        left = 0
    elif how == "rename":
        shell.do("os.rename(path('bo/d/a'), path('bo/d/c')); os.unlink(path('bo/d/b'))")
        left = 1
    elif how == "replace":
        shell.do("os.rename(path('bo/d/b'), path('bo/d/a'))")
        left = 1
    else:
        shell.do("[os.unlink(path('bo/d/' + name)) for name in 'ab']; os.rmdir(path('bo/d'))")
        left = -2
    device.until(lambda: device.control("nodes") == nodes + left, why=f"{nodes + left} nodes")


def _is_gone(shell: Client, opening: str) -> bool:
    return shell.errno(opening) == "ENOENT"


def test_where_somebody_stood_goes_when_he_leaves(device: Device) -> None:
    """What he asked for in there, in vain, keeps the folder in the kernel's cache for nobody."""
    shell = device.client(HELPERS)
    shell.do("os.stat(path('objects')); os.listdir(path('bo'))")
    nodes = device.control("nodes")
    shell.do("make('bo/a', 4096, 1); os.chdir(path('objects/a')); open('status').read(); os.unlink(path('bo/a'))")
    for name in ("validate", "status", "placement"):
        opening = f"open({name!r}, 'r')"
        device.until(partial(_is_gone, shell, opening), why="the BO is gone")
    assert device.stats()["bos"]["count"] == 0
    assert device.control("nodes") > nodes
    shell.do("os.chdir('/')")
    device.until(lambda: device.control("nodes") == nodes, why=f"{nodes} nodes")


def test_what_clients_showed_of_a_process_goes_with_it(device: Device) -> None:
    shell = device.client(HELPERS)
    shell.do("make('bo/mine', 1, 1); [slurp('clients/' + name) for name in os.listdir(path('clients'))]")
    nodes = device.control("nodes")
    for number in range(3):
        other = device.client(f"make('bo/other{number}', 1, 1)")
        shown = shell.do("[slurp('clients/' + name) and name for name in os.listdir(path('clients'))]")
        assert shown[-1] == str(other.pid)
        other.end()
        shell.do(f"os.unlink(path('bo/other{number}')); os.listdir(path('clients'))")
    device.until(lambda: device.control("nodes") <= nodes, why=f"{nodes} nodes")


ROUNDS = """
def rounds(me, count):
    for n in range(count):
        name = f'{me}-{n % 7}'
        make('bo/' + name, 65536, n % 251)
        assert command('objects/' + name + '/validate', 'vram gtt') == 0
        if n % 3 == 0: os.link(path('bo/' + name), path('bo/' + name + '-too'))
        if n % 5 == 0: assert b'mem_type' in got('objects/' + name + '/status')
        if n % 3 == 0: os.unlink(path('bo/' + name + '-too'))
        os.unlink(path('bo/' + name))
"""


SHELL = """
cd -- "$1" || exit 9
n=0
while [ "$n" -lt "$3" ]; do
    name=$2-$((n % 7))
    printf "%65536s" "$n" > "bo/$name" || exit 1
    echo "vram gtt" > "objects/$name/validate" || exit 2
    if [ $((n % 3)) = 0 ]; then ln "bo/$name" "bo/$name-too" && rm "bo/$name-too" || exit 3; fi
    if [ $((n % 5)) = 0 ]; then (cd "objects/$name" && read -r first < status && echo gtt > validate) || exit 4; fi
    rm "bo/$name" || exit 5
    n=$((n + 1))
done
"""


@contextlib.contextmanager
def as_before(device: Device) -> Iterator[None]:
    """What is done in it leaves nothing: not a page, and nothing that the daemon remembers."""
    nothing_left(device)
    nodes = device.control("nodes")
    before = device.stats()
    device.control("give_back_now")
    rss = device.rss()
    yield
    nothing_left(device)
    device.until(lambda: device.control("nodes") <= nodes, why=f"{nodes} nodes, as before")
    after = device.stats()
    assert after["regions"] == before["regions"]
    assert after["swap"] == before["swap"]
    assert after["fences"]["pending"] == 0
    device.control("give_back_now")
    # The memory of vram is kept, all of it once it was used.
    assert device.rss() - rss < (8 + 16) * MIB


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [60, pytest.param(25_000, marks=pytest.mark.stress)])
def test_rounds_of_create_command_and_unlink_leave_nothing(device: Device, count: int) -> None:
    """The long form is 100 000 rounds of four clients."""
    clients = [device.client(HELPERS + ROUNDS) for _ in range(4)]
    for number, client in enumerate(clients):
        client.do(f"rounds('warm{number}', 30)", 60)
    with as_before(device):
        for number, client in enumerate(clients):
            client.begin(f"rounds('client{number}', {count})")
        for client in clients:
            client.result(3000)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [20, pytest.param(25_000, marks=pytest.mark.stress)])
def test_rounds_of_four_shells_leave_nothing(device: Device, count: int) -> None:
    """What people type: every redirection is an open, and every `rm` and `ln` a process of its own."""

    def shells(rounds: int) -> None:
        command = ("sh", "-c", SHELL, "sh", device.mountpoint)
        running = [subprocess.Popen((*command, f"shell{number}", str(rounds))) for number in range(4)]
        try:
            assert [shell.wait(60 + rounds / 5) for shell in running] == [0] * 4
        except subprocess.TimeoutExpired:
            device.abort()
            raise
        finally:
            for shell in running:
                shell.kill()
                shell.wait(10)

    shells(7)
    with as_before(device):
        shells(count)

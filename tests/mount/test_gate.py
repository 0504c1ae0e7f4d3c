"""The gate (R1 to R5), on a mount: moves held in each of its states while clients use the BO, and afterwards every
byte is looked at.

Pages: each scenario touches pages that no client has cached, so that every touch is a request.
"""

import contextlib
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, PAGE, Client, Device, Hang

pytestmark = pytest.mark.mount

SIZE = 4 * MIB
"""16 steps of a copy."""

AT_ONCE = 2.5
"""Seconds within which a request must be answered that may not wait."""

FILL = 0x41

REQUESTS: dict[str, tuple[str, str]] = {
    # name: (what the client does, with `fd`, `other` and mapping `m`; what must come out)
    "mmap": ("m[1 * 4096]", "65"),
    "pread": ("os.pread(fd, 100, 2 * 4096 + 50)", repr(bytes([FILL]) * 100)),
    "direct": ("digest(direct(dfd, 8 * 4096, 32768))", "digest of fill"),
    "readahead": ("digest(os.pread(sfd, 1 << 20, 1 << 20))", "digest of fill"),
    "pwrite partial": ("os.pwrite(fd, b'W' * 10, 40 * 4096 + 7)", "10"),
    "pwrite pages": ("os.pwrite(fd, b'W' * 8192, 44 * 4096)", "8192"),
    "direct write": ("os.pwrite(dfd, mmap.mmap(-1, 4096), 48 * 4096)", "4096"),
    "msync": ("sync_mapping(m)", "0"),
    "truncate down": ("os.ftruncate(fd, 3 << 20)", "None"),
    "truncate up": ("os.ftruncate(fd, 5 << 20)", "None"),
    "O_TRUNC": ("os.close(opened('bo/{name}', os.O_RDWR | os.O_TRUNC))", "None"),
    "append": ("os.write(afd, b'tail')", "4"),
}

SETUP = """
fd = opened('bo/{name}'); dfd = opened('bo/{name}', os.O_RDWR | os.O_DIRECT)
sfd = opened('bo/{name}'); afd = opened('bo/{name}', os.O_RDWR | os.O_APPEND)
m = mapped(fd, {size}); m[60 * 4096] = 90; zero = m[0]
"""


def _clients(device: Device, name: str, requests: list[str]) -> dict[str, Client]:
    """One client for each request, ready to begin; each has page 60 dirty in its mapping."""
    return {what: device.client(SETUP.format(name=name, size=SIZE)) for what in requests}


def _begin(clients: dict[str, Client], name: str) -> None:
    for what, client in clients.items():
        client.begin(REQUESTS[what][0].format(name=name))


def _end(clients: dict[str, Client], seconds: float = AT_ONCE) -> None:
    """All of them have ended within `seconds`, successfully."""
    for what, client in clients.items():
        try:
            value = client.result(seconds)
        except Hang:
            raise Hang(f"{what} did not end within {seconds:g} s") from None
        if REQUESTS[what][1] != "digest of fill":
            assert repr(value) == REQUESTS[what][1], what


def _content(device: Device, name: str, size: int) -> bytes:
    """All bytes, as a new client reads them from the daemon."""
    assert device.command(f"objects/{name}/unmap", "\n") == "ok"
    data: bytes = device.shell.do(f"open(path('bo/{name}'), 'rb').read()", 20)
    assert len(data) == size
    return data


def _expected(changes: list[str], size: int) -> bytes:
    model = bytearray([FILL]) * SIZE
    model[60 * PAGE] = 90
    if "pwrite partial" in changes:
        model[40 * PAGE + 7 : 40 * PAGE + 17] = b"W" * 10
    if "pwrite pages" in changes:
        model[44 * PAGE : 46 * PAGE] = b"W" * 8192
    if "direct write" in changes:
        model[48 * PAGE : 49 * PAGE] = bytes(PAGE)
    if "append" in changes:
        model += b"tail"
    return bytes(model[:size]) + bytes(max(0, size - len(model)))


NO_RESIZE = [what for what in REQUESTS if what not in ("truncate down", "truncate up", "O_TRUNC", "append")]


@pytest.mark.parametrize("where", ["inval", "invalled"])
@pytest.mark.parametrize("place", ["system", "vram"])
def test_while_an_inval_is_outstanding_every_request_is_served(device: Device, where: str, place: str) -> None:
    device.make("a", SIZE, fill=FILL, place=place)
    clients = _clients(device, "a", NO_RESIZE)
    device.hold(where, bo="a")
    move = device.begin_command("objects/a/validate", "vram" if place == "system" else "gtt")
    device.until_held(where)
    assert device.control("gates")["a"][0] is True
    _begin(clients, "a")
    _end(clients)
    assert device.control("held", name=where) == 1
    device.release(where)
    assert move.result(5) == 0
    assert _content(device, "a", SIZE) == _expected(NO_RESIZE, SIZE)


@pytest.mark.parametrize("where", ["inval", "invalled"])
@pytest.mark.parametrize(
    ("what", "size"),
    [("truncate down", 3 * MIB), ("truncate up", 5 * MIB), ("O_TRUNC", 0), ("append", SIZE + 4)],
)
def test_a_size_changes_while_an_inval_is_outstanding(device: Device, where: str, what: str, size: int) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    clients = _clients(device, "a", [what])
    device.hold(where, bo="a")
    move = device.begin_command("objects/a/validate", "gtt")
    device.until_held(where)
    _begin(clients, "a")
    _end(clients)
    assert device.control("held", name=where) == 1
    device.release(where)
    assert move.result(5) == 0
    assert _content(device, "a", size) == _expected([what], size)


def _park_in_vm_reserve(device: Device) -> tuple[Client, Client]:
    """(a client whose READ waits for the reservation that a validate holds, the validate)."""
    device.make("a", SIZE, fill=FILL, place="vram")
    reader: Client = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20); zero = m[0]")
    device.hold("validate", bo="a")
    move: Client = device.begin_command("objects/a/validate", "gtt")
    device.until_held("validate")
    reader.begin("m[70 * 4096]")
    device.until_parked()
    return reader, move


def test_a_read_that_waits_for_the_reservation_is_served_when_the_inval_begins(device: Device) -> None:
    reader, move = _park_in_vm_reserve(device)
    device.hold("inval", bo="a")
    device.release("validate")
    assert reader.result(AT_ONCE) == FILL
    device.release("inval")
    assert move.result(5) == 0


def test_another_bo_of_the_same_ticket_is_written_resized_and_synced_meanwhile(device: Device) -> None:
    requests = ["pwrite partial", "pwrite pages", "direct write", "msync", "truncate down"]
    device.make("a", SIZE, fill=1, place="vram")
    device.make("b", SIZE, fill=FILL, place="vram")
    toucher = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20); zero = m[0]")
    clients = _clients(device, "b", requests)
    device.hold("inval", bo="a")
    move = device.begin_command("ctl/validate", "a,b gtt")
    device.until_held("inval")
    _begin(clients, "b")
    _end(clients)
    device.release("inval")
    assert move.result(5) == 0
    assert _content(device, "b", 3 * MIB) == _expected(requests, 3 * MIB)
    assert toucher.do("m[5 * 4096]") == 1


def test_another_bo_of_the_same_ticket_is_read_meanwhile(device: Device) -> None:
    device.make("a", SIZE, fill=1, place="vram")
    device.make("b", SIZE, fill=FILL, place="vram")
    device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20); zero = m[0]")
    clients = _clients(device, "b", ["mmap", "pread", "direct", "readahead"])
    device.hold("inval", bo="a")
    move = device.begin_command("ctl/validate", "a,b gtt")
    device.until_held("inval")
    _begin(clients, "b")
    _end(clients)
    device.release("inval")
    assert move.result(5) == 0
    assert _content(device, "b", SIZE) == _expected([], SIZE)


# -- the copy is queued ------------------------------------------------------------------------------------------------


def _queue_a_move(device: Device, name: str = "a") -> None:
    """The copy of a move waits in a paused engine, its INVAL is over."""
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command(f"objects/{name}/validate", "gtt") == "ok"
    assert device.control("gates")[name][:2] == [False, 1]


WRITES = ["pwrite partial", "pwrite pages", "direct write", "msync"]


def _stop_amid_a_copy(device: Device) -> None:
    """A move of BO a that stops amid its copy. Were whole frames exchanged, no bytes would be on their way."""
    assert device.command("debug/ban_exchange", "1") == "ok"
    device.hold("copy")
    assert device.command("objects/a/validate", "gtt") == "ok"
    device.until_held("copy")
    assert device.command("debug/ban_exchange", "0") == "ok"


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        (WRITES, SIZE),
        (["truncate down"], 3 * MIB),
        (["truncate up"], 5 * MIB),
        (["O_TRUNC"], 0),
        (["append"], SIZE + 4),
    ],
)
def test_while_the_copy_is_queued_writes_and_sizes_do_not_wait(device: Device, changes: list[str], size: int) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    clients = _clients(device, "a", changes)
    _queue_a_move(device)
    _begin(clients, "a")
    _end(clients)
    assert device.command("debug/pause_engine", "0") == "ok"
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    assert _content(device, "a", size) == _expected(changes, size)


READS = ["mmap", "pread", "direct", "readahead"]


def test_reads_wait_for_a_queued_copy_and_end_with_it(device: Device) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    clients = _clients(device, "a", READS)
    _queue_a_move(device)
    _begin(clients, "a")
    device.until_parked(len(READS))
    assert device.command("debug/pause_engine", "0") == "ok"
    _end(clients)
    assert _content(device, "a", SIZE) == _expected([], SIZE)


def test_reads_that_wait_for_a_queued_copy_are_served_from_its_source_when_an_inval_is_issued(device: Device) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    clients = _clients(device, "a", READS)
    _queue_a_move(device)
    _begin(clients, "a")
    device.until_parked(len(READS))
    # A WRITE was answered since the last INVAL, or there would be none to issue.
    assert device.shell.do("os.pwrite(opened('bo/a'), b'W' * 10, 40 * 4096 + 7)") == 10
    # A fault whose page the INVAL has taken away is a READ anew: it comes before that has returned, or it waits.
    device.hold("invalled", bo="a")
    unmap = device.begin_command("objects/a/unmap", "\n")
    _end(clients)
    device.release("invalled")
    assert unmap.result(5) == 0
    assert device.command("debug/pause_engine", "0") == "ok"
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    assert _content(device, "a", SIZE) == _expected(["pwrite partial"], SIZE)


# -- bytes are moving --------------------------------------------------------------------------------------------------

MOVING = ["pread", "mmap", "readahead", "direct", *WRITES]


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        (MOVING, SIZE),
        (["truncate down"], 3 * MIB),
        (["truncate up"], 5 * MIB),
        (["O_TRUNC"], 0),
        (["append"], SIZE + 4),
    ],
)
def test_while_bytes_move_requests_wait_only_for_that(device: Device, changes: list[str], size: int) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    clients = _clients(device, "a", changes)
    _stop_amid_a_copy(device)
    _begin(clients, "a")
    if len(changes) > 1:
        # Four READs and one WRITE: the kernel lets the writers of a file in one after another, and the INVAL of the
        # move has left msync nothing to write.
        device.until_parked(5)
    else:
        device.until(lambda: changes == ["append"] or device.control("gates")["a"][3] == size)
    device.release("copy")
    _end(clients)
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    assert _content(device, "a", size) == _expected(changes, size)


# -- without the rules -------------------------------------------------------------------------------------------------

SMALL = ("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "60", "--watchdog", "0")


def test_without_r1_a_read_and_the_inval_wait_for_each_other(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_r1",))
    device.make("a", SIZE, fill=FILL, place="vram")
    reader = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20); zero = m[0]")
    device.hold("inval", bo="a")
    move = device.begin_command("objects/a/validate", "gtt")
    device.until_held("inval")
    reader.begin("m[70 * 4096]")
    device.until_parked()
    device.release("inval")
    assert reader.waits()
    assert move.waits(0.1)
    device.abort()


def test_without_the_wake_a_parked_read_and_a_later_inval_wait_for_each_other(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_wake",))
    reader, move = _park_in_vm_reserve(device)
    device.release("validate")
    assert reader.waits()
    assert move.waits(0.1)
    device.abort()


def _into_the_window(device: Device, touch: str) -> Client:
    """A mapped BO beyond the visible part of VRAM, of which pages count as handed out; a client touches one."""
    device.make("a", MIB, fill=FILL, place="vram@0-255")
    client: Client = device.client("fd = opened('bo/a'); m = mapped(fd, 1 << 20); zero = m[0]")
    device.hold("inval", bo="a")
    move = device.begin_command("objects/a/validate", "vram@4096-8191")
    device.until_held("inval")
    assert client.do("m[70 * 4096]") == FILL
    device.release("inval")
    assert move.result(5) == 0
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    return client.begin(touch)


WINDOW = (*SMALL, "--visible-vram", "8M")


@pytest.mark.parametrize("touch", ["m[70 * 4096]", "os.pwrite(fd, b'A' * 10, 70 * 4096) and m[70 * 4096]"])
def test_a_fault_moves_its_own_bo_into_the_window(mounted: Callable[..., Device], touch: str) -> None:
    device = mounted(*WINDOW)
    client = _into_the_window(device, touch)
    assert client.result(AT_ONCE) == FILL
    assert device.stats()["faults"]["window_moves"] == 1
    assert device.stats()["regions"]["vram"]["visible_used"] == MIB
    assert _content(device, "a", MIB) == bytes([FILL]) * MIB


def test_without_r2_a_fault_waits_for_the_inval_of_its_own_page(mounted: Callable[..., Device]) -> None:
    device = mounted(*WINDOW, patches=("without_r2",))
    client = _into_the_window(device, "m[70 * 4096]")
    assert client.waits()
    device.abort()


def test_without_r4_a_write_into_moving_bytes_is_lost(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_r4_running",))
    device.make("a", SIZE, fill=FILL, place="vram")
    client = device.client("fd = opened('bo/a')")
    _stop_amid_a_copy(device)
    # Page 40 has been copied already.
    client.do("os.pwrite(fd, b'W' * 10, 40 * 4096 + 7)", AT_ONCE)
    device.release("copy")
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    assert _content(device, "a", SIZE)[40 * PAGE + 7 : 40 * PAGE + 17] == bytes([FILL]) * 10


def test_without_r4_a_write_waits_for_a_copy_that_has_not_begun(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_r4_queued",))
    device.make("a", SIZE, fill=FILL, place="vram")
    _queue_a_move(device)
    assert device.client("fd = opened('bo/a')").begin("os.pwrite(fd, b'W' * 10, 40 * 4096 + 7)").waits()
    device.abort()


def test_without_r5_a_truncate_and_the_inval_of_a_dirty_bo_wait_for_each_other(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_r5",))
    device.make("a", SIZE, fill=FILL, place="vram")
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20); m[60 * 4096] = 90")
    device.hold("inval", bo="a")
    move = device.begin_command("objects/a/validate", "gtt")
    device.until_held("inval")
    client.begin("os.ftruncate(fd, 3 << 20)")
    assert client.waits(0.3)
    device.release("inval")
    assert client.waits()
    assert move.waits(0.1)
    device.abort()


# -- commands and truncation -------------------------------------------------------------------------------------------


def test_two_slow_writers_of_one_command_file_do_not_wait_for_each_other(device: Device) -> None:
    device.make("a", MIB, fill=FILL, place="vram")
    _queue_a_move(device)
    waiters = [device.client() for _ in range(2)]
    for waiter in waiters:
        waiter.begin("(time.monotonic(), command('objects/a/wait', 'kernel 2'), time.monotonic())")
    begun, codes, ended = zip(*(waiter.result(6) for waiter in waiters), strict=True)
    assert codes == (62, 62)
    assert max(ended) - min(begun) < 3.5


def test_o_trunc_of_a_mapped_dirty_bo_leaves_size_0(device: Device) -> None:
    """Many rounds under a storm of validates."""
    device.make("a", MIB)
    storm = device.client().begin(
        "end = time.monotonic() + 20\n"
        "moves = 0\n"
        "while time.monotonic() < end and not os.path.exists(path('bo/stop')):\n"
        "    for place in ('vram', 'gtt', 'system'):\n"
        "        moves += command('objects/a/validate', place) == 0\n"
    )
    client = device.client()
    client.do(
        "bad = []\n"
        "for number in range(60):\n"
        "    fd = opened('bo/a'); os.ftruncate(fd, 1 << 20)\n"
        "    m = mapped(fd, 1 << 20)\n"
        "    m[:] = b'D' * (1 << 20)\n"
        "    os.close(opened('bo/a', os.O_RDWR | os.O_TRUNC))\n"
        "    size = os.fstat(fd).st_size\n"
        "    os.ftruncate(fd, 1 << 20)\n"
        "    if size or os.pread(fd, 1 << 20, 0).strip(b'\\0'):\n"
        "        bad.append((number, size))\n"
        "    m.close(); os.close(fd)\n",
        40,
    )
    assert client.do("bad") == []
    client.do("os.close(opened('bo/stop', os.O_CREAT | os.O_RDWR))")
    storm.result(10)
    assert storm.do("moves") > 5


def test_a_client_killed_in_a_fault_goes_when_it_is_served(device: Device) -> None:
    device.make("a", SIZE, fill=FILL, place="vram")
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20)")
    _queue_a_move(device)
    client.begin("m[70 * 4096]")
    device.until_parked()
    client.popen.kill()
    assert device.command("debug/pause_engine", "0") == "ok"
    assert client.died(5) == -9
    with contextlib.suppress(EOFError):
        client.result(1)
    assert _content(device, "a", SIZE) == _expected([], SIZE)[: 60 * PAGE] + bytes([FILL]) * (SIZE - 60 * PAGE)

"""The exerciser passes on a plain file, and fails when one byte of it is wrong, whatever operation meets that byte.

A checker that cannot fail proves nothing: for each operation a byte is changed behind its back, through a descriptor of
its own, and the exerciser must say so.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.exerciserlib import client as client_module
from tests.exerciserlib import ops
from tests.exerciserlib.client import Client, ClientPlan, run_client
from tests.exerciserlib.main import main
from tests.exerciserlib.model import MismatchError, Phase, SideFiles, State
from tests.exerciserlib.storm import write_command

PROGRAM = Path(__file__).resolve().parent / "exerciser.py"
SIZE = 4 * ops.PAGE + 100
CHECKING = ["pread", "load", "private", "direct_read", "verify"]
CHANGING = ["pwrite", "append", "store", "truncate", "o_trunc", "direct_write"]
SAMPLING = ["msync", "fsync", "fadvise", "madvise", "reopen", "look", "remap"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory in memory where there is one: the operations are then as quick as they can be."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


def make_client(directory: Path, *, seed: int = 1, **plan: object) -> Client:
    """A client in this process, on a new file."""
    client = Client(ClientPlan(0, directory / "file", 64 << 10, seed, **plan), directory)  # type: ignore[arg-type]
    client.create()
    return client


def fill(client: Client, size: int = SIZE) -> None:
    """Give the file known, non-zero content."""
    data = np.random.default_rng(3).integers(1, 255, size, dtype=np.uint8)
    client.model.begin_write(0, data)
    client.write_at(0, data)
    client.model.commit()


def corrupt(path: Path, offset: int) -> None:
    """Change one byte of the file without anyone's knowledge."""
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes([byte[0] ^ 0x40]), offset)
    os.close(fd)


def corrupt_all(path: Path) -> None:
    """Change every byte, for operations that look at only some of them."""
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    os.pwrite(fd, bytes(byte ^ 0x40 for byte in os.pread(fd, size, 0)), 0)
    os.close(fd)


def need_direct(client: Client, name: str) -> None:
    if name in ops.DIRECT and client.direct_fd is None:
        pytest.skip("this file system has no O_DIRECT")


def test_every_operation_is_in_a_list() -> None:
    assert sorted(CHECKING + CHANGING + SAMPLING) == sorted(ops.OPERATIONS)


@pytest.mark.parametrize("name", CHECKING + SAMPLING)
def test_an_operation_that_looks_notices_wrong_bytes(directory: Path, name: str) -> None:
    client = make_client(directory)
    need_direct(client, name)
    fill(client)
    ops.OPERATIONS[name](client, random.Random(7))  # right bytes pass
    corrupt_all(client.path)
    with pytest.raises(MismatchError, match="wrong bytes"):
        ops.OPERATIONS[name](client, random.Random(8))


@pytest.mark.parametrize("way", ["pread", "load", "direct"])
def test_verification_notices_a_single_byte(directory: Path, way: str) -> None:
    client = make_client(directory)
    if way == "direct":
        need_direct(client, "direct_read")
    fill(client)
    ops.verify_whole(client, way)
    corrupt(client.path, 2 * ops.PAGE + 17)
    with pytest.raises(MismatchError, match=f"1 wrong bytes in 1 pages, first at offset {2 * ops.PAGE + 17}"):
        ops.verify_whole(client, way)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CHANGING)
def test_a_change_that_did_not_reach_the_file_is_noticed(directory: Path, name: str, seed: int) -> None:
    client = make_client(directory)
    need_direct(client, name)
    fill(client)
    before = client.path.read_bytes()
    rng = random.Random(seed)
    ops.OPERATIONS[name](client, rng)
    while client.path.read_bytes() == before:  # a truncate to the same size changes nothing
        ops.OPERATIONS[name](client, rng)
    ops.verify_whole(client, "pread")  # what it did is what the model says
    client.path.write_bytes(before)  # and what it did is lost
    with pytest.raises(MismatchError):
        ops.verify_whole(client, "pread")


def test_bytes_that_come_back_after_a_shorter_and_longer_truncate_are_noticed(directory: Path) -> None:
    client = make_client(directory)
    fill(client)
    before = client.path.read_bytes()
    for size in (100, SIZE):
        client.model.begin_resize(size)
        os.ftruncate(client.fd, size)
        client.model.commit()
    ops.verify_whole(client, "load")
    client.path.write_bytes(before)
    with pytest.raises(MismatchError, match="first at offset 100 "):
        ops.verify_whole(client, "load")


def test_a_private_store_that_leaks_into_the_file_is_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(directory)
    fill(client)
    shared = client_module.mmap.mmap  # type: ignore[attr-defined]

    def leaky(self: Client, offset: int, length: int) -> object:
        return shared(self.fd, length, offset=offset)

    monkeypatch.setattr(Client, "map_private", leaky)
    with pytest.raises(MismatchError, match="file after a private store"):
        ops.OPERATIONS["private"](client, random.Random(1))


def test_the_loop_fails_in_the_operation_after_the_corruption(directory: Path) -> None:
    def sabotage(client: Client, name: str) -> None:
        if client.model.state.op == 50 and client.model.size:
            client.drop_mapping()
            corrupt_all(client.path)

    client = make_client(directory, ops=400, after_op=sabotage)
    with pytest.raises(MismatchError):
        client.run()
    assert 50 <= client.model.state.op < 400
    assert len(client.model.state.last_operations()) == 20


def test_the_report_names_seed_operation_and_bytes(directory: Path) -> None:
    plan = ClientPlan(0, directory / "file", 64 << 10, 77, ops=300)
    plan.after_op = lambda client, name: corrupt_all(client.path) if client.model.state.op == 30 else None
    assert run_client(plan, directory, fresh=True) == 1
    report = (directory / "client0.report").read_text()
    for part in ("seed 77", "operation 3", "expected ", "got ", "last 20 operations"):
        assert part in report


def test_the_same_seed_gives_the_same_operations(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: int) -> dict[str, object]:
        assert main([str(directory / "a"), "--clients", "2", "--ops", "300", "--seed", str(seed), "--unlink"]) == 0
        totals: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return totals

    first, again, other = run(1), run(1), run(2)
    assert first["ops"] == 600
    assert first["op_crc"] == again["op_crc"] != other["op_crc"]
    assert first["read_bytes"] == again["read_bytes"]
    assert list(directory.glob("a*")) == []


def test_the_program_passes_and_prints_totals(directory: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(directory / "a")]
    command += ["--clients", "2", "--ops", "400", "--seed", "3", "--no-ctl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout.splitlines()[-1])
    assert totals["ok"]
    assert totals["ops"] == 800
    assert sum(totals["kinds"].values()) == 800


def test_shared_file_with_kills(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(directory / "a"), "--clients", "3", "--shared", "--max-size", "256K", "--seconds", "2"]
    assert main([*arguments, "--seed", "4", "--kill"]) == 0
    totals = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert totals["kills"] == totals["recoveries"] > 0
    assert (directory / "a").stat().st_size == 3 * 256 << 10


def test_a_slow_operation_is_a_failure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**15, 3 * 10**9))
    monkeypatch.setattr(client_module, "monotonic_ns", lambda: next(clock))
    client = make_client(directory, ops=5, max_op_seconds=2.0)
    with pytest.raises(client_module.SlowOperationError, match=r"took 3\.00 s"):
        client.run()


def test_a_client_that_hangs_or_dies_fails_the_run(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo = directory / "fifo"
    os.mkfifo(fifo)

    def hang(client: Client, rng: random.Random) -> None:
        client.note("open a fifo nobody writes to")
        os.close(os.open(fifo, os.O_RDONLY))

    def die(client: Client, rng: random.Random) -> None:
        client.note("die")
        faulthandler.disable()  # the test runner's, inherited by the client
        os.kill(os.getpid(), signal.SIGBUS)

    # The one that dies has all the time that a busy machine needs to notice.
    for body, words, seconds in ((hang, "stuck for", "0.3"), (die, "died of SIGBUS", "30")):
        original = ops.OPERATIONS["fsync"]
        ops.OPERATIONS["fsync"] = body
        try:
            assert main([str(directory / "a"), "--only", "fsync", "--hang-seconds", seconds, "--seed", "1"]) == 1
        finally:
            ops.OPERATIONS["fsync"] = original
        assert words in capsys.readouterr().err


def pending(directory: Path, phase: Phase) -> Client:
    """A client that was killed in the middle of an operation at 1000, 600 bytes long (or of a truncate to 1000)."""
    client = make_client(directory)
    fill(client)
    if phase in (Phase.RESIZE, Phase.RESIZED):
        client.model.begin_resize(1000)
    else:
        client.model.begin_write(1000, np.full(600, 255, dtype=np.uint8))
    client.model.state.phase = phase
    client.close()
    return Client(client.plan, directory)


def put(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, data, offset)
    os.close(fd)


@pytest.mark.parametrize("written", [(), (0,), (1, 3, 599), tuple(range(600))])
def test_recovery_accepts_old_and_new_bytes_and_finishes_the_write(directory: Path, written: tuple[int, ...]) -> None:
    client = pending(directory, Phase.WRITE)
    for at in written:
        put(client.path, 1000 + at, b"\xff")
    client.recover()
    assert client.path.read_bytes()[1000:1600] == b"\xff" * 600
    ops.verify_whole(client, "pread")


@pytest.mark.parametrize("offset", [0, 999, 1300, 1600, SIZE - 1])
def test_recovery_refuses_any_other_byte(directory: Path, offset: int) -> None:
    client = pending(directory, Phase.WRITE)
    corrupt(client.path, offset)
    with pytest.raises(MismatchError, match="recovery"):
        client.recover()


def test_recovery_wants_all_of_a_completed_write(directory: Path) -> None:
    client = pending(directory, Phase.WRITTEN)
    put(client.path, 1000, b"\xff" * 599)
    with pytest.raises(MismatchError, match="1 wrong bytes"):
        client.recover()
    put(client.path, 1599, b"\xff")
    Client(client.plan, directory).recover()


def test_recovery_of_a_truncate(directory: Path) -> None:
    for size, right in ((SIZE, True), (1000, True), (1001, False), (SIZE + 1, False)):
        client = pending(directory, Phase.RESIZE)
        os.truncate(client.path, size)
        if right:
            client.recover()
            assert client.path.stat().st_size == 1000
        else:
            with pytest.raises(MismatchError, match="size"):
                client.recover()
    client = pending(directory, Phase.RESIZED)
    with pytest.raises(MismatchError, match="size"):
        client.recover()


def test_an_allowed_errno_leaves_old_or_new_bytes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(directory, ops=300, allowed_errnos=frozenset({errno.ENOSPC}), only=["pwrite", "pread"])
    fill(client)
    real, calls = os.pwrite, iter(range(10**6))

    def flaky(fd: int, data: memoryview, offset: int) -> int:
        if next(calls) % 3 == 1:
            real(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", flaky)
    client.run()
    assert client.model.state.errors > 20
    monkeypatch.undo()
    (directory / "strict").mkdir()
    client = make_client(directory / "strict", ops=300, only=["pwrite"])
    monkeypatch.setattr(os, "pwrite", flaky)
    with pytest.raises(OSError, match="No space"):
        client.run()


def test_the_storm_counts_errnos_and_refuses_unexpected_ones(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = directory / "objects" / "a"
    objects.mkdir(parents=True)
    (directory / "bo").mkdir()
    for command in ("validate", "evict", "unmap"):
        (objects / command).touch()
    arguments = [str(directory / "bo" / "a"), "--ctl", str(directory), "--seconds", "0.5", "--seed", "1"]
    assert main([*arguments, "--ctl-words", "validate,evict,unmap"]) == 0
    totals = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert totals["ctl"]["counts"]["ok"] > 10
    (objects / "defrag").mkdir()  # unlike on a device
    assert main([*arguments, "--ctl-words", "validate,defrag"]) == 1
    output = capsys.readouterr()
    assert "objects/a/defrag: EISDIR" in output.err
    assert write_command(objects / "nothing", "x") == errno.ENOENT


def test_state_survives_its_process(directory: Path) -> None:
    state = State(SideFiles(directory, 9))
    state.op = 5
    for i in range(25):
        state.remember(f"operation {i}")
    again = State(SideFiles(directory, 9))
    assert again.op == 5
    assert again.last_operations() == [f"operation {i}" for i in range(5, 25)]

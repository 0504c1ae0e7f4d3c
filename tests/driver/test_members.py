"""Members: who is of which group, with the kernel's word on who forks and without it; with real processes."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from tests.core.harness import MIB, fails
from ttmfs.driver.forks import Event, Forks
from ttmfs.driver.members import Members
from ttmfs.ttm.dmem import Dmem

PARENT = """
import os, sys
waits, life = os.pipe()
def forked(*, orphan):
    read, write = os.pipe()
    if not (pid := os.fork()):
        if orphan:
            os.setsid()
            if os.fork():
                os._exit(0)
        os.close(read)
        os.write(write, b"%d" % os.getpid())
        # Ends with the one that makes all of them.
        os.close(life)
        os.read(waits, 1)
        os._exit(0)
    os.close(write)
    if orphan:
        os.waitpid(pid, 0)
    print(os.read(read, 20).decode(), flush=True)
for line in iter(sys.stdin.readline, ""):
    forked(orphan=line == "orphan\\n")
"""


@contextmanager
def parent() -> Iterator[tuple[int, Callable[[str], int]]]:
    """A process that makes a `child`, or an `orphan` of another session, when told: its pid, and what tells it."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def make(what: str) -> int:
            print(what, file=process.stdin, flush=True)
            return int(process.stdout.readline())  # type: ignore[union-attr]

        try:
            yield process.pid, make
        finally:
            process.stdin.close()
            process.stdout.read()


def groups() -> Dmem:
    dmem = Dmem({"vram": MIB})
    dmem.root.make("game")
    dmem.root.make("other")
    return dmem


def told() -> bool:
    """Does the kernel tell this process?"""
    forks = Forks.listen()
    if forks is not None:
        forks.close()
    return forks is not None


needs_forks = pytest.mark.skipif(not told(), reason="the kernel tells of forks only root with CAP_NET_ADMIN")


@needs_forks
async def test_who_forks_is_of_its_parents_group_whoever_has_ended() -> None:
    dmem = groups()
    game, other = dmem.root.children.values()
    members = Members(dmem.root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(members.run)
        with parent() as (pid, make):
            before = make("child")
            members.place(pid, game)
            orphan, child = make("orphan"), make("child")
            assert members.group_of(orphan) is members.group_of(child) is members.group_of(pid) is game
            # As in the kernel: who was there before was not moved.
            assert members.group_of(before) is dmem.root
            assert members.of(game) == sorted((pid, orphan, child))
            members.place(pid, other)
            later = make("orphan")
            assert (members.group_of(orphan), members.group_of(later)) == (game, other)
            game.remove()
            assert members.group_of(orphan) is dmem.root
        with trio.fail_after(30):
            while members._exact:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert members._forks is None


async def test_without_the_kernels_word_living_ancestors_and_leaders_count() -> None:
    dmem = groups()
    game = dmem.root.children["game"]
    members = Members(dmem.root, lambda: None)
    with parent() as (pid, make):
        members.place(pid, game)
        assert members.group_of(make("child")) is game
        # Nothing leads back: its parent is init, and who led its session was never seen.
        assert members.group_of(make("orphan")) is dmem.root
        assert members.of(game) == sorted(members.of(game))
        assert pid in members.of(game)
    with trio.fail_after(30):
        while members.of(game):
            await trio.sleep(0.01)
    with fails(errno.ESRCH):
        members.place(pid, game)


@needs_forks
async def test_when_events_are_lost_what_was_known_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_forks: Forks) -> Iterator[Event]:
        raise OSError(errno.ENOBUFS, "too many")

    dmem = groups()
    game = dmem.root.children["game"]
    members = Members(dmem.root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(members.run)
        with parent() as (pid, make):
            members.place(pid, game)
            orphan = make("orphan")
            assert members.group_of(orphan) is game
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(Forks, "events", lost)
            assert members.group_of(orphan) is game
            assert members._forks is None
            assert members.of(game) == sorted((pid, orphan))
            assert members.group_of(make("child")) is game
        # Nobody waits for more.
        with trio.fail_after(10):
            while nursery.child_tasks:
                await trio.sleep(0.02)


def first_thread_has_ended(pid: int) -> bool:
    with open(f"/proc/{pid}/status", "rb") as status:
        return b"\nState:\tZ" in status.read()


@contextmanager
def threaded() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose first thread ends, and another one with its standard input."""
    script = (
        "import ctypes, threading, sys; threading.Thread(target=sys.stdin.read).start();"
        "print(flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as process:
        yield process


@needs_forks
async def test_a_process_whose_first_thread_has_ended_lives_on() -> None:
    dmem = groups()
    game = dmem.root.children["game"]
    members = Members(dmem.root)
    with threaded() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        members.place(process.pid, game)
        process.stdout.readline()
        with trio.fail_after(30):
            while not first_thread_has_ended(process.pid):
                await trio.sleep(0.01)
        assert members.group_of(process.pid) is game
        process.stdin.close()
        with trio.fail_after(30):
            while members.group_of(process.pid) is game:
                await trio.sleep(0.01)
    members._without_forks()

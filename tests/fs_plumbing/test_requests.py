"""Requests without a mount: each part is made of what is served, and asked as pyfuse3 would ask it."""

import errno
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.rights import Owner
from ttmfs.fs.requests.inode import InodeRequests
from ttmfs.fs.requests.list import ListRequests
from ttmfs.fs.requests.name import NameRequests
from ttmfs.fs.requests.open import OpenRequests
from ttmfs.fs.requests.operations import Operations, requests_of
from ttmfs.fs.requests.read_write import LARGE_BYTES, DataRequests
from ttmfs.fs.requests.replies import Replies
from ttmfs.fs.requests.served import Served
from ttmfs.fs.tree.device import Tree
from ttmfs.svm.names import SpaceNames
from ttmfs.svm.spaces import Svm

MIB = 1 << 20
ASKED: Any = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0o022)


@pytest.fixture
def served() -> Iterator[Served]:
    vdev = VirtualDevice(Config(vram=8 * MIB, gtt=8 * MIB, memory=16 * MIB))
    names, svm = Namespace(vdev, uid=0, gid=0), Svm(vdev)
    machine = Machine(vdev, names, svm)
    tree = Tree(machine, Runner(machine, 60.0), SpaceNames(svm, names.new_ino, uid=0, gid=0), Owner(0, 0))
    yield Served(tree)
    vdev.close()


async def lookup(served: Served, path: str) -> int:
    """Inode number."""
    requests, ino = NameRequests(served, Replies(served), OpenRequests(served)), 1
    for name in path.split("/"):
        ino = (await requests.lookup(ino, name.encode(), ASKED)).st_ino
    return ino


async def create(served: Served, name: bytes) -> tuple[int, int]:
    """(inode number, handle) of a new BO."""
    requests = NameRequests(served, Replies(served), OpenRequests(served))
    made, attr = await requests.create(await lookup(served, "bo"), name, 0o644, os.O_RDWR, ASKED)
    return attr.st_ino, made.fh


async def errno_of(request: Any) -> int:
    """What the kernel is told."""
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await request
    return raised.value.errno


def test_no_request_has_two_answers(served: Served) -> None:
    answered = [name for part in Operations(served).parts for name in requests_of(part)]
    assert len(answered) == len(set(answered)), sorted(answered)
    assert {"lookup", "getattr", "open", "read", "write", "readdir", "release"} <= set(answered)


async def test_what_is_written_is_read_and_no_handle_is_none(served: Served) -> None:
    data = DataRequests(served)
    _ino, fh = await create(served, b"a")
    assert await data.write(fh, 4096, b"bytes") == 5
    assert bytes(await data.read(fh, 4090, 4096)) == bytes(6) + b"bytes"
    counted = served.counters
    assert (counted.read, counted.write, counted.read_bytes, counted.write_bytes) == (1, 1, 11, 5)
    assert await errno_of(data.read(fh + 1, 0, 1)) == errno.EBADF
    assert await errno_of(data.write(fh + 1, 0, b"x")) == errno.EBADF


async def test_what_waits_for_nothing_is_answered_without_an_await(served: Served) -> None:
    data, large = DataRequests(served), []
    data.large_write = lambda: large.append(1)
    ino, fh = await create(served, b"a")
    bo = served.names.files[ino].bo
    assert not data.write_at_once(fh, 0, b"grown"), "a BO that grows may have to wait"
    assert await data.write(fh, 0, bytes(2 * LARGE_BYTES)) == 2 * LARGE_BYTES
    assert not large, "it has waited for memory"
    assert data.write_at_once(fh, 5, memoryview(b"bytes"))
    assert bytes(data.read_at_once(fh, 4, 7) or b"") == b"\0bytes\0"
    assert await data.write(fh, 4096, bytes(LARGE_BYTES - 1)) == LARGE_BYTES - 1
    assert not large
    assert await data.write(fh, 4096, bytes(LARGE_BYTES)) == LARGE_BYTES
    assert large
    assert data.read_at_once(fh, 2 * LARGE_BYTES, 1) == b""
    await bo.resv.lock()
    assert data.read_at_once(fh, 0, 1) is None, "somebody works on it"
    bo.resv.unlock()
    assert data.read_at_once(fh + 1, 0, 1) is None
    assert not data.write_at_once(fh + 1, 0, b"x")
    counted = served.counters
    assert (counted.read, counted.write) == (2, 4)


async def test_what_fails_at_once_fails_as_any_other(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataRequests(served)
    _ino, fh = await create(served, b"a")

    def fails(*_: object) -> None:
        raise MemoryError("made to fail")

    monkeypatch.setattr("ttmfs.ttm.access.read_at_once", fails)
    monkeypatch.setattr("ttmfs.ttm.access.write_at_once", fails)
    for request in (lambda: data.read_at_once(fh, 0, 1), lambda: data.write_at_once(fh, 0, b"x")):
        with pytest.raises(pyfuse3.FUSEError) as raised:
            request()
        assert raised.value.errno == errno.EIO
    assert (served.counters.handler_errors, served.counters.write_errors) == (2, 1)
    assert "made to fail" in caplog.text


async def test_before_the_next_answer_and_only_that(served: Served) -> None:
    operations, calls = Operations(served), []
    operations.before_next(lambda: calls.append(len(calls)))
    assert not calls
    for _ in range(2):
        await operations.statfs(ASKED)
        assert calls == [0]


async def test_a_write_that_fails_is_counted_and_told(served: Served) -> None:
    data = DataRequests(served)
    ino, fh = await create(served, b"a")
    assert await errno_of(data.write(fh, 1 << 62, b"x")) == errno.EFBIG
    assert served.counters.write_errors == 1
    assert "WRITE a" in served.tree.runner.error_log.text()
    assert served.names.files[ino].bo.size == 0


async def test_a_traced_read_is_recorded_once_whoever_answers_it(served: Served) -> None:
    operations = Operations(served)
    _ino, fh = await create(served, b"a")
    await operations.write(fh, 0, bytes(8192))
    trace = served.ttm.trace
    trace.start()
    for place in range(2):
        assert bytes(await operations.read(fh, 4096 * place, 4096)) == bytes(4096)
    trace.stop()
    await operations.read(fh, 0, 4096)
    assert trace.text().count(" fault: ") == 2


async def test_a_file_lives_until_its_last_descriptor_and_the_kernel_have_let_go(served: Served) -> None:
    opens = OpenRequests(served)
    names = NameRequests(served, Replies(served), opens)
    ino, fh = await create(served, b"a")
    await names.unlink(await lookup(served, "bo"), b"a", ASKED)
    assert bytes(await DataRequests(served).read(fh, 0, 1)) == b""
    await opens.release(fh)
    assert ino in served.names.files, "an OPEN may be on its way"
    await names.forget([(ino, 1)])
    assert ino not in served.names.files
    assert await errno_of(opens.open(ino, os.O_RDONLY, ASKED)) == errno.ESTALE


async def test_what_was_made_meanwhile_is_looked_up_again_and_nothing_is_opened_at_the_end(served: Served) -> None:
    await create(served, b"a")
    assert await errno_of(create(served, b"a")) == errno.ESTALE
    served.closing = True
    assert await errno_of(create(served, b"b")) == errno.ESHUTDOWN
    assert len(served.names.files) == 1


async def test_truncate_is_applied_at_once_and_what_it_cannot_is_told(served: Served) -> None:
    requests = InodeRequests(served, Replies(served))
    ino, _fh = await create(served, b"a")
    attr, fields = pyfuse3.EntryAttributes(), pyfuse3.SetattrFields()
    wanted: Any = SimpleNamespace(**dict.fromkeys(vars_of(fields), False) | {"update_size": True})
    attr.st_size = 12345
    assert (await requests.setattr(ino, attr, wanted, None, ASKED)).st_size == 12345
    attr.st_size = 1 << 62
    assert await errno_of(requests.setattr(ino, attr, wanted, None, ASKED)) == errno.EFBIG
    assert served.names.files[ino].bo.size == 12345
    assert "SETATTR a" in served.tree.runner.error_log.text()


def vars_of(fields: pyfuse3.SetattrFields) -> list[str]:
    return [name for name in dir(fields) if name.startswith("update_")]


async def test_the_kernel_is_told_when_a_text_has_grown_between_its_getattr_and_its_open(served: Served) -> None:
    requests, opens, told = InodeRequests(served, Replies(served)), OpenRequests(served), []

    async def extend(ino: int, size: int) -> None:
        told.append((ino, size))

    async def sizes(change: Callable[[], object]) -> tuple[int, int, int]:
        """(inode number, st_size before the OPEN, and after it); `change` comes in between."""
        ino = await lookup(served, "objects/a/status")
        before = (await requests.getattr(ino, ASKED)).st_size
        change()
        await opens.open(ino, os.O_RDONLY, ASKED)
        return ino, before, (await requests.getattr(ino, ASKED)).st_size

    served.extend = extend
    file = served.names.files[(await create(served, b"a"))[0]]
    folder = served.names.root
    _ino, before, after = await sizes(lambda: None)
    assert (before, told) == (after, [])
    ino, before, after = await sizes(lambda: served.names.link(file, folder, b"b"))
    assert (before < after, told) == (True, [(ino, after)])
    _ino, before, after = await sizes(lambda: served.names.unlink(folder, b"b"))
    assert (before > after, len(told)) == (True, 1), "its READ says so"


async def test_a_listing_goes_on_behind_what_fitted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = ListRequests(served, Replies(served))
    for name in (b"a", b"b", b"c"):
        await create(served, name)
    told: list[bytes] = []
    room = 3

    def reply(token: Any, name: bytes, attr: pyfuse3.EntryAttributes, number: int) -> bool:
        nonlocal room
        room -= 1
        if room >= 0:
            told.append(name)
            numbers.append(number)
        return room >= 0

    numbers = [0]
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    bo = await lookup(served, "bo")
    fh = await requests.opendir(bo, ASKED)
    await requests.readdir(fh, 0, None)  # type: ignore[arg-type]
    assert told == [b".", b"..", b"a"]
    room = 10
    await requests.readdir(fh, numbers[-1], None)  # type: ignore[arg-type]
    assert told == [b".", b"..", b"a", b"b", b"c"]
    assert await errno_of(requests.opendir(await lookup(served, "bo/a"), ASKED)) == errno.ENOTDIR
    await requests.releasedir(fh)
    assert await errno_of(requests.readdir(fh, 0, None)) == errno.EBADF  # type: ignore[arg-type]


async def test_a_forget_that_fails_ends_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no reply: pyfuse3's loop would end with what is raised (H20). The others of the same message are done."""
    requests = NameRequests(served, Replies(served), OpenRequests(served))
    opens = OpenRequests(served)
    inodes = []
    for name in (b"a", b"b"):
        ino, fh = await create(served, name)
        await requests.unlink(await lookup(served, "bo"), name, ASKED)
        await opens.release(fh)
        inodes.append(ino)
    real = served.names.drop_if_unused

    def drop(file: Any) -> None:
        if file.ino == inodes[0]:
            raise KeyError(file.ino)
        real(file)

    monkeypatch.setattr(served.names, "drop_if_unused", drop)
    await requests.forget([(ino, 1) for ino in inodes])
    assert served.counters.handler_errors == 1
    assert inodes[1] not in served.names.files

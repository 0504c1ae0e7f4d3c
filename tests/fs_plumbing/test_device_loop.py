"""The device loop on a scripted kernel: a pair of sockets that keep messages apart stands for /dev/fuse, and this file
does what the kernel does at one end, and what pyfuse3 does with the session's descriptor at the other.
"""

import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttmfs.fs.kernel import wire
from ttmfs.fs.kernel.device_loop import STREAM_BEGINS, DeviceLoop
from ttmfs.fs.kernel.stand_in import StandIn

MAX_WRITE = 64 << 10
SIZE = 256 << 10
LOOKUP, GETATTR, SETXATTR, INTERRUPT, LSEEK, NOTIFY = 1, 3, 21, 36, 46, 41


class File:
    """Who has the bytes: of handle 1. Handle 2 is what nobody answers at once, handle 3 fails."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)

    def _fails(self, fh: int) -> None:
        if fh == 3:
            raise pyfuse3.FUSEError(errno.EIO)

    def read_at_once(self, fh: int, off: int, size: int) -> memoryview | None:
        self._fails(fh)
        return memoryview(self.bytes)[off : off + size] if fh == 1 else None

    def write_at_once(self, fh: int, off: int, data: Any) -> bool:
        self._fails(fh)
        if fh == 1:
            self.bytes[off : off + len(data)] = data
        return fh == 1

    def before_next(self, call: Callable[[], None]) -> None:
        self.before = call


class Scripted:
    """A session: `kernel` is the kernel's end, `session` the descriptor that libfuse would read."""

    def __init__(self) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.device = device.detach()
        self.session = os.dup(self.device)
        self.file = File()
        self.stand_in = StandIn(self.session, self.device)
        self.sources: list[object] = []
        self.loop = DeviceLoop(self.device, self.stand_in, self.file, MAX_WRITE, self.sources.append)

    def ask(self, request: bytes) -> bool:
        """Send a request, and take it in a stream."""
        self.loop.begin()
        self.kernel.send(request)
        return self.loop.take()

    def answer(self) -> tuple[int, int, bytes] | None:
        """(unique, errno, what else it says) of the next reply."""
        try:
            reply = self.kernel.recv(1 << 20)
        except BlockingIOError:
            return None
        length, error, unique = wire.OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        return unique, -error, reply[wire.OUT_HEADER.size :]

    def handed_over(self) -> bytes:
        """What pyfuse3 reads; it then asks for an answer."""
        request = os.read(self.session, 1 << 20)
        self.file.before()
        assert self.sources[-1] is None, "pyfuse3 reads again"
        assert os.path.sameopenfile(self.session, self.device), "replies go to the kernel"
        assert os.get_blocking(self.device), "pyfuse3 must not find that there is nothing"
        return request

    def close(self) -> None:
        self.stand_in.close()
        self.kernel.close()
        os.close(self.device)
        os.close(self.session)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    session = Scripted()
    yield session
    session.close()


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    length = wire.IN_HEADER.size + len(body)
    return wire.IN_HEADER.pack(length, opcode, unique, 7, 0, 0, 1, 0) + body


def data_request(opcode: int, unique: int, fh: int, off: int, size: int, data: bytes = b"") -> bytes:
    return request(opcode, unique, struct.pack("=QQI20x", fh, off, size) + data)


def read(unique: int, fh: int, off: int, size: int) -> bytes:
    return data_request(wire.READ, unique, fh, off, size)


def write(unique: int, fh: int, off: int, data: bytes) -> bytes:
    return data_request(wire.WRITE, unique, fh, off, len(data), data)


def test_reads_and_writes_are_answered(scripted: Scripted) -> None:
    data = random.Random(1).randbytes(MAX_WRITE)
    assert scripted.ask(write(2, 1, 4096, data)) is False
    assert scripted.answer() == (2, 0, struct.pack("=II", MAX_WRITE, 0))
    assert scripted.loop.linger_s > 0
    assert scripted.ask(read(4, 1, 4095, 4098)) is False
    assert scripted.answer() == (4, 0, b"\0" + data[:4097])
    assert scripted.ask(read(6, 1, SIZE - 5, 4096)) is False
    assert scripted.answer() == (6, 0, bytes(5))
    assert scripted.ask(write(8, 1, 0, b"")) is False
    assert scripted.answer() == (8, 0, bytes(8))
    assert (scripted.loop.linger_s, scripted.loop.statistics.answered) == (0, 4)


@pytest.mark.parametrize(
    "asked",
    [
        read(2, 2, 0, 4096),
        write(2, 2, 0, b"few"),
        write(2, 2, 0, bytes(range(256)) * (MAX_WRITE >> 8)),
        request(LOOKUP, 2, b"name\0"),
        request(GETATTR, 2, bytes(16)),
        request(SETXATTR, 2, random.Random(2).randbytes(MAX_WRITE)),
        request(wire.FORGET, 2, bytes(8)),
        request(wire.BATCH_FORGET, 2, random.Random(3).randbytes(wire.DATA_REQUEST.size - 40 + MAX_WRITE)),
    ],
    ids=lambda asked: f"{wire.IN_HEADER.unpack_from(asked)[1]}-{len(asked)}",
)
def test_what_is_not_answered_is_handed_over_as_it_came(scripted: Scripted, asked: bytes) -> None:
    scripted.ask(read(10, 1, 0, 4096))
    assert scripted.answer() is not None
    assert scripted.ask(asked) is True
    assert scripted.handed_over() == asked
    assert scripted.answer() is None
    assert scripted.loop.statistics.handed_over == 1
    # A short one after a long one.
    assert scripted.ask(request(LOOKUP, 4, b"x\0")) is True
    assert scripted.handed_over() == request(LOOKUP, 4, b"x\0")


def test_what_libfuse_reads_by_splice_is_the_same(scripted: Scripted) -> None:
    asked = write(2, 2, 0, random.Random(4).randbytes(MAX_WRITE - 80))
    assert scripted.ask(asked) is True
    out, into = os.pipe()
    try:
        found = b""
        while len(found) < len(asked):
            found += os.read(out, os.splice(scripted.session, into, 1 << 20))
    finally:
        os.close(out)
        os.close(into)
    assert found == asked


@pytest.mark.parametrize("opcode", [INTERRUPT, LSEEK, NOTIFY, 0, 4096])
def test_what_nobody_knows_is_refused(scripted: Scripted, opcode: int) -> None:
    assert scripted.ask(request(opcode, 3, bytes(8))) is False
    assert scripted.answer() == (3, errno.ENOSYS, b"")
    assert scripted.loop.statistics.refused == 1


@pytest.mark.parametrize("asked", [read(2, 3, 0, 1), write(2, 3, 0, b"x")])
def test_an_error_is_answered_as_one(scripted: Scripted, asked: bytes) -> None:
    assert scripted.ask(asked) is False
    assert scripted.answer() == (2, errno.EIO, b"")


def test_a_request_that_was_withdrawn_is_none(scripted: Scripted) -> None:
    scripted.loop.begin()
    assert scripted.loop.take() is False
    assert scripted.answer() is None


def test_a_stream_begins_after_some_large_writes(scripted: Scripted) -> None:
    for number in range(2):
        for _ in range(STREAM_BEGINS):
            assert len(scripted.sources) == 2 * number
            scripted.loop.large_write()
        assert scripted.sources[-1] is scripted.loop
        assert scripted.ask(request(LOOKUP, 6, b"x\0")) is True
        scripted.handed_over()


def test_a_stream_lasts_until_something_is_handed_over(scripted: Scripted) -> None:
    for number in range(2):
        scripted.loop.begin()
        assert scripted.loop.take() is False
        assert scripted.ask(write(4, 1, 0, b"x" * 4096)) is False
        assert scripted.loop.linger_s > 0
        assert scripted.ask(request(LOOKUP, 6, b"x\0")) is True
        assert scripted.handed_over() == request(LOOKUP, 6, b"x\0")
        assert scripted.loop.linger_s == 0
        assert scripted.loop.statistics.streams == number + 1
        assert scripted.sources == [scripted.loop, None] * (number + 1)


@pytest.mark.parametrize(
    ("number", "pyfuse3_reads"),
    [
        (errno.EAGAIN, False),
        (errno.ENOENT, False),
        (errno.EINTR, False),
        (errno.ENODEV, True),
        (errno.ECONNABORTED, True),
        (errno.EINVAL, True),
    ],
)
def test_errors_of_the_device(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, number: int, pyfuse3_reads: bool
) -> None:
    def readv(*_: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr("ttmfs.fs.kernel.device_loop.os.readv", readv)
    scripted.loop.begin()
    assert scripted.loop.take() is pyfuse3_reads
    assert os.get_blocking(scripted.device) is pyfuse3_reads
    assert os.path.sameopenfile(scripted.session, scripted.device), "it finds the same error"


def test_a_reply_that_nobody_waits_for_any_more(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = iter([errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EINVAL])

    def writev(*_: object) -> int:
        raise OSError(next(numbers), "")

    with monkeypatch.context() as patch:
        patch.setattr("ttmfs.fs.kernel.device_loop.os.writev", writev)
        for _ in range(3):
            assert scripted.ask(read(2, 1, 0, 4096)) is False
        assert not caplog.records
        assert scripted.ask(read(2, 1, 0, 4096)) is False
    assert "not taken" in caplog.text
    assert scripted.ask(read(4, 1, 0, 1)) is False
    assert scripted.answer() == (4, 0, b"\0")


def test_what_libfuse_answers_by_itself_reaches_the_kernel(scripted: Scripted) -> None:
    assert scripted.ask(request(GETATTR, 2, bytes(16))) is True
    os.read(scripted.session, 1 << 20)
    os.write(scripted.session, wire.OUT_HEADER.pack(16, -errno.ENOSYS, 2))
    assert scripted.loop.take() is False
    assert scripted.answer() == (2, errno.ENOSYS, b"")
    assert scripted.sources[-1] is None
    assert os.path.sameopenfile(scripted.session, scripted.device)


def test_without_memory_for_the_stand_in_a_request_fails_and_no_other(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwritev(*_: object) -> int:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch:
        patch.setattr("ttmfs.fs.kernel.stand_in.os.pwritev", pwritev)
        assert scripted.ask(request(LOOKUP, 2, b"x\0")) is False
        assert scripted.answer() == (2, errno.ENOMEM, b"")
        assert scripted.ask(request(wire.FORGET, 4, bytes(8))) is False
        assert scripted.answer() is None, "a FORGET has no answer"
    assert scripted.ask(request(LOOKUP, 6, b"x\0")) is True
    assert scripted.handed_over() == request(LOOKUP, 6, b"x\0")


def test_8192_requests_in_one_pass(scripted: Scripted) -> None:
    for number in range(1, 8193):
        unique = number << 1
        if number % 3:
            assert scripted.ask(write(unique, 1, number % 64 << 12, bytes([number % 251]) * 4096)) is False
            assert scripted.answer() == (unique, 0, struct.pack("=II", 4096, 0))
        else:
            assert scripted.ask(read(unique, 2, number << 12, 4096)) is True
            assert scripted.handed_over() == read(unique, 2, number << 12, 4096)
    assert (scripted.loop.statistics.answered, scripted.loop.statistics.handed_over) == (8192 - 2730, 2730)


OFFSETS = st.integers(0, SIZE - MAX_WRITE)
REQUESTS = st.one_of(
    st.tuples(st.just("read"), st.sampled_from([1, 2]), OFFSETS, st.integers(0, MAX_WRITE)),
    st.tuples(st.just("write"), st.sampled_from([1, 2]), OFFSETS, st.integers(0, 5000) | st.just(MAX_WRITE)),
    st.tuples(st.just("other"), st.sampled_from([LOOKUP, GETATTR, wire.FORGET, LSEEK, INTERRUPT]), OFFSETS, OFFSETS),
)


def message_of(number: int, what: str, which: int, off: int, size: int) -> bytes:
    data = random.Random(number)
    if what == "read":
        return read(number, which, off, size)
    return write(number, which, off, data.randbytes(size)) if what == "write" else request(which, number, b"?" * 77)


@given(st.lists(REQUESTS, max_size=12), st.booleans())
def test_requests_in_any_order(requests: list[tuple[str, int, int, int]], all_at_once: bool) -> None:
    """Sent one by one, or queued before the first is taken: each is answered right, or handed over as it came."""
    scripted, model = Scripted(), bytearray(SIZE)
    asked = [message_of(number, *one) for number, one in enumerate(requests, 1)]
    queued = iter(asked)
    try:
        for number, (what, which, off, size) in enumerate(requests, 1):
            for _ in range(1 if not all_at_once else 2 * (number % 2)):  # a socket has room for two
                if (message := next(queued, None)) is not None:
                    scripted.kernel.send(message)
            scripted.loop.begin()
            if scripted.loop.take():
                assert scripted.handed_over() == asked[number - 1]
                assert which == 2 if what != "other" else which in wire.WITH_HANDLER
                continue
            if what == "read":
                wanted = (number, 0, bytes(model[off : off + size]))
            elif what == "write":
                model[off : off + size] = random.Random(number).randbytes(size)
                wanted = (number, 0, struct.pack("=II", size, 0))
            else:
                wanted = (number, errno.ENOSYS, b"")
            assert scripted.answer() == wanted
        assert scripted.file.bytes == model
    finally:
        scripted.close()

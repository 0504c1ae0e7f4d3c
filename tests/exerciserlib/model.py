"""The model of one file (or region of one) and the journal that lets it survive a SIGKILL.

Promise: after any kill, `Model.recover_state` says for every byte which values are right. Both the bytes and the state
live in side files outside the file system under test, mapped MAP_SHARED, so what the client stored before it was killed
is there for the next one. Before an operation that changes the file its intent is recorded; after it has returned, the
phase says so before the model's bytes change. An operation in flight may have happened or not, byte by byte; a
completed one must be there whole.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

HISTORY = 20
HISTORY_BYTES = 96

# Where each number of the state lives, in 8-byte words. A fixed layout, because a killed client cannot write a summary.
FIELDS = [
    *("op", "size", "phase", "offset", "length", "new_size", "op_started_ns", "max_op_ns", "max_op"),
    *("read_bytes", "written_bytes", "verified_bytes", "op_crc", "recoveries", "history", "errors", "done"),
]
KIND_SLOT = len(FIELDS)
MAX_KINDS = 40
WORDS = KIND_SLOT + MAX_KINDS


class Phase(IntEnum):
    """How far the operation that changes the file has come."""

    NONE = 0
    WRITE = 1  # bytes at offset are being written: each may be old or new
    WRITTEN = 2  # the call returned: all of them are new
    RESIZE = 3  # the size is being changed: it may be old or new
    RESIZED = 4


class MismatchError(AssertionError):
    """The file does not hold what the model says; the message says where and shows both."""


@dataclass(frozen=True)
class SideFiles:
    """Where a client's model, intent and state are kept (outside the mount)."""

    directory: Path
    client: int

    def open(self, name: str, length: int) -> mmap.mmap:
        """Map one side file of `length` bytes, made of zeros the first time."""
        fd = os.open(self.directory / f"client{self.client}.{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size != length:
                os.ftruncate(fd, length)
            return mmap.mmap(fd, length)
        finally:
            os.close(fd)


def _property(name: str) -> property:
    index = FIELDS.index(name)

    def get(self: State) -> int:
        return int(self.words[index])

    def put(self: State, value: int) -> None:
        self.words[index] = value

    return property(get, put)


class State:
    """The numbers of one client, in shared memory: its parent reads them while it runs and after it died."""

    op = _property("op")
    size = _property("size")
    phase = _property("phase")
    offset = _property("offset")
    length = _property("length")
    new_size = _property("new_size")
    op_started_ns = _property("op_started_ns")
    max_op_ns = _property("max_op_ns")
    max_op = _property("max_op")
    read_bytes = _property("read_bytes")
    written_bytes = _property("written_bytes")
    verified_bytes = _property("verified_bytes")
    op_crc = _property("op_crc")
    recoveries = _property("recoveries")
    history = _property("history")
    errors = _property("errors")
    done = _property("done")

    def __init__(self, side: SideFiles) -> None:
        self._map = side.open("state", WORDS * 8 + HISTORY * HISTORY_BYTES)
        self.words = np.frombuffer(self._map, dtype=np.int64, count=WORDS)

    def count_kind(self, index: int) -> None:
        """One more operation of the kind with this index."""
        self.words[KIND_SLOT + index] += 1

    def kind_counts(self, names: list[str]) -> dict[str, int]:
        """Operations done, by name."""
        return {name: int(self.words[KIND_SLOT + i]) for i, name in enumerate(names)}

    def remember(self, text: str) -> None:
        """Add one line to the last HISTORY operations."""
        at = WORDS * 8 + (self.history % HISTORY) * HISTORY_BYTES
        self._map[at : at + HISTORY_BYTES] = text.encode()[:HISTORY_BYTES].ljust(HISTORY_BYTES, b"\0")
        self.history += 1

    def last_operations(self) -> list[str]:
        """The last operations, oldest first; the last line may be of one that did not end."""
        first = max(0, self.history - HISTORY)
        lines = []
        for i in range(first, self.history):
            at = WORDS * 8 + (i % HISTORY) * HISTORY_BYTES
            lines.append(bytes(self._map[at : at + HISTORY_BYTES]).rstrip(b"\0").decode(errors="replace"))
        return lines


class Model:
    """What one client's region of a file must hold: `size` bytes, zeros beyond.

    `capacity` bytes is the most it may grow to. `base` is the region's first byte in the file.
    """

    def __init__(self, side: SideFiles, capacity: int, base: int = 0) -> None:
        self.capacity = capacity
        self.base = base
        self.state = State(side)
        self._bytes_map = side.open("model", capacity)
        self._intent_map = side.open("intent", capacity)
        self.bytes = np.frombuffer(self._bytes_map, dtype=np.uint8)
        self.intent = np.frombuffer(self._intent_map, dtype=np.uint8)

    @property
    def size(self) -> int:
        """Bytes up to the end of the region (the end of the file where the client owns it whole)."""
        return int(self.state.size)

    def expected(self, offset: int, length: int) -> np.ndarray:
        """uint8 view of what a read of `length` bytes at `offset` must return: it ends at the end of the file."""
        return self.bytes[offset : max(offset, min(offset + length, self.size))]

    def begin_write(self, offset: int, data: np.ndarray) -> None:
        """Journal that `data` is about to be written at `offset`."""
        state = self.state
        self.intent[: len(data)] = data
        state.offset, state.length = offset, len(data)
        state.new_size = max(state.size, offset + len(data))
        state.phase = Phase.WRITE

    def begin_resize(self, size: int) -> None:
        """Journal that the size is about to become `size`."""
        self.state.new_size = size
        self.state.phase = Phase.RESIZE

    def commit(self) -> None:
        """The call returned: the model becomes the new state. A kill in the middle is finished by `recover_state`."""
        state = self.state
        if state.phase == Phase.WRITE:
            state.phase = Phase.WRITTEN
        elif state.phase == Phase.RESIZE:
            state.phase = Phase.RESIZED
        self._apply()

    def _apply(self) -> None:
        state = self.state
        if state.phase == Phase.WRITTEN:
            end = state.offset + state.length
            self.bytes[state.offset : end] = self.intent[: state.length]
            state.size = state.new_size
        elif state.phase == Phase.RESIZED:
            if state.new_size < state.size:
                self.bytes[state.new_size : state.size] = 0
            state.size = state.new_size
        state.phase = Phase.NONE

    def recover_state(self) -> Phase:
        """After a kill: finish what had completed, and say what (WRITE, RESIZE or NONE) may have happened or not."""
        if self.state.phase in (Phase.WRITTEN, Phase.RESIZED):
            self._apply()
        return Phase(self.state.phase)

    def check(self, offset: int, got: bytes | memoryview | np.ndarray, expected: np.ndarray, how: str) -> None:
        """Raise MismatchError unless `got` is `expected`, the bytes of the region from `offset` on."""
        have = got if isinstance(got, np.ndarray) else np.frombuffer(got, dtype=np.uint8)
        self.state.read_bytes += len(have)
        if len(have) != len(expected):
            raise MismatchError(
                f"{how} at {self.base + offset}: {len(have)} bytes came, {len(expected)} are there "
                f"(the model's size is {self.size})"
            )
        if have.tobytes() != expected.tobytes():
            raise MismatchError(describe_difference(self.base + offset, have, expected, how))

    def check_allowed(self, offset: int, got: bytes, how: str) -> None:
        """As `check`, for an operation in flight: each byte of it may be old or new (zero where nothing was)."""
        have = np.frombuffer(got, dtype=np.uint8)
        expected = self.bytes[offset : offset + len(have)].copy()
        state = self.state
        if state.phase == Phase.WRITE:
            first, last = max(offset, state.offset), min(offset + len(have), state.offset + state.length)
            if first < last:
                mine = slice(first - offset, last - offset)
                new = self.intent[first - state.offset : last - state.offset]
                expected[mine] = np.where(have[mine] == new, new, expected[mine])
        if not np.array_equal(have, expected):
            raise MismatchError(describe_difference(self.base + offset, have, expected, how))


def describe_difference(at: int, have: np.ndarray, expected: np.ndarray, how: str) -> str:
    """A sentence and two lines of hex about the first differing byte, and how far the difference reaches."""
    wrong = np.flatnonzero(have != expected)
    first = int(wrong[0])
    shown = slice(first, first + 16)
    pages = len(np.unique((wrong + at) >> 12))
    return (
        f"{how}: {len(wrong)} wrong bytes in {pages} pages, first at offset {at + first} "
        f"(page {(at + first) >> 12}), last at {at + int(wrong[-1])}\n"
        f"  expected {expected[shown].tobytes().hex(' ')}\n"
        f"  got      {have[shown].tobytes().hex(' ')}"
        + ("\n  every wrong byte is zero" if not have[wrong].any() else "")
    )


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC, which parent and clients share."""
    return time.monotonic_ns()

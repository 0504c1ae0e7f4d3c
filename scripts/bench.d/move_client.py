"""The client of `scripts/bench move`: move_client.py MNT WHAT SIZE ROUNDS, one JSON line of seconds a round.

A program of its own, so that nothing in the mount can hang the script that reports.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time

import numpy as np

PAGE = 4096


class Bo:
    """A BO and its command files."""

    def __init__(self, mount: str, name: str, size: int) -> None:
        self.path = f"{mount}/bo/{name}"
        self.objects = f"{mount}/objects/{name}"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.fd, size)
        self.size = size

    def command(self, name: str, argument: str) -> None:
        """Give a command; OSError when it fails."""
        fd = os.open(f"{self.objects}/{name}", os.O_WRONLY)
        try:
            os.write(fd, (argument + "\n").encode())
        finally:
            os.close(fd)

    def timed(self, name: str, argument: str = "") -> float:
        """Seconds from the command to the end of its copy."""
        start = time.perf_counter()
        self.command(name, argument)
        self.command("wait", "kernel 60")
        return time.perf_counter() - start

    def fill(self) -> None:
        """Give every page content."""
        block = np.random.default_rng(1).integers(0, 255, 1 << 20, np.uint8).tobytes()
        for offset in range(0, self.size, 1 << 20):
            os.pwrite(self.fd, block, offset)

    def runs(self) -> int:
        """Of how many pieces of memory it is."""
        with open(f"{self.objects}/status.json", encoding="utf-8") as status:
            return int(json.load(status)["runs"])

    def close(self) -> None:
        """Nobody has it open any more."""
        os.close(self.fd)


class Copy:
    """numpy's copy between warm huge pages."""

    def __init__(self, size: int) -> None:
        self.arrays = []
        for _ in range(2):
            memory = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            array = np.frombuffer(memory, np.uint8)
            array = array[-array.ctypes.data % (2 << 20) :][:size]
            array[:] = 1
            self.arrays.append(array)

    def seconds(self) -> float:
        """One copy."""
        start = time.perf_counter()
        np.copyto(self.arrays[0], self.arrays[1])
        return time.perf_counter() - start


def say(**seconds: float) -> None:
    """One round."""
    print(json.dumps(seconds), flush=True)


def moves(bo: Bo, rounds: int) -> None:
    """Evict and validate alternately."""
    copy = Copy(bo.size)
    for number in range(rounds + 1):  # the first one warms up: it touches memory for the first time
        validate = bo.timed("validate", "vram")
        evict = bo.timed("evict")
        if number:
            say(validate=validate, evict=evict, copy=copy.seconds())


def order_9(mount: str, size: int, rounds: int) -> None:
    """One BO of large pages."""
    bo = Bo(mount, "moving", size)
    bo.fill()
    bo.command("unmap", "")
    bo.command("validate", "gtt")
    bo.close()
    moves(bo, rounds)


def alternating(mount: str, name: str, size: int) -> Bo:
    """One of two BOs whose pages alternate; the other one is pinned and keeps its pages. Nobody has them cached."""
    with open(f"{mount}/ctl/config", "w", encoding="utf-8") as config:
        config.write("defrag_interval=1000000\n")  # the worker would bring both together
    bo, other = Bo(mount, name, size), Bo(mount, "other", size)
    for each in (bo, other):
        each.command("prefault", "0")
    page = os.urandom(PAGE)
    for offset in range(0, size, PAGE):
        os.pwrite(bo.fd, page, offset)
        os.pwrite(other.fd, page, offset)
    for each in (bo, other):
        each.command("unmap", "")
        each.close()
    other.command("pin", "")
    scattered(bo)
    return bo


def scattered(bo: Bo) -> None:
    """Is it of single pages, as its row says?"""
    if bo.runs() * 2 < bo.size // PAGE:
        raise SystemExit(f"the BO of {bo.size // PAGE} pages has {bo.runs()} runs: it is not of single pages")


def fragmented(mount: str, size: int, rounds: int) -> None:
    """Two BOs whose pages alternate fill the memory; one of them moves."""
    bo = alternating(mount, "moving", size)
    bo.command("validate", "gtt")
    moves(bo, rounds)
    scattered(bo)


def defrag(mount: str, size: int, rounds: int) -> None:
    """Bring a BO of single pages together, a new one each time."""
    copy = Copy(size)
    for number in range(rounds + 1):  # the first one touches memory for the first time
        bo = alternating(mount, "moving", size)
        before = bo.runs()
        seconds = bo.timed("defrag")
        if bo.runs() * 8 > before:
            raise SystemExit(f"the BO had {before} runs and has {bo.runs()}: it was not brought together")
        if number:
            say(defrag=seconds, copy=copy.seconds())
        for name in ("moving", "other"):
            os.unlink(f"{mount}/bo/{name}")


def unmap(mount: str, size: int, rounds: int) -> None:
    """A mapping of which every page is dirty."""
    bo = Bo(mount, "dirty", size)
    bo.fill()
    with mmap.mmap(bo.fd, size) as mapping:
        array = np.frombuffer(mapping, np.uint8)
        for number in range(rounds):
            array[:] = number
            start = time.perf_counter()
            bo.command("unmap", "")
            say(unmap=time.perf_counter() - start)
        del array
    bo.close()
    os.unlink(bo.path)


def fill(mount: str, size: int) -> None:
    """The BO that is faulted, in vram, and the one that moves."""
    for name, place in (("moving", "vram:contiguous"), ("mover", "gtt")):
        bo = Bo(mount, name, size)
        bo.fill()
        bo.command("unmap", "")
        bo.command("validate", place)
        bo.command("wait", "kernel 60")
        bo.close()


def mover(mount: str, size: int) -> None:
    """Move a BO there and back until stdin is closed."""
    bo = Bo(mount, "mover", size)
    while not select.select([0], [], [], 0)[0]:
        bo.timed("validate", "vram")
        say()
        bo.timed("evict")
    bo.close()


def main() -> None:
    """Dispatch."""
    mount, what, size, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if what == "order-9":
        order_9(mount, size, rounds)
    elif what == "fragmented":
        fragmented(mount, size, rounds)
    elif what == "defrag":
        defrag(mount, size, rounds)
    elif what == "unmap":
        unmap(mount, size, rounds)
    elif what == "fill":
        fill(mount, size)
    else:
        mover(mount, size)


if __name__ == "__main__":
    main()

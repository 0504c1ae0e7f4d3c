"""The client of `scripts/bench svm`: svm_client.py MNT WHAT SIZE ROUNDS, one JSON line of seconds a round.

A program of its own, so that nothing in the mount can hang the script that reports.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time

import numpy as np

PAGE = 4096
LINES = 2048
"""Commands in one write: a write takes 64 KiB."""


class Space:
    """An address space that is mapped, and its command files."""

    def __init__(self, mount: str, name: str, size: int) -> None:
        self.mount, self.name, self.size = mount, name, size
        self.path = f"{mount}/svm/{name}"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.fd, size)

    def command(self, name: str, argument: str) -> list[dict[str, int]]:
        """Give a command and read what it says; OSError when it fails."""
        fd = os.open(f"{self.mount}/svm_objects/{self.name}/{name}", os.O_RDWR)
        try:
            os.write(fd, (argument + "\n").encode())
            out = b""
            while piece := os.read(fd, 1 << 20):
                out += piece
            return [json.loads(line) for line in out.splitlines()]
        finally:
            os.close(fd)

    def timed(self, name: str, argument: str) -> float:
        """Seconds that a command takes."""
        start = time.perf_counter()
        self.command(name, argument)
        return time.perf_counter() - start

    def unlink(self) -> None:
        """Gone."""
        os.close(self.fd)
        os.unlink(self.path)


def say(**values: float) -> None:
    """One round."""
    print(json.dumps(values), flush=True)


def touch(fd: int, size: int) -> float:
    """Seconds to read one byte of each page through a new mapping."""
    with mmap.mmap(fd, size) as area:
        area.madvise(mmap.MADV_RANDOM)
        start = time.perf_counter()
        for offset in range(0, size, PAGE):
            area[offset]
        return time.perf_counter() - start


def faults(mount: str, size: int, rounds: int) -> None:
    """One fault for each page: of a new space, of a BO, of a space that is in vram; one access each by the device."""
    bo = os.open(f"{mount}/bo/reference", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(bo, size)
    for start in range(0, size, 1 << 20):
        os.pwrite(bo, b"b" * (1 << 20), start)
    for number in range(rounds + 1):
        space = Space(mount, "faults", size)
        fresh = touch(space.fd, size)
        unmap = os.open(f"{mount}/objects/reference/unmap", os.O_WRONLY)
        os.write(unmap, b"\n")
        os.close(unmap)
        reference = touch(bo, size)
        begin, device_faults = time.perf_counter(), 0
        for first in range(0, size, LINES * PAGE):
            lines = "\n".join(f"write {first + n * PAGE} 01" for n in range(LINES))
            device_faults += sum(result.get("faults", 0) for result in space.command("gpu", lines))
        device = time.perf_counter() - begin
        back = touch(space.fd, size)
        space.unlink()
        if number:
            say(fresh=fresh, bo=reference, back=back, device=device, device_faults=device_faults)


def migration(mount: str, size: int, rounds: int) -> None:
    """A space whose pages all have memory, to vram and back; a plain copy of as many bytes between warm huge pages."""
    arrays = []
    for _ in range(2):
        memory = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        array = np.frombuffer(memory, np.uint8)
        array = array[-array.ctypes.data % (2 << 20) :][:size]
        array[:] = 1
        arrays.append(array)
    space = Space(mount, "moving", size)
    block = os.urandom(1 << 20)
    for start in range(0, size, 1 << 20):
        os.pwrite(space.fd, block[: size - start], start)
    for number in range(rounds + 1):  # the first one warms up: it touches memory for the first time
        there = space.timed("prefetch", f"0 {size} vram")
        back = space.timed("prefetch", f"0 {size} system")
        begun = time.perf_counter()
        np.copyto(arrays[0], arrays[1])
        if number:
            say(there=there, back=back, copy=time.perf_counter() - begun)
    assert os.pread(space.fd, 100, 0) == block[:100]
    space.unlink()


def main() -> None:
    """Dispatch."""
    mount, what, size, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    {"faults": faults, "migration": migration}[what](mount, size, rounds)


if __name__ == "__main__":
    main()

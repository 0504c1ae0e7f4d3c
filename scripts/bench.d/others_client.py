"""The client of `scripts/bench others`: others_client.py MNT WHAT BOS ROUNDS, one JSON line of milliseconds a round.

It gives the commands; a child of it reads a text file and faults a page of a BO of its own all the time, and says what
the longest of that took while a command ran.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

PAGE = 4096
PAUSE = 0.001
"""Seconds between two looks."""
AT_ONCE = 400
"""BOs that one line names."""
LINES = 60_000
"""Bytes of lines in one write."""
JOBS = 4000
TEXTS = ("stats", "metrics", "debug/gem_info", "regions/vram/lru", "regions/vram/map", "regions/system/map")


def probe(mount: str, asked: int, told: int) -> None:
    """Look until nobody asks any more; a line of the longest look, in milliseconds, whenever a byte is `asked`."""
    text = os.open(f"{mount}/mem_info_vram_used", os.O_RDONLY)
    bo = os.open(f"{mount}/bo/probe", os.O_RDONLY)
    worst = 0.0
    while True:
        begun = time.perf_counter()
        os.pread(text, 64, 0)
        os.posix_fadvise(bo, 0, PAGE, os.POSIX_FADV_DONTNEED)
        os.pread(bo, PAGE, 0)
        worst = max(worst, time.perf_counter() - begun)
        if select.select([asked], [], [], PAUSE)[0]:
            if not os.read(asked, 1):
                return
            os.write(told, b"%.3f\n" % (worst * 1e3))
            worst = 0.0


class Probe:
    """The child."""

    def __init__(self, mount: str) -> None:
        asked, self._ask = os.pipe()
        self._tell, told = os.pipe()
        if not os.fork():
            os.close(self._ask)
            probe(mount, asked, told)
            os._exit(0)
        os.close(asked)
        os.close(told)
        self.longest()

    def longest(self) -> float:
        """Milliseconds of its longest look since this was last asked."""
        os.write(self._ask, b"?")
        return float(os.read(self._tell, 64))


class Commands:
    """What is done on a device of many BOs, `b0` and so on, one page each."""

    def __init__(self, mount: str, bos: int) -> None:
        self.mount = mount
        self.bos = bos

    def write(self, name: str, *lines: str) -> None:
        """Give commands, as many in one write as may be."""
        fd = os.open(f"{self.mount}/{name}", os.O_WRONLY)
        try:
            data = b""
            for line in lines:
                if len(data) + len(line) > LINES:
                    os.write(fd, data)
                    data = b""
                data += line.encode() + b"\n"
            os.write(fd, data)
        finally:
            os.close(fd)

    def read(self, name: str) -> None:
        """All of a text."""
        with open(f"{self.mount}/{name}", "rb") as file:
            while file.read(1 << 20):
                pass

    def read_clients(self) -> None:
        """What each of them has."""
        for name in os.listdir(f"{self.mount}/clients"):
            self.read(f"clients/{name}")

    def make(self) -> None:
        """The BOs."""
        for name in ("probe", *(f"b{number}" for number in range(self.bos))):
            fd = os.open(f"{self.mount}/bo/{name}", os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(fd, b"x" * PAGE, 0)
            os.close(fd)

    def unlink(self) -> None:
        """All but the one of the probe."""
        for number in range(self.bos):
            os.unlink(f"{self.mount}/bo/b{number}")

    def look(self, folder: str) -> None:
        """`ls -l`."""
        for entry in os.scandir(f"{self.mount}/{folder}"):
            entry.stat(follow_symlinks=False)

    def validate(self, place: str) -> None:
        """All, 400 a line, as many lines as a write takes."""
        parts = (range(first, min(first + AT_ONCE, self.bos)) for first in range(0, self.bos, AT_ONCE))
        self.write("ctl/validate", *(",".join(f"b{number}" for number in part) + f" {place}" for part in parts))

    def queue(self) -> None:
        """Jobs that wait for one that takes its time."""
        fill = "fill dst=b0 value=1 queue=many"
        self.write("ctl/submit", "busy seconds=5 bo=b0 queue=many", *[fill] * min(JOBS, self.bos))

    def work_off(self) -> None:
        """Until they have ended."""
        self.write("objects/b0/wait", "bookkeep 60")

    def all(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """(name, what it does), in the order in which it has most to do."""
        yield "nothing", lambda: time.sleep(1)
        yield "create, write", self.make
        yield "ls -l bo", lambda: self.look("bo")
        yield "ls -l objects", lambda: self.look("objects")
        yield "validate vram, by 400", lambda: self.validate("vram")
        for name in TEXTS:
            yield f"read {name}", partial(self.read, name)
        yield "read clients/*", self.read_clients
        yield "selfcheck, in vram", lambda: self.read("ctl/selfcheck")
        yield "defrag all", lambda: self.write("ctl/defrag", "all")
        yield "suspend", lambda: self.write("ctl/suspend", "")
        yield "resume", lambda: self.write("ctl/resume", "")
        yield "evict vram", lambda: self.write("ctl/evict", "vram")
        yield "selfcheck, in gtt", lambda: self.read("ctl/selfcheck")
        yield "evict gtt", lambda: self.write("ctl/evict", "gtt")
        yield "swapout all", lambda: self.write("ctl/swapout", "all")
        yield "selfcheck, in the store", lambda: self.read("ctl/selfcheck")
        yield "validate gtt, from the store", lambda: self.validate("gtt")
        yield "shrink all", lambda: self.write("ctl/shrink", "all")
        yield f"submit {min(JOBS, self.bos)} jobs", self.queue
        yield "read fences/pending", lambda: self.read("fences/pending")
        yield "these jobs", self.work_off
        yield "read trace", lambda: self.read("trace")
        yield "unlink", self.unlink


def main() -> None:
    """See the module."""
    mount, _what, bos, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    commands = Commands(mount, bos)
    os.close(os.open(f"{mount}/bo/probe", os.O_RDWR | os.O_CREAT, 0o644))
    commands.write("ctl/trace", "all")
    others = Probe(mount)
    for _ in range(rounds):
        found = {}
        for name, does in commands.all():
            others.longest()
            does()
            found[name] = others.longest()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

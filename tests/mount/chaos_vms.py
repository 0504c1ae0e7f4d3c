"""A VM in the chaos of a mount: jobs at its addresses over local BOs, another BO and a file elsewhere, each byte known.

The pieces lie beside each other, so that a job touches several; they are moved, evicted and swapped by others all the
while, and bound anew by this one. A call that fails leaves what it touched unknown: that is written again.
"""

import errno
import random
import zlib

from tests.mount.chaos_run import Run
from tests.mount.mount_harness import ClientError

PIECE = 1 << 20
"""Bytes of each piece."""
BASE = 1 << 30
LOCAL = ("v0", "v1")
FOREIGN = "v2"
"""A BO that is local to no VM."""
_REFUSED = ("EBUSY", "ENOMEM", "ENOSPC", "ETIME")
_FAILED = ("EIO", "EINTR")


class VmActor:
    """One client and one VM until the run is over."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run = run
        self.rng = random.Random(f"vms {seed}")
        self.client = run.client()
        self.file = run.folder / "foreign"
        self.pieces = (*LOCAL, FOREIGN, str(self.file))
        self.model = bytearray(PIECE * len(self.pieces))

    def act(self) -> None:
        """Whatever it finds is an AssertionError; calls that others made impossible are counted."""
        self._begin()
        deeds = (self._fill, self._fill, self._write, self._checksum, self._checksum, self._client, self._bind)
        while self.run.going_on():
            deed = self.rng.choice(deeds)
            try:
                deed()
            except ClientError as error:
                self._allow(error)
            else:
                self.run.count(f"vms {deed.__name__.strip('_')}")

    def _allow(self, error: ClientError) -> None:
        name = errno.errorcode.get(error.errno or 0, "?")
        if name not in (*_REFUSED, *(_FAILED if self.run.inject else ())):
            raise error
        self.run.count(f"vms {name}")

    def _begin(self) -> None:
        self.client.do("os.mkdir(path('vm/chaos'))")
        self.file.write_bytes(bytes(PIECE))
        for name in (*LOCAL, FOREIGN):
            self.client.do(f"os.close(opened('bo/{name}', os.O_CREAT | os.O_RDWR))")
            if name in LOCAL:
                self._command(f"objects/{name}/vm", "chaos")
            self._again(f"make('bo/{name}', {PIECE}, 0)")
        for index in range(len(self.pieces)):
            self._bind_piece(index)

    def _again(self, code: str) -> None:
        """Until it is done: what is unknown is made known."""
        for _ in range(200):
            try:
                self.client.do(code, 40)
            except ClientError as error:
                self._allow(error)
                continue
            return
        raise AssertionError(f"never done: {code}")

    def _command(self, name: str, words: str) -> dict[str, object]:
        code, lines = self.client.do(f"transact({name!r}, {words!r})", 70)
        if code:
            raise ClientError(code, f"{name} {words}: {lines}")
        last: dict[str, object] = lines[-1]
        return last

    def _bind_piece(self, index: int) -> None:
        command = "userptr" if index == len(self.pieces) - 1 else "bind"
        words = f"{BASE + index * PIECE} {self.pieces[index]} 0 {PIECE}"
        self._again(f"e = command('vm/chaos/{command}', {words!r})\nif e: raise OSError(e, '')")

    def _range(self) -> tuple[int, int]:
        start = self.rng.randrange(len(self.model))
        return start, self.rng.randrange(1, min(self.rng.choice((4096, 2 * PIECE)), len(self.model) - start) + 1)

    def _exec(self, words: str, start: int, data: bytes = b"") -> dict[str, object]:
        """A job that leaves `data` at `start`."""
        queue = self.rng.choice(("", "queue=render ", "queue=copy "))
        try:
            result = self._command("vm/chaos/exec", queue + words)
        except ClientError:
            if data:
                self._put(start, data)  # done or not, or a part of it
            raise
        self.model[start : start + len(data)] = data
        return result

    def _put(self, start: int, data: bytes) -> None:
        """Have a client write it, and know it."""
        done = 0
        while done < len(data):
            index, offset = divmod(start + done, PIECE)
            part = data[done : done + PIECE - offset]
            name = self.pieces[index]
            where = repr(name) if name.startswith("/") else f"path('bo/{name}')"
            self._again(
                f"fd = os.open({where}, os.O_RDWR)\n"
                f"try: done = os.pwrite(fd, zlib.decompress({zlib.compress(part)!r}), {offset})\n"
                "finally: os.close(fd)\n"
                # Where a READ in the midst of it fails, a part was written.
                f"if done != {len(part)}: raise OSError(errno.EIO, '')"
            )
            done += len(part)
        self.model[start : start + len(data)] = data

    def _fill(self) -> None:
        start, size = self._range()
        byte = self.rng.randrange(256)
        self._exec(f"fill {BASE + start} {size} {byte}", start, bytes([byte]) * size)

    def _write(self) -> None:
        start, size = self._range()
        data = self.rng.randbytes(min(size, 4096))
        self._exec(f"write {BASE + start} {data.hex()}", start, data)

    def _checksum(self) -> None:
        start, size = self._range()
        value = self._exec(f"checksum {BASE + start} {size}", start)["value"]
        assert value == zlib.crc32(self.model[start : start + size]), f"a job finds wrong bytes at {start}+{size}"

    def _client(self) -> None:
        """Clients see what jobs wrote, and jobs what they write."""
        index = self.rng.randrange(len(self.pieces))
        name = self.pieces[index]
        where = repr(name) if name.startswith("/") else f"path('bo/{name}')"
        got, right = self.client.do(f"open({where}, 'rb').read()", 40), self.model[index * PIECE : (index + 1) * PIECE]
        assert got == right, f"a client reads wrong bytes of {name}"
        self._put(index * PIECE + self.rng.randrange(PIECE - 4096), self.rng.randbytes(4096))

    def _bind(self) -> None:
        """A part of a piece is bound anew; between the two nothing is there."""
        index = self.rng.randrange(len(self.pieces))
        at = BASE + index * PIECE + self.rng.randrange(PIECE // 4096) * 4096
        self._command("vm/chaos/unbind", f"{at} 4096")
        code, _ = self.client.do(f"transact('vm/chaos/exec', 'read {at} 1')", 70)
        # All of the piece, or it would be in more and more mappings.
        self._bind_piece(index)
        assert code == errno.EFAULT, f"a job touches what is unbound: {code}"
        self._command("vm/chaos/allow_res_evict", self.rng.choice("01"))

"""Jobs in the chaos of a mount: on three BOs one after another, each result compared by the device and by a client."""

import errno
import random
import zlib

from tests.mount.chaos_run import MAY_FAIL, Run
from tests.mount.mount_harness import MIB, ClientError

JOB_BYTES = 1 * MIB


class JobActor:
    """One client until the run is over."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run = run
        self.rng = random.Random(f"jobs {seed}")
        self.client = run.client()

    def act(self) -> None:
        """Until the run is over; whatever it finds is raised."""
        rng = self.rng
        names = ("j0", "j1", "j2")
        model = dict.fromkeys(names, b"")
        for name in names:
            model[name] = self._fill(name, rng.randrange(256))
        while self.run.going_on():
            dst, src = rng.sample(names, 2)
            what = rng.choice(("fill", "copy", "xor", "checksum", "read", "pwrite"))
            offset = rng.randrange(JOB_BYTES // 4096) * 4096
            size = rng.randrange(1, (JOB_BYTES - offset) // 4096 + 1) * 4096
            where = f"offset={offset} bytes={size}"
            old = model[dst]
            try:
                if what == "fill":
                    byte = rng.randrange(256)
                    new = bytes([byte]) * size
                    self._submit(f"fill dst={dst} value={byte} {where}")
                elif what == "copy":
                    new = model[src][offset : offset + size]
                    self._submit(f"copy src={src} dst={dst} {where}")
                elif what == "xor":
                    number = int.from_bytes(old[offset : offset + size], "little")
                    number ^= int.from_bytes(model[src][offset : offset + size], "little")
                    new = number.to_bytes(size, "little")
                    self._submit(f"xor src={src} dst={dst} {where} dtype=u8")
                elif what == "pwrite":
                    new = rng.randbytes(64) * (size // 64)
                    data = f"{new[:64]!r} * {size // 64}"
                    self.client.do(
                        f"fd = opened('bo/{dst}'); done = os.pwrite(fd, {data}, {offset}); os.close(fd)\n"
                        f"if done != {len(new)}: raise OSError(errno.EIO, '')",
                        40,
                    )
                elif what == "checksum":
                    new = old[offset : offset + size]
                    value = self._submit(f"checksum src={dst} {where}")
                    assert value == zlib.crc32(new), f"checksum of {dst} {where}: the device sees wrong bytes"
                else:
                    new = old[offset : offset + size]
                    got = self.client.do(
                        f"zlib.crc32(open(path('bo/{dst}'), 'rb').read()[{offset}:{offset + size}])", 40
                    )
                    assert got == zlib.crc32(new), f"{dst} {where}: a client reads wrong bytes"
                self.run.count(f"jobs {what}")
            except (ClientError, TimeoutError) as error:
                name = errno.errorcode.get(error.errno or 0, "?")
                if name not in ("EBUSY", "ENOMEM", "ENOSPC", "ETIME", *(("EIO", "EINTR") if self.run.inject else ())):
                    raise
                self.run.count(f"jobs {name}")
                # Done or not, or a part of it: make it known again.
                model[dst] = self._fill(dst, rng.randrange(256))
                continue
            model[dst] = old[:offset] + new + old[offset + size :]

    def _fill(self, name: str, byte: int) -> bytes:
        for _ in range(200):
            try:
                self.client.do(f"make('bo/{name}', {JOB_BYTES}, {byte})", 40)
            except ClientError as error:
                if not self.run.inject or errno.errorcode[error.errno or 0] not in MAY_FAIL:
                    raise
                continue
            return bytes([byte]) * JOB_BYTES
        raise AssertionError(f"{name} cannot be written")

    def _submit(self, text: str) -> int | None:
        code, lines = self.client.do(f"transact('ctl/submit', {text + ' wait'!r})", 70)
        if code:
            raise ClientError(code, str(lines))
        value: int | None = lines[-1].get("value")
        return value

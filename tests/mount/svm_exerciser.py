"""An exerciser of address spaces: processes that map and store, a device that writes, adds and sums, a storm around.

    svm_exerciser.py [--seed N] [--seconds S | --rounds N] [--scarce]

One space of 9/8 of VRAM, ordinary BOs of half of VRAM; with --scarce both are more than memory. A round deals the pages
out: some to the device, the others to the clients (the page is the unit of coherence between them), lets everybody work
at the same time while ranges are prefetched, BOs are validated and memory is shrunk, and then compares every word that
anybody was given with a model, by whom else than who wrote it. All of it follows from the seed; a failure names the
seed and the round.
"""

import argparse
import itertools
import random
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mount.mount_harness import MIB, PAGE, Client, Device

VRAM = 16 * MIB
SIZE = VRAM * 9 // 8
OPTIONS = ("--vram", "16M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")
SCARCE = ("--vram", "8M", "--gtt", "16M", "--memory", "16M", "--swap", "128M", "--fault-timeout", "20")
"""The space is larger than memory: what nobody uses is in the store."""
NUM_CLIENTS = 3
BOS = ("left", "right")
BO_SIZE = VRAM // 4
WORDS = PAGE // 8
STORM_MAY_FAIL = {"ENODATA", "ENOMEM", "EBUSY"}
OPEN = f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}, advice=mmap.MADV_NORMAL); w = memoryview(m).cast('Q')"
STORE = (
    "def store(pairs):\n"
    "    for at, value in pairs: w[at] = value\n"
    "    return [at for at, value in pairs if w[at] != value]\n"
)


def _by_file(lines: list[str]) -> list[tuple[str, str]]:
    """(file, text) of consecutive lines of a kind: what writes goes into gpu, what reads into gpu_read."""
    found: list[tuple[str, str]] = []
    for reads, group in itertools.groupby(lines, lambda line: line.startswith(("read", "checksum"))):
        name = "gpu_read" if reads else "gpu"
        found.append((f"svm_objects/heap/{name}", "\n".join(group) + "\n"))
    return found


DEVICE_DOES = (
    "def device_does(writes):\n"
    "    results = []\n"
    "    for name, text in writes:\n"
    "        code, more = transact(name, text)\n"
    "        results += more\n"
    "        if code: return [code, results]\n"
    "    return [0, results]"
)
"""For a client: give lines to the device one after another, as one write would."""


class Exerciser:
    """One run on one device."""

    def __init__(self, device: Device, seed: int) -> None:
        self.device = device
        self.seed = seed
        self.round = 0
        self.model = np.zeros(SIZE // 8, np.uint64)
        self.bos = {name: bytes([number + 1]) * BO_SIZE for number, name in enumerate(BOS)}
        self.counts: dict[str, int] = {}
        device.shell.do(f"make('svm/heap', {SIZE})")
        for number, name in enumerate(BOS):
            device.make(name, BO_SIZE, number + 1)
        self.clients = [self._client() for _ in range(NUM_CLIENTS)]
        self.gpus = [device.client(DEVICE_DOES) for _ in range(2)]
        self.storm = device.client()

    def _client(self) -> Client:
        client = self.device.client(OPEN)
        client.do(STORE)
        return client

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            error.add_note(f"svm exerciser: --seed {self.seed}, in round {self.round}")
            print(f"\nsvm exerciser failed: --seed {self.seed}, in round {self.round}", file=sys.stderr)
            raise

    def run(self, *, seconds: float = 0.0, rounds: int = 0) -> dict[str, int]:
        """Rounds until the time is up, and at least so many. What was done, by name."""
        end = time.monotonic() + seconds
        with self._named():
            while self.round < rounds or time.monotonic() < end:
                self._one_round(random.Random(f"{self.seed} {self.round}"))
                self.round += 1
            self._everything()
        return self.counts

    def _count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

    # -- a round -------------------------------------------------------------------------------------------------------

    def _one_round(self, rng: random.Random) -> None:
        if rng.random() < 0.3:
            self._unmap(rng)
        if rng.random() < 0.2:
            self._kill(rng)
        regions = self._regions(rng)
        gpu_pages = {page for first, count in regions for page in range(first, first + count)}
        expected = [self._gpu_plan(rng, regions[number::2]) for number in range(2)]
        stores = [self._stores(rng, gpu_pages, number) for number in range(NUM_CLIENTS)]
        storm = self._storm_plan(rng)
        for client, pairs in zip(self.clients, stores, strict=True):
            client.begin(f"store({pairs!r})")
        for gpu, (lines, _) in zip(self.gpus, expected, strict=True):
            gpu.begin(f"device_does({_by_file(lines)!r})")
        self.storm.begin(f"[[name, text, command(name, text)] for name, text in {storm!r}]")
        for client in self.clients:
            assert client.result(30) == [], "a client does not see its own stores"
        for gpu, (lines, values) in zip(self.gpus, expected, strict=True):
            self._check_results(gpu.result(30), lines, values)
        self._check_storm(self.storm.result(30))
        self._compare(rng, regions, stores)
        if rng.random() < 0.06:
            self._everything()

    def _regions(self, rng: random.Random) -> list[tuple[int, int]]:
        """Page ranges for the device, disjoint."""
        found: list[tuple[int, int]] = []
        for _ in range(rng.randint(2, 6)):
            count = rng.choice((1, 1, 3, 16, 17, 200, 512, 700))
            first = rng.randrange(SIZE // PAGE - count)
            if rng.random() < 0.3:
                first &= ~511
            if all(first + count <= other or other + length <= first for other, length in found):
                found.append((first, count))
        return found

    def _stores(self, rng: random.Random, gpu_pages: set[int], number: int) -> list[tuple[int, int]]:
        """(word, value) of one client: in pages that are its own, some of them close together."""
        pairs: dict[int, int] = {}
        base = rng.randrange(SIZE // PAGE)
        for _ in range(rng.randint(20, 150)):
            near = rng.random() < 0.7
            page = (base + rng.randrange(300)) % (SIZE // PAGE) if near else rng.randrange(SIZE // PAGE)
            if page % NUM_CLIENTS == number and page not in gpu_pages:
                pairs[page * WORDS + rng.randrange(WORDS)] = rng.getrandbits(64)
        for at, value in pairs.items():
            self.model[at] = value
        self._count("stores", len(pairs))
        return list(pairs.items())

    def _gpu_plan(
        self, rng: random.Random, regions: list[tuple[int, int]]
    ) -> tuple[list[str], list[tuple[str, Any] | None]]:
        """Lines for the gpu file and what their results must hold; applied to the model in the same order."""
        lines: list[str] = []
        values: list[tuple[str, Any] | None] = []
        view = self.model.view(np.uint8)
        for first, count in regions:
            for _ in range(rng.randint(1, 3)):
                start = first * PAGE + rng.randrange(count * PAGE)
                length = rng.randint(1, first * PAGE + count * PAGE - start)
                what = rng.choice(("fill", "write", "atomic_add", "checksum", "read"))
                nowait = rng.choice(("", " nowait"))
                self._count(what)
                value: tuple[str, Any] | None = None
                if what == "fill":
                    byte = rng.randrange(256)
                    view[start : start + length] = byte
                    lines.append(f"fill {start} {length} {byte}{nowait}")
                elif what == "write":
                    data = rng.randbytes(min(length, 64))
                    view[start : start + len(data)] = np.frombuffer(data, np.uint8)
                    lines.append(f"write {start} {data.hex()}{nowait}")
                elif what == "atomic_add":
                    word = first * WORDS + rng.randrange(count * WORDS)
                    old, more = int(self.model[word]), rng.getrandbits(40)
                    self.model[word] = (old + more) % 2**64
                    lines.append(f"atomic_add {word * 8} {more}{nowait}")
                    value = None if nowait else ("value", old)
                elif what == "checksum":
                    lines.append(f"checksum {start} {length}")
                    value = ("value", zlib.crc32(view[start : start + length].data))
                else:
                    lines.append(f"read {start} {min(length, 64)}")
                    value = ("data", view[start : start + min(length, 64)].tobytes().hex())
                values.append(value)
        # Nothing is left running: a checksum waits, and jobs of one engine run in order.
        lines.append("read 0 1")
        values.append(None)
        return lines, values

    def _check_results(self, answer: Any, lines: list[str], values: list[tuple[str, Any] | None]) -> None:
        code, results = answer
        assert code == 0, (lines[len(results) - 1], results[-1])
        for line, value, result in zip(lines, values, results, strict=True):
            if value is not None:
                assert result[value[0]] == value[1], f"{line}: {result}"
            if line.endswith("nowait"):
                assert self.device.command("ctl/wait", f"{result['fence']} 20", 25) == "ok", line

    def _storm_plan(self, rng: random.Random) -> list[tuple[str, str]]:
        plan = []
        for _ in range(rng.randint(0, 6)):
            first = rng.randrange(SIZE // PAGE)
            count = rng.choice((1, 100, 512, 1024, 3000, SIZE // PAGE))
            first = min(first, SIZE // PAGE - count)
            where = f"{first * PAGE} {count * PAGE}"
            plan.append(
                rng.choice(
                    (
                        ("svm_objects/heap/prefetch", f"{where} {rng.choice(('vram', 'system', 'preferred'))}"),
                        ("svm_objects/heap/prefetch", f"{where} vram"),
                        ("svm_objects/heap/prefetch", f"{where} vram"),
                        ("svm_objects/heap/madvise", f"{where} preferred={rng.choice(('vram', 'system', 'fault'))}"),
                        (f"objects/{rng.choice(BOS)}/validate", "vram gtt"),
                        (f"objects/{rng.choice(BOS)}/validate", "vram"),
                        ("ctl/validate", "left,right vram"),
                        (f"objects/{rng.choice(BOS)}/validate", rng.choice(("system", "gtt"))),
                        ("ctl/evict", "vram 2M"),
                        ("ctl/shrink", rng.choice(("1M", "4M", "all"))),
                        ("ctl/config", f"svm_migrate={rng.choice(('once', 'always', 'never'))}"),
                    )
                )
            )
        self._count("storm", len(plan))
        return plan

    def _check_storm(self, answers: list[list[Any]]) -> None:
        import errno  # noqa: PLC0415

        for name, text, code in answers:
            assert not code or errno.errorcode[code] in STORM_MAY_FAIL, (name, text, errno.errorcode[code])
            self._count("storm failures", bool(code))

    # -- barriers ------------------------------------------------------------------------------------------------------

    def _compare(
        self, rng: random.Random, regions: list[tuple[int, int]], stores: list[list[tuple[int, int]]]
    ) -> None:
        """What clients stored by the device and by another client, what the device did by a client."""
        for number, pairs in enumerate(stores):
            words = [at for at, _ in pairs]
            other = self.clients[(number + 1) % NUM_CLIENTS]
            self._compare_words(other.do(f"[w[at] for at in {words!r}]", 30), words, "a client")
            lines = [f"read {at * 8} 8" for at in rng.sample(words, min(6, len(words)))]
            if lines:
                code, results = self.device.transact("svm_objects/heap/gpu_read", "\n".join(lines), 30)
                assert code == "ok", results
                for line, result in zip(lines, results, strict=True):
                    at = int(line.split()[1]) // 8
                    found = int.from_bytes(bytes.fromhex(result["data"]), "little")
                    self._compare_words([found], [at], "the device")
        for first, count in regions:
            words = [first * WORDS, *(first * WORDS + rng.randrange(count * WORDS) for _ in range(20))]
            found = rng.choice(self.clients).do(f"[w[at] for at in {words!r}]", 30)
            self._compare_words(found, words, "a client")

    def _compare_words(self, found: list[int], words: list[int], who: str) -> None:
        wrong = [
            f"{at * 8:#x}: {value:#x} is not {int(self.model[at]):#x}"
            for at, value in zip(words, found, strict=True)
            if value != int(self.model[at])
        ]
        assert not wrong, f"{who} sees {len(wrong)} wrong words: {wrong[:5]}"

    def _everything(self) -> None:
        """Every word of the space, by the device and then by a client; every byte of the BOs."""
        self._count("full comparisons")
        _, results = self.device.transact("svm_objects/heap/gpu_read", f"checksum 0 {SIZE}", 60)
        if results[0].get("value") != zlib.crc32(self.model.view(np.uint8).data):
            self._find_wrong(f"the device's checksum is wrong: {results}")
        if self.clients[0].do("digest(m)", 60) != self.clients[0].do(_digest_of(self.model), 60):
            self._find_wrong("a client sees wrong bytes")
        for name, content in self.bos.items():
            assert self.device.shell.do(f"open(path('bo/{name}'), 'rb').read() == {content[:1]!r} * {BO_SIZE}", 30)

    def _find_wrong(self, what: str) -> None:
        step = 64 * PAGE
        for start in range(0, SIZE, step):
            data = self.clients[0].do(f"m[{start}:{start + step}]", 30)
            there = np.frombuffer(data, np.uint64)
            wrong = np.flatnonzero(there != self.model[start // 8 : start // 8 + len(there)])
            if len(wrong):
                at = start + int(wrong[0]) * 8
                raise AssertionError(
                    f"{what}; a client sees {len(wrong)} wrong words in {start:#x}+{step:#x}, the first at {at:#x}: "
                    f"{int(there[wrong[0]]):#x} is not {int(self.model[at // 8]):#x}"
                )
        raise AssertionError(f"{what}; a client now sees everything right")

    def _unmap(self, rng: random.Random) -> None:
        """A hole, and mapped again: zeros. Of everything now and then: small ranges stay until they are unmapped."""
        count = rng.choice((1, 16, 128, 512, 600, SIZE // PAGE))
        first = rng.randint(0, SIZE // PAGE - count)
        where = f"{first * PAGE} {count * PAGE}"
        assert self.device.command("svm_objects/heap/unmap", where, 30) == "ok"
        code, _ = self.device.transact("svm_objects/heap/gpu_read", f"read {first * PAGE} 1", 30)
        assert code == "ENOENT", code
        assert self.device.command("svm_objects/heap/map", where, 30) == "ok"
        self.model[first * WORDS : (first + count) * WORDS] = 0
        self._count("unmaps")

    def _kill(self, rng: random.Random) -> None:
        """A client dies of SIGKILL; what it has stored is the file's."""
        number = rng.randrange(NUM_CLIENTS)
        self.device.clients.remove(self.clients[number])
        self.clients[number].end()
        self.clients[number] = self._client()
        self._count("kills")


def _digest_of(model: np.ndarray) -> str:
    """An expression for the digest that the client makes of equal bytes."""
    import hashlib  # noqa: PLC0415

    return repr(hashlib.sha1(model.view(np.uint8).data).hexdigest())


def main() -> int:
    """Run on a device of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds instead of seconds")
    parser.add_argument("--scarce", action="store_true", help="less memory than the space needs")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"--seed {seed}")
    device = Device(*(SCARCE if options.scarce else OPTIONS))
    try:
        exerciser = Exerciser(device, seed)
        counts = exerciser.run(seconds=0 if options.rounds else options.seconds, rounds=options.rounds)
        print({"rounds": exerciser.round, **counts}, device.stats()["svm"])
        print(device.suspicious(), device.control("selfcheck"))
        return 0
    finally:
        device.end()


if __name__ == "__main__":
    sys.exit(main())

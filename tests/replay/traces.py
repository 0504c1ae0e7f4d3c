"""Traces for tests: made of ids, or drawn."""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ttmfs.policy.api import Kind
from ttmfs.policy.parameters import parse_spec
from ttmfs.replay.rows import Row
from ttmfs.replay.sweep import Cell, Engine, Written, run_cell
from ttmfs.replay.trace import Builder, Trace

DATA = Path(__file__).resolve().parents[1] / "data"
KV = DATA / "kv_synthetic_trace_400.jsonl"


def trace_of(ids: Iterable[object], size: int = 4096, name: str = "t") -> Trace:
    """Uses of BOs of one size; what begins with a minus sign destroys one."""
    builder = Builder(name, "test")
    for key in ids:
        text = str(key)
        if text.startswith("-"):
            builder.destroy(text[1:])
        else:
            builder.use(text, size)
    return builder.build()


def zipf(requests: int, objects: int, skew: float, seed: int) -> list[int]:
    """Few are used often, many seldom."""
    draw = random.Random(seed)
    return draw.choices(range(objects), [1 / (rank + 1) ** skew for rank in range(objects)], k=requests)


def loops_and_hot(seed: int) -> list[int]:
    """Loops over up to 120 objects, which come again and again, between uses of hot ones."""
    draw = random.Random(seed)
    found: list[int] = []
    for part in range(120):
        found += range(5000, 5000 + draw.randrange(20, 120))
        found += zipf(60, 500, 1.0, seed + part)
    return found


def scans(seed: int) -> list[int]:
    """A stride over 400 objects, with uses of any of 3000 between."""
    draw = random.Random(seed)
    return [step * 7 % 400 if step % 3 else draw.randrange(3000) for step in range(12000)]


def written(kind: Kind, text: str) -> Written:
    """A policy as one writes it; a path may have blanks."""
    assert kind in ("evict", "prefetch")
    return Written.of(parse_spec(kind, re.split(r" (?=\w+=)", text)))


def replayed(trace: Trace, evict: str, size: int, *, prefetch: str = "none", engine: Engine = "sizes") -> Row:
    """One cell."""
    return run_cell([trace], Cell(0, written("evict", evict), written("prefetch", prefetch), size, engine))


def next_uses(ids: Sequence[int]) -> list[int]:
    """By the definition: where each comes again, else the largest number."""
    found = [(1 << 63) - 1] * len(ids)
    last: dict[int, int] = {}
    for number, key in enumerate(ids):
        if key in last:
            found[last[key]] = number
        last[key] = number
    return found

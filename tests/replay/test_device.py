"""The engine `device`: the real core comes to the same hits and victims, and to the moves that really are."""

import pytest

from tests.replay.traces import KV, replayed, trace_of, zipf
from ttmfs.errors import TtmError
from ttmfs.replay import device
from ttmfs.replay.formats import read_trace
from ttmfs.replay.trace import Builder, Trace

PAGE = 4096
SIZE = 4 * PAGE


def small() -> Trace:
    return trace_of(zipf(600, 60, 0.8, seed=11), SIZE)


@pytest.mark.parametrize("policy", ["lru", "fifo", "sieve", "arc", "s3fifo", "lirs", "random seed=3", "belady"])
def test_the_same_misses_and_evictions_as_counted(policy: str) -> None:
    trace = small()
    counted = replayed(trace, policy, 15 * SIZE)
    moved = replayed(trace, policy, 15 * SIZE, engine="device")
    assert (moved.engine, moved.requests, moved.ejected) == ("device", 600, "")
    assert (moved.hits, moved.misses, moved.evictions) == (counted.hits, counted.misses, counted.evictions)
    # A BO that comes the first time goes from system through gtt: one leg more.
    first_times = len(trace.names) * SIZE
    assert moved.bytes_moved == counted.bytes_moved + first_times


def test_its_own_list_and_lru_as_a_policy_are_the_same() -> None:
    trace = small()
    assert (
        replayed(trace, "lru", 15 * SIZE, engine="device").counts()[6:]
        == (replayed(trace, "ttmfs.policy.shipped.order:Lru", 15 * SIZE, engine="device").counts()[6:])
    )


def test_bos_of_several_sizes_and_their_end() -> None:
    builder = Builder("t", "test")
    for number, key in enumerate(zipf(400, 40, 0.8, seed=13)):
        builder.use(key, PAGE * (1 + key % 5))
        if number % 17 == 16:
            builder.destroy(key)
    trace = builder.build()
    for policy in ("lru", "clock", "belady"):
        counted, moved = (
            replayed(trace, policy, 32 * PAGE, engine="sizes"),
            replayed(trace, policy, 32 * PAGE, engine="device"),
        )
        assert (moved.misses, moved.evictions) == (counted.misses, counted.evictions)


def test_what_can_never_fit() -> None:
    builder = Builder("t", "test")
    for key, size in (("a", PAGE), ("large", 64 * PAGE), ("a", PAGE)):
        builder.use(key, size)
    row = replayed(builder.build(), "lru", 16 * PAGE, engine="device")
    assert (row.misses, row.hits, row.too_large) == (2, 1, 1)


def test_a_policy_that_fails_leaves_it_to_the_core(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("policy") / "bad.py"
    path.write_text(
        "from ttmfs.policy.shipped.order import Lru\n\n\nclass Bad(Lru):\n"
        "    def victims(self, request):\n        raise KeyError(1)\n"
    )
    trace = small()
    lru = replayed(trace, "lru", 15 * SIZE, engine="device")
    row = replayed(trace, f"{path}:Bad", 15 * SIZE, engine="device")
    assert (row.misses, row.evictions, row.bytes_moved) == (lru.misses, lru.evictions, lru.bytes_moved)
    assert f"raised KeyError: 1 at {path}:6 in victims" in row.ejected


def test_a_trace_that_this_machine_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda: 1 << 30)
    trace = read_trace(str(KV), 2 << 20)
    with pytest.raises(TtmError, match=r"holds all BOs in memory.*smaller --block-bytes") as caught:
        replayed(trace, "lru", 1 << 20, engine="device")
    assert caught.value.name == "ENOMEM"


def test_there_is_no_prefetch() -> None:
    with pytest.raises(TtmError, match="--engine device has no prefetch"):
        replayed(small(), "lru", 15 * SIZE, prefetch="tree", engine="device")


def test_many_bos_are_evicted_from_vram_only() -> None:
    trace = trace_of([*range(1500), *range(0, 1500, 2)], 65536)
    counted, moved = (
        replayed(trace, "lru", 100 * 65536, engine="sizes"),
        replayed(trace, "lru", 100 * 65536, engine="device"),
    )
    assert (moved.misses, moved.evictions) == (counted.misses, counted.evictions) == (2250, 2150)
    assert moved.bytes_moved == counted.bytes_moved + 1500 * 65536

"""Trace files of each format: told by their content, read to the same columns, refused with the line that is wrong."""

from pathlib import Path

import numpy as np
import pytest
import zstandard

from tests.replay.traces import KV
from ttmfs.errors import TtmError
from ttmfs.replay.formats import read_trace
from ttmfs.replay.formats.cachesim import RECORD
from ttmfs.replay.trace import NEVER, Trace

PAGE = 4096
BLOCK = 2 << 20


def read(tmp_path: Path, content: str | bytes) -> Trace:
    path = tmp_path / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_trace(str(path), BLOCK)


def uses(trace: Trace) -> list[tuple[str, int]]:
    """(name, bytes) of each request, in order; a minus sign before what is destroyed."""
    gone = np.zeros(len(trace.objects), dtype=bool) if trace.gone is None else trace.gone
    return [
        ("-" * bool(end) + trace.names[index], int(trace.sizes[index]))
        for index, end in zip(trace.objects.tolist(), gone.tolist(), strict=True)
    ]


def pages(trace: Trace) -> list[tuple[str, int, int]]:
    """(name, first page, pages) of each request."""
    assert trace.first is not None
    assert trace.count is not None
    columns = zip(trace.objects.tolist(), trace.first.tolist(), trace.count.tolist(), strict=True)
    return [(trace.names[index], first, count) for index, first, count in columns]


# -- cache simulators ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "1,a,100\n2,b,200\n3,a,100\n",
        "time,id,bytes\n1,a,100\n2,b,200\n3,a,100\n",
        "# time, object, size, next_access_vtime\n1, a, 100, 3\n2, b, 200, -1\n3, a, 100, -1\n",
        "op;obj_size;obj_id;timestamp\nget;100;a;1\nget;200;b;2\nget;100;a;3\n",
        "timestamp\tkey\tsize\n\n1\ta\t100\n2\tb\t200\n3\ta\t50\n",
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    trace = read(tmp_path, text)
    assert trace.format == "csv"
    assert uses(trace) == [("a", 100), ("b", 200), ("a", 100)]
    assert trace.next_uses().tolist() == [2, NEVER, NEVER]


def test_csv_without_sizes_takes_block_bytes(tmp_path: Path) -> None:
    assert uses(read(tmp_path, "1,a\n2,b\n")) == [("a", BLOCK), ("b", BLOCK)]


def test_a_bo_has_the_largest_size_that_is_said_of_it(tmp_path: Path) -> None:
    assert uses(read(tmp_path, "1,a,100\n2,a,300\n3,a,200\n")) == [("a", 300)] * 3


def oracle() -> bytes:
    records = np.array([(1, 7, 100, 2), (1, 9, 200, -1), (5, 7, 100, NEVER)], dtype=RECORD)
    return records.tobytes()


def test_oracle_general(tmp_path: Path) -> None:
    trace = read(tmp_path, oracle())
    assert trace.format == "oracleGeneral"
    assert uses(trace) == [("7", 100), ("9", 200), ("7", 100)]


@pytest.mark.parametrize("content", [oracle(), b"1,a,100\n2,b,200\n", KV.read_bytes()], ids=["oracle", "csv", "kv"])
def test_each_may_be_compressed(tmp_path: Path, content: bytes) -> None:
    plain = read(tmp_path, content)
    half = len(content) // 2
    compressor = zstandard.ZstdCompressor()
    frames = compressor.compress(content[:half]) + compressor.compress(content[half:])
    packed = read(tmp_path, frames)
    assert (packed.format, uses(packed)) == (plain.format, uses(plain))


# -- key-value caches ----------------------------------------------------------------------------------------------


def test_kv_cache(tmp_path: Path) -> None:
    trace = read(tmp_path, '{"timestamp": 0, "hash_ids": [3, 4]}\n\n{"hash_ids": [3, 5], "timestamp": 1}\n')
    assert trace.format == "kv-cache jsonl"
    assert uses(trace) == [("3", BLOCK), ("4", BLOCK), ("3", BLOCK), ("5", BLOCK)]


def test_the_published_one() -> None:
    trace = read_trace(str(KV), 1)
    assert (trace.requests, len(trace.names), trace.first, trace.skipped) == (15224, 7158, None, 0)


# -- ttmfs ---------------------------------------------------------------------------------------------------------

HEAD = "# tracer: ttmfs\n#\n# entries-in-buffer/entries-written: 3/3   #P:1\n"


def lines(*events: str) -> str:
    return HEAD + "".join(f"           ttmfs-12      [000] .....    14.{n:06d}: {e}\n" for n, e in enumerate(events))


def test_ttmfs_validations_and_jobs(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        lines(
            "bo_create: bo=a ino=1 uid=1000",
            "validate: bo=a placement=vram",
            "place_tried: bo=a place=vram pages=2 evicting=0 why=ok detail=-",
            "validated: bo=a result=moved errno=0 region=vram",
            'place_tried: bo="b c" place=vram pages=3 evicting=0 why=ok detail="at 0"',
            'validated: bo="b c" result=moved errno=0 region=vram',
            "validated: bo=d result=error errno=12 region=system",
            "validated: bo=e result=moved errno=0 region=gtt",
            # The job's own validations are not uses of their own; e is in gtt.
            "job: bo=a fence=1:1 kind=copy bytes=8192 bos=a,e",
            "job: bo=a fence=1:2 kind=copy bytes=8192 bos=a,e",
            "fault: bo=a op=read offset=0 pages=1 prefault=0 retries=0 waits=- latency_us=1",
            "bo_destroy: bo=a bytes=16384 region=vram zombie=0",
            "bo_create: bo=a ino=2 uid=0",
            "job: bo=a fence=1:3 kind=fill bytes=4096 bos=a",
        ),
    )
    assert trace.format == "ttmfs trace"
    assert uses(trace) == [("a", 16384), ("b c", 3 * PAGE), ("a", 16384), ("-a", 16384), ("a", PAGE)]
    assert trace.clients is not None
    assert trace.clients[trace.objects[0]] == "1000"
    assert trace.requests == 4
    assert trace.next_uses().tolist() == [2, NEVER, NEVER, NEVER]


def test_ttmfs_use_events_are_all_that_counts(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        lines(
            "validated: bo=a result=moved errno=0 region=vram",
            "use: bo=a why=job bytes=40960",
            "use: bo=b why=fault first=4 pages=2 bytes=40960",
            "job: bo=a fence=1:1 kind=fill bytes=4096 bos=a",
        ),
    )
    assert pages(trace) == [("a", 0, 10), ("b", 4, 2)]
    assert uses(trace) == [("a", 40960), ("b", 40960)]


def test_ttmfs_faults_alone_are_pages(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        lines(
            "fault: bo=a op=read offset=8192 pages=2 prefault=0 retries=0 waits=- latency_us=1",
            "fault: bo=a op=write offset=0 pages=1 prefault=0 retries=0 waits=- latency_us=1",
            "svm_fault: bo=heap first=510 pages=4 write=1 atomic=0",
            "svm_fault: bo=heap cpu=1 offset=2097152 pages=1 latency_us=2",
        ),
    )
    assert pages(trace) == [
        ("a", 2, 2),
        ("a", 0, 1),
        ("heap@0x0", 510, 2),
        ("heap@0x200000", 0, 2),
        ("heap@0x200000", 0, 1),
    ]
    assert dict(uses(trace)) == {"a": 4 * PAGE, "heap@0x0": 2 << 20, "heap@0x200000": 2 << 20}


def test_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    trace = read(tmp_path, lines("use: bo=a pages=1") + "CPU:0 [LOST 12 EVENTS]\nwhat is this\n")
    assert (trace.skipped, trace.requests) == (1, 1)


# -- the kernel's drivers ------------------------------------------------------------------------------------------


def kernel(*events: str) -> str:
    return "# tracer: nop\n#\n" + "".join(
        f"          glmark2-4242    [003] d..1.  812.{number:06d}: {event}\n" for number, event in enumerate(events)
    )


def test_xe(tmp_path: Path) -> None:
    move = "xe_bo_move: move_lacks_source:no, migrate object 00000000{} [size {}] from {} to {} device_id:0000:03:00.0"
    trace = read(
        tmp_path,
        kernel(
            move.format("aa", 8192, "system", "tt"),
            move.format("aa", 8192, "tt", "vram0"),
            move.format("bb", 4096, "tt", "vram0"),
            move.format("aa", 8192, "vram0", "tt"),
            "xe_bo_validate: dev=0000:03:00.0, bo=00000000aa, size=8192, flags=0x2, vm=0000000012",
            "xe_bo_cpu_fault: dev=0000:03:00.0, size=8192, flags=0x2, vm=0000000012",
            "xe_bo_create: dev=0000:03:00.0, bo=00000000aa, size=4096, flags=0x2, vm=0000000012",
            "xe_bo_cpu_fault: dev=0000:03:00.0, bo=00000000aa, size=4096, flags=0x2, vm=0000000012",
        ),
    )
    assert trace.format == "kernel ftrace"
    assert uses(trace) == [
        ("00000000aa", 8192),
        ("00000000bb", 4096),
        ("00000000aa", 8192),
        ("-00000000aa", 8192),
        ("00000000aa", 4096),
    ]
    assert trace.skipped == 1


def test_amdgpu(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        kernel(
            "amdgpu_bo_create: bo=00000000aa, pages=3, type=2, preferred=4, allowed=6, visible=1",
            "amdgpu_bo_list_set: list=0000000001, bo=00000000aa, bo_size=12288",
            "amdgpu_bo_move: bo=00000000bb, from=1, to=2, size=4096",
            "amdgpu_bo_move: bo=00000000aa, from=2, to=1, size=12288",
            "sched_switch: prev_comm=swapper",
        ),
    )
    assert uses(trace) == [("00000000aa", 12288), ("00000000bb", 4096)]


def test_i915(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        kernel(
            "i915_gem_object_create: obj=00000000aa, size=0x10000",
            "i915_gem_object_pwrite: obj=00000000aa, offset=0x1800, len=0x1000",
            "i915_gem_object_fault: obj=00000000aa, GTT index=7 , writable",
            "i915_gem_object_fault: CPU page fault on obj=00000000aa, CPU address 7f12 (page index=3) ",
            "i915_gem_object_pread: obj=00000000aa, offset=0x0, len=0x10",
            "i915_gem_object_clflush: obj=00000000aa",
            "i915_gem_object_destroy: obj=00000000aa",
        ),
    )
    assert pages(trace)[:-1] == [
        ("00000000aa", 1, 2),
        ("00000000aa", 7, 1),
        ("00000000aa", 3, 1),
        ("00000000aa", 0, 1),
    ]
    assert uses(trace)[-1] == ("-00000000aa", 65536)


# -- what is none --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is no trace of a known format"),
        ("hello\n", "is no trace of a known format"),
        (b"\x00\xff\x02\x07\x01" * 50, "is no trace of a known format"),
        (oracle() + b"\0", "ends within a record of 24 bytes"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 40, "is zstd, but damaged"),
        (zstandard.ZstdCompressor().compress(b"1,a,100\n" * 99)[:-3], "is zstd, but cut off"),
        ("1,a,100\n2,b\n", ":2 is no request of time,id,bytes"),
        ("1,a,100\n2,b,-5\n", ":2 is no request of time,id,bytes (-5 bytes)"),
        ("time,id,bytes\n", "looks like csv, but has no request"),
        ('{"hash_ids": [1]}\n{"hash_ids": 7}\n', ":2 is no request with hash_ids"),
        ('{"hash_ids": [1]}\n{"hash_ids"\n', ":2 is no request with hash_ids"),
        (HEAD, "looks like ttmfs trace, but has no request"),
    ],
)
def test_refusals(tmp_path: Path, content: str | bytes, why: str) -> None:
    with pytest.raises(TtmError) as caught:
        read(tmp_path, content)
    assert caught.value.name == "EINVAL"
    assert why in caught.value.message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(TtmError) as caught:
        read_trace(str(tmp_path / "none"), BLOCK)
    assert caught.value.name == "ENOENT"


def test_ttmfs_uses_outside_of_system_memory_are_of_whole_bos_and_calls(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        lines(
            "move_end: bo=a src=system dst=gtt bytes=40960 evict=0 fence=- errno=multihop",
            "move_end: bo=a src=gtt dst=vram bytes=40960 evict=0 fence=1:1 errno=0",
            "use: bo=a why=validate region=vram bytes=40960 first=0 pages=10 call=3",
            "use: bo=b why=validate region=vram bytes=4096 first=0 pages=1 call=3",
            "use: bo=c why=fault region=gtt bytes=4096 first=0 pages=1 call=4",
            "use: bo=a why=fault region=vram bytes=40960 first=2 pages=1 call=5",
            "use: bo=a why=job region=vram bytes=40960 first=0 pages=10 call=6",
            "bo_destroy: bo=b bytes=4096 region=vram zombie=0",
        ),
    )
    assert uses(trace) == [("a", 40960), ("b", PAGE), ("a", 40960), ("a", 40960), ("-b", PAGE)]
    assert trace.first is None
    assert trace.calls is not None
    assert trace.calls.tolist() == [3, 3, 5, -6, 0]
    assert trace.moves == ["a gtt vram"]

"""Whatever is written into a command file: a result or a sentence, never an internal error."""

import itertools
import json
import os
import string
import tempfile
from collections.abc import Callable

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.core.harness import MIB, device
from tests.schemas import faults
from tests.svm.page_cache import PageCache
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.spaces import SPACE_COMMANDS, OpenedSpace
from ttmfs.fs.commands.vms import VM_COMMANDS, OpenedVm
from ttmfs.fs.kernel.opening import Opening
from ttmfs.svm import cpu
from ttmfs.svm.audit import check_svm
from ttmfs.svm.names import SpaceNames
from ttmfs.svm.spaces import Svm
from ttmfs.ttm import access
from ttmfs.ttm.placement import parse_placement
from ttmfs.units import parse_size

LONG = ["9" * 5000, "0x" + "f" * 5000, "-" * 5000, "1" * 5000 + "K", "9" * 400 + ".5", "a" * 5000]
VOCABULARY = """
vram gtt system none all vram:contiguous+topdown vram@0-3 vram@0-99999999999999999999 gtt:desired@1-0 vram: @ : purge
writeback no_wait_gpu interruptible kernel read bookkeep 0 1 4096 64K 1T 0x10 1e9 nan inf -1 0.5 1:1 0:0
1:99999999999999999999 a b a,b a,,b missing fill copy xor saxpy reduce checksum busy dst=a src=a src=b x=a y=b a=2.5
a=1e400 value=7 value=256 bytes=0 bytes=4096 offset=1 dtype=f32 dtype=x after=1:1 after= bo=a,b bo= seconds=0 seconds=-1
wait limit=3 limit= limit=x mappable / =
"""
WORDS = st.sampled_from([*VOCABULARY.split(), *LONG])
JUNK = st.text(alphabet=string.printable + "\0\x85\u2028\udc80\U00100020", max_size=12)
LINE = st.lists(WORDS | JUNK, max_size=6).map(" ".join)
NEVER = ("unplug", "import")
"""Not on this machine's files; and nothing is left to try after the other."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from([*OBJECT_COMMANDS, *(f"ctl/{n}" for n in CTL_COMMANDS if n not in NEVER)]), LINE),
        min_size=1,
        max_size=12,
    )
)
def test_no_line_is_an_internal_error(lines: list[tuple[str, str]]) -> None:
    async def run() -> None:
        async with device(vram=MIB, gtt=MIB, memory=4 * MIB, swap=MIB) as vdev:
            names = Namespace(vdev, uid=0, gid=0)
            runner = Runner(Machine(vdev, names, Svm(vdev)), 5.0)
            bos = [names.create(names.root, name, 0o644, 0, 0).bo for name in (b"a", b"b")]
            for bo in bos:
                await access.write(bo, 0, b"x" * 10000)
            for name, line in lines:
                data = line.encode("utf-8", "surrogateescape")
                of_device = name.startswith("ctl/")
                command = CTL_COMMANDS[name[4:]] if of_device else OBJECT_COMMANDS[name]
                outcome = await runner.run(
                    command, None if of_device else "a", None if of_device else bos[0], data, Opening(0, 0, 0, 2)
                )
                for result in map(json.loads, outcome.text.splitlines()):
                    assert not faults("result", result), (name, line)
                    assert result["ok"] or "internal error" not in result["error"], (name, line, result)

    trio.run(run, clock=MockClock(autojump_threshold=0.01))


SPACE_VOCABULARY = """
fill write read atomic_add checksum nowait 0 1 7 255 256 -1 8 4K 4095 4096 4097 64K 1M 2M 2097151 3M 4M 0x1000 1G 128T
16E 17179869184G 0xffffffffffffffff 18446744073709551616 -9223372036854775808 00ff10 0 f 0x 00ff1 vram system preferred
ro rw preferred=vram preferred=system preferred=fault preferred= atomic=device atomic=global atomic=cpu atomic=x
migration=all migration=system_only migration =
"""
SPACE_WORD = st.sampled_from([*SPACE_VOCABULARY.split(), *LONG]) | JUNK
NUMBER = st.sampled_from(["0", "1", "8", "4K", "64K", "1M", "2M", "3M", "0x1001", "4M", "128T"])
SHAPES = {
    "gpu": ("fill N N 7", "fill N N 7 nowait", "write N 00ff10", "atomic_add N N", "fill N N W"),
    "gpu_read": ("read N N", "checksum N N", "read N W"),
    "prefetch": ("N N vram", "N N system", "N N preferred", "N N W"),
    "madvise": ("N N preferred=vram", "N N atomic=device migration=all", "N N preferred=system W"),
    "map": ("N N", "N N ro", "N W"),
    "unmap": ("N N", "N W"),
    "backup": ("", "writeback", "W"),
    "restore": ("", "W"),
}
"""Lines that are right, or nearly: N is a number, W any word."""
SPACE_LINE = st.sampled_from([*SPACE_COMMANDS]).flatmap(
    lambda command: st.tuples(
        st.just(command),
        st.lists(SPACE_WORD, max_size=6).map(" ".join)
        | st.sampled_from(SHAPES[command]).flatmap(
            lambda shape: st.tuples(
                *({"N": NUMBER, "W": SPACE_WORD}.get(word, st.just(word)) for word in shape.split())
            ).map(" ".join)
        ),
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SPACE_LINE, min_size=1, max_size=12), st.booleans())
def test_no_line_for_a_space_is_an_internal_error(lines: list[tuple[str, str]], may_read: bool) -> None:
    async def run() -> None:
        async with device(vram=2 * MIB, gtt=MIB, memory=16 * MIB, swap=MIB) as vdev, trio.open_nursery() as nursery:
            svm = Svm(vdev)
            svm.unmapper = PageCache()
            nursery.start_soon(svm.run)
            runner = Runner(Machine(vdev, Namespace(vdev, uid=0, gid=0), svm), 5.0)
            spaces = SpaceNames(svm, itertools.count(100).__next__, uid=0, gid=0)
            file = spaces.create(spaces.root, b"a", 0o644, 0, 0)
            file.space.set_size(4 * MIB)
            await cpu.write(file.space, 0, b"x" * 10000)
            opened = OpenedSpace(file, None, may_read=may_read)
            for name, line in lines:
                data = line.encode("utf-8", "surrogateescape")
                started = trio.current_time()
                outcome = await runner.run(SPACE_COMMANDS[name], "a", opened, data, Opening(0, 0, 0, os.O_RDWR))
                assert trio.current_time() - started < 6.0, (name, line)
                for result in map(json.loads, outcome.text.splitlines()):
                    assert not faults("result", result), (name, line)
                    assert result["ok"] or "internal error" not in result["error"], (name, line, result)
                    assert len(result.get("error", "")) < 400, (name, line, result)
            assert vdev.selfcheck() + check_svm(svm) == []
            svm.close()
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0.01))


VM_SHAPES = {
    "bind": ("N a N N", "N b N N ro", "N a 0 N", "N W 0 N"),
    "userptr": ("N FILE 0 N", "N FILE N N ro", "N FILE 0 N", "N W 0 N", "N / 0 4K", "N FILE/x 0 4K", "N /nowhere 0 4K"),
    "unbind": ("N N", "N W"),
    "exec": (*SHAPES["gpu"], *SHAPES["gpu_read"], "queue=W fill N N 7", "queue=r checksum N N"),
}
VM_LINE = st.sampled_from([*VM_COMMANDS]).flatmap(
    lambda command: st.tuples(
        st.just(command),
        st.sampled_from(VM_SHAPES[command]).flatmap(
            lambda shape: st.tuples(
                *({"N": NUMBER, "W": SPACE_WORD}.get(word, st.just(word)) for word in shape.split())
            ).map(" ".join)
        )
        | st.lists(SPACE_WORD, max_size=6).map(" ".join),
    )
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VM_LINE, min_size=1, max_size=12))
def test_no_line_for_a_vm_is_an_internal_error(lines: list[tuple[str, str]]) -> None:
    async def run(path: str) -> None:
        async with device(vram=2 * MIB, gtt=MIB, memory=16 * MIB, swap=MIB) as vdev:
            names = Namespace(vdev, uid=0, gid=0)
            for bo in (b"a", b"b"):
                await access.write(names.create(names.root, bo, 0o644, 0, 0).bo, 0, b"x" * 10000)
            runner, opened = Runner(Machine(vdev, names, Svm(vdev)), 5.0), OpenedVm(vdev.vms.make("game"))
            for name, line in lines:
                data = line.replace("FILE", path).encode("utf-8", "surrogateescape")
                outcome = await runner.run(VM_COMMANDS[name], "vm/game", opened, data, Opening(0, 0, 0, os.O_RDWR))
                for result in map(json.loads, outcome.text.splitlines()):
                    assert not faults("result", result), (name, line)
                    assert result["ok"] or "internal error" not in result["error"], (name, line, result)
                    assert len(result.get("error", "")) < 700, (name, line, result)
            assert vdev.selfcheck() == []
            vdev.vms.remove("game")

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"y" * (1 << 17))
        file.flush()
        trio.run(run, file.name, clock=MockClock(autojump_threshold=0.01))


def _sentence(call: Callable[[], object]) -> str:
    """The message of the error that a call fails with, or nothing."""
    try:
        call()
    except TtmError as error:
        return error.message
    return ""


@given(WORDS | JUNK | st.sampled_from(LONG))
def test_a_size_is_a_number_or_a_sentence(text: str) -> None:
    assert len(_sentence(lambda: parse_size(text))) < 300


@given(st.lists(WORDS | JUNK, max_size=100))
def test_places_are_places_or_a_sentence(words: list[str]) -> None:
    said = _sentence(lambda: parse_placement(words, ("system", "gtt", "vram")))
    assert len(said) < 300
    assert said or len(words) <= 64


@pytest.mark.parametrize("digits", [64, 65, 4300, 4301, 60000])
def test_numbers_of_any_length(digits: int) -> None:
    with pytest.raises(TtmError, match="too large"):
        parse_size("9" * digits)
    assert parse_size("0" * 63 + "7") == 7

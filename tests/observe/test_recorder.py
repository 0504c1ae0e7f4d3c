"""The recorder: what happened to a BO, for whom, and who had asked; bounded, and there without any trace."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.core.harness import MIB, device, make, move
from ttmfs.errors import TtmError
from ttmfs.observe import asker
from ttmfs.observe.asker import ASKER, WHY, asker_name, task_name
from ttmfs.observe.recorder import Recorder
from ttmfs.observe.trace import Trace

ME = task_name(os.getpid())


async def test_an_eviction_says_for_whom_and_who_had_asked() -> None:
    async with device(vram=4 * MIB) as vdev:
        assert not vdev.ttm.trace.on
        await make(vdev, "pinned", place="vram")
        evicted_bo = await make(vdev, "a", place="vram")
        a = next(entry for entry in vdev.ttm.recorder.entries if entry.bo == "a")
        assert a.sentence().endswith("(the device itself)")
        await make(vdev, "b", 2 * MIB, place="vram")
        ASKER.set(os.getpid())
        WHY.set("c validate vram")
        await make(vdev, "c", 2 * MIB, place="vram")
        evicted = [entry for entry in vdev.ttm.recorder.entries if entry.kind == "evict"]
        assert [(entry.bo, entry.other) for entry in evicted] == [("pinned", "c"), ("a", "c")]
        order = "and 1 BO stood before it in the order of eviction"
        assert evicted[1].says == f"'a' has to leave vram: room for 'c', {order}"
        moves = [entry for entry in vdev.ttm.recorder.entries if entry.kind == "move" and entry.bo == "a"]
        assert (moves[-1].task, moves[-1].why) == (ME, "room for 'c', c validate vram")
        assert moves[-1].sentence().endswith(f"'a' vram to gtt: was evicted, 1M ({ME}: room for 'c', c validate vram)")
        assert evicted_bo.last_move is not None
        assert evicted_bo.last_move.sentence("a", evicted_bo.moved_at) == moves[-1].sentence()
        # What comes after the eviction is not for it any more.
        assert vdev.ttm.recorder.entries[-1].why == "c validate vram"


async def test_a_move_that_fails_and_what_made_it_fail_are_kept() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        before = bo.last_move
        vdev.ttm.inject["move"].set("probability", "100")
        with pytest.raises(TtmError):
            await move(vdev, bo, "gtt")
        inject, failed = list(vdev.ttm.recorder.entries)[-2:]
        assert (inject.kind, inject.bo, inject.says) == ("inject", "a", "debug/fail_move made it fail for 'a'")
        assert (failed.kind, failed.bo) == ("move", "a")
        assert failed.says.startswith("'a' vram to gtt: failed, moving 'a' failed")
        assert bo.last_move is before


def test_it_is_bounded_and_each_line_is_json() -> None:
    recorder = Recorder(3)
    for number in range(5):
        recorder.note("move", f"b\n{number}", "says\n")
    assert [entry.bo for entry in recorder.entries] == ["b\n2", "b\n3", "b\n4"]
    lines = "".join(entry.json_line() for entry in recorder.entries).splitlines()
    values = [json.loads(line) for line in lines]
    assert [value["bo"] for value in values] == ["b\n2", "b\n3", "b\n4"]
    assert set(values[0]) == {"when", "kind", "bo", "says", "task", "why", "other", "sentence"}


def test_a_process_is_named_as_it_was_and_anew_when_it_opens_something() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        # Until it has become `sleep` it is called as its parent.
        while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
            pass
        asker.asked_anew(child.pid)
        assert task_name(child.pid) == f"sleep-{child.pid}"
    finally:
        child.kill()
        child.wait(10)
    assert task_name(child.pid) == f"sleep-{child.pid}"
    asker.asked_anew(child.pid)
    assert task_name(child.pid) == f"<...>-{child.pid}"


def test_events_say_who_had_asked() -> None:
    trace = Trace()
    trace.start()
    trace.emit("evict", "a")
    token = ASKER.set(os.getpid())
    try:
        trace.emit("evict", "a")
        assert asker_name() == ME
    finally:
        ASKER.reset(token)
    comm, _, pid = ME.rpartition("-")
    lines = [event.line(7) for event in trace.ring]
    assert [line.split(" [000] ")[0].rstrip() for line in lines] == [f"{'ttmfs':>16}-7", f"{comm:>16}-{pid}"]
    assert [json.loads(event.json_line())["task"] for event in trace.ring] == ["", ME]

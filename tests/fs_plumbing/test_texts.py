"""Virtual files without a mount: when a text is made, how long it is said to be, what an open one answers; numbers."""

import errno
import json
import os
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing

from ttmfs.errors import TtmError
from ttmfs.fs.commands.handles import CommandHandle, CommandOutcome, TextHandle
from ttmfs.fs.commands.results import KeptResults
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import Fixed
from ttmfs.fs.requests import inodes as inodes_module
from ttmfs.fs.requests.inodes import ROOT_INO, Inodes
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.nodes import UNKNOWN_LENGTH, Lengths, VirtualDir, VirtualFile
from ttmfs.fs.tree.slow_text import SlowTextHandle

READS = Opening(1, 0, 0, os.O_RDONLY)
ANYBODY = Fixed(0o666, 0, 0)
WRITES = Opening(1, 0, 0, os.O_WRONLY)


class Counted:
    """A text that changes each time it is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return "x" * self.made


def text_file(text: Counted, lengths: Lengths | None = None) -> VirtualFile:
    file = VirtualFile(lambda _opening: TextHandle(text), ANYBODY, lengths=lengths)
    file.key = "some/file"
    return file


async def test_an_open_text_is_as_long_as_what_was_taken_and_a_closed_one_as_it_is_now() -> None:
    text = Counted()
    file = text_file(text)
    assert [await file.length(), await file.length()] == [1, 2]
    handle = await file.open(READS)
    assert [await file.length(), handle.size, text.made] == [3, 3, 3]
    assert await handle.read(0, 100) == b"xxx"
    assert (await handle.read(3, 100), await handle.read(1, 1), text.made) == (b"", b"x", 3)
    assert await handle.read(0, 100) == b"xxxx", "from the start once more"
    assert await file.length() == 4
    del handle
    assert await file.length() == 5


async def test_who_reads_backwards_reads_one_text() -> None:
    text = Counted()
    text.made = 9
    handle = TextHandle(text)
    await handle.take()
    assert [len(await handle.read(offset, 4)) for offset in (8, 4, 0)] == [2, 4, 4]
    assert [len(await handle.read(offset, 4)) for offset in (0, 4, 8)] == [4, 4, 2], "tail goes on from the start"
    assert text.made == 10
    assert [len(await handle.read(0, 4)), len(await handle.read(0, 4)), text.made] == [4, 4, 12]


async def test_who_asks_how_long_it_is_and_reads_so_much_may_read_it_again() -> None:
    now = count(10)
    file = VirtualFile(lambda _opening: TextHandle(lambda: str(next(now))), ANYBODY)
    handle = await file.open(READS)
    assert await file.length() == 2
    assert [await handle.read(0, 2) for _ in range(4)] == [b"10", b"10", b"11", b"12"], "once, as tail"
    for text in (b"13", b"14"):
        assert await handle.read(0, await file.length()) == text, "who asks each time has a new one each time"


async def test_who_looks_at_the_beginning_before_reading_it_all_reads_one_text() -> None:
    text = Counted()
    text.made = 9
    handle = TextHandle(text)
    await handle.take()
    assert [len(await handle.read(0, size)) for size in (2, 4, 20)] == [2, 4, 10]
    assert len(await handle.read(0, 40)) == 11, "it was read to its end"
    assert [len(await handle.read(0, 4)) for _ in range(3)] == [4, 4, 4]
    assert text.made == 14, "each time, for who watches a line"
    assert [await handle.read(4, 1), len(await handle.read(0, 20)), text.made] == [b"x", 15, 15]


async def test_a_setting_is_read_anew_from_the_start_as_other_texts() -> None:
    text = Counted()
    handle = CommandHandle(text, never_run, READS, KeptResults())
    await handle.take()
    assert [await handle.read(0, 9), await handle.read(1, 9), await handle.read(0, 9)] == [b"x", b"", b"xx"]
    assert handle.size == 2


async def never_run(data: bytes) -> CommandOutcome:
    raise AssertionError(data)


async def test_a_dear_text_is_made_when_it_is_opened_and_not_before() -> None:
    text, lengths = Counted(), Lengths()
    file = text_file(text, lengths)
    assert [await file.length(), text.made] == [UNKNOWN_LENGTH, 0]
    handle = await file.open(READS)
    assert [await file.length(), text.made] == [1, 1]
    del handle
    other = text_file(text, lengths)
    assert [await file.length(), await other.length(), text.made] == [1, 1, 1]


async def test_what_is_opened_only_to_be_written_makes_no_text() -> None:
    text = Counted()
    file = text_file(text, Lengths())
    handle = await file.open(WRITES)
    assert (handle.size, text.made) == (0, 0)


def test_lengths_are_kept_of_the_latest() -> None:
    lengths = Lengths()
    for number in range(5000):
        lengths.note(str(number), number)
        lengths.note("0", 7)
    assert (lengths.last("0"), lengths.last("4999"), lengths.last("800")) == (7, 4999, UNKNOWN_LENGTH)


async def test_an_answer_is_read_wherever_the_position_is() -> None:
    stored: list[str] = []

    def store(text: str) -> dict[str, Any] | None:
        if text == "bad":
            raise TtmError(errno.EINVAL, "no")
        stored.append(text)
        return {"retained": False} if text == "willneed" else None

    handle = TextHandle(lambda: "now\n", store)
    await handle.take()
    assert await handle.read(0, 100) == b"now\n"
    assert await handle.write(0, b"willneed") == 8
    assert handle.size == 0
    assert [await handle.read(8, 5), await handle.read(13, 100)] == [b'{"ok"', b': true, "retained": false}\n']
    assert json.loads(await handle.read(0, 100)) == {"ok": True, "retained": False}
    with pytest.raises(TtmError):
        await handle.write(0, b"bad")
    assert json.loads(await handle.read(99, 100)) == {"ok": False, "errno": "EINVAL", "error": "no"}
    with pytest.raises(TtmError) as raised:
        await handle.write(0, b"x" * (64 << 10) + b"x")
    assert raised.value.errno == errno.E2BIG
    assert stored == ["willneed"]


async def test_a_text_that_is_given_up_is_not_another_one() -> None:
    handle = TextHandle(lambda: "text")
    await handle.take()
    handle.give_up()
    for offset in (0, 2):
        with pytest.raises(TtmError) as raised:
            await handle.read(offset, 10)
        assert raised.value.errno == errno.ENOBUFS


async def test_two_reads_of_a_slow_text_make_it_once(autojump_clock: Any) -> None:
    made: list[int] = []

    async def text() -> bytes:
        made.append(1)
        await trio.sleep(1)
        return b"slow"

    handle = SlowTextHandle(text)
    got: list[bytes] = []

    async def read(offset: int) -> None:
        got.append(await handle.read(offset, 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read, 2)
    assert (got, made) == ([b"sl", b"ow"], [1])


# -- numbers -----------------------------------------------------------------------------------------------------------


def tree() -> tuple[Inodes, VirtualDir, VirtualFile, VirtualFile]:
    folder = VirtualDir(
        "f", lambda name: VirtualFile(lambda _opening: TextHandle(str), ANYBODY), FixedNames(("a", "b")), ANYBODY
    )
    one, again = folder.child("a"), folder.child("a")
    assert isinstance(one, VirtualFile)
    assert isinstance(again, VirtualFile)
    return Inodes(VirtualDir("", lambda name: None, FixedNames(()), ANYBODY)), folder, one, again


def test_each_lookup_of_a_file_is_another_inode_of_one_number() -> None:
    inodes, folder, one, again = tree()
    assert inodes.number(one) == inodes.number(again) != inodes.number(folder)
    numbers = [inodes.number_to_look_up(node) for node in (one, again, one)]
    assert len({*numbers, inodes.number(one), ROOT_INO}) == 5
    for number, node in zip(numbers, (one, again, one), strict=True):
        inodes.looked_up(number, node)
    assert inodes.number(one) == inodes.number(again)
    assert inodes.find("f/a") is None, "nobody was told that number as an inode"


def test_a_folder_has_one_inode_also_when_it_was_forgotten() -> None:
    inodes, folder, _one, _again = tree()
    number = inodes.number_to_look_up(folder)
    inodes.looked_up(number, folder)
    assert (inodes.find("f"), inodes.number(folder)) == (number, number)
    assert inodes.forget(number, 1) is folder
    assert inodes.find("f") is None
    with pytest.raises(TtmError):
        inodes.get(number)
    assert inodes.number_to_look_up(folder) == number


def test_two_keys_that_make_one_number_are_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes_module, "_made_of", lambda key: 1 << 60)
    inodes, folder, one, _again = tree()
    inodes.looked_up(inodes.number(folder), folder)
    assert inodes.find("f") == 1 << 60
    assert inodes.find("f/a") is None
    assert inodes.number(one) != inodes.number(folder)

"""What is added to the INIT reply, byte by byte, and that the kernel takes it."""

import struct

import pytest

from ttmfs.fs.kernel.handshake import BACKGROUND, direct_io_may_be_mapped, patched_reply

KILLPRIV_V2 = 1 << 28
INIT_EXT = 1 << 30
ALLOW_MMAP = 1 << 4
OTHERS = 0b1011


def request(flags: int, opcode: int = 26, more: int = 0) -> bytes:
    body = struct.pack("=IIIII", 7, 45, 131072, flags, more) + bytes(44)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0) + body


def reply(flags: int, error: int = 0, more: int = 0) -> bytes:
    body = struct.pack("=IIIIHHIIHHI7I", 7, 38, 131072, flags, 0, 0, 1 << 20, 1, 256, 0, more, *([0] * 7))
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


@pytest.mark.parametrize("offered", [0, KILLPRIV_V2, KILLPRIV_V2 | OTHERS])
def test_only_what_the_kernel_offers_is_agreed_on_and_nothing_else_changes(offered: int) -> None:
    before = reply(OTHERS)
    after = patched_reply(request(offered), before)
    assert struct.unpack_from("=IIIIHH", after, 16) == (
        7, 38, 131072, OTHERS | (offered & KILLPRIV_V2), BACKGROUND, BACKGROUND,
    )  # fmt: skip
    assert after[:16] == before[:16]
    assert after[16 + 20 :] == before[16 + 20 :]


@pytest.mark.parametrize(
    ("offered", "answered", "agreed"),
    [
        ((INIT_EXT, ALLOW_MMAP), (0, 0), (INIT_EXT, ALLOW_MMAP)),
        ((INIT_EXT, ALLOW_MMAP | 1), (INIT_EXT, 1), (INIT_EXT, ALLOW_MMAP | 1)),
        # What is no flag of an older libfuse is none of ours.
        ((INIT_EXT, ALLOW_MMAP), (0, 1), (INIT_EXT, ALLOW_MMAP)),
        ((INIT_EXT, 1), (0, 0), (0, 0)),
        ((0, ALLOW_MMAP), (0, 0), (0, 0)),
    ],
)
def test_files_that_are_read_directly_may_be_mapped_where_the_kernel_knows_how(
    offered: tuple[int, int], answered: tuple[int, int], agreed: tuple[int, int]
) -> None:
    after = patched_reply(request(offered[0], more=offered[1]), reply(answered[0], more=answered[1]))
    assert (struct.unpack_from("=I", after, 16 + 12)[0], struct.unpack_from("=I", after, 16 + 32)[0]) == agreed
    assert direct_io_may_be_mapped(after) == bool(agreed[1] & ALLOW_MMAP)
    assert len(after) == len(reply(0))
    assert not direct_io_may_be_mapped(after[: 16 + 24])


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(KILLPRIV_V2, opcode=3), reply(0)),
        (request(KILLPRIV_V2), reply(0, error=-71)),
        (request(KILLPRIV_V2)[:50], reply(0)),
        (request(KILLPRIV_V2), reply(0)[:30]),
        (request(KILLPRIV_V2), reply(0) + b"x"),
        (b"", b""),
    ],
)
def test_what_is_not_understood_is_passed_on_as_it_is(asked: bytes, answered: bytes) -> None:
    assert patched_reply(asked, answered) == answered

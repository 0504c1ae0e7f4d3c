"""What is added to the INIT reply, byte by byte, and that the kernel takes it."""

import struct

import pytest

from ttmfs.fs.kernel.handshake import BACKGROUND, patched_reply

KILLPRIV_V2 = 1 << 28
OTHERS = 0b1011


def request(flags: int, opcode: int = 26) -> bytes:
    body = struct.pack("=IIII", 7, 45, 131072, flags) + bytes(48)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0) + body


def reply(flags: int, error: int = 0) -> bytes:
    body = struct.pack("=IIIIHHIIHHI7I", 7, 38, 131072, flags, 0, 0, 1 << 20, 1, 256, 0, 0, *([0] * 7))
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

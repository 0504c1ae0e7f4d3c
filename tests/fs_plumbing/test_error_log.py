"""error_log: nobody drives out what others failed with."""

import errno

from ttmfs.errors import TtmError
from ttmfs.fs.commands.error_log import LINES, ErrorLog

OWNER, ANNA, BERT = 1000, 1001, 1002


def lines(log: ErrorLog, word: str) -> list[str]:
    return [line for line in log.text().splitlines() if f"\t{word} " in line]


def fail(log: ErrorLog, word: str, uid: int, times: int = 1, first: int = 0) -> None:
    for number in range(first, first + times):
        log.add(f"{word} {number}", TtmError(errno.EINVAL, "no"), uid)


def test_who_fails_most_drives_out_himself() -> None:
    log = ErrorLog((0, OWNER))
    fail(log, "owner", OWNER, 5)
    fail(log, "bert", BERT, 7)
    fail(log, "anna", ANNA, 10 * LINES)
    assert len(lines(log, "owner")) == 5
    assert len(lines(log, "bert")) == 7
    assert len(lines(log, "anna")) == LINES - 12
    assert lines(log, "anna")[-1].split("\t")[2] == f"anna {10 * LINES - 1}"


def test_one_alone_has_all_of_it_and_it_is_in_order() -> None:
    log = ErrorLog((0, OWNER))
    fail(log, "owner", OWNER, LINES + 10)
    assert [line.split("\t")[2] for line in log.text().splitlines()] == [f"owner {n}" for n in range(10, LINES + 10)]


def test_a_crowd_of_users_leaves_the_owner_and_root_half_of_it() -> None:
    log = ErrorLog((0, OWNER))
    fail(log, "owner", OWNER, LINES)
    fail(log, "root", 0, 3)
    for uid in range(100_000, 100_000 + 3 * LINES):
        fail(log, "crowd", uid)
    assert len(lines(log, "owner")) + len(lines(log, "root")) == LINES // 2
    assert len(lines(log, "root")) == 3
    assert len(lines(log, "crowd")) == LINES // 2
    assert len(log.text().splitlines()) == LINES


def test_two_users_share_what_is_left() -> None:
    log = ErrorLog((0, OWNER))
    for number in range(2 * LINES):
        fail(log, "anna", ANNA, first=number)
        fail(log, "bert", BERT, first=number)
    assert len(lines(log, "anna")) == len(lines(log, "bert")) == LINES // 2

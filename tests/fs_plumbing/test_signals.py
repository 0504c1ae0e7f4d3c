"""Which pending signals end a command: the rule, on the text of status files."""

import os
import signal

import pytest

from ttmfs.fs.kernel.processes import Masks, Opener, masks_of, parse_status

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
HARMLESS = (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
KILL_UNLESS_CAUGHT = sorted(set(signal.valid_signals()) - set(STOP) - set(HARMLESS) - {signal.SIGKILL, signal.SIGSTOP})


def bit(number: int) -> int:
    return 1 << (number - 1)


def status(
    *, private: int = 0, shared: int = 0, blocked: int = 0, ignored: int = 0, caught: int = 0, state: str = "S"
) -> Masks:
    lines = [
        "Name:\tSigPnd:\\n", f"State:\t{state} (sleeping)", "Tgid:\t77", "Pid:\t78", "Threads:\t2", "SigQ:\t1/2",
        f"SigPnd:\t{private:016x}", f"ShdPnd:\t{shared:016x}", f"SigBlk:\t{blocked:016x}", f"SigIgn:\t{ignored:016x}",
        f"SigCgt:\t{caught:016x}", "CapInh:\t0000000000000000", "Cpus_allowed_list:\t0-1", "",
    ]  # fmt: skip
    return parse_status("\n".join(lines).encode())


@pytest.mark.parametrize("number", [*STOP, *KILL_UNLESS_CAUGHT])
def test_what_will_kill_ends_a_command(number: int) -> None:
    assert status(shared=bit(number)).ending == bit(number)
    assert status(private=bit(number)).ending == bit(number)
    assert not status(shared=bit(number), blocked=bit(number)).ending
    assert not status(shared=bit(number), ignored=bit(number)).ending


@pytest.mark.parametrize("number", STOP)
def test_what_says_stop_ends_a_command_caught_or_not(number: int) -> None:
    assert status(shared=bit(number), caught=bit(number)).ending


@pytest.mark.parametrize("number", [*KILL_UNLESS_CAUGHT, *HARMLESS])
def test_a_caught_signal_that_says_something_else_ends_nothing(number: int) -> None:
    masks = status(shared=bit(number), private=bit(number), caught=bit(number))
    assert not masks.ending
    assert masks.deliverable == bit(number)


@pytest.mark.parametrize("number", HARMLESS)
def test_what_kills_nobody_ends_nothing(number: int) -> None:
    assert not status(shared=bit(number)).ending


def test_sigkill_cannot_be_blocked_ignored_or_caught() -> None:
    every = (1 << 64) - 1
    assert status(private=bit(signal.SIGKILL), blocked=every, ignored=every, caught=every).ending


def test_one_of_many_is_enough() -> None:
    pending = bit(signal.SIGCHLD) | bit(signal.SIGUSR1) | bit(signal.SIGTERM)
    masks = status(shared=pending, caught=bit(signal.SIGCHLD) | bit(signal.SIGTERM), blocked=bit(signal.SIGUSR1))
    assert masks.ending == bit(signal.SIGTERM)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_zombie_has_ended(state: str) -> None:
    assert status(state=state).ended
    assert not status().ended
    assert status().tgid == 77


@pytest.mark.parametrize("text", [b"", b"Name:\tx\n", b"SigPnd: zz\nShdPnd: 0\nSigBlk: 0\nSigIgn: 0\nSigCgt: 0\n"])
def test_what_is_no_status_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not there|invalid literal"):
        parse_status(text)


def test_the_own_thread_and_one_that_is_not_there() -> None:
    masks = masks_of(os.getpid())
    assert masks is not None
    assert (masks.tgid, masks.ended) == (os.getpid(), False)
    assert masks_of(0) is None
    assert not Opener(0).told_to_end()
    assert not Opener(os.getpid()).told_to_end()

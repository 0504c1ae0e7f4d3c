"""ctl/trace: which events are recorded, of which BOs."""

import errno

from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.quoting import escape, split_words, unescape
from ttmfs.observe.points import EVENTS
from ttmfs.observe.trace import Trace


def trace_state(trace: Trace) -> str:
    """The first line is what may be written to get there; then the table of events."""
    state = "off"
    if trace.on:
        state = " ".join([*(sorted(trace.events) or ["all"]), *(f"bo={escape(name)}" for name in sorted(trace.bos))])
    lines = [state, "# all | EVENT… [bo=NAME…] | off", *(f"# {name}\t{does}" for name, does in EVENTS.items())]
    return "\n".join(lines) + "\n"


def set_trace(trace: Trace, text: str) -> None:
    """Switch. Lines that begin with # say nothing, so that what is read can be written.

    TtmError(EINVAL) for an event that does not exist, naming those that do; nothing has changed then.
    """
    words = [word for line in text.split("\n") if not line.startswith("#") for word in split_words(line)]
    if words == ["off"]:
        trace.stop()
        return
    if not words:
        raise no_such("", "event", ("all", "off", *EVENTS))
    bos = [unescape(word[3:]) for word in words if word.startswith("bo=")]
    events = [unescape(word) for word in words if not word.startswith("bo=")]
    for event in events:
        if event not in EVENTS and event != "all":
            raise no_such(event, "event", ("all", "off", *EVENTS))
    if not all(bos):
        raise TtmError(errno.EINVAL, "bo= names no BO: say bo=NAME, with its path below bo/")
    trace.start(() if "all" in events else events, bos)

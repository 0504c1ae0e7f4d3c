"""A process that writes into a command file with one plain write(2), under signal dispositions of its choice.

`signal_client.py FILE TEXT HOW NUMBER…`, HOW what is done about the signals first: `caught`, `default`, `ignored`,
`blocked`; or which thread does what, its signals caught: `worker` opens and writes, `handed` writes to a file that the
main thread has opened. Says "ready TID" before the write, then "ERRNO HANDLED", the errno or 0 and how often a handler
has run.
"""

import ctypes
import os
import resource
import signal
import sys
import threading

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
name, text, how, *numbers = sys.argv[1:]
handled: list[int] = []
libc = ctypes.CDLL(None, use_errno=True)


def note(number: int, _frame: object) -> None:
    """The handler."""
    handled.append(number)


for number in map(int, numbers):
    if how == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    elif number != signal.SIGKILL:
        # Python ignores some by itself.
        signal.signal(number, {"default": signal.SIG_DFL, "ignored": signal.SIG_IGN}.get(how, note))


def write(fd: int) -> None:
    """The write, its own errno: Python's own would go on after EINTR."""
    print("ready", threading.get_native_id(), flush=True)
    data = text.encode()
    code = ctypes.get_errno() if libc.write(fd, data, len(data)) < 0 else 0
    answer.append(code)


answer: list[int] = []
if how in ("worker", "handed"):
    fd = os.open(name, os.O_WRONLY) if how == "handed" else -1
    worker = threading.Thread(target=lambda: write(os.open(name, os.O_WRONLY) if fd < 0 else fd))
    worker.start()
    worker.join()
else:
    write(os.open(name, os.O_WRONLY))
print(answer[0], len(handled), flush=True)

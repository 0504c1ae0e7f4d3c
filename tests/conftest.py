"""What holds for every test: nothing fails because the machine is slow just now, or because of what the suite was
started with."""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile("ttmfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ttmfs")

# Programs that tests start load compiled modules as a user's do: a third of a second for each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell's `&`, nohup and many a runner start the suite with these ignored, and what tests start would inherit it.
for number, handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

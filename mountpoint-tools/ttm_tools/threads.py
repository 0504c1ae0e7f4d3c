"""Calls that may take long, from an event loop of asyncio."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(action: Callable[[], _T]) -> _T:
    """Run a call in a daemon thread: one that never comes back does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not future.done():
            set_it()

    def run() -> None:
        try:
            value = action()
            done = lambda: future.set_result(value)  # noqa: E731
        except Exception as error:
            failed = error
            done = lambda: future.set_exception(failed)  # noqa: E731
        # The loop may be gone by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, done)

    threading.Thread(target=run, daemon=True).start()
    return await future

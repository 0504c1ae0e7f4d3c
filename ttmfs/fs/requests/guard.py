"""Guard: what every FUSE handler is wrapped in (rules R9, H20, H21).

An exception other than FUSEError would end the mount, and a cancelled handler sends no reply, which hangs its client.
Here TtmError becomes its errno, anything unforeseen EIO with a traceback in the log, and handlers are shielded.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio

from ttmfs.observe.asker import ASKER, WHY
from ttmfs.observe.counters import RequestCounters

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class HasCounters(Protocol):
    """Where failed handlers are counted."""

    counters: RequestCounters


S = TypeVar("S", bound=HasCounters)


def fuse_error(error: OSError, counters: RequestCounters, what: str) -> pyfuse3.FUSEError:
    """Called in an except block: the reply for an error that carries an errno; without one it is unforeseen."""
    return pyfuse3.FUSEError(error.errno) if error.errno else unforeseen(counters, what)


def unforeseen(counters: RequestCounters, what: str) -> pyfuse3.FUSEError:
    """Called in an except block: count and log what nobody expected; the reply for it."""
    counters.handler_errors += 1
    log.exception("%s failed", what)
    return pyfuse3.FUSEError(errno.EIO)


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a handler method of a class that has `counters`."""

    @functools.wraps(handler)
    async def shielded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with trio.CancelScope(shield=True):
            result = await handler(self, *args, **kwargs)
        return result

    return at_once(shielded)


def at_once(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The same for one in which nothing is awaited but what is guarded itself: there is nothing to shield.

    A scope is half of what a LOOKUP costs here, and each use of a virtual file begins with one.
    """

    @functools.wraps(handler)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        last = args[-1] if args else None
        ASKER.set(last.pid if isinstance(last, pyfuse3.RequestContext) else 0)
        WHY.set(handler.__name__)
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise fuse_error(error, self.counters, handler.__name__) from None
        except (Exception, BaseExceptionGroup):
            raise unforeseen(self.counters, handler.__name__) from None

    return wrapper

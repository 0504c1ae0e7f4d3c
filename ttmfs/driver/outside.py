"""Outside: a driver that is no part of ttmfs, held to what its hooks may answer.

Whatever else a hook raises or returns is EIO with a sentence for whoever's request or command it was, and a traceback
in the log: the mount goes on, and so does its background. A notification that fails is logged only, as the kernel's
cannot fail.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.ttm.funcs import FaultResult, Multihop, VmFault
from ttmfs.ttm.placement import Place

log = logging.getLogger(__name__)

_NOTIFICATIONS: Final = ("swap_notify", "delete_mem_notify", "io_mem_free")
_ASYNC: Final = ("fault_reserve_notify", "validate_for_job", "take_dirty")

_Hook = Callable[..., Any]
_AsyncHook = Callable[..., Awaitable[Any]]


def hold_to_it(driver: DefaultDriver) -> None:
    """From now on its hooks answer what they may, also when they call each other."""
    for name in _NOTIFICATIONS:
        _replace(driver, name, _notification)
    for name in _ASYNC:
        _replace(driver, name, _awaited)
    _replace(driver, "move", _move)
    _replace(driver, "fault", _fault)
    _replace(driver, "evict_flags", _placement)
    for name in ("eviction_valuable", "bo_created", "io_mem_reserve"):
        _replace(driver, name, _plain)


def _replace(driver: DefaultDriver, name: str, by: Callable[[_Hook], _Hook]) -> None:
    hook = getattr(driver, name, None)
    if hook is not None:
        setattr(driver, name, by(hook))


@contextmanager
def _told(hook: _Hook, *may_raise: type[BaseException]) -> Iterator[None]:
    passes: tuple[type[BaseException], ...] = (TtmError, *may_raise)
    try:
        yield
    except passes:
        raise
    except (Exception, SystemExit) as error:
        log.exception("the driver's %s failed", _name(hook))
        raise TtmError(errno.EIO, f"the driver's {_name(hook)} failed: {type(error).__name__}: {error}") from None


def _name(hook: _Hook) -> str:
    return str(getattr(hook, "__qualname__", hook))


def _plain(hook: _Hook) -> _Hook:
    @wraps(hook)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _told(hook):
            return hook(*args, **kwargs)

    return call


def _notification(hook: _Hook) -> _Hook:
    @wraps(hook)
    def call(*args: Any) -> None:
        try:
            hook(*args)
        except (Exception, SystemExit):
            log.exception("the driver's %s failed", _name(hook))

    return call


def _placement(hook: _Hook) -> _Hook:
    @wraps(hook)
    def call(bo: Any) -> Any:
        with _told(hook):
            found = hook(bo)
        _check_placement(found, hook)
        return found

    return call


def _check_placement(found: object, hook: _Hook) -> None:
    if not isinstance(found, tuple) or not all(isinstance(place, Place) for place in found):
        raise TtmError(errno.EIO, f"the driver's {_name(hook)} says {found!r:.80}, which is no tuple of places")


def _awaited(hook: _AsyncHook) -> _AsyncHook:
    @wraps(hook)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with _told(hook):
            return await hook(*args, **kwargs)

    return call


def _move(hook: _AsyncHook) -> _AsyncHook:
    """It has moved the BO or it has not, whichever the BO says; only a move may ask for a hop."""

    @wraps(hook)
    async def call(bo: Any, resource: Any, *args: Any, **kwargs: Any) -> None:
        try:
            with _told(hook, Multihop):
                await hook(bo, resource, *args, **kwargs)
        except BaseException as error:
            if bo.resource is not resource:
                if isinstance(error, Multihop):
                    _check_placement(error.hop, hook)
                raise
            # Who hears that it failed takes the space back, in which the BO is. Who was cancelled hears it again.
            bo.last_error = f"the driver's {_name(hook)} failed after it had moved: {error}"
            log.exception("the driver's %s failed after it had moved %r", _name(hook), bo.name)
        if bo.resource is not resource:
            where = f"{bo.name!r} is not in {resource.mem_type}"
            raise TtmError(errno.EIO, f"the driver's {_name(hook)} says that it has moved, and {where}")

    return call


def _fault(hook: _AsyncHook) -> _AsyncHook:
    @wraps(hook)
    async def call(vmf: VmFault) -> FaultResult:
        try:
            with _told(hook):
                found = await hook(vmf)
        finally:
            # Whatever it says: what it leaves reserved nobody would ever have again.
            vmf.unreserve()
        if isinstance(found, FaultResult):
            return found
        raise TtmError(errno.EIO, f"the driver's {_name(hook)} says {found!r:.80}, which is no FaultResult")

    return call

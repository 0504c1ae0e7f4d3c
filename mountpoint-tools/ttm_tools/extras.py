"""What only some programs need is installed with an extra; who has not got it is told which."""

from collections.abc import Iterator
from contextlib import contextmanager

from ttm_tools.errors import NO_MOUNT, MountError


@contextmanager
def needed(what: str, package: str, extra: str, instead: str = "") -> Iterator[None]:
    """Around the imports of `package`. MountError, with what to install or do instead, when it is not there."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "ttm_tools":
            raise
        why = f"{what} needs {package}: pip install 'ttmfs[{extra}]'{instead and f', or {instead}'}"
        raise MountError(why, NO_MOUNT) from None

"""Policy files: `PATH.py:Class`, read, compiled and run as a module of its own each time.

Reading, compiling and importing what the file imports may take long, so `read_source` belongs into a thread. What is
left to run is the file's own top level, which its caller does within a deadline (`Source.load`).
"""

import ast
import errno
import importlib
import os
import stat
import sys
from dataclasses import dataclass
from itertools import count
from types import CodeType, ModuleType
from typing import Final

from ttmfs.errors import TtmError

MAX_BYTES: Final = 1 << 20
"""A longer file is no policy."""

_number: Final = count(1)


@dataclass(frozen=True, slots=True)
class Source:
    """A compiled policy file, and which of its names is meant. `text` is what it was compiled from."""

    path: str
    attribute: str
    text: bytes
    code: CodeType

    def load(self) -> object:
        """Run its top level in a fresh module and return what the name stands for there; whatever it raises."""
        module = ModuleType(f"ttmfs_policy_{next(_number)}")
        module.__file__ = self.path
        # Dataclasses and their likes look for the module of a class while it is made; afterwards nobody does.
        sys.modules[module.__name__] = module
        try:
            exec(self.code, module.__dict__)
        finally:
            del sys.modules[module.__name__]
        try:
            return getattr(module, self.attribute)
        except AttributeError:
            raise TtmError(errno.EINVAL, f"{self.path} has no class {self.attribute}") from None


def read_source(path: str, attribute: str, owner: int | None) -> Source:
    """Read and compile a file. `owner`: it must be this user's or root's, and writable by nobody else.

    TtmError: what open says, EACCES for another's file, EFBIG, EINVAL for what does not compile.
    """
    try:
        # A FIFO must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TtmError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise TtmError(errno.EINVAL, f"{path} is no regular file")
        if owner is not None and (facts.st_uid not in (owner, 0) or facts.st_mode & 0o022):
            raise TtmError(
                errno.EACCES,
                f"{path}: a policy file must belong to the mount's owner or root: chmod go-w it, or copy it",
            )
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise TtmError(errno.EFBIG, f"{path} is larger than 1 MiB")
    return compile_source(path, attribute, text)


def compile_source(path: str, attribute: str, text: bytes) -> Source:
    """The same from a text that is at hand. TtmError(EINVAL) with the line where it does not compile."""
    try:
        tree = ast.parse(text, path)
        code = compile(tree, path, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise TtmError(errno.EINVAL, f"{path}{line}: {getattr(error, 'msg', None) or error}") from None
    for statement in tree.body:
        _import(statement)
    return Source(path, attribute, text, code)


def _import(statement: ast.stmt) -> None:
    """Import now what the file imports at its top level. What fails, fails again when the file runs, and says so."""
    names: list[str] = []
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
        names = [statement.module]
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit):
            continue

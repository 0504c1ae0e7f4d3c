"""The registry: which policies there are, and how one is made from what somebody wrote.

A name is one of the shipped policies, or one that an installed package registers as an entry point of the group
`ttmfs.policies` (a subclass of Evict, Prefetch or Promote, which says its kind). `module:Class` is imported,
`PATH.py:Class` is read anew each time.

Two steps, because files and imports take time and policy code is foreign: `prepare` may block and belongs into a
thread; `Prepared.make` runs the code of the file and of the class, within a deadline if its caller has one.
"""

import errno
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from ttmfs.errors import TtmError, no_such
from ttmfs.policy.api import BASES, Evict, Kind, Policy
from ttmfs.policy.files import Source, read_source
from ttmfs.policy.parameters import Parameter, Spec, arguments, first_sentence, parameters_of
from ttmfs.policy.shipped import SHIPPED

GROUP: Final = "ttmfs.policies"

Call = Callable[..., Any]
"""`call(function, *args)` runs foreign code: within a deadline, or just so."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy that is to be had by name."""

    kind: Kind
    name: str
    cls: type[Policy]
    parameters: tuple[Parameter, ...]
    sentence: str

    def line(self) -> str:
        """As `policies/available` shows it: kind, name, parameters with their defaults, one sentence."""
        return "\t".join((self.kind, self.name, " ".join(map(str, self.parameters)), self.sentence))


def entry_of(kind: Kind, name: str, found: object) -> Entry:
    """What is known of a class. TtmError(EINVAL) when it is none that can be used as this kind of policy."""
    base = BASES[kind]
    if not isinstance(found, type) or not issubclass(found, base):
        raise TtmError(
            errno.EINVAL, f"{name} is no {kind} policy: its class must derive from ttmfs.policy.{base.__name__}"
        )
    cls = found
    if issubclass(cls, Evict) and cls.victims is Evict.victims:
        raise TtmError(errno.EINVAL, f"{name} has no victims(): it could never answer")
    return Entry(kind, name, cls, parameters_of(cls), first_sentence(cls))


def kind_of(found: object) -> Kind | None:
    """Which kind a class is; None when it is no policy."""
    for kind, base in BASES.items():
        if isinstance(found, type) and issubclass(found, base):
            return kind
    return None


@cache
def _shipped() -> dict[tuple[Kind, str], Entry]:
    return {(kind, name): entry_of(kind, name, cls) for kind, table in SHIPPED.items() for name, cls in table.items()}


def shipped_names(kind: Kind) -> list[str]:
    """What the policies of a kind that come with ttmfs are called."""
    return [name for of, name in _shipped() if of == kind]


def available() -> tuple[list[Entry], list[str]]:
    """All that are to be had by name, the shipped ones first, and what is wrong with those that cannot be loaded.

    It imports what installed packages register, so it may take time.
    """
    entries = list(_shipped().values())
    problems = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            found = point.load()
            kind = kind_of(found)
            if kind is None:
                problems.append(f"{point.name}: {point.value} is no policy")
            elif (kind, point.name) not in _shipped():
                entries.append(entry_of(kind, point.name, found))
        except (Exception, SystemExit) as error:  # whatever a package does when it is imported
            problems.append(f"{point.name}: {point.value} cannot be loaded: {error}")
    return entries, problems


@dataclass(frozen=True, slots=True)
class Prepared:
    """A policy that was found but not made: `source` is a file to be run, `entry` a class."""

    spec: Spec
    entry: Entry | None = None
    source: Source | None = None

    def make(self, call: Call) -> Policy:
        """A new instance. TtmError(EINVAL) for what is wrong with file, class or arguments; else what they raise."""
        entry = self.entry
        if entry is None:
            assert self.source is not None
            found = call(self.source.load)
            entry = call(entry_of, self.spec.kind, self.spec.name, found)
        keywords = arguments(self.spec.name, entry.parameters, self.spec.args)
        return cast("Policy", call(lambda: entry.cls(**keywords)))


def prepare(spec: Spec, owner: int | None = None) -> Prepared:
    """Find what `spec` names; may block, and belongs into a thread.

    `owner`: a file must belong to this user or to root, and be writable by nobody else; None: whoever's it is.
    TtmError: EINVAL no such policy, module or class, or a file that does not compile; the file's own errno; EACCES.
    """
    if spec.where is None:
        return Prepared(spec, _find(spec.kind, spec.name))
    place, attribute = spec.where
    if place.endswith(".py"):
        return Prepared(spec, source=read_source(place, attribute, owner))
    try:
        module = importlib.import_module(place)
        found = getattr(module, attribute)
    except (Exception, SystemExit) as error:
        raise TtmError(errno.EINVAL, f"{spec.name} cannot be imported: {error}") from None
    return Prepared(spec, entry_of(spec.kind, spec.name, found))


def _find(kind: Kind, name: str) -> Entry:
    entry = _shipped().get((kind, name))
    if entry is not None:
        return entry
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        try:
            found = point.load()
        except (Exception, SystemExit) as error:
            raise TtmError(errno.EINVAL, f"{name} ({point.value}) cannot be loaded: {error}") from None
        if kind_of(found) == kind:
            return entry_of(kind, name, found)
    raise no_such(name, f"{kind} policy", shipped_names(kind), ", or PATH.py:Class")

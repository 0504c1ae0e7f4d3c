"""Parameters: how a policy and its arguments are written, and what its class says that it takes.

s3fifo
s3fifo small=0.2 promote_at=1
mypolicies:Best depth=4
/home/me/best.py:Best
"""

import errno
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ttmfs.errors import TtmError, meant
from ttmfs.policy.api import Kind
from ttmfs.units import parse_size

_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z_][\w.]*")
_TRUTH: Final = {
    "1": True,
    "yes": True,
    "true": True,
    "on": True,
    "0": False,
    "no": False,
    "false": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A policy as it is written: its kind, its name (or `module:Class`, or `PATH.py:Class`) and its arguments."""

    kind: Kind
    name: str
    args: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.args.items())])

    @property
    def where(self) -> tuple[str, str] | None:
        """("PATH.py", "Class") or ("module", "Class"); None for a plain name."""
        place, colon, attribute = self.name.rpartition(":")
        return (place, attribute) if colon else None


def parse_spec(kind: Kind, words: Iterable[str]) -> Spec:
    """`NAME [key=value…]`. TtmError(EINVAL) says what is wrong with which word."""
    found = list(words)
    if not found:
        raise TtmError(errno.EINVAL, f"say which {kind} policy: NAME [key=value…]")
    name, *rest = found
    place, colon, attribute = name.rpartition(":")
    if not (place and _ATTRIBUTE.fullmatch(attribute) if colon else _NAME.fullmatch(name)):
        raise TtmError(
            errno.EINVAL, f"{name[:80]!r} is no policy: say a name of policies/available, module:Class or PATH.py:Class"
        )
    args: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise TtmError(errno.EINVAL, f"{word[:80]!r}: parameters of a policy are written key=value")
        if key in args:
            raise TtmError(errno.EINVAL, f"{key} is given twice")
        args[key] = value
    return Spec(kind, name, args)


def split_list(kind: Kind, text: str) -> list[Spec]:
    """`lru,s3fifo,small=0.2,sieve`: what has an equals sign belongs to the name before it. TtmError(EINVAL)."""
    policies: list[list[str]] = []
    for word in text.split(","):
        if "=" in word and policies:
            policies[-1].append(word)
        else:
            policies.append([word])
    return [parse_spec(kind, words) for words in policies]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a policy's class: `type` is int, float, bool or str."""

    name: str
    type: type
    default: object

    def __str__(self) -> str:
        return f"{self.name}={self.default}"

    def parse(self, text: str) -> object:
        """Its value. TtmError(EINVAL) naming it. An int takes K, M, G and T as sizes do."""
        try:
            if self.type is bool:
                return _TRUTH[text.lower()]
            if self.type is int:
                return -parse_size(text[1:]) if text.startswith("-") else parse_size(text)
            if self.type is float:
                return float(text)
        except (KeyError, ValueError, TtmError):
            what = {bool: "yes or no", int: "a whole number", float: "a number"}[self.type]
            raise TtmError(errno.EINVAL, f"{self.name}={text[:40]}: say {what}") from None
        return text


def parameters_of(cls: type) -> tuple[Parameter, ...]:
    """What `cls(…)` takes, from the signature of its __init__. TtmError(EINVAL) for what cannot be given as text."""
    init = cls.__init__  # type: ignore[misc]
    if init is object.__init__:
        return ()
    try:
        hints = typing.get_type_hints(init)
    except Exception as error:
        raise _unfit(cls, f"the types of its parameters cannot be read ({type(error).__name__})") from None
    found = []
    for parameter in list(inspect.signature(init).parameters.values())[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise _unfit(cls, f"{parameter} cannot be given by name")
        if parameter.default is parameter.empty:
            raise _unfit(cls, f"parameter {parameter.name} has no default")
        kind = hints.get(parameter.name, type(parameter.default))
        if kind not in (int, float, bool, str):
            raise _unfit(cls, f"parameter {parameter.name} is neither int, float, bool nor str")
        found.append(Parameter(parameter.name, kind, parameter.default))
    return tuple(found)


def _unfit(cls: type, why: str) -> TtmError:
    return TtmError(errno.EINVAL, f"{cls.__name__} cannot be used as a policy: {why}")


def arguments(name: str, parameters: Iterable[Parameter], args: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments for the class. TtmError(EINVAL) naming the key that is unknown or the value that is wrong."""
    known = {parameter.name: parameter for parameter in parameters}
    for key in args:
        if key not in known:
            near = meant(key, known)
            hint = f"did you mean {near}? It" if near else "it"
            takes = " ".join(map(str, known.values())) or "no parameters"
            raise TtmError(errno.EINVAL, f"{name} has no parameter {key!r}: {hint} takes {takes}")
    return {key: known[key].parse(text) for key, text in args.items()}


def first_sentence(cls: type | Callable[..., object]) -> str:
    """What a listing says of a class: its docstring up to the first full stop, in one line; "" without one."""
    text = " ".join((cls.__doc__ or "").split())
    match = re.match(r".*?[.!?](?=\s|$)", text)
    return match[0] if match else text

"""The locks of requirements/ have what the pyproject files ask for, for every Python that they name."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("3.*.lock"))
BUILD = ROOT / "requirements" / "build.lock"
PROJECT = ROOT / "pyproject.toml"


def project() -> dict[str, Any]:
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))


def asked_for() -> Iterator[Requirement]:
    """Of others: an extra may name those of ttmfs's own."""
    found = project()["project"]
    for part in (found["dependencies"], *found["optional-dependencies"].values()):
        yield from (asked for asked in map(Requirement, part) if asked.name != found["name"])


def pinned(lock: Path) -> dict[str, str]:
    """The version of each package of a lock. Every one must have a hash."""
    text = lock.read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.M)), "not name==version with hashes"
    return {canonicalize_name(name): version for name, version, _ in entries}


def wrong(requirements: list[Requirement], lock: Path, python: str) -> list[str]:
    """What `requirements` ask for on that Python and the lock does not have."""
    have = pinned(lock)
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}

    def is_met(requirement: Requirement) -> bool:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            return True
        version = have.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    return [str(requirement) for requirement in requirements if not is_met(requirement)]


def test_there_is_one_for_every_python_from_the_oldest_on() -> None:
    oldest = project()["project"]["requires-python"].removeprefix(">=")
    minors = [int(lock.stem.removeprefix("3.")) for lock in LOCKS]
    assert f"3.{min(minors)}" == oldest
    assert sorted(minors) == list(range(min(minors), max(minors) + 1))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_it_has_what_is_asked_for(lock: Path) -> None:
    assert not wrong(list(asked_for()), lock, lock.stem), "scripts/lock writes it anew"


def test_what_builds_is_locked_too() -> None:
    builders = [Requirement(text) for text in project()["build-system"]["requires"]]
    assert not wrong(builders, BUILD, "3.11"), "scripts/lock writes it anew"


@pytest.mark.parametrize("lock", [*LOCKS, BUILD], ids=lambda lock: lock.stem)
def test_it_names_no_host_and_no_folder(lock: Path) -> None:
    assert not re.findall(r"^.*(?:://|[\s=]/|--index|--find-links).*$", lock.read_text(encoding="utf-8"), re.M)


def test_a_stale_lock_is_seen() -> None:
    stale = [Requirement(text) for text in ("numpy>=99", "no-such-package", 'no-such-package; python_version < "3"')]
    assert wrong(stale, LOCKS[0], LOCKS[0].stem) == ["numpy>=99", "no-such-package"]

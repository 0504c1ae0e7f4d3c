"""A tree of Python files as `tests/test_architecture.py` sees it: modules, who imports whom and where, circles.

Read as text: nothing is imported. An import for type checkers alone is an import.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`importer` (a module) names `imported` (a module of the tree, or the whole name of one outside) in `line`.

    `inside`: the function whose body it is in, "" at the module's top.
    """

    importer: str
    imported: str
    line: int
    inside: str


@dataclass
class Module:
    """One file: its dotted name, path, text."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def header(self) -> str:
        """The docstring at its top."""
        return ast.get_docstring(self.tree) or ""

    @property
    def num_lines(self) -> int:
        return self.text.count("\n")

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def names(self) -> Iterator[tuple[str, int, str]]:
        """(dotted name, line, function around it) of every import."""
        yield from self._names(self.tree, "")

    def _names(self, node: ast.AST, inside: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = self._absolute(child)
                yield from ((f"{base}.{alias.name}", child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._names(child, child.name)
            else:
                yield from self._names(child, inside)

    def _absolute(self, node: ast.ImportFrom) -> str:
        package = self.name.split(".")
        if node.level:
            package = package[: len(package) - node.level + self.is_package]
        return ".".join([*(package if node.level else []), *([node.module] if node.module else [])])


@dataclass
class SourceTree:
    """All modules of one package."""

    modules: dict[str, Module] = field(default_factory=dict)

    @classmethod
    def read(cls, package: Path) -> "SourceTree":
        """The package in this folder, with all below."""
        found = cls()
        for path in sorted(package.rglob("*.py")):
            parts = [package.name, *path.relative_to(package).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.modules[name] = Module(name, path, path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, of modules of the tree under their own name: `from a.b import C` is one of a.b."""
        return [
            Import(module.name, self._module(name), line, inside)
            for module in self.modules.values()
            for name, line, inside in module.names()
        ]

    def _module(self, name: str) -> str:
        if name.partition(".")[0] not in self.modules:
            return name
        while name not in self.modules:
            name = name.rpartition(".")[0]
        return name

    def circles(self) -> list[frozenset[str]]:
        """Groups of modules each of which imports every other one, straight or through others."""
        reached = {name: self._reached(name) for name in self.modules}
        groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in self.modules}
        return sorted((group for group in groups if len(group) > 1), key=sorted)

    @cached_property
    def _arrows(self) -> dict[str, list[str]]:
        arrows: dict[str, list[str]] = {name: [] for name in self.modules}
        for found in self.imports:
            if found.imported in arrows and found.imported != found.importer:
                arrows[found.importer].append(found.imported)
        return arrows

    def _reached(self, start: str) -> set[str]:
        reached: set[str] = set()
        todo = [start]
        while todo:
            for name in self._arrows[todo.pop()]:
                if name not in reached:
                    reached.add(name)
                    todo.append(name)
        return reached

"""docs/kernel-map.md: which place of ttmfs stands for which name of the kernel, from the docstrings that say so.

A kernel name is one with a prefix of PREFIXES, in the docstring of a module, class, function or attribute of ttmfs. So
the map is as true as the docstrings, and gets longer by writing one.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[2] / "ttmfs"
PREFIXES: Final = (
    *("ttm", "dma_fence", "dma_resv", "ww", "drm_exec", "drm_mm", "drm_buddy", "gpu_buddy", "drm_pagemap"),
    *("drm_gpusvm", "drm_print", "xe", "i915", "amdgpu", "vmw", "page_counter", "fuse_notify"),
    *("dmem_cgroup", "drm_gpuvm", "drm_sched", "drm_syncobj"),
)
BARE: Final = (
    *("dma_fence", "dma_resv", "drm_exec", "drm_mm", "drm_gpuvm", "drm_gpuva", "drm_gpusvm", "drm_pagemap"),
    *("drm_sched", "drm_syncobj", "drm_buddy", "gpu_buddy"),
)
"""Prefixes that are the name of a thing as well."""
NAME: Final = re.compile(rf"\b(?:{'|'.join(PREFIXES)})_[a-z0-9_]*[a-z0-9]\b|\b(?:{'|'.join(BARE)})\b")
OURS: Final = re.compile(r"^(?:ttm_tools|ww_class|xe_mount)$")
"""Looks like a kernel name and is ours."""

GROUPS: Final = (
    ("TTM", r"ttm_"),
    ("Fences, reservations, exec", r"dma_|ww_|drm_exec"),
    ("Allocators", r"drm_mm|drm_buddy|gpu_buddy"),
    ("Shared virtual memory", r"drm_gpusvm|drm_gpuv|drm_pagemap|xe_svm|xe_vm"),
    ("Drivers and the rest", r""),
)
"""Headings, and how the names below them begin; a name goes to the first that fits."""

HEAD: Final = """\
# The kernel's names

Where a name of the kernel is found in ttmfs. Made by `./scripts/docs` from the docstrings, which name what they stand
for; what is not in this table ttmfs does not have, or does not say. Paths are below `ttmfs/`.
"""


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of what a file defines; the file itself has the empty name."""
    yield from _docstrings(ast.parse(path.read_text(encoding="utf-8")), "")


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, text
    before: ast.stmt | None = None
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}".lstrip("."))
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant) and (target := _assigned(before)):
            yield f"{name}.{target}".lstrip("."), str(child.value.value)
        before = child


def _assigned(statement: ast.stmt | None) -> str:
    """The name that a statement gives a value to."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return next((target.id for target in targets if isinstance(target, ast.Name)), "")


def places() -> dict[str, list[str]]:
    """By kernel name: the places that name it, as `file: name`, or `file` where its header does."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for name, text in docstrings(path):
            for kernel in NAME.findall(text):
                if not OURS.match(kernel):
                    found.setdefault(kernel, {})[f"`{file}`: `{name}`" if name else f"`{file}`"] = None
    return {kernel: list(where) for kernel, where in sorted(found.items())}


def kernel_map() -> str:
    """The document."""
    rows = places()
    parts = [HEAD]
    for heading, begins in GROUPS:
        mine = [kernel for kernel in rows if re.match(begins, kernel)]
        parts.append(f"\n## {heading}\n\n| kernel | ttmfs |\n|---|---|\n")
        parts.extend(f"| `{kernel}` | {', '.join(rows.pop(kernel))} |\n" for kernel in mine)
    return "".join(parts)

"""Owners: which system pages address spaces hold, for maps of memory. What they have in VRAM are BOs like any other."""

from collections.abc import Iterator

from ttmfs.svm.pages import Pages
from ttmfs.svm.spaces import Svm


def owned_pages(svm: Svm) -> Iterator[tuple[str, Pages]]:
    """(`svm:NAME`, page numbers) in small pieces, as they are when each is asked for."""
    for space in list(svm.spaces):
        label = f"svm:{space.name}"
        for chunk in list(space.chunks.values()):
            if chunk.pages.present:
                yield label, chunk.pages.numbers(chunk.pages.present)
            for move in chunk.moves:
                yield label, move.system_pages()

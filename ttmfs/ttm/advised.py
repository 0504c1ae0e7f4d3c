"""Advised victims: who goes first where a region has an adviser (see ttmfs.ttm.advice); evicts nobody itself.

Level by level of priority, as the LRU is walked. Nothing is awaited between the question and its answer. An answer is
good for one victim; then the adviser is asked anew. Where it names nobody who can be had, the LRU is walked.
"""

from collections.abc import Callable, Iterator

from ttmfs.ttm.advice import Adviser
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.lru import NUM_PRIORITIES
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.walk import Walk


def _levels(manager: ResourceManager) -> Iterator[int]:
    """Priorities of which there is somebody, the lowest first."""
    return (level for level in range(NUM_PRIORITIES) if manager.lru.lists[level].first() is not None)


def named_victim(walk: Walk, adviser: Adviser, *, may_wait: bool) -> tuple[Resource, bool] | None:
    """The first one named who may be evicted for this walk, and whether it is locked now; None: there is none.

    With `may_wait` somebody whom others hold is an answer too, as in a walk of the LRU.
    """
    for level in _levels(walk.manager):
        with adviser.victims(walk.bo.num_pages, walk.bo, level, walk.spares) as victims:
            for bo in victims:
                resource = bo.resource
                if not isinstance(resource, Resource) or walk.spares(bo) or not walk.wants(resource):
                    continue
                if walk.trylock(bo):
                    return resource, True
                if may_wait:
                    return resource, False
    return None


def first_named(
    manager: ResourceManager,
    adviser: Adviser,
    fits: Callable[[BufferObject], bool],
    *,
    pages: int = 1,
    for_bo: BufferObject | None = None,
) -> Resource | None:
    """Who goes first of those that fit, where no place is wanted, but `pages` pages are; None: nobody is named."""
    for level in _levels(manager):
        with adviser.victims(pages, for_bo, level, lambda _bo: False) as victims:
            for bo in victims:
                resource = bo.resource
                if isinstance(resource, Resource) and resource.manager is manager and fits(bo):
                    return resource
    return None

"""Populating and freeing in steps so small that BOs of a few pages take many."""

import pytest

from ttmfs.ttm.leaves import LEAF_PAGES

STEP = 48


def small_steps(patch: pytest.MonkeyPatch, pages: int = STEP) -> None:
    """From now on."""
    patch.setattr("ttmfs.ttm.populate.STEP_PAGES", pages)
    patch.setattr("ttmfs.ttm.populate.IN_A_LULL", 1)
    patch.setattr("ttmfs.ttm.populate._ZEROED_AT_ONCE", pages // 2)
    patch.setattr("ttmfs.ttm.tt.STEP_PAGES", pages)
    patch.setattr("ttmfs.ttm.holdings.STEP_PAGES", LEAF_PAGES)
